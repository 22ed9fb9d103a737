"""Every notebook runs from top to bottom, here at a tiny size."""

import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TINY = {
    "self_supervised": {
        "PRETRAIN": [
            "--config.total_steps=2", "--config.schedule.warmup_steps=1",
            "--config.model.backbone.width=16", "--config.model.backbone.depth=1",
            "--config.batch_size=16", "--config.evaluators.features.features.protocols=('knn',)",
        ],
        "FINETUNE": [
            "--config.total_steps=2", "--config.schedule.warmup_steps=1",
            "--config.model.width=16", "--config.model.depth=1",
        ],
    },
    "detection": {
        "TRAIN": [
            "--config.total_steps=2", "--config.schedule.warmup_steps=1",
            "--config.evaluators.test.split=test[:8]",
        ],
        "OWN": ["--config.total_steps=2", "--config.schedule.warmup_steps=1"],
    },
    "segmentation": {
        "TRAIN": [
            "--config.total_steps=2", "--config.schedule.warmup_steps=1", "--config.batch_size=4",
            "--config.evaluators.test.split=test[:8]",
        ],
        "OWN": ["--config.total_steps=2", "--config.schedule.warmup_steps=1"],
    },
}  # fmt: skip
# Pictures, and what must be said.
SHOWN = {
    "self_supervised": (4, ("left behind: decoder", "simclr_tuned")),
    "segmentation": (6, ("images", "AP50", "own mIoU")),
    "detection": (6, ("boxes per image", "left behind: decoder", "own      AP50")),
}
NOTEBOOKS = sorted(path.stem for path in (ROOT / "colab").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, tmp_path):
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    parameters = {**TINY[name], "RUNS": str(tmp_path / "runs")}
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    cells[0].source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "colab")}}
    )
    client.execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    count, said = SHOWN[name]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == count
    text = "".join(o.get("text", "") for o in outputs)
    for line in said:
        assert line in text
