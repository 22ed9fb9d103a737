#!/usr/bin/env bash
# CIFAR-10-JPG, a small ViT: images a second and accuracy with the data on the device and from the
# host, without RandAugment, which only the host has.
set -euo pipefail
out=${1:?a folder for the results}
epochs=${2:-15}
mkdir -p "$out"
images=${IMAGES:-$out/cifar10_jpg_images}
[ -n "${IMAGES:-}" ] || ${PYTHON:-python} "${DATA:?}/unpack_cifar10.py" "$images"
config="configs/vit_cifar10.py:path=$images,device,epochs=$epochs"
train() {
  echo "== $1"
  # shellcheck disable=SC2086
  ${PYTHON:-python} -m vitlab.main --config "$config" --workdir "$out/$1" --config.data.cache="$2" \
    --config.data.workers="${WORKERS:-12}" --config.schedule.warmup_epochs=1 \
    "${@:3}" ${EXTRA:-} 2>&1 | grep -E 'images/s|test/accuracy|on each device:|ready in|vitlab: ' | tee "$out/$1.log"
}
train device device
train host ""
train device_seed1 device --config.seed=1
${PYTHON:-python} - "$out" <<'PY'
import json, pathlib, statistics, sys

out, rates = pathlib.Path(sys.argv[1]), {}
for name in ("device", "host", "device_seed1"):
    lines = map(json.loads, (out / name / "metrics.jsonl").read_text().splitlines())
    found = [x["images_per_second"] for x in lines if "images_per_second" in x]
    rates[name] = statistics.median(found[1:] or found)
    accuracy = json.loads((out / name / "result.json").read_text())["metrics"]["test/accuracy"]
    print(f"{name}: {rates[name]:,.0f} images/s (median), test accuracy {accuracy:.4f}")
print(f"device against host: {rates['device'] / rates['host']:.2f} x")
PY
# The thousand kernels of such a step side by side, where they do not wait for each other.
XLA_FLAGS="${XLA_FLAGS:-} ${CONCURRENT---xla_gpu_command_buffer_scheduling_mode=CONCURRENT}" train concurrent device
# Rehearsal, with a few images of each class in IMAGES: CONCURRENT= WORKERS=0 IMAGES=... EXTRA="--config.batch_size=8
#   --config.total_steps=4 --config.schedule.warmup_steps=1 --config.logging.every_steps=2" 10_device_cache.sh OUT
