"""What is written is what was read: the same bits under the same names."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.weights import reference as ref
from vitlab.errors import InputError
from vitlab.models.convnext import ConvNeXt
from vitlab.models.resnet import ResNet
from vitlab.models.vit import ViT
from vitlab.weights import load, save
from vitlab.weights.filling import nested, shapes_of

HEADS, WIDE = {"num_heads": 3}, {"grid": (2, 3)}
# fixture, format of it and of what is written, hints.
SAME = [
    ("weights_timm_deit3", "timm", {}),
    ("weights_timm_gap_reg", "timm", {}),
    ("weights_timm_fc_norm", "timm", {}),
    ("weights_timm_map", "timm", {}),
    ("vit_token", "timm", HEADS | WIDE),
    ("vit_avg", "timm", HEADS | WIDE),  # SwiGLU, registers, norms of queries and keys
    ("vit_map", "timm", HEADS | WIDE),
    ("convnext", "timm", {}),
    ("weights_big_vision_cls", "big_vision", {}),
    ("vit_big_vision_gap", "big_vision", {}),
    ("vit_big_vision_map", "big_vision", WIDE),
    ("weights_hf_vit", "hf-vit", {}),
    ("weights_hf_vit_pooler", "hf-vit", {}),
]


def read(path):
    return dict(np.load(path)) if path.suffix == ".npz" else safetensors.numpy.load_file(path)


@pytest.mark.parametrize(("name", "form", "hints"), SAME)
def test_a_round_trip_gives_every_key_back_to_the_bit(tmp_path, name, form, hints):
    npz = form == "big_vision"
    path = ref.write(tmp_path / "a", ref.reference(name), npz)
    loaded = load(path, **hints)
    saved = save(
        tmp_path / ("b.npz" if npz else "b"),
        loaded.module,
        loaded.variables,
        form,
        loaded.image_size,
        loaded.preprocessing,
    )
    theirs, ours = read(path), read(saved.path)
    assert theirs.keys() == ours.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array, err_msg=key)
        assert ours[key].dtype == np.float32
    again = load(saved.path, **(WIDE if npz and hints else {}))
    assert again.module.clone(layer_scale=None) == loaded.module.clone(layer_scale=None)
    assert [note for note in saved.notes if "norm_eps" not in note] == []


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("weights_dinov2_reg", "timm"),  # registers get positions of zero there
        ("weights_dinov2_swiglu", "timm"),
        ("weights_hf_vit", "timm"),
        ("weights_timm_swiglu", "timm"),  # packed into one layer
        ("weights_mae_finetune", "timm"),
    ],
)
def test_other_formats_hold_the_same_model(tmp_path, name, form):
    known = "hf" in name or "timm" in name
    loaded = load(ref.write(tmp_path / "a", ref.reference(name)), **({} if known else HEADS))
    saved = save(tmp_path / "b", loaded.module, loaded.variables, form, loaded.image_size)
    again = load(saved.path)
    assert again.format == form
    for field in ("num_heads", "pool", "mlp", "num_registers", "norm_after_pool", "num_classes"):
        assert getattr(again.module, field) == getattr(loaded.module, field), field
    images = ref.reference(name)["images"]
    ours, theirs = (jax.jit(m.module.apply)(m.variables, images)[0] for m in (loaded, again))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_resnet_out_of_a_run_is_one_of_timm_and_torchvision(tmp_path):
    model = ResNet("50", num_classes=3)
    shapes = shapes_of(model, (64, 64), 3)
    rng = np.random.default_rng(0)
    flat = {name: rng.normal(size=s.shape).astype(np.float32) for name, s in shapes.items()}
    text = 'decode|resize_small(73,"bicubic",True,"down")|central_crop(64,"even")'
    text += '|normalize("imagenet")'
    saved = save(tmp_path / "a", model, nested(flat), "timm", (64, 64), text, ("a", "b", "c"))
    assert saved.notes == ()
    arrays = read(saved.path)
    assert arrays["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert arrays["fc.weight"].shape == (3, 2048)
    again = load(saved.path)
    assert (again.format, again.module) == ("resnet", model)
    assert (again.image_size, again.classes) == ((64, 64), ("a", "b", "c"))
    assert again.preprocessing == text
    assert again.preprocessing_stated


def test_positions_that_are_computed_are_written_out(tmp_path):
    arrays = ref.reference("vit_big_vision_gap")
    loaded = load(ref.write(tmp_path / "a", arrays, npz=True))
    assert loaded.module.pos_embed == "sincos2d"
    module = loaded.module.clone(rep_size=False, num_classes=None)
    params = {
        k: v for k, v in loaded.variables["params"].items() if k not in ("pre_logits", "head")
    }
    saved = save(tmp_path / "b", module, {"params": params}, "timm", (16, 24))
    again = load(saved.path)
    assert again.module.pos_embed == "learned"
    images = arrays["images"]
    ours = jax.jit(module.apply)({"params": params}, images)[0]
    theirs = jax.jit(again.module.apply)(again.variables, images)[0]
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_images_of_one_channel(tmp_path):
    loaded = load(ref.write(tmp_path / "a", ref.reference("weights_hf_vit")))
    params = dict(loaded.variables["params"])
    patch = params["patch_embedding"]
    params["patch_embedding"] = {**patch, "kernel": patch["kernel"][:, :, :1]}
    for form in ("timm", "hf-vit"):
        saved = save(tmp_path / form, loaded.module, {"params": params}, form, (24, 24))
        kernel = load(saved.path).variables["params"]["patch_embedding"]["kernel"]
        np.testing.assert_array_equal(kernel, patch["kernel"][:, :, :1])


def test_json_files_beside_the_weights(tmp_path):
    loaded = load(ref.write(tmp_path / "a", ref.reference("weights_hf_vit")))
    classes = [f"kind {i}" for i in range(7)]

    def written(name, form, preprocessing):
        arguments = (loaded.module, loaded.variables, form, (24, 24), preprocessing, classes)
        folder = save(tmp_path / name, *arguments).path.parent
        return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]

    crop = 'decode|resize_small(27,"bicubic",True,"down")|central_crop(24,"even")'
    (config,) = written("timm", "timm", f'{crop}|normalize("imagenet")')
    assert config["label_names"] == classes
    said = config["pretrained_cfg"]
    assert said["mean"] == [0.485, 0.456, 0.406]
    assert said["std"] == [0.229, 0.224, 0.225]
    assert (said["interpolation"], said["crop_mode"]) == ("bicubic", "center")
    assert int(24 / said["crop_pct"]) == 27
    config, processor = written("hf", "hf-vit", f"{crop}|value_range(-1,1)")
    assert config["id2label"]["3"] == "kind 3"
    assert processor["image_processor_type"] == "BitImageProcessor"
    assert processor["crop_size"] == {"height": 24, "width": 24}
    assert processor["size"] == {"shortest_edge": 27}
    for form, theirs in (("timm", 'central_crop(24,"even")'), ("hf-vit", "central_crop(24)")):
        text = "decode|resize_small(27)|central_crop(24)|value_range(-1,1)"
        saved = save(
            tmp_path / f"area-{form}", loaded.module, loaded.variables, form, (24, 24), text
        )
        assert (
            f'{form} has decode|resize_small(27,"bilinear",True,"down")|{theirs}' in saved.notes[-1]
        )
    _, processor = written("hf2", "hf-vit", "decode|resize(24)|value_range(-1,1)")
    assert processor["size"] == {"height": 24, "width": 24}
    assert load(tmp_path / "timm").classes == tuple(classes)


def refused(match, *arguments):
    with pytest.raises(InputError, match=match) as error:
        save(*arguments)
    assert "\n" not in str(error.value)


def test_what_a_format_has_no_place_for_is_refused_and_nothing_is_left(tmp_path):
    loaded = load(ref.write(tmp_path / "a", ref.reference("weights_hf_vit")))
    module, variables, size = loaded.module, loaded.variables, (24, 24)
    path = tmp_path / "out"
    refused("big_vision's ViT has no mlp='gelu'", path, module, variables, "big_vision", size)
    refused("'dinov2' is not one that can be written: ", path, module, variables, "dinov2", size)
    inner = variables["params"]
    refused(
        "variables must be {'params': ...} and .*: they have c", path, module, inner, "hf-vit", size
    )
    rope = ViT(patch_size=8, width=24, depth=1, num_heads=3, pos_embed="rope")
    refused("timm's ViT has learned positions", path, rope, {"params": {}}, "timm", size)
    small = ResNet("18", stem="small")
    refused("timm's ResNet has no stem='small'", path, small, {"params": {}}, "timm", size)
    fine = ConvNeXt(patch_size=2)
    refused("timm's ConvNeXt has no patch_size=2", path, fine, {"params": {}}, "timm", size)
    refused("of ViT, and this is a ResNet", path, ResNet("18"), {"params": {}}, "hf-vit", size)
    registers = module.clone(num_registers=2)
    refused("has no num_registers=2", path, registers, variables, "hf-vit", size)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    path.mkdir()
    refused("out exists already", path, module, variables, "timm", size)
    (tmp_path / "file").write_text("")
    refused("File exists", tmp_path / "file" / "out", module, variables, "timm", size)
