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
}  # fmt: skip
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
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    text = "".join(o.get("text", "") for o in outputs)
    assert "left behind: decoder" in text
    assert "simclr_tuned" in text
