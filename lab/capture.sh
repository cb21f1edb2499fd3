#!/bin/bash
# Captures lab variants on one host with GPUs: capture.sh torch|nsys|none VARIANT[,VARIANT...] [OUT]
#   torch: PyTorch profiler, one JSON per rank. nsys: one report of all ranks and its SQLite export
#   (one variant a call). none: step times only.
# Variants are those of ep_moe.py; mcore_NAME those of mcore_train.py (megatron-core on PYTHONPATH);
# shm_NAME and shm_mcore_NAME run with GPU peer-to-peer off, which stands in for a slow link.
# CUDA_GRAPH_TRACE=graph traces CUDA graphs whole; NO_EXPORT=1 leaves the export to export.sh;
# NSYS_ARGS holds more options of nsys, LAB_ARGS more of the trainer; GPUS is how many to use (all),
# the first that CUDA_VISIBLE_DEVICES leaves.
set -euo pipefail
mode=$1 variants=$2 out=${3:-.}
here=$(cd "$(dirname "$0")" && pwd)
n=${GPUS:-$(nvidia-smi -L | wc -l)}
export OMP_NUM_THREADS=8 CUDA_DEVICE_MAX_CONNECTIONS=8 TORCH_NCCL_AVOID_RECORD_STREAMS=1
export PYTHONPATH=$here/shim:${PYTHONPATH:-}
prefix='' script=ep_moe.py
case $variants in shm_*) export NCCL_P2P_DISABLE=1; prefix=shm_; variants=${variants//shm_/};; esac
case $variants in mcore_*) script=mcore_train.py; prefix=${prefix}mcore_; variants=${variants//mcore_/};; esac
mkdir -p "$out"
run=(torchrun --nproc-per-node "$n" --master-port $((29500 + RANDOM % 400)) "$here/$script"
     --variants "$variants" --prefix "$prefix" --out "$out" --mode "$mode" ${LAB_ARGS:-})
if [ "$mode" != nsys ]; then exec "${run[@]}"; fi
name=$prefix$variants
# Where the image ships nsys only inside Nsight Compute, that one serves.
nsys=${NSYS:-$(command -v nsys || ls /opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys | tail -1)}
graphs=${CUDA_GRAPH_TRACE:-node}
[ "$graphs" = graph ] && name=${name}_whole
"$nsys" profile -t cuda,nvtx -s none --cpuctxsw=none --cuda-memory-usage=true \
  --cuda-graph-trace="$graphs" --cuda-event-trace=true -c cudaProfilerApi \
  --capture-range-end=stop --kill=none ${NSYS_ARGS:-} -f true -o "$out/$name" "${run[@]}" || echo "capture ended with $?"
[ -n "${NO_EXPORT:-}" ] || "$here/export.sh" "$out/$name"
