"""Benches a fixed list of configs, keeps the ratios, and says what got slower.

    python experiments/speed/check.py [--quick] [--ratios FILE]

Each bench is a `vitlab bench` in a process of its own. Its ratio is the peer's time over vitlab's
where there is a peer, else what the step does of the measured matmul rate: neither depends much on
how fast the machine is. One line for each is appended to `ratios.jsonl`. What is more than 10 %
below the best line of the same bench on the same hardware is printed, and the exit code is then 1:
the best, so that many small losses are seen too. Of what has no peer to take turns with, and so
varies by a third from one process to the next, the best of several processes counts.
`--quick` takes one step of tiny models, to see that everything runs; those are benches of their
own, which `--ratios` may keep elsewhere.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent
SLOWER = 0.1
PROCESSES = 5  # of a bench without a peer
STEPS = ("--config.data.workers=0", "--steps", "5", "--pairs", "5")
VIT = ("--config", "configs/vit_s16_imagenet.py", "--config.batch_size=16", "--against", "timm")
TINY = "--config.model.variant=Ti/16"
RESNET = (
    "--config", "configs/resnet50_imagenet.py", "--config.batch_size=8",
    "--against", "torchvision",
)  # fmt: skip
INFERENCE = ("--what", "inference")
# What is run, and what makes it tiny.
BENCHES = {
    "quickstart": (
        ("--config", "configs/quickstart.py", "--steps", "50"),
        ("--config.model.depth=1",),
    ),
    "ti16_train": ((*VIT, TINY, *STEPS), ("--config.model.depth=1",)),
    "ti16_inference": ((*VIT, TINY, *INFERENCE, *STEPS), ("--config.model.depth=1",)),
    "s16_train": ((*VIT, *STEPS), ("--config.model.depth=1",)),
    "s16_inference": ((*VIT, *INFERENCE, *STEPS), ("--config.model.depth=1",)),
    "r50_train": ((*RESNET, *STEPS), ("--config.model.variant=18",)),
    "r50_inference": ((*RESNET, *INFERENCE, *STEPS), ("--config.model.variant=18",)),
    "mae_ti16_train": (
        (
            "--config", "configs/mae_b16_imagenet.py", "--config.model.backbone.variant=Ti/16",
            "--config.batch_size=8", "--against", "hf-mae", *STEPS,
        ),
        ("--config.model.backbone.depth=1", "--config.model.decoder_depth=1"),
    ),
    "detr_r50_train": (
        (
            "--config", "configs/detr_r50_coco.py:size=256", "--config.batch_size=2",
            "--against", "hf-detr", *STEPS,
        ),
        ("--config.model.encoder_layers=1", "--config.model.decoder_layers=1"),
    ),
}  # fmt: skip
QUICK = ("--config.batch_size=2", "--steps", "1", "--pairs", "1")


def main() -> int:
    """Runs the benches; 1 if something got slower."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny models and one step")
    parser.add_argument("--ratios", type=pathlib.Path, default=FOLDER / "ratios.jsonl")
    arguments = parser.parse_args()
    before = records(arguments.ratios)
    version = git("describe", "--always", "--dirty")  # before this changes a file itself
    slower = []
    for name, (words, tiny) in BENCHES.items():
        quick = (*tiny, *QUICK) if arguments.quick else ()
        times = 1 if quick or "--against" in words else PROCESSES
        name = f"{name}_quick" if quick else name
        record = max(
            (bench(name, (*words, *quick), version) for _ in range(times)),
            key=lambda new: new["ratio"],
        )
        same = [old for old in before if alike(old, record)]
        best = max(same, key=lambda old: old["ratio"], default=None)
        change = f", {record['ratio'] / best['ratio'] - 1:+.1%} of {best['git']}'s" if best else ""
        print(f"{record['bench']}: {record['ratio']:.3f} of {record['beside']}{change}", flush=True)
        if best and record["ratio"] < (1 - SLOWER) * best["ratio"]:
            slower.append(record["bench"])
        with arguments.ratios.open("a") as file:
            print(json.dumps(record), file=file)
    print(f"slower by more than {SLOWER:.0%}: {', '.join(slower) or 'nothing'}")
    return int(bool(slower))


def records(path: pathlib.Path) -> list[dict]:
    """The lines of a file of ratios."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def alike(old: dict, new: dict) -> bool:
    """Whether two ratios can be compared."""
    return all(old[key] == new[key] for key in ("bench", "hardware", "beside"))


def bench(name: str, words: tuple[str, ...], version: str) -> dict:
    """Runs one, and gives its line."""
    code = "import sys; from vitlab.commands.cli import console; sys.exit(console())"
    command = [sys.executable, "-c", code, "bench", *words, "--json"]
    run = subprocess.run(command, cwd=FOLDER.parents[1], stdout=subprocess.PIPE, check=True)
    found = json.loads(run.stdout)
    against = found.get("against")
    return {
        "bench": name,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "vitlab": found["versions"]["vitlab"],
        "git": version,
        "hardware": f"{found['devices']} x {found['device']}, {found['cores']} cores of {cpu()}",
        "ratio": against["ratio"] if against else found["arithmetic"]["mfu_of_matmul_rate"],
        "beside": f"{against['name']}'s time over vitlab's" if against else "the matmul rate",
        "pairs": [turn["ratio"] for turn in against["pairs"]] if against else [],
        "versions": found["versions"] | (against["versions"] if against else {}),
        "command": f"vitlab bench {' '.join(words)}",
    }


def git(*words: str) -> str:
    """What git says of this checkout."""
    run = subprocess.run(["git", *words], cwd=FOLDER, capture_output=True, text=True)
    return run.stdout.strip()


def cpu() -> str:
    """The processor's name, as Linux tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else "an unknown CPU"


if __name__ == "__main__":
    sys.exit(main())
