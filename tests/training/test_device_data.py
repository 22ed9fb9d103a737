"""Data on the device: the host path's examples in its order, and draws of its laws."""

import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from vitlab.data.order import Order
from vitlab.data.pipeline import train_batches
from vitlab.data.preprocess import Preprocess
from vitlab.errors import InputError
from vitlab.main import main
from vitlab.training import device_data, journal, parallelism, split
from vitlab.training.device_data import DeviceData
from vitlab.training.experiment import DataConfig
from vitlab.training.parallelism import ParallelismConfig, make_mesh

ROOT = pathlib.Path(__file__).parents[2]
LAST = "value_range(-1,1)"
RANDOM = f"decode(channels=1)|random_crop(8,padding=1)|flip_lr|{LAST}"
STEPS, BATCH = 7, 4


class Images:
    """Random images, some of them broken."""

    class_names, ranges = ("a", "b"), ()

    def __init__(self, shape=(9, 12, 3), count=10, broken=(), key="label", odd=None):
        self.images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
        self.broken, self.key, self.odd = broken, key, odd

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.broken:
            raise InputError(f"{self.describe(index)} is broken")
        cut = slice(None, -1 if index == self.odd else None)
        return {"image": self.images[index][cut], self.key: index % 2}

    def describe(self, index):
        return f"images[{index}]"


def on_device(source, string, seed=3, on_error="raise"):
    mesh = make_mesh(ParallelismConfig(), BATCH)
    config = DataConfig("images", string, on_error=on_error, cache="device")
    return DeviceData(source, Preprocess.parse(string), config, seed, mesh)


def device_batches(source, string, steps=STEPS, batch_size=BATCH, **options):
    data = on_device(source, string, **options)
    examples, following, _ = data.read()
    order, batch = Order(3, len(source)), jax.jit(data.batch)
    for step in range(steps):
        ids, epochs = order(range(step * batch_size, (step + 1) * batch_size))
        yield jax.device_get(batch(examples, following[ids], epochs))


def images(source, string, steps=1, batch_size=BATCH, **options):
    """Those of some batches, and their ids."""
    batches = list(device_batches(source, string, steps, batch_size, **options))
    return [np.concatenate([batch[key] for batch in batches]) for key in ("image", "id")]


@pytest.mark.parametrize(
    ("string", "on_error"),
    [
        ("resize(6)|central_crop(5)|to_grey", "raise"),  # all on the host
        ("flip_lr(0)|central_crop|whole_patches(4)|to_grey|grey_to_rgb", "raise"),  # on the device
        ("flip_lr(1)|to_grey", "raise"),
        ("flip_ud(1)|to_grey", "raise"),
        ("flip_lr(1)", "skip"),
    ],
)
def test_what_draws_nothing_gives_the_host_s_batches_to_the_bit(string, on_error):
    source = Images(count=10 if on_error == "raise" else 150, broken=[4] * (on_error == "skip"))
    string = f"{string}|{LAST}"
    found = device_batches(source, string, 40, on_error=on_error)
    host = train_batches(
        source, Preprocess.parse(string), batch_size=BATCH, seed=3, on_error=on_error
    )
    for ours, theirs in zip(found, host, strict=False):
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            assert ours[key].dtype == array.dtype
            np.testing.assert_array_equal(ours[key], array, err_msg=key)
    host.close()


@pytest.mark.parametrize(
    "string",
    [
        "resize(6)",
        "resize((20,8),'bicubic')",
        "resize_small(7,antialias=True,rounding='down')",
        "inception_crop((6,8),100,100,1.333333,1.3333334,'area')",
        "inception_crop((6,8),100,100,1.333333,1.3333334,'bicubic',True,'area')",
        "inception_crop((6,8),100,100,1.333333,1.3333334,'nearest')",
    ],
)
def test_a_resize_after_a_random_op_is_the_host_s_but_for_ties(string):
    source, string = Images(), f"flip_lr(0)|{string}|{LAST}"
    found, ids = images(source, string)
    host = Preprocess.parse(string)
    for image, index in zip(found, ids, strict=True):
        expected = host(source[index], np.random.default_rng(0))["image"]
        apart = np.abs(image.astype(int) - expected)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.02


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_random_crops_are_windows_of_numpy_s_padding_anywhere(mode):
    source = Images((5, 6, 1), count=400)
    fill = {"constant_values": 9} if mode == "constant" else {}
    found, ids = images(source, f"random_crop((5,6),2,{mode!r},9)|{LAST}", 4, 400)
    counts = np.zeros((5, 5), int)
    for image, index in zip(found, ids, strict=True):
        padded = np.pad(source.images[index], [(2, 2), (2, 2), (0, 0)], mode=mode, **fill)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 6, 1))[:, :, 0]
        (place,) = np.argwhere((windows == image).all(axis=(2, 3, 4)))
        counts[tuple(place)] += 1
    np.testing.assert_allclose(counts / 1600, 1 / 25, atol=0.02)  # four standard errors


def test_flips_come_half_the_time_and_each_for_itself():
    source = Images((2, 5, 1), count=500)
    found, ids = images(source, f"flip_lr|{LAST}", 4, 500)
    flipped = (found == source.images[ids][:, :, ::-1]).all(axis=(1, 2, 3))
    assert flipped.mean() == pytest.approx(0.5, abs=0.045)
    # Another draw for another epoch, and for another op of the same name.
    np.testing.assert_array_equal(np.sort(ids[:500]), np.sort(ids[500:1000]))
    first, second = (flipped[n : n + 500][np.argsort(ids[n : n + 500])] for n in (0, 500))
    assert (first == second).mean() == pytest.approx(0.5, abs=0.1)
    twice, ids = images(source, f"flip_lr|flip_lr|{LAST}", 1, 500)
    again = (twice != source.images[ids]).any(axis=(1, 2, 3))
    assert again.mean() == pytest.approx(0.5, abs=0.1)


def test_draws_do_not_depend_on_the_batch_around_them():
    source, string = Images(count=12), f"random_crop(6)|flip_lr|inception_crop(4)|{LAST}"
    one, many = images(source, string, 12, 2), images(source, string, 2, 12)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (images(source, string, 2, 12, seed=4)[0] != many[0]).any()


@pytest.mark.parametrize(
    ("string", "source", "said"),
    [
        ("flip_lr|randaug", Images(), "column 9: randaug runs on the host alone; from the first"),
        ("rotate(5)", Images(), "rotate runs on the host alone"),
        ("pad(16)|flip_lr", Images(), "flip_lr after pad would mirror the padding too"),
        ("pad(16)|flip_ud", Images(), "flip_ud after pad would mirror the padding too"),
        ("resize(8)", Images(key="objects"), "images has boxes or segments"),
        ("random_crop(4)", Images(odd=9), "before random_crop: one batch cannot hold"),
        ("random_crop(4)", Images(odd=256, count=257), "images[0] has the shape (9, 12, 3) and of"),
    ],
)
def test_what_only_the_host_can_do_is_one_line(string, source, said):
    with pytest.raises(InputError) as error:
        on_device(source, f"{string}|{LAST}").read()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def flags(workdir, **overrides):
    values = {
        "model.width": 8, "model.depth": 1, "model.num_heads": 2, "model.drop_path": 0.1,
        "batch_size": 32, "total_steps": 8, "schedule.warmup_steps": 2, "ema_decay": 0.9,
        "logging.every_steps": 3, "logging.tensorboard": False, "checkpoint.every_steps": 2,
        "evaluators.test.every_steps": 4, "evaluators.test.split": "test[:50]",
        "checkpoint.keep": 9, "data.cache": "device",
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }  # fmt: skip
    config = [f"--config.{key}={value}" for key, value in values.items()]
    return ["--config", str(ROOT / "configs/quickstart.py"), "--workdir", str(workdir), *config]


def records(workdir):
    timings = ("images_per_second", "input_wait")
    return [
        {key: value for key, value in record.items() if key not in timings}
        for record in journal.read(workdir / "metrics.jsonl")
    ]


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def assert_alike(a, b):
    """Two runs: what they logged, to float tolerance."""
    ours, theirs = records(a), records(b)
    assert [list(record) for record in ours] == [list(record) for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=2e-5)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run with draws on the device, up to three steps a call."""
    workdir = tmp_path_factory.mktemp("run") / "several"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_data, "STEPS_ON_CPU", 3)
        assert main(flags(workdir, data__preprocess=RANDOM)) == 0
    return workdir


@pytest.mark.slow
def test_resuming_gives_the_same_bits(several, tmp_path, monkeypatch):
    monkeypatch.setattr(device_data, "STEPS_ON_CPU", 3)
    workdir = tmp_path / "resumed"
    shutil.copytree(several, workdir)
    for directory in (workdir / "checkpoints").iterdir():
        if int(directory.name) > 2:
            shutil.rmtree(directory)
    (workdir / "result.json").unlink()
    assert main(flags(workdir, data__preprocess=RANDOM)) == 0
    assert result(workdir)["fingerprint"] == result(several)["fingerprint"]
    assert records(workdir) == records(several)


@pytest.mark.slow
def test_how_many_steps_a_call_has_does_not_matter(several, tmp_path):
    assert main(flags(tmp_path / "single", data__preprocess=RANDOM)) == 0
    assert_alike(tmp_path / "single", several)


@pytest.mark.slow
def test_without_draws_the_training_is_that_of_the_host_path(tmp_path, monkeypatch):
    made = []
    original = split.eval_batches
    monkeypatch.setattr(split, "eval_batches", lambda *a, **k: made.append(k) or original(*a, **k))
    assert main(flags(tmp_path / "device")) == 0
    assert len(made) == 1  # of two evaluations: the second has its batches on the device
    assert main(flags(tmp_path / "host", data__cache="")) == 0
    assert len(made) == 3
    assert_alike(tmp_path / "device", tmp_path / "host")
    hashes = {result(tmp_path / name)["config_hash"] for name in ("device", "host")}
    assert len(hashes) == 2


ON_EIGHT = """
    import hashlib, json, os, sys
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax
    import numpy as np
    from vitlab import config as config_lib
    from vitlab.training import device_data, feeding, parallelism
    from vitlab.training.setup import Setup

    device_data.STEPS_ON_CPU = 3
    config = config_lib.load("configs/quickstart.py")
    config["model"] |= dict(width=8, depth=1, num_heads=2)
    config["data"] |= dict(preprocess=sys.argv[1], cache="device")
    config["batch_size"], config["evaluators"] = 16, {}
    config["checkpoint"]["best"] = ""
    found = []
    for mode, mesh, held in (
        ("jit", dict(data=1), 1), ("jit", dict(data=8), 1), ("pmap", dict(data=8), 1),
        ("jit", dict(data=8), 8), ("pmap", dict(data=8), 8),
        ("jit", dict(data=2, fsdp=2, tensor=2), 4),
    ):
        device_data._SMALL = 1 if held == 1 else 1e-12
        setup = Setup({**config, "parallelism": dict(mode=mode, mesh=mesh)})
        feed = feeding.FromDevice(setup, setup.compile_step())
        state, step = setup.fresh_state(print), 0
        while step < 5:
            state, taken = feed(state, step, 5 - step)
            step += taken
        rows = parallelism.split_by_example(setup.mesh)
        ids = jax.device_put(np.arange(16, dtype=np.int32), rows)
        batch = jax.jit(setup.cache.batch)(feed._examples, ids, ids)
        images = hashlib.sha256(np.asarray(batch["image"]).tobytes()).hexdigest()
        found.append([float(state.totals["loss"][0]), int(state.step), images])
        shards = feed._examples["image"].addressable_shards
        assert {len(x.data) for x in shards} == {-(-len(setup.source) // held)}
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_one_device_and_eight_draw_the_same_from_data_whole_or_split(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ON_EIGHT), RANDOM],
        capture_output=True, text=True, cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": ".", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    losses, steps, hashes = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    assert set(steps) == {5}
    assert len(set(hashes)) == 1


def test_data_that_do_not_fit_are_refused_before_they_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parallelism, "device_memory", lambda: 50_000)
    assert main(flags(tmp_path / "large")) == 2
    errors = capsys.readouterr().err
    assert (
        "config.data.cache: the data set takes 95.4 KiB on each device, which holds 48.8 KiB"
        in (errors)
    )
    assert errors.count("\n") == 1
    assert main(flags(tmp_path / "large", data__cache="host")) == 2
    assert "config.data.cache" in capsys.readouterr().err
