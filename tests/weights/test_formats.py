"""Published files against the reference implementations that made them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import reference as ref
from vitlab.models.detr import DETR
from vitlab.models.mae import MAE
from vitlab.models.vit import ViT
from vitlab.weights import load

HEADS = {"num_heads": 3}
WIDE = {"grid": (2, 3)}
# fixture: (format, whether it is an npz, hints: what such small files cannot tell).
CASES = {
    "weights_timm_deit3": ("timm", False, {}),
    "weights_timm_gap_reg": ("timm", False, {}),
    "weights_timm_cls_reg": ("timm", False, {}),
    "weights_timm_swiglu": ("timm", False, {}),
    "weights_timm_fc_norm": ("timm", False, {}),
    "weights_timm_map": ("timm", False, {}),
    "weights_timm_dinov3": ("timm-dinov3", False, {}),
    "weights_timm_dinov3_qkvb": ("timm-dinov3", False, {}),
    "vit_token": ("timm", False, HEADS | WIDE),
    "vit_avg": ("timm", False, HEADS | WIDE),
    "vit_map": ("timm", False, HEADS | WIDE | {"mlp": "gelu_tanh", "norm_eps": 1e-6}),
    "weights_mae_pretrain": ("mae", False, HEADS | {"decoder_heads": 2}),
    "weights_mae_finetune": ("mae-vit", False, HEADS | {"format": "mae-vit"}),
    "weights_dinov2": ("dinov2", False, HEADS),
    "weights_dinov2_reg": ("dinov2", False, HEADS),
    "weights_dinov2_swiglu": ("dinov2", False, HEADS),
    "weights_dinov2_teacher": ("dinov2", False, HEADS),
    "weights_dinov3": ("dinov3", False, HEADS),
    "weights_dinov3_swiglu": ("dinov3", False, HEADS),
    "weights_big_vision_scan": ("big_vision", True, WIDE),
    "weights_big_vision_cls": ("big_vision", True, {}),
    "weights_big_vision_bf16": ("big_vision", True, WIDE),
    "weights_augreg": ("big_vision", True, {}),
    "vit_big_vision_gap": ("big_vision", True, {}),
    "vit_big_vision_map": ("big_vision", True, WIDE),
    "weights_hf_vit": ("hf-vit", False, {}),
    "weights_hf_vit_pooler": ("hf-vit", False, {}),
    "weights_hf_dinov2": ("hf-dinov2", False, {}),
    "weights_hf_dinov2_reg": ("hf-dinov2", False, {}),
    "weights_hf_dinov2_swiglu": ("hf-dinov2", False, {}),
    "weights_hf_dinov2_classifier": ("hf-dinov2", False, {}),
    "weights_hf_dinov3": ("hf-dinov3", False, {}),
    "vit_dinov3": ("hf-dinov3", False, HEADS),
    "weights_hf_siglip": ("hf-siglip", False, {}),
    "weights_hf_siglip_vision": ("hf-siglip", False, {}),
    "mae": ("hf-mae", False, HEADS | {"decoder_heads": 2, "mask_ratio": 0.7, "norm_eps": 1e-6}),
    "resnet_basic": ("resnet", False, {}),
    "resnet_bottleneck": ("resnet", False, {}),
    "convnext": ("timm-convnext", False, {}),
    "weights_torchvision_convnext": ("torchvision-convnext", False, {}),
    "weights_hf_detr_timm": ("hf-detr", False, {}),
    "detr": ("hf-detr", False, {"num_heads": 4}),
}
MEMORY = [name for name in CASES if name.startswith("weights_hf")]
LARGE = [name for name in CASES if "images_large" in ref.reference(name)]


@functools.cache
def arrays_of(name):
    return ref.reference(name)


def outputs(loaded, arrays, images):
    """Every stage by name, and what the model gives as `output`."""
    extra = [arrays[key] for key in ("noise", "content") if key in arrays]
    arguments = [loaded.variables, jnp.asarray(images), *map(jnp.asarray, extra)]
    with jax.default_matmul_precision("highest"):
        output, stages = jax.jit(loaded.module.apply)(*arguments)
    stages = dict(stages)
    if isinstance(loaded.module, DETR):
        return stages | output._asdict() | {"memory": _rows(stages["memory"])}
    if isinstance(loaded.module, MAE):
        return stages | {"prediction": output}
    # transformers and timm call pooled what the head gets, whatever norm or layer comes before.
    pooled = stages["pre_logits"] if isinstance(loaded.module, ViT) else None
    return stages | {"logits": output, "pooled": pooled}


def _rows(maps):
    return maps.reshape(len(maps), -1, maps.shape[-1])


def compare(name, loaded, arrays, suffix=""):
    images = arrays[f"images{suffix}"]
    found = outputs(loaded, arrays, images)
    prefix = f"outputs{suffix}/"
    wanted = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    # Of MAE the stages are enough; a probe of DINOv2 is no part of the model.
    left_out = {"latent", "loss"} | ({"logits"} if name.endswith("dinov2_classifier") else set())
    assert wanted.keys() - left_out
    for key in wanted.keys() - left_out:
        error = ref.assert_close(found[key], wanted[key])
        print(f"{name}{suffix} {key} {error:.1e} of {np.abs(wanted[key]).max():.2f}")


@pytest.mark.parametrize("name", CASES)
def test_files_give_the_reference_s_outputs(tmp_path, name):
    form, npz, hints = CASES[name]
    arrays = arrays_of(name)
    path = ref.write(tmp_path / "a", arrays, npz)
    size = arrays["images"].shape[1:3]
    loaded = load(path, **hints, image_size=size)
    assert loaded.format == form
    # Every key is told of, once.
    keys = [*loaded.report.used, *loaded.report.unused]
    assert sorted(keys) == sorted(ref.params(arrays))
    assert loaded.report.resized == loaded.report.missing == ()
    compare(name, loaded, arrays)


# One of each way to interpolate in every run, all of them in the longer ones.
QUICK = {"weights_timm_deit3", "weights_dinov2", "weights_hf_vit", "weights_big_vision_cls"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in LARGE]
)
def test_positions_are_resized_as_the_source_does(tmp_path, name):
    form, npz, hints = CASES[name]
    arrays = arrays_of(name)
    path = ref.write(tmp_path / "a", arrays, npz)
    loaded = load(path, **hints, image_size=arrays["images_large"].shape[1:3])
    assert len(loaded.report.resized) == ("dinov3" not in name)
    compare(name, loaded, arrays, "_large")


def test_convnext_in_its_authors_names_is_the_same(tmp_path):
    names = [
        ("stem.", "downsample_layers.0."), (".blocks.", "."), (".conv_dw.", ".dwconv."),
        (".mlp.fc1.", ".pwconv1."), (".mlp.fc2.", ".pwconv2."), ("head.norm.", "norm."),
        ("head.fc.", "head."),
    ]  # fmt: skip
    arrays = arrays_of("convnext")
    renamed = {k: v for k, v in arrays.items() if not k.startswith("params/")}
    for name, array in ref.params(arrays).items():
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        for old, new in names:
            name = name.replace(old, new)
        renamed[f"params/{name}"] = array
    loaded = load(ref.write(tmp_path / "a", renamed))
    assert loaded.format == "convnext"
    compare("convnext", loaded, arrays)


@pytest.mark.parametrize("name", MEMORY)
def test_the_names_of_a_model_in_memory_do_as_well(tmp_path, name):
    form, _, hints = CASES[name]
    arrays = arrays_of(name)
    memory = ref.renamed(arrays)
    ours = load(ref.write(tmp_path / "memory", memory), **hints)
    file = load(ref.write(tmp_path / "file", arrays), **hints)
    assert ours.format == form
    assert ours.module == file.module
    jax.tree.map(np.testing.assert_array_equal, ours.variables, file.variables)
