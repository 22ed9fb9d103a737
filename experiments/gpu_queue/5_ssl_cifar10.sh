#!/usr/bin/env bash
# CIFAR-10-JPG without labels: MAE and SimCLR, then fine-tuned, beside the same ViT from scratch.
set -euo pipefail
out=${1:?a folder for the results}
epochs=${2:?epochs of pretraining, such as 200}
mkdir -p "$out"
images=${IMAGES:-$out/cifar10_jpg_images}
[ -n "${IMAGES:-}" ] || ${PYTHON:-python} "${DATA:?}/unpack_cifar10.py" "$images"
train() {
  ${PYTHON:-python} -m vitlab.main --config "configs/$1.py:path=$images$2" --workdir "$out/$3" \
    --config.data.workers=${WORKERS:-12} "${@:4}" 2>&1 | tee "$out/$3.log"
}
# shellcheck disable=SC2086
extra=${EXTRA:-}
train mae_cifar10 ",epochs=$epochs" mae $extra
train finetune_cifar10 "" mae_tuned --config.init_from="$out/mae" $extra
train finetune_cifar10 "" scratch $extra
train simclr_cifar10 ",epochs=$epochs" simclr $extra
train finetune_cifar10 "" simclr_tuned --config.init_from="$out/simclr" $extra
for run in mae simclr; do
  ${PYTHON:-python} -c "from vitlab.commands.cli import main; main(['evaluate', '$out/$run', 'knn', 'linear', 'logistic', 'few_shot'])"
done 2>&1 | tee "$out/protocols.txt"
# Rehearsal, with a few images of each class in IMAGES: WORKERS=0 IMAGES=... EXTRA="--config.batch_size=8
#   --config.total_steps=2 --config.schedule.warmup_steps=1" 5_ssl_cifar10.sh OUT 1
