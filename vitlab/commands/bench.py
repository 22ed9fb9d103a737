"""`vitlab bench`: how fast a config's step is, what limits a run, how a peer compares."""

import json
import os
import pathlib

from vitlab import config as config_lib
from vitlab.commands.arguments import CONFIG, Given, Option, Verb
from vitlab.commands.terminal import Output
from vitlab.errors import InputError

VERB = Verb(
    "bench",
    ("--config FILE[:ARG] [--config.KEY=VALUE ...] [--OPTION VALUE ...]",),
    "Measures the real step of a config on this machine: time to compile, time of a step, images a "
    "second, model FLOPs utilisation, memory, the rate of the input, and so what limits a run. A "
    "peer takes turns with it, in the same shapes and precision.",
    (),
    (
        *CONFIG,
        Option(
            "what",
            "WHAT",
            "which step",
            {"train": "forward, backward, update", "inference": "an evaluator's forward pass"},
            default="train",
        ),
        Option(
            "data",
            "DATA",
            "what it is fed",
            {
                "synthetic": "one batch of random pixels; the data need not be there",
                "real": "also the data as a run reads them, and both together, of train",
            },
            default="synthetic",
        ),
        Option(
            "against",
            "PEER",
            "the same network in PyTorch, which you have installed: torch.compile on a GPU, eager "
            "on a CPU",
            {
                "timm": "classification with a vit or a resnet",
                "torchvision": "the same",
                "hf-detr": "transformers, for task detection with a detr",
                "hf-mae": "transformers, for task mae",
            },
        ),
        Option("steps", "COUNT", "at each measurement", number=int, least=1, default=10),
        Option("pairs", "COUNT", "turns of both", number=int, least=1, default=5),
        Option("out", "FILE", "where the result goes as JSON", path="file"),
    ),
    (
        "vitlab bench --config configs/quickstart.py --data real",
        "vitlab bench --config configs/vit_b16_imagenet.py --config.batch_size=256 --against timm",
        "vitlab bench --config configs/mae_b16_imagenet.py --against hf-mae --out mae.json",
    ),
    "nothing, or FILE; --json shows the same.",
    "the peer failed",
)


def run(given: Given, output: Output) -> None:
    """Measures as the command line says.

    Raises:
        InputError: anything in it is wrong, or the peer is not installed.
        WorkerError: the peer failed.
    """
    options = given.options
    config = config_lib.load(options["config"], options.get("config.KEY", ()))
    out = pathlib.Path(options["out"]).expanduser() if "out" in options else None
    if out and (out.is_dir() or not out.parent.is_dir()):
        missing = "is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise InputError(f"--out {out}: {missing}")
    if options["what"] == "inference" and options["data"] == "real":
        raise InputError("--data real is for --what train, which has an input to measure")
    if "against" in options:
        # Or JAX takes nearly all of a GPU's memory at its start.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from vitlab.training.benchmark import benchmark

    found = benchmark(
        config,
        options["what"],
        options["data"],
        options.get("against"),
        options["steps"],
        options["pairs"],
        output.text,
    )
    found["config"] = options["config"]
    found["overrides"] = dict(options.get("config.KEY", ()))
    output.document(found)
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")
