#!/usr/bin/env bash
# Budgets, then a comparison where there is something to compare with. Used by every integration.
#   MOE_PATH      trace, folder of ranks or result.json
#   MOE_BUDGETS   budget file (optional)
#   MOE_BASE      what to compare with (optional)
#   MOE_BASELINE  history to compare with, FILE:BRANCH~N (optional, goes before MOE_BASE)
#   MOE_OUTPUT    folder for reports
# Exit code: the worse of both; 1 is a missed budget or a regression, 2 unusable input.
set -u
: "${MOE_PATH:?set MOE_PATH to a trace or result}"
out="${MOE_OUTPUT:-moe-advisor}"
worst=0

moe-advisor check "$MOE_PATH" ${MOE_BUDGETS:+--budgets "$MOE_BUDGETS"} -o "$out" --force
worst=$?

new="$out/result.json"
if [ "$worst" -le 1 ] && [ -n "${MOE_BASELINE:-}${MOE_BASE:-}" ]; then
  if [ -n "${MOE_BASELINE:-}" ]; then
    moe-advisor compare "$new" --baseline "$MOE_BASELINE" --gate -o "$out" --force
  else
    moe-advisor compare "$MOE_BASE" "$new" --gate -o "$out" --force
  fi
  code=$?
  [ "$code" -gt "$worst" ] && worst=$code
fi
exit "$worst"
