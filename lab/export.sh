#!/bin/bash
# Turns OUT/NAME.nsys-rep (or the raw OUT/NAME.qdstrm) into OUT/NAME.sqlite: export.sh OUT/NAME
# --include-blobs keeps NCCL's NVTX payloads, which tell expert from pipeline traffic.
# The nsys inside Nsight Compute needs libdw.so.1 on LD_LIBRARY_PATH to import.
set -euo pipefail
nsys=${NSYS:-$(command -v nsys || ls /opt/nvidia/nsight-compute/*/host/target-linux-x64/nsys | tail -1)}
if [ ! -f "$1.nsys-rep" ]; then
  importer=$(ls "$(dirname "$nsys")"/../*/QdstrmImporter | head -1)
  host=$(dirname "$nsys")/../host-linux-x64  # the folder name that the importer looks for
  [ -e "$host" ] || ln -sn "$(cd "$(dirname "$importer")" && pwd)" "$host" || true
  "$importer" -i "$1.qdstrm"
fi
"$nsys" export -t sqlite --include-blobs=true -f true -o "$1.sqlite" "$1.nsys-rep"
