"""What `load` says of files that are not quite right, and what hints do."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.weights import reference as ref
from vitlab.errors import InputError
from vitlab.models.vit import ViT
from vitlab.weights import load, loading
from vitlab.weights.files import open_file

DEIT = "weights_timm_deit3"


@pytest.fixture
def deit(tmp_path):
    """(arrays of the file, what writes them again and gives the path)."""
    arrays = ref.reference(DEIT)
    tensors = ref.params(arrays)

    def write(**changed):
        folder = tmp_path / f"file{len(list(tmp_path.iterdir()))}"
        path = ref.write(folder, arrays)
        kept = {**tensors, **changed}
        kept = {k: np.ascontiguousarray(v) for k, v in kept.items() if v is not None}
        safetensors.numpy.save_file(kept, path)
        return path

    return tensors, write


def refused(match, *args, **hints):
    with pytest.raises(InputError, match=match) as error:
        load(*args, **hints)
    assert "\n" not in str(error.value)


def test_an_extra_key_a_missing_key_and_a_shape_that_does_not_fit(deit):
    tensors, write = deit
    refused("extra.weight is not known in the format timm", write(**{"extra.weight": np.zeros(3)}))
    refused(
        "there is nothing for encoder/block_1/norm2/bias", write(**{"blocks.1.norm2.bias": None})
    )
    refused("has no blocks.0.norm1.weight", write(**{"blocks.0.norm1.weight": None}))
    bias = write(**{"head.bias": np.zeros(9, np.float32)})
    refused(r"head.bias is \(9,\), and head/bias needs \(7,\)", bias)
    patch = write(**{"patch_embed.proj.weight": np.zeros((24, 3, 4, 4), np.float32)})
    refused("in whole patches of 4: 4 x 4", patch, image_size=3)
    patch = write(**{"patch_embed.proj.weight": np.zeros((24, 3, 8), np.float32)})
    refused("patch_embed.proj.weight is .24, 3, 8., but needs 4 axes", patch)
    # One key more of a kind that is known.
    extra = {"blocks.5.norm1.weight": tensors["norm.weight"]}
    refused("blocks.5.norm1.weight has no place in ViT", write(**extra))


def test_what_is_no_weights_of_any_format(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3), "b": np.zeros(3)}, path)
    refused("a format that is not known here: its names are a, b", path)
    refused("is not of the format dinov2: it has a, b", path, format="dinov2")
    refused("there is no format 'dino'", path, format="dino")
    refused("does not exist", tmp_path / "b.safetensors")
    refused("has no model.safetensors", tmp_path)


def test_hints(deit):
    tensors, write = deit
    path = write()
    loaded = load(path, mlp="gelu_tanh", norm_eps=1e-5)
    assert (loaded.module.mlp, loaded.module.norm_eps) == ("gelu_tanh", 1e-5)
    refused("there is no hint 'num_head'; did you mean 'num_heads'", path, num_head=3)
    refused("model.safetensors: ViT width 24 is no multiple of 5", path, num_heads=5)
    # Without config.json nothing tells the heads of 24 channels, nor that patches are 2 x 3.
    (path.parent / "config.json").unlink()
    refused("position table has 6 rows: give the rows and columns", path)
    refused("does not tell num_heads: give num_heads=", path, grid=(2, 3))
    refused("6 rows, not 2 x 2 patches", path, grid=(2, 2))
    assert load(path, grid=(2, 3), num_heads=3).image_size == (16, 24)


def test_timm_s_preprocessing_of_images_that_are_no_square_is_not_stated(deit):
    """It resizes them until both sides are long enough, which no op here does."""
    path = deit[1]()
    config = json.loads((path.parent / "config.json").read_text())
    for mode, square, wide in (("center", True, False), ("squash", True, True)):
        config["pretrained_cfg"] |= {"crop_pct": 0.9, "crop_mode": mode}
        (path.parent / "config.json").write_text(json.dumps(config))
        assert load(path, image_size=(24, 24)).preprocessing_stated == square
        assert load(path, image_size=(16, 24)).preprocessing_stated == wide


def test_other_classes_have_a_new_head_and_none_have_none(deit):
    tensors, write = deit
    path = write()
    loaded = load(path, num_classes=11)
    assert loaded.report.missing == ("head/bias", "head/kernel")
    assert loaded.report.unused == dict.fromkeys(["head.weight", "head.bias"], "of other classes")
    assert loaded.variables["params"]["head"]["kernel"].shape == (24, 11)
    assert not loaded.variables["params"]["head"]["kernel"].any()
    headless = load(path, num_classes=0)
    assert headless.report.missing == ()
    assert headless.module.num_classes is None
    assert "head" not in headless.variables["params"]
    assert load(path, num_classes=7).report.missing == ()
    assert "2 unused, of other classes: head.weight, head.bias" in str(headless.report)


def test_configs_that_ask_for_what_the_model_has_not(deit):
    _, write = deit
    path = write()
    config = json.loads((path.parent / "config.json").read_text())

    def with_config(**changes):
        (path.parent / "config.json").write_text(json.dumps({**config, **changes}))
        return path

    for name in ("vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_rpn_224"):
        refused(f"{name} computes otherwise", with_config(architecture=name))
    refused(
        "act_layer 'quick_gelu' is not one of", with_config(model_args={"act_layer": "quick_gelu"})
    )
    refused("model_args.norm_layer is not known", with_config(model_args={"norm_layer": "rmsnorm"}))
    refused("global_pool 'avgmax' is not one of", with_config(global_pool="avgmax"))
    (path.parent / "config.json").write_text("{")
    refused("config.json: Expecting", path)
    (path.parent / "config.json").write_text("[]")
    refused("config.json is no JSON object", path)


def test_parts_of_files(tmp_path):
    arrays = ref.reference("weights_big_vision_bf16")
    path = ref.write(tmp_path / "a", arrays, npz=True)
    whole, part = load(path, grid=(2, 3)), load(f"{path}:img", grid=(2, 3))
    assert whole.module == part.module
    assert len(whole.report.unused) == 24
    assert part.report.unused == {}
    refused("has no part 'image'", f"{path}:image", grid=(2, 3))


def test_what_mae_s_fine_tuning_writes_is_known_by_its_part(tmp_path, monkeypatch):
    """The model below "model", as in its .pth; the names alone are timm's."""
    path = ref.write(tmp_path / "a", ref.reference("weights_mae_finetune"))
    flat, _ = open_file(path)
    nested = {"model": flat, "optimizer": {"state": flat}}
    assert load(path, num_heads=3).format == "timm"
    monkeypatch.setattr(loading, "open_file", lambda path: (nested, {}))
    assert load(path, num_heads=3).format == "mae-vit"
    refused("has no part 'ema': model, optimizer", path, part="ema")


def test_weights_in_several_files(tmp_path):
    arrays = ref.reference("weights_hf_vit")
    folder = ref.write(tmp_path / "a", arrays).parent
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        some = {name: tensors[name] for name in names if files[name] == file}
        safetensors.numpy.save_file(some, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert len(load(folder).report.used) == len(tensors)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused("names model-00002-of-00002.safetensors, which is not there", folder)


def test_what_a_file_says_of_itself(tmp_path):
    arrays = ref.reference("weights_hf_vit")
    path = ref.write(tmp_path / "a", arrays)
    config = json.loads(str(arrays["config"]))
    config["id2label"] = {str(i): f"kind {i}" for i in range(7)}
    (path.parent / "config.json").write_text(json.dumps(config))
    (path.parent / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model")
    loaded = load(path.parent)
    assert loaded.classes == tuple(f"kind {i}" for i in range(7))
    assert loaded.licence == "apache-2.0"
    assert isinstance(loaded.module, ViT)
    assert load(path.parent, num_classes=3).classes == ()
    # The processor is for 224 pixels, the table for 24.
    assert not loaded.preprocessing_stated
    assert load(path.parent, image_size=224).preprocessing_stated
    processor = {"size": {"height": 24, "width": 24}, "resample": 3}
    (path.parent / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load(path.parent)
    assert loaded.preprocessing_stated
    assert loaded.preprocessing == 'decode|resize(24,"bicubic",True)|value_range(-1,1)'


def test_variables_stay_what_they_are(tmp_path):
    """A model that is applied to numpy's arrays has no way to change them."""
    loaded = load(ref.write(tmp_path / "a", ref.reference("weights_hf_vit")))
    images = np.zeros((1, 24, 24, 3), np.float32)
    one, other = (np.asarray(loaded.module.apply(loaded.variables, images)[0]) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="read-only"):
        loaded.variables["params"]["cls"][:] = 0


def test_one_parameter_under_two_names(deit, tmp_path):
    tensors, write = deit
    refused("are the same parameter", write(**{"blocks.0.gamma_1": tensors["blocks.0.ls1.gamma"]}))
    arrays = ref.reference("weights_big_vision_cls")
    block = "Transformer/encoderblock_0/LayerNorm"
    arrays[f"params/{block}_2/scale"] = arrays[f"params/{block}_1/scale"]
    refused("are the same parameter", ref.write(tmp_path / "twice", arrays, npz=True))
    arrays = ref.reference("weights_big_vision_scan")
    name = "params/params/Transformer/encoderblock/LayerNorm_0/scale"
    arrays[name.replace("encoderblock", "encoderblock_0")] = arrays[name][0]
    path = ref.write(tmp_path / "scanned", arrays, npz=True)
    refused("are the same parameter", path, grid=(2, 3))


def test_numbers_that_are_no_weights(deit):
    tensors, write = deit
    for dtype in (np.int8, np.int64, bool, np.complex64):
        kernel = tensors["blocks.0.mlp.fc1.weight"].astype(dtype)
        refused("and weights are floats", write(**{"blocks.0.mlp.fc1.weight": kernel}))
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    assert load(write(**half)).variables["params"]["cls"].dtype == np.float32


def test_json_that_makes_no_sense(deit):
    _, write = deit
    path = write()
    config = json.loads((path.parent / "config.json").read_text())
    for changes in (
        {"pretrained_cfg": 3},
        {"pretrained_cfg": {"crop_pct": 0}},
        {"pretrained_cfg": {"mean": 0.5}},
        {"model_args": {"num_heads": "3"}},
        {"model_args": {"num_heads": 1.5}},
        {"model_args": []},
        {"global_pool": []},
        {"id2label": {"a": "b"}},
        {"architecture": 5},
    ):
        (path.parent / "config.json").write_text(json.dumps({**config, **changes}))
        refused("config.json|makes no sense|make no sense|num_heads|global_pool", path)
    (path.parent / "config.json").write_text("[" * 100_000)
    refused("config.json", path)
    # What is null is not there.
    nulls = {**config, "label_names": None, "pretrained_cfg": {"mean": None, "crop_pct": None}}
    (path.parent / "config.json").write_text(json.dumps(nulls))
    assert not load(path).preprocessing_stated


def test_shapes_that_make_no_sense(deit, tmp_path):
    tensors, write = deit
    for shape in ((), (3,), (1, 0, 24), (2, 7)):
        refused("model.safetensors", write(pos_embed=np.zeros(shape, np.float32)), grid=(2, 3))
        refused("model.safetensors", write(cls_token=np.zeros(shape, np.float32)))
        refused(
            "model.safetensors", write(**{"patch_embed.proj.weight": np.zeros(shape, np.float32)})
        )
    arrays = ref.reference("weights_big_vision_cls")
    name = "params/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel"
    swapped = {**arrays, name: arrays[name].swapaxes(1, 2)}
    refused("not of 3 heads", ref.write(tmp_path / "heads", swapped, npz=True))
    many = {**arrays, "params/Transformer/encoderblock/x": np.zeros((10**8, 0), np.float32)}
    refused("is of 100000000 blocks", ref.write(tmp_path / "many", many, npz=True))


def test_hints_that_make_no_sense(deit, tmp_path):
    _, write = deit
    path = write()
    for hints in ({"image_size": -16}, {"image_size": 0}, {"grid": (-2, 3)}, {"num_classes": -1}):
        refused(f"hint {next(iter(hints))} is", path, **hints)
    refused("there is no hint 'name'", path, name="vit")
    mae = ref.write(tmp_path / "mae", ref.reference("weights_mae_pretrain"))
    refused("a MAE has no num_classes", mae, num_heads=3, decoder_heads=2, num_classes=10)


def test_images_that_the_patch_does_not_divide(deit):
    """The sources' convolutions leave the rest out, and so do pixels of the preprocessing."""
    _, write = deit
    loaded = load(write(), image_size=(20, 30))
    assert loaded.image_size == (16, 24)
    assert loaded.report.resized == ()
    *steps, patches, _ = loaded.preprocessing.split("|")
    assert "20,30" in steps[-1]
    assert patches == "whole_patches(8)"


def test_positions_of_mae_on_another_grid_are_interpolated(tmp_path):
    arrays = ref.reference("weights_mae_pretrain")
    encoder = {k: v for k, v in arrays.items() if "decoder" not in k and "mask_token" not in k}
    path = ref.write(tmp_path / "a", encoder)
    own = load(path, num_heads=3)
    assert (own.format, own.module.pos_embed) == ("mae-vit", "sincos2d_mae")
    larger = load(path, num_heads=3, image_size=28)
    assert larger.module.pos_embed == "learned"
    assert larger.report.resized == ("pos_embed",)


def test_rotary_periods_of_a_file_are_its_own(tmp_path):
    import ml_dtypes

    arrays = ref.reference("weights_dinov3")
    name = "params/rope_embed.periods"
    rounded = np.array([1.0, 9.9], ml_dtypes.bfloat16).astype(np.float32)
    assert load(ref.write(tmp_path / "a", arrays), num_heads=3).module.rope_periods is None
    path = ref.write(tmp_path / "b", {**arrays, name: rounded})
    assert load(path, num_heads=3).module.rope_periods == tuple(rounded.tolist())


@pytest.fixture
def torch_file(deit, monkeypatch):
    """The file of weights with other things in it, as `open_file` would find them in a `.pth`."""
    path = deit[1]()
    flat, _ = open_file(path)

    def write(holds):
        monkeypatch.setattr(loading, "open_file", lambda path: (holds(flat), {}))
        return path

    return write


def test_a_moving_average_is_preferred_and_the_part_is_told(torch_file):
    """As timm's `load_checkpoint` does."""
    for average in ("state_dict_ema", "model_ema"):
        path = torch_file(lambda flat, key=average: {"state_dict": {}, "model": {}, key: flat})
        assert str(load(path).report) == f"36 keys used of the part {average}"
    path = torch_file(lambda flat: {"state_dict": flat, "state_dict_ema": {}})
    assert load(path, part="state_dict").report.part == "state_dict"


def test_a_tensor_beside_the_model_is_no_part_of_it(torch_file):
    """As `best_acc1` in what pytorch/examples' imagenet/main.py saves."""
    path = torch_file(lambda flat: {"state_dict": flat, "best_acc1": flat["norm.weight"]})
    assert load(path).report.part == "state_dict"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_what_wraps_a_model_stands_before_all_names(torch_file, prefix):
    path = torch_file(lambda flat: {"state_dict": {prefix + k: v for k, v in flat.items()}})
    loaded = load(path)
    assert loaded.format == "timm"
    assert f"{prefix}norm.weight" in loaded.report.used
