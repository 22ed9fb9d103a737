#!/usr/bin/env bash
# Parts of a step: which attention is fastest for which shape, in bfloat16; how long DETR's matching
# takes; and what scan saves in compiling.
set -euo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
# shellcheck disable=SC2086
${PYTHON:-python} experiments/speed/attention.py ${QUICK:-} 2>&1 | tee "$out/attention.txt"
${PYTHON:-python} experiments/speed/matching.py 2>&1 | tee "$out/matching.txt"
${PYTHON:-python} experiments/speed/compile.py ${BATCH:-32} 2>&1 | tee "$out/compile.txt"
# Rehearsal on a CPU: QUICK=--quick BATCH=2 11_parts.sh OUT
