#!/usr/bin/env bash
# With config.deterministic two runs must end with one fingerprint; and what it costs in speed.
set -euo pipefail
out=${1:?a folder for the results}
for run in a b fast; do
  deterministic=$([ "$run" = fast ] && echo False || echo True)
  ${PYTHON:-python} -m vitlab.main --config configs/quickstart.py --workdir "$out/deterministic_$run" \
    --config.deterministic="$deterministic" "${@:2}" 2>&1 | tee "$out/deterministic_$run.log"
done
grep fingerprint "$out"/deterministic_?/result.json
grep '"seconds"' "$out"/deterministic_*/result.json
# Rehearsal: add --config.total_steps=3 --config.schedule.warmup_steps=1 --config.batch_size=32
#   '--config.evaluators.test.split=test[:64]' --config.data.workers=0
