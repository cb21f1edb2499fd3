#!/usr/bin/env bash
# Builds the Dockerfile as it stands and runs the image as its head says, with podman and without a
# daemon. For development: `.ci/run` does not call it, because it needs an engine and a base image.
#   bash .ci/image.sh         # pulls the base image
#   bash .ci/image.sh BASE    # BASE, a root folder or its tar, stands in for the base image
# Images live in a folder of their own that is removed at the end. What a sandbox needs beside that
# goes through BUILD_FLAGS, RUN_FLAGS and PODMAN_FLAGS; docs/releases.md has an example.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d "${TMPDIR:-/var/tmp}/moe-advisor-image.XXXXXX")
clean() {
  if [ "$(id -u)" = 0 ]; then
    umount -q "$work/store/overlay" || true  # the overlay driver leaves its folder mounted
    rm -rf "$work"
  else
    podman unshare rm -rf "$work"
  fi
}
trap clean EXIT
read -ra podman_flags <<<"${PODMAN_FLAGS:-}"
read -ra build_flags <<<"${BUILD_FLAGS:-}"
read -ra run_flags <<<"${RUN_FLAGS:-}"
engine() { podman --root "$work/store" --runroot "$work/run" "${podman_flags[@]}" "$@"; }

from=$(sed -n 's/^FROM \(\S*\).*/\1/p' Dockerfile | sort -u)
if [ $# -gt 0 ]; then
  tar=$1
  if [ -d "$1" ]; then
    tar=$work/base.tar
    tar --numeric-owner -C "$1" -cf "$tar" .
  fi
  engine import -q "$tar" "docker.io/library/$from" >/dev/null
  rm -f "$work/base.tar"
  build_flags+=(--pull=never)
fi
began=$SECONDS
engine build -q "${build_flags[@]}" -t moe-advisor . >/dev/null
echo "built in $((SECONDS - began)) s"
engine image inspect --format '{{.Size}} bytes, base image included' moe-advisor
trap 'engine rm -fa >/dev/null 2>&1 || true; clean' EXIT

mkdir "$work/traces" "$work/out"
cp moe_advisor/demo/*.json.gz "$work/traces"
chmod 777 "$work/out"
# The options of the Dockerfile's head; arguments before -- go to the engine, those after to the image.
contained() {
  local options=()
  while [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  engine run --rm --network none --read-only --tmpfs /tmp "${run_flags[@]}" "${options[@]}" \
    -v "$work/traces:/work:ro" -v "$work/out:/out" moe-advisor "$@"
}
inside() { contained --entrypoint python -- -c "$1"; }
expect() { # expect NAME WANTED GOT
  if [[ $3 != $2 ]]; then echo "image: $1: wanted '$2', got '$3'" >&2; exit 1; fi
  local last=${3##*$'\n'}
  echo "ok: $1: ${last:-$2}"
}
exit_code() { local code=0; "$@" >"$work/said" 2>&1 || code=$?; echo "$code"; }

expect "user" "10001 0000000000000000" \
  "$(inside 'import os; print(os.getuid(), *[l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")])')"
expect "network" "lo" "$(inside 'import socket; print(*[n for _, n in socket.if_nameindex()])')"
expect "no arguments: the help" "Usage: moe-advisor*" "$(contained -- )"
expect "doctor: exit" 0 "$(exit_code contained -- doctor)"
expect "analyze: exit" 0 "$(exit_code contained -- analyze /work -o /out -q)"
expect "analyze: what it wrote" "10001 report.html 10001 result.json" \
  "$(cd "$work/out" && stat -c '%u %n' report.html result.json | xargs)"
expect "analyze: steps in result.json" 3 \
  "$(inside 'import json; print(json.load(open("/out/result.json"))["steps"]["count"])')"
expect "render from the result: exit" 0 \
  "$(exit_code contained -- render /out/result.json --format html=/out/again.html)"
cmp "$work/out/report.html" "$work/out/again.html"
expect "demo in the output folder: exit" 0 "$(exit_code contained -w /out -- demo)"
test -s "$work/out/moe-advisor-demo.html"
expect "another user: exit" 0 "$(exit_code contained --user 4242 -- analyze /work -o /out/other -q)"
for folder in /work /opt/moe-advisor /etc; do
  expect "writing to $folder: exit" 2 "$(exit_code contained -- analyze /work -o "$folder" -q)"
  expect "writing to $folder: says" "moe-advisor: *" "$(cat "$work/said")"
done
expect "changing the program" "*Permission denied*" \
  "$(inside 'import moe_advisor; open(moe_advisor.__file__, "a")' 2>&1 || true)"
echo "image: all as the Dockerfile says"
