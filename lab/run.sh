#!/bin/bash
# Measures a lab variant on this host and checks our prediction for it: run.sh VARIANT [OUT]
# Prints the step times without and with the profiler, moe-advisor's verdict on the capture and,
# where pairs.tsv names the variant with one change made, the predicted beside the measured gain.
# Exits 77 (skipped) with a reason where the host cannot run it.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: run.sh VARIANT [OUT]" >&2; exit 2; }
variant=$1 out=${2:-lab-out}
here=$(cd "$(dirname "$0")" && pwd)
skip() { echo "skipped: $1" >&2; exit 77; }
has() { python3 -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }
name=${variant#shm_} script=ep_moe.py
case $name in mcore_*) name=${name#mcore_} script=mcore_train.py;; esac
grep -qE "^    \"$name\": " "$here/$script" || {
  echo "run.sh: no variant $variant; $script has: $(
    sed -nE 's/^    "([a-z0-9_]+)": (dict|Variant|unfused|with_te)\(.*/\1/p' "$here/$script" | tr '\n' ' ')" >&2
  exit 2
}
command -v nvidia-smi > /dev/null || skip "no NVIDIA driver on this host"
gpus=$(nvidia-smi -L 2> /dev/null | wc -l)
[ "$gpus" -ge 2 ] || skip "needs two GPUs, found $gpus"
command -v torchrun > /dev/null || skip "torchrun is not on PATH: install PyTorch with CUDA"
case $variant in *mcore_*) has megatron || skip "mcore_ variants need megatron-core 0.16 on PYTHONPATH";; esac
case $variant in *mcore_te*) has transformer_engine || skip "mcore_te variants need Transformer Engine";; esac
case $variant in *deepep*) has deep_ep || skip "$variant needs DeepEP (deep_ep)";; esac
case $variant in *ncclep*) has nccl || skip "$variant needs nccl-extensions and NCCL 2.30";; esac
mkdir -p "$out"
# measure MODE VARIANT: what the trainer said of it; fails where it could not run.
measure() {
  "$here/capture.sh" "$1" "$2" "$out" > "$out/$2.$1.log" 2>&1 || true
  grep -hE '^(RESULT|FAILED)' "$out/$2.$1.log" || { tail -5 "$out/$2.$1.log" >&2; return 1; }
}
measure torch "$variant"
if command -v nsys > /dev/null; then
  measure nsys "$variant" || echo "the Nsight Systems capture failed: $out/$variant.nsys.log" >&2
else
  echo "no Nsight Systems capture: nsys is not on PATH" >&2
fi
command -v moe-advisor > /dev/null || { echo "no analysis: moe-advisor is not on PATH" >&2; exit 0; }
moe-advisor analyze "$out/$variant".rank*.json
link=${variant%"${variant#shm_}"} # a slow link slows the variant and its change alike
while read -r before after change; do
  [ "$link$before" = "$variant" ] || continue
  echo "== $variant -> $link$after ($change)"
  moe-advisor whatif "$out/$variant".rank*.json --apply "$change" | sed 's/^/predicted: /'
  measure none "$link$after" > "$out/$link$after.result" || { echo "measured: $link$after did not run"; continue; }
  python3 "$here/median.py" "$out/$variant.torch.log" "$out/$link$after.none.log"
done < "$here/pairs.tsv"
