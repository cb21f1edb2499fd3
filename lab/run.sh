#!/bin/bash
# Measures a lab variant on this host and analyses it: run.sh VARIANT [OUT]
# Prints the step times without and with the profiler and moe-advisor's verdict on the capture, so
# that a prediction can be checked: run the variant and the one it is compared with (README.md).
# Exits 77 (skipped) with a reason where the host cannot run it.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: run.sh VARIANT [OUT]" >&2; exit 2; }
variant=$1 out=${2:-lab-out}
here=$(cd "$(dirname "$0")" && pwd)
skip() { echo "skipped: $1" >&2; exit 77; }
command -v nvidia-smi > /dev/null || skip "no NVIDIA driver on this host"
gpus=$(nvidia-smi -L 2> /dev/null | wc -l)
[ "$gpus" -ge 2 ] || skip "needs two GPUs, found $gpus"
command -v torchrun > /dev/null || skip "torchrun is not on PATH: install PyTorch with CUDA"
case $variant in *mcore_*)
  python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("megatron") is None)' ||
    skip "mcore_ variants need megatron-core 0.16 on PYTHONPATH";;
esac
mkdir -p "$out"
"$here/capture.sh" torch "$variant" "$out" 2>&1 | tee "$out/$variant.log" | grep -E '^(RESULT|FAILED)'
if command -v nsys > /dev/null; then
  "$here/capture.sh" nsys "$variant" "$out" 2>&1 | tee "$out/$variant.nsys.log" | grep -E '^(RESULT|FAILED)'
else
  echo "no Nsight Systems capture: nsys is not on PATH" >&2
fi
if command -v moe-advisor > /dev/null; then
  moe-advisor analyze "$out/$variant".rank*.json
fi
