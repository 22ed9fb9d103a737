"""Every notebook runs from top to bottom, here at a tiny size, and is committed as it ran."""

import pathlib
import re

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
STEPS = ["--config.total_steps=2", "--config.schedule.warmup_steps=1"]
DETECTOR = [
    *STEPS, "--config.model.backbone.depths=(1,1)", "--config.model.backbone.widths=(8,16)",
    "--config.model.decoder_layers=1", "--config.model.denoising=0",
]  # fmt: skip
TINY = {
    "quickstart": {"TRAIN": STEPS, "CHANGE": [*STEPS, "--config.model.depth=1"]},
    "own_images": {
        "CLASSIFY": [
            *STEPS, "--config.batch_size=8", "--config.data.workers=0",
            "--config.model.depth=1",
        ],
        "DETECT": [
            *DETECTOR, "--config.batch_size=4", "--config.data.workers=0",
            "--config.model.num_queries=20", "--config.model.encoder_layers=0",
        ],
        "SEGMENT": [
            *STEPS, "--config.batch_size=4", "--config.data.workers=0",
            "--config.model.backbone.widths=(8,8,8,8)", "--config.model.widths=(8,8,8,8)",
        ],
        "TUNE": [
            *STEPS, "--config.batch_size=8", "--config.data.workers=0",
            "--config.model.depth=1",
        ],
    },
    "vit_b16_imagenet_tpu": {},  # tiny by itself where there is no ImageNet
    "self_supervised": {
        "PRETRAIN": [
            *STEPS, "--config.model.backbone.width=16", "--config.model.backbone.depth=1",
            "--config.batch_size=16", "--config.evaluators.features.features.protocols=('knn',)",
        ],
        "FINETUNE": [*STEPS, "--config.model.width=16", "--config.model.depth=1"],
    },
    "detection": {
        "TRAIN": [*DETECTOR, "--config.evaluators.test.split=test[:8]"],
        "OWN": DETECTOR,
    },
    "segmentation": {
        "TRAIN": [*STEPS, "--config.batch_size=4", "--config.evaluators.test.split=test[:8]"],
        "OWN": [
            *STEPS, "--config.model.backbone.widths=(8,8,8,8)", "--config.model.widths=(8,8,8,8)",
        ],
    },
}  # fmt: skip
# Pictures, and what must be said.
SHOWN = {
    "quickstart": (6, ("through the file", "small    test accuracy", "did you mean 'optimizer'")),
    "own_images": (6, ("flower.jpg: ", "int32[64, 64]", "left behind: head", "boxes    float32")),
    "vit_b16_imagenet_tpu": (2, ("87,157,480 parameters", "nothing to do", "read back")),
    "self_supervised": (6, ("left behind: decoder", "simclr_tuned")),
    "segmentation": (5, ("images", "AP50", "own mIoU", "as in the file: True")),
    "detection": (5, ("boxes per image", "left behind: decoder", "own      AP50", "3 of 3 images")),
}
NOTEBOOKS = sorted(path.stem for path in (ROOT / "colab").glob("*.ipynb"))
LARGEST = 300_000  # bytes of a file
# What only the machine has that it ran on.
PLACES = re.compile(
    r"(?<![\w.])/(home|root|work|workspace|tmp|usr|opt|var|mnt|content|Users)\b|\b[A-Z]:\\"
)


def read(name):
    return nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_parameters(cell):
    return "parameters" in cell.metadata.get("tags", [])


def outputs_of(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def pictures(outputs):
    return sum("image/jpeg" in output.get("data", {}) for output in outputs)


def said_by(outputs):
    texts = (output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs)
    return "\n".join(texts)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What a hub would give, as timm writes it: DeiT-Ti/16 of one block, for three classes."""
    import jax
    import jax.numpy as jnp

    from vitlab.models.vit import ViT
    from vitlab.weights import save

    path = tmp_path_factory.mktemp("weights") / "deit_tiny"
    model = ViT("Ti/16", depth=1, num_classes=3)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    save(path, model, variables, "timm", image_size=32)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, tmp_path, weights):
    notebook = read(name)
    parameters = {**TINY[name], "RUNS": str(tmp_path / "runs")}
    if name == "own_images":
        parameters |= {"WEIGHTS": weights, "TUNED_SIZE": 32}
    [cell] = filter(is_parameters, notebook.cells)
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "colab")}}
    )
    client.execute()
    outputs = outputs_of(notebook)
    count, said = SHOWN[name]
    assert pictures(outputs) == count
    for line in said:
        assert line in said_by(outputs)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_committed_as_it_ran(name):
    assert (ROOT / "colab" / f"{name}.ipynb").stat().st_size < LARGEST
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = outputs_of(notebook)
    assert pictures(outputs) == SHOWN[name][0]
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs)
    text = said_by(outputs)
    assert PLACES.findall(text) == []
    for noise in ("\x1b", "\r", "Traceback", "Warning", "WARNING"):
        assert noise not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_begins_as_all_do(name):
    notebook = read(name)
    title, install, parameters, *rest = notebook.cells
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert install.source == read("quickstart").cells[1].source
    assert "REPOSITORY" in install.source
    assert "pip" in install.source
    assert is_parameters(parameters)
    assert not any(map(is_parameters, rest))
    assert parameters.source.startswith("RUNS = ")
    assert "runtime: " in said_by(outputs_of(notebook))


def test_readme_names_every_notebook():
    readme = (ROOT / "README.md").read_text()
    for name in NOTEBOOKS:
        assert f"colab/{name}.ipynb" in readme
