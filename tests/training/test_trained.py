"""Working directories that cannot be loaded: one line says what is wrong, and where."""

import json

import pytest

from vitlab.errors import InputError
from vitlab.training.trained import load_trained

CONFIG = {
    "task": "classification", "total_steps": 1, "batch_size": 1, "model": {"name": "vit",
    "variant": "Ti/16"}, "data": {"source": "digits", "preprocess": "decode|value_range(-1,1)"},
}  # fmt: skip
META = {"classes": ["cat", "dog"]}


@pytest.fixture
def write(tmp_path):
    """Writes what is read before a checkpoint's arrays."""

    def write(config=CONFIG, meta=META):
        checkpoint = tmp_path / "run" / "checkpoints" / "00000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text('{"meta.json": "0"}')
        for path, content in (
            (tmp_path / "run" / "config.json", config),
            (checkpoint / "meta.json", meta),
        ):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                path.write_text(text)
        return tmp_path / "run"

    return write


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {**CONFIG, "colour": 1}},
         "run is of another version of vitlab, .*: in its config.json config.colour does not"),
        ({"config": {**CONFIG, "model": {**CONFIG["model"], "windows": 4}}},
         "is of another version of vitlab, .* config.model.windows does not exist"),
        ({"config": {**CONFIG, "loss": {"gamma": 2.0}}},
         "is of another version of vitlab, .* config.loss.gamma does not exist"),
        ({"config": {k: v for k, v in CONFIG.items() if k != "data"}},
         "is of another version of vitlab, .* config.data is missing"),
        ({"config": {**CONFIG, "task": "captioning"}},
         "is of another version of vitlab, .* no task 'captioning'"),
        ({"config": []}, "config.json is damaged: it holds no object of keys"),
        ({"config": '{"task": '}, "config.json is damaged, it is no JSON"),
        ({"config": None}, "run lacks its config.json: No such file"),
        ({"meta": {"examples": 3}},
         "is of another version of vitlab, .*: .*00000001/meta.json lacks the key 'classes'"),
        ({"meta": '{"classes": ['}, "meta.json is damaged, it is no JSON"),
        ({"meta": 3}, "meta.json is damaged: it holds no object of keys"),
        ({}, "00000001 is damaged: .*meta.json"),  # another sum than the manifest's
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(write, change, said):
    with pytest.raises(InputError, match=said) as raised:
        load_trained(write(**change))
    assert "\n" not in str(raised.value)


def test_what_does_not_matter_to_a_trained_model_may_be_another_versions(write):
    """Its devices and its logging."""
    workdir = write({**CONFIG, "logging": {"colour": 1}, "parallelism": {"rings": 2}})
    with pytest.raises(InputError, match="is damaged"):  # which comes after them
        load_trained(workdir)
