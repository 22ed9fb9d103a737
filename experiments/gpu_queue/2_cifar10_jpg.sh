#!/usr/bin/env bash
# CIFAR-10-JPG (JPEG quality 75: not comparable to the digit with CIFAR-10), ViT/4 from scratch.
set -euo pipefail
out=${1:?a folder for the results}
${PYTHON:-python} "${DATA:?}/unpack_cifar10.py" "$out/cifar10_jpg_images"
${PYTHON:-python} -m vitlab.main --config "configs/vit_cifar10.py:path=$out/cifar10_jpg_images" \
  --config.data.workers=12 --workdir "$out/cifar10_jpg" "${@:2}" 2>&1 | tee "$out/cifar10_jpg.log"
# Rehearsal: add --config.total_steps=3 --config.schedule.warmup_steps=1 --config.batch_size=32
#   '--config.evaluators.test.split=test[:64]' --config.data.workers=0
