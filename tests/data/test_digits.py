import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vitlab.data.sources import open_source
from vitlab.errors import InputError

_ROOT = Path(__file__).parents[2]
_PREPARE = """
import sys
from vitlab.data.sources import open_source
source = open_source("digits", "train+test")
print(len(source), sum(source[i]["label"] for i in range(len(source))))
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def published():
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return images, digits.target


def decoded(source, decode):
    rng = np.random.default_rng(0)
    examples = [decode(source[i], rng) for i in range(len(source))]
    return np.stack([e["image"][:, :, 0] for e in examples]), [e["label"] for e in examples]


def test_the_splits_share_out_every_digit_of_scikit_learn(digits, decode, published):
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    images, labels = (
        [*a, *b] for a, b in zip(decoded(train, decode), decoded(test, decode), strict=True)
    )
    expected = Counter((i.tobytes(), int(y)) for i, y in zip(*published, strict=True))
    assert Counter((i.tobytes(), y) for i, y in zip(images, labels, strict=True)) == expected


def test_the_splits_are_stratified(digits, published):
    share = Counter(digits("test")[i]["label"] for i in range(360))
    for label, count in Counter(published[1].tolist()).items():
        assert abs(share[label] - count * 0.2) < 1


def test_the_split_never_changes(digits):
    # Recorded: a run on the digits has to be comparable with an older one.
    recorded = [1, 4, 2, 3, 2, 9, 6, 4, 0, 8, 0, 0]
    assert [digits("test")[i]["label"] for i in range(12)] == recorded


def test_reading_twice_prepares_once(digits, digits_dir):
    digits("train")
    before = {p: p.stat().st_mtime_ns for p in digits_dir.rglob("*")}
    digits("test")
    assert {p: p.stat().st_mtime_ns for p in digits_dir.rglob("*")} == before


def test_processes_that_prepare_at_once_both_read_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # A TensorFlow that can be found and fails on import shows whoever imports it.
    stub = tmp_path / "stub" / "tensorflow" / "__init__.py"
    stub.parent.mkdir(parents=True)
    stub.write_text("raise AssertionError('TensorFlow was imported')")
    monkeypatch.setenv("PYTHONPATH", f"{stub.parents[1]}:{_ROOT}")
    command = [sys.executable, "-c", _PREPARE]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [run.communicate()[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert results == [["1797", str(load_digits().target.sum())]] * 2
    assert [p.name for p in (tmp_path / "vitlab" / "tfds").iterdir()] == ["digits"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file" / "tfds"))
    with pytest.raises(InputError, match=r"file/tfds: Not a directory; set TFDS_DATA_DIR"):
        open_source("digits", "train")
