#!/usr/bin/env bash
# At the end of a profiled job script: source or run this with the folder of captures.
#   bash epilogue.sh CAPTURES [HISTORY.db]
# It never fails the job: the training result counts more than its report.
set -u
captures="${1:?usage: epilogue.sh CAPTURES [HISTORY.db]}"
history="${2:-}"
# One task of the job reports; the others would do the same work again.
[ "${SLURM_PROCID:-0}" = 0 ] || exit 0
out="$captures/moe-advisor-${SLURM_JOB_ID:-local}"

if moe-advisor analyze "$captures" -o "$out" --format html --format json --force; then
  if [ -n "$history" ]; then
    moe-advisor history add "$history" "$out/result.json" \
      --branch "${MOE_BRANCH:-main}" --commit "${MOE_COMMIT:-}" \
      --label "job=${SLURM_JOB_ID:-local}" --label "nodes=${SLURM_JOB_NUM_NODES:-1}" ||
      echo "moe-advisor: the run was not added to the history" >&2
  fi
else
  echo "moe-advisor: no report for $captures" >&2
fi
exit 0
