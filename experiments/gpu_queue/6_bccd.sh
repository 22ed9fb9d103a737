#!/usr/bin/env bash
# BCCD, 205 photographs: a MAE on the same photographs, then the detector from it and from scratch.
set -euo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
bccd=${DATA:?}/bccd
train() {
  ${PYTHON:-python} -m vitlab.main --config "configs/$1" --workdir "$out/$2" \
    --config.data.workers=${WORKERS:-12} "${@:3}" 2>&1 | tee "$out/$2.log"
}
# shellcheck disable=SC2086
extra=${EXTRA:-}
vit="{'name':'vit','variant':'S/16','pool':'gap','pos_embed':'sincos2d_mae'}"
train mae_image_folder.py:size=224,epochs=${MAE_EPOCHS:-1500} mae --config.data.source="voc:$bccd" \
  --config.data.split=train --config.evaluators.val.split=val --config.model.backbone="$vit" $extra
detector="detr_bccd.py:path=$bccd,size=640"
train "$detector,backbone=vit,epochs=${EPOCHS:-300}" vit --config.init_from="$out/mae" \
  --config.optimizer.lr=5e-4 --config.optimizer.layer_decay=0.8 $extra
train "$detector,backbone=vit,epochs=${EPOCHS:-300}" vit_scratch --config.optimizer.lr=5e-4 $extra
train "$detector,epochs=${EPOCHS:-300}" resnet $extra
# Rehearsal: WORKERS=0 MAE_EPOCHS=1 EPOCHS=1 EXTRA="--config.total_steps=2 --config.batch_size=2
#   --config.schedule.warmup_steps=1" 6_bccd.sh OUT
