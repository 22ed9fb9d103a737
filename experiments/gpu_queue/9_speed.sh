#!/usr/bin/env bash
# Steps beside their peers with torch.compile, in bfloat16, pair by pair; and a trace of ViT-B/16.
# The interpreter also needs torch (for this CUDA), timm, transformers and scipy.
set -uo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
failed=0
# Each has a limit of its own, so that what is slow to compile does not cost the others, and none
# begins that could not end within all.
limit=${LIMIT:-110} all=${ALL:-540}
bench() {
  name=$1
  # shellcheck disable=SC2086
  timeout "$limit" ${PYTHON:-python} -c \
    'import sys; from vitlab.commands.cli import console; sys.exit(console())' \
    bench --out "$out/$name.json" "${@:2}" --config.data.workers="${WORKERS:-0}" \
    --steps "${STEPS:-10}" --pairs "${PAIRS:-5}" ${EXTRA:-} > "$out/$name.txt" 2>&1 || failed=1
  echo "== $name"
  tail -n "${LINES_SHOWN:-12}" "$out/$name.txt"
}
# The published ImageNet ViT without the layer before the head, which timm's has not.
vit="--config configs/vit_b16_imagenet.py --config.model.rep_size=False"
only=" ${BENCHES:-vit_b mae vit_l detr vit_b_inference profile vit_l_inference} "
want() {
  [[ $only == *" $1 "* ]] || return 1
  ((SECONDS + limit <= all)) || { echo "no time for $1" && return 1; }
}
# shellcheck disable=SC2086
{
  want vit_b && bench vit_b $vit --config.batch_size="${BATCH:-256}" --against timm
  want mae && bench mae --config configs/mae_b16_imagenet.py \
    --config.batch_size="${BATCH:-256}" ${MAE:-} --against hf-mae
  want vit_l && bench vit_l $vit --config.model.variant="${LARGE:-L/16}" \
    --config.batch_size="${BATCH:-128}" --config.model.scan=True --against timm
  want detr && bench detr --config "configs/detr_r50_coco.py:size=${SIZE:-1024}" \
    --config.batch_size="${DETR_BATCH:-8}" ${DETR:-} --against hf-detr
  want vit_b_inference && bench vit_b_inference $vit --config.batch_size="${BATCH:-512}" \
    --what inference --against timm
  if want profile; then
    # digits at 224 pixels: the data are there on every machine.
    timeout "$limit" ${PYTHON:-python} -m vitlab.main $vit --workdir "$out/vit_b" \
      --config.data.source=digits --config.data.split=train --config.data.workers="${WORKERS:-8}" \
      --config.data.preprocess="decode(channels=3)|resize(224)|value_range(-1,1)" \
      --config.batch_size="${BATCH:-256}" --config.total_steps=30 --config.profile=20:25 \
      --config.schedule.warmup_steps=5 --config.logging.tensorboard=False \
      --config.checkpoint.best= --config.checkpoint.every_steps=1000 \
      --config.evaluators.val.source=digits --config.evaluators.val.split="test[:8]" \
      --config.evaluators.minival.source=digits --config.evaluators.minival.split="test[:8]" \
      ${EXTRA:-} > "$out/profile.txt" 2>&1 || failed=1
    grep "^profile of\|images/s" "$out/profile.txt"
    rm -rf "$out/vit_b/checkpoints"
  fi
  want vit_l_inference && bench vit_l_inference $vit --config.model.variant="${LARGE:-L/16}" \
    --config.batch_size="${BATCH:-256}" --what inference --against timm
}
exit $failed
# Rehearsal on a CPU, in three parts, each with BATCH=2 DETR_BATCH=2 LARGE=Ti/16 SIZE=128 STEPS=1
#   PAIRS=1 WORKERS=0 LIMIT=600 ALL=3600 and
#   BENCHES="vit_b vit_l vit_b_inference vit_l_inference profile" EXTRA="--config.model.depth=1"
#   BENCHES=mae MAE="--config.model.backbone.depth=1 --config.model.decoder_depth=1"
#   BENCHES=detr DETR="--config.model.encoder_layers=1 --config.model.decoder_layers=1"
