#!/usr/bin/env bash
# What a step of MAE costs beside one of the same encoder on every token, in bfloat16.
set -euo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
for shape in "${@:2}"; do
  PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} ${PYTHON:-python} experiments/ssl/mae_step.py $shape
done 2>&1 | tee "$out/mae_step.txt"
# In full: 4_mae_step.sh OUT "B/16 256 20" "L/16 128 20"
# Rehearsal: 4_mae_step.sh OUT "Ti/16 2 1"
