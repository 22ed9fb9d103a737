#!/usr/bin/env bash
# With XLA's deterministic operations two runs must end with one fingerprint.
set -euo pipefail
out=${1:?a folder for the results}
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
for run in a b; do
  ${PYTHON:-python} -m vitlab.main --config configs/quickstart.py --workdir "$out/deterministic_$run" \
    "${@:2}" 2>&1 | tee "$out/deterministic_$run.log"
done
grep fingerprint "$out"/deterministic_?/result.json
# Rehearsal: XLA_FLAGS= ... OUT --config.total_steps=3 --config.schedule.warmup_steps=1
