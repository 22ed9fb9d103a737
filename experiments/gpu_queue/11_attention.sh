#!/usr/bin/env bash
# Which attention is fastest for which shape, in bfloat16; and what scan saves in compiling.
set -euo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
export PYTHONPATH=.
# shellcheck disable=SC2086
${PYTHON:-python} experiments/speed/attention.py ${QUICK:-} 2>&1 | tee "$out/attention.txt"
${PYTHON:-python} experiments/speed/compile.py ${BATCH:-32} 2>&1 | tee "$out/compile.txt"
# Rehearsal on a CPU: QUICK=--quick BATCH=2 11_attention.sh OUT
