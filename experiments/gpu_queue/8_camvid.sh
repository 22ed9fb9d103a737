#!/usr/bin/env bash
# CamVid, 367 street scenes at 480 x 360: a U-Net and a Segmenter from scratch, a MAE on the same
# photographs, and the Segmenter from it.
set -euo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
camvid=${DATA:?}/camvid
train() {
  ${PYTHON:-python} -m vitlab.main --config "configs/$1" --workdir "$out/$2" \
    --config.data.workers=${WORKERS:-12} "${@:3}" 2>&1 | tee "$out/$2.log"
}
# shellcheck disable=SC2086
extra=${EXTRA:-}
size=epochs=${EPOCHS:-400}${HEIGHT:+,height=$HEIGHT}
train "unet_camvid.py:path=$camvid,$size" unet $extra
train mae_image_folder.py:size=224,epochs=${MAE_EPOCHS:-1500} mae \
  --config.data.source="images:$camvid/train" --config.data.split=train \
  --config.evaluators.val.split="train[:5%]" --config.evaluators.features.split="train[:5%]" $extra
train "segmenter_camvid.py:path=$camvid,$size" segmenter_mae --config.init_from="$out/mae" $extra
train "segmenter_camvid.py:path=$camvid,$size" segmenter $extra
# Rehearsal: WORKERS=0 MAE_EPOCHS=1 EPOCHS=1 HEIGHT=96 EXTRA="--config.total_steps=2
#   --config.batch_size=2 --config.schedule.warmup_steps=1" 8_camvid.sh OUT
