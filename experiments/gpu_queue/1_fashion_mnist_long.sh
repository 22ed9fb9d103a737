#!/usr/bin/env bash
# Fashion-MNIST, the long config: at least 95 % test accuracy.
set -euo pipefail
out=${1:?a folder for the results}
${PYTHON:-python} -m vitlab.main \
  --config "configs/vit_fashion_mnist.py:path=${DATA:?}/fashion_mnist,long" \
  --config.data.workers=8 --workdir "$out/fashion_mnist_long" "${@:2}" 2>&1 | tee "$out/fashion_mnist_long.log"
# Rehearsal: add --config.total_steps=3 --config.schedule.warmup_steps=1 --config.batch_size=32
#   '--config.evaluators.test.split=test[:64]' --config.data.workers=0
