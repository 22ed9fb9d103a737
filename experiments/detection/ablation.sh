#!/usr/bin/env bash
# Each part of the detector of `detr_digit_scenes` switched off, or on, alone: two epochs each.
set -euo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
run() {
  ${PYTHON:-python} -m vitlab.main --config configs/detr_digit_scenes.py:epochs=2 \
    --workdir "$out/$1" --config.ema_decay=0.98 --config.logging.every_steps=250 \
    --config.evaluators.test.every_epochs=2 "${@:2}" > "$out/$1.log" 2>&1
}
run config
run without_two_stage --config.model.two_stage=False
run without_refinement --config.model.refine=False
run without_box_bias --config.model.box_bias=False
run without_denoising --config.model.denoising=0
run three_query_groups --config.model.query_groups=3
run focal --config.loss.classification=focal
run softmax --config.loss.classification=softmax --config.loss.class_weight=1.0 \
  --config.loss.class_cost=1.0
run without_ema --config.ema_decay=None
run layer_decay --config.optimizer.layer_decay=0.8
run detr --config.model="{'name':'detr','backbone':{'name':'resnet','variant':'18','depths':(2,2),'widths':(32,64)},'num_queries':10,'width':128,'num_heads':4,'mlp_dim':256,'encoder_layers':3,'decoder_layers':3,'dropout':0.0}" \
  --config.loss.classification=softmax --config.loss.class_weight=1.0 \
  --config.loss.class_cost=1.0
