"""Models of one's own, by their import path."""

import json
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

from vitlab.config import as_dict
from vitlab.errors import InputError
from vitlab.models.build import (
    SEGMENTERS,
    NotImportableError,
    build_around_backbone,
    build_model,
    has_layers,
    model_settings,
)
from vitlab.models.vit import ViT

OWN = """
from __future__ import annotations

import enum
from typing import Any, Callable, Iterable, Mapping, Sequence

import flax
import flax.linen as nn
import jax.numpy as jnp


class Bare(nn.Module):
    width: int
    sizes: tuple[int, ...] = (1, 2)
    act: Callable = nn.gelu
    num_classes: int | None = None
    dtype: Any = jnp.float32

    def setup(self):
        self.patch = nn.Conv(self.width, (4, 4), strides=4, dtype=self.dtype)
        if self.num_classes:
            self.head = nn.Dense(self.num_classes)

    def __call__(self, images, train=False):
        maps = self.act(self.patch(images))
        x = maps.mean((1, 2))
        return self.head(x) if self.num_classes else x, {"map": maps, "pre_logits": x}


class Mapped(Bare):
    strides = (4,)

    def feature_maps(self, images, train=False):
        return {4: self.act(self.patch(images))}


class Act(str, enum.Enum):
    GELU = "gelu"


class Loose(Bare):  # as research code annotates
    width: int = None
    sizes: Sequence[int] = (32, 16)
    more: list[int] = (4,)
    others: Iterable[int] = (1,)
    scales: Mapping[str, float] = flax.core.FrozenDict(a=1.0)
    kind: Act = Act.GELU
    limit: float = float("nan")


class Changed(Bare):
    width: int = 8
    act: Any = "gelu"

    def __post_init__(self):
        self.act = getattr(nn, self.act) if isinstance(self.act, str) else self.act
        super().__post_init__()


class Doubled(Bare):
    width: int = 8

    def __post_init__(self):
        self.width *= 2
        super().__post_init__()


class WithoutDtype(nn.Module):
    num_classes: int | None = None


class Unreadable(Bare):
    more: Nothing = None


def function():
    pass
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Modules `own_models.nets` and `own_models.broken` that can be imported."""
    (tmp_path / "own_models").mkdir()
    (tmp_path / "own_models" / "nets.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "own_models" / "broken.py").write_text("import no_such_thing")
    (tmp_path / "own_models" / "wrong.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [each for each in sys.modules if each.startswith("own_models")]:
        del sys.modules[name]


def test_settings_build_the_same_again():
    name = "own_models.nets:Bare"
    model = build_model({"name": name, "width": 8, "sizes": [3]}, num_classes=5, dtype=jnp.bfloat16)
    assert (model.width, model.sizes, model.num_classes, model.dtype) == (8, (3,), 5, jnp.bfloat16)
    settings = model_settings(model)
    # Neither a function nor a dtype is anything that a config holds.
    assert settings == {"name": name, "width": 8, "sizes": (3,), "num_classes": 5}
    assert build_model(settings, dtype=jnp.bfloat16) == model
    vit = build_model({"name": "vitlab.models.vit:ViT", "variant": "Ti/16"})
    assert vit == ViT("Ti/16")
    assert model_settings(vit)["name"] == "vit"
    assert (has_layers(model), has_layers(vit)) == (False, True)


@pytest.mark.parametrize("given", [{}, {"sizes": (8, 8), "more": [2], "scales": {"b": 2.0}}])
def test_settings_of_loose_annotations_are_read_again(given):
    model = build_model({"name": "own_models.nets:Loose", **given})
    assert (model.sizes, model.more) == (given.get("sizes", (32, 16)), (2,) if given else (4,))
    written = json.dumps(as_dict(model_settings(model)))
    again = build_model(json.loads(written))
    assert json.dumps(as_dict(model_settings(again))) == written
    assert (again.sizes, again.more, again.width) == (model.sizes, model.more, None)
    assert isinstance(again.kind, sys.modules["own_models.nets"].Act)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "Changed", "act": "relu"}, "act: what Changed makes of it, of type .*, config"),
        ({"name": "Doubled"}, "width: what Doubled makes of it, of type int, config.json"),
        ({"name": "Loose", "sizes": "ab"}, "sizes is 'ab' but must be a list"),
        ({"name": "Loose", "others": (2,)}, r"others is \(2,\) but must be Iterable"),
    ],
)
def test_what_would_not_be_read_again_is_refused_when_built(section, message):
    build_model({"name": "own_models.nets:Changed"})  # its default can be made again
    with pytest.raises(InputError, match=rf"^config\.model\.{message}"):
        build_model({**section, "name": f"own_models.nets:{section['name']}"})


def test_as_the_backbone_of_a_segmenter():
    section = {"name": "unet", "backbone": {"name": "own_models.nets:Mapped", "width": 8}}
    section["widths"] = (4,)
    model = build_around_backbone(section, SEGMENTERS, num_classes=3, dtype=jnp.float32)
    assert model_settings(model)["backbone"]["name"] == "own_models.nets:Mapped"
    logits, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros((2, 16, 8, 3))
    )
    assert logits.shape == (2, 8, 4, 3)
    section["backbone"]["name"] = "own_models.nets:Bare"
    with pytest.raises(InputError, match="a Bare has no feature_maps, which UNet is built on: see"):
        build_around_backbone(section, SEGMENTERS, num_classes=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_package.nets:Bare", "'no_package.nets:Bare' cannot be imported .*on PYTHONPATH"),
        ("own_models.no:Bare", "cannot be imported .*No module named 'own_models.no'.*PYTHONPATH"),
        ("own_models.broken:X", r"No module named 'no_such_thing'\)$"),
        ("own_models.wrong:X", r"cannot be imported \(ZeroDivisionError: division by zero\)$"),
        ("own_models.nets:Nothing", "own_models.nets has no Nothing"),
        ("own_models.nets:function", "is no flax.linen.Module"),
        ("own_models.nets:WithoutDtype", "has no field dtype: see vitlab.models.build.Backbone"),
        ("own_models.nets:Unreadable", "annotations of Unreadable cannot be read: .*Nothing"),
        ("own_models.nets:Bare", r"width is missing: Bare has no default"),
        ("own_models/nets:Bare", "no model 'own_models/nets:Bare'"),
        (["vit"], r"no model \['vit'\]"),
        ("vti", "no model 'vti'; did you mean 'vit'"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(InputError, match=rf"^config\.model.*{message}") as error:
        build_model({"name": name})
    assert "\n" not in str(error.value)
    assert isinstance(error.value, NotImportableError) == (
        "cannot be imported" in str(error.value) or "has no Nothing" in str(error.value)
    )
