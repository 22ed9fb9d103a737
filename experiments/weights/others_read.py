"""What vitlab writes, read by timm, transformers and big_vision: the same logits?

python others_read.py VIT.PY        needs torch, timm, transformers, and models/vit.py of a
                                    checkout of big_vision; run from the top of this one
"""

import importlib.util
import pathlib
import sys
import tempfile
import types

import jax
import numpy as np
import torch
from flax.traverse_util import unflatten_dict

library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm  # noqa: E402
from transformers import ViTForImageClassification, ViTModel  # noqa: E402

from tests.weights import reference as ref  # noqa: E402
from vitlab.weights import load, save  # noqa: E402

HEADS, WIDE = {"num_heads": 3}, {"grid": (2, 3)}
TORCH = [
    ("weights_timm_deit3", "timm", {}),
    ("weights_timm_gap_reg", "timm", {}),
    ("weights_timm_cls_reg", "timm", {}),
    ("weights_timm_fc_norm", "timm", {}),
    ("weights_timm_map", "timm", {}),
    ("weights_timm_swiglu", "timm", {}),
    ("weights_dinov2", "timm", HEADS),
    ("weights_dinov2_reg", "timm", HEADS),
    ("weights_dinov2_swiglu", "timm", HEADS),
    ("weights_mae_finetune", "timm", HEADS),
    ("weights_hf_vit", "timm", {}),
    ("weights_hf_vit", "hf-vit", {}),
    ("weights_hf_vit_pooler", "hf-vit", {}),
]
FLAX = [
    ("weights_augreg", {}, {"pool_type": "tok", "rep_size": True}),
    ("weights_big_vision_scan", WIDE, {"pool_type": "gap"}),
    ("weights_big_vision_cls", {}, {"pool_type": "tok", "rep_size": True}),
    ("weights_big_vision_bf16", WIDE, {"pool_type": "map"}),
]


def wanted(arrays):
    found = [f"outputs/{key}" for key in ("logits", "pooled", "pre_logits")]
    return next(arrays[key] for key in found if key in arrays)


def torch_reads(folder, form):
    if form == "timm":
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    classifier = "ForImageClassification" in (folder / "config.json").read_text()
    return (ViTForImageClassification if classifier else ViTModel).from_pretrained(folder)


def big_vision(path):
    # The model file needs two siblings only for loading checkpoints.
    for name in ("big_vision", "big_vision.utils", "big_vision.models", "big_vision.models.common"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["big_vision"].utils = sys.modules["big_vision.utils"]
    sys.modules["big_vision.models"].common = sys.modules["big_vision.models.common"]
    spec = importlib.util.spec_from_file_location("big_vision_vit", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    for name, form, hints in TORCH:
        arrays = ref.reference(name)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            loaded = load(ref.write(folder / "theirs", arrays), **hints)
            arguments = (loaded.module, loaded.variables, form, loaded.image_size)
            save(folder / "ours", *arguments, loaded.preprocessing)
            model = torch_reads(folder / "ours", form).eval()
            with torch.no_grad():
                out = model(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2))
        out = getattr(out, "logits", getattr(out, "pooler_output", out)).numpy()
        print(f"{name} as {form}: {np.abs(out - wanted(arrays)).max():.1e}", flush=True)
    vit = big_vision(sys.argv[1])
    for name, hints, fields in FLAX:
        arrays = ref.reference(name)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            loaded = load(ref.write(folder / "theirs", arrays, npz=True), **hints)
            arguments = (loaded.module, loaded.variables, "big_vision", loaded.image_size)
            saved = save(folder / "ours.npz", *arguments, loaded.preprocessing)
            params = unflatten_dict(dict(np.load(saved.path)), sep="/")
        params = vit.fix_old_checkpoints(params)
        fields |= {"width": 24, "depth": 2, "mlp_dim": 48, "num_heads": 3, "posemb": "learn"}
        model = vit.Model(7 if "head" in params else None, patch_size=(8, 8), **fields)
        with jax.default_matmul_precision("highest"):
            logits, out = model.apply({"params": params}, arrays["images"])
        found = logits if "head" in params else out["pre_logits"]
        print(f"{name} as big_vision: {np.abs(found - wanted(arrays)).max():.1e}", flush=True)


if __name__ == "__main__":
    main()
