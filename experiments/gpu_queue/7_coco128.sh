#!/usr/bin/env bash
# coco128: a detector learns its own 128 images by heart, AP50 at least 0.90 on them.
set -euo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
images=${DATA:?}/coco128/train2017
json=$DATA/coco128/annotations/instances_train2017.json
pixels="decode|letterbox(512)|pad_boxes(60)|normalize(\"imagenet\")"
# shellcheck disable=SC2086
${PYTHON:-python} -m vitlab.main --workdir "$out/coco128" \
  --config "configs/detr_own_data.py:source=coco:$json?images=$images,epochs=${EPOCHS:-400}" \
  --config.data.split=train --config.evaluators.val.split=train \
  --config.data.preprocess="$pixels" --config.evaluators.val.preprocess="$pixels" \
  --config.data.workers=${WORKERS:-12} --config.augment.color_jitter_prob=0.0 \
  --config.evaluators.val.every_epochs=20 ${EXTRA:-} 2>&1 | tee "$out/coco128.log"
# Rehearsal: WORKERS=0 EPOCHS=1 EXTRA="--config.total_steps=2 --config.batch_size=2
#   --config.schedule.warmup_steps=1" 7_coco128.sh OUT
