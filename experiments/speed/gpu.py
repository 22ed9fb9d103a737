"""Steps on one GPU beside their peers with torch.compile, in bfloat16, turn by turn.

    python experiments/speed/gpu.py OUT [SECONDS [STEP ...]] [--quick]

What `vitlab bench --against` does for one config after another, those of `STEPS`, but the peers are
built while vitlab's steps are compiled, so that all of it ends within SECONDS (280). Then nothing
else runs, and each takes its turn: vitlab's step, a variant that is not vitlab's yet (see
`CONCURRENT`), the peer's. A trace of each goes to OUT as a table of kernels, with the HLO.
`--quick` rehearses it with tiny models; without PyTorch there are no peers.
"""

import collections
import gzip
import json
import pathlib
import re
import shutil
import statistics
import sys
import threading
import time

import jax

from vitlab import config as config_lib
from vitlab.training import benchmark_data, flops, parallelism, peers
from vitlab.training.throughput import matmul_rate

BEGAN = time.time()
arguments = [a for a in sys.argv[1:] if a != "--quick"]
QUICK = "--quick" in sys.argv
OUT, SECONDS = pathlib.Path(arguments[0]), float((*arguments, 280)[1])
OURS = "vitlab"
# Kernels that do not wait for each other, such as those of a thousand small parameters in DETR's
# norm and update, run side by side.
CONCURRENT = "vitlab with concurrent kernels"
VIT = "configs/vit_b16_imagenet.py"
# A name, the config, what is not as there, its peer.
STEPS = {
    "ViT-B/16": (VIT, {"model.rep_size": "False", "batch_size": "256"}, "timm"),
    "MAE-B/16": ("configs/mae_b16_imagenet.py", {"batch_size": "256"}, "hf-mae"),
    "DETR-R50": ("configs/detr_r50_coco.py:size=1024", {"batch_size": "8"}, "hf-detr"),
    "ViT-L/16": (
        VIT,
        {"model.rep_size": "False", "model.variant": "L/16", "batch_size": "128"},
        "timm",
    ),
}
STEPS = {name: STEPS[name] for name in arguments[2:] or STEPS}
TINY = {
    "ViT-B/16": {"model.depth": "1"},
    "MAE-B/16": {"model.backbone.depth": "1", "model.decoder_depth": "1"},
    "DETR-R50": {"model.encoder_layers": "1", "model.decoder_layers": "1"},
    "ViT-L/16": {"model.depth": "1"},
}


def say(line):
    line = f"[{time.time() - BEGAN:5.0f} s] {line}"
    print(line, flush=True)
    with (OUT / "gpu.txt").open("a") as file:
        print(line, file=file)


def left():
    return SECONDS - (time.time() - BEGAN)


def prepare(name):
    config, changed, _ = STEPS[name]
    if QUICK:
        changed = {**changed, **TINY[name], "batch_size": "2"}
        config = config.replace("1024", "128")
    changed = {**changed, "data.workers": "0", "precision": "bfloat16"}
    setup, _ = benchmark_data.prepare(
        config_lib.load(config, list(changed.items())), "synthetic", lambda line: None
    )
    return setup, benchmark_data.random_batch(setup)


class Step:
    """A compiled step, with a state and a batch of its own on the device."""

    def __init__(self, name, setup, batch, options, alike=None):
        self.name, self.rows = name, len(batch["image"])
        began = time.time()
        traced = setup.traced_step
        lowered = traced.lower()
        traced_in, began = time.time() - began, time.time()
        self.compiled = lowered.compile(options if jax.default_backend() == "gpu" else {})
        self.flops = flops.count(traced.jaxpr)
        if alike:
            self.state = jax.tree.map(jax.numpy.copy, alike.state)
        else:
            self.state = setup.fresh_state(lambda line: None)
        self.batch = parallelism.to_devices(batch, setup.mesh)
        say(f"{name}: traced in {traced_in:.1f} s, compiled in {time.time() - began:.1f} s")

    def seconds(self, steps):
        self.run(1)
        began = time.perf_counter()
        self.run(steps)
        return (time.perf_counter() - began) / steps

    def run(self, steps):
        for _ in range(steps):
            self.state = self.compiled(self.state, self.batch)
        jax.block_until_ready(self.state)

    def trace(self, steps=3):
        """The kernels of a step with their milliseconds, and the HLO."""
        name = re.sub(r"\W+", "_", self.name)
        folder = OUT / f"trace_{name}"
        jax.profiler.start_trace(folder)
        self.run(steps)
        jax.profiler.stop_trace()
        spent, times = collections.Counter(), collections.Counter()
        for path in folder.rglob("*.trace.json.gz"):
            events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
            names = {
                (e["pid"], e.get("tid") if e["name"] == "thread_name" else None): e["args"]["name"]
                for e in events
                if e.get("name") in ("process_name", "thread_name")
            }
            for e in events:
                if e.get("ph") != "X":
                    continue
                of_gpu = "GPU" in names.get((e.get("pid"), None), "")
                if of_gpu and "Stream" in names.get((e.get("pid"), e.get("tid")), ""):
                    kernel = e.get("args", {}).get("hlo_op", "?"), e["name"][:90]
                    spent[kernel] += e["dur"] / steps / 1e3
                    times[kernel] += 1
        shutil.rmtree(folder)
        lines = [f"{ms:.4f}\t{times[k] / steps}\t{k[0]}\t{k[1]}" for k, ms in spent.most_common()]
        with gzip.open(OUT / f"{name}.kernels.tsv.gz", "wt") as file:
            file.write("\n".join(lines))
        with gzip.open(OUT / f"{name}.hlo.gz", "wt") as file:
            file.write(self.compiled.as_text())


def build_peer(name, spec, found):
    began = time.time()
    try:
        peer = peers.Peer(STEPS[name][2], spec)
        say(f"{name}'s peer {STEPS[name][2]}, {peer.about}: built in {time.time() - began:.0f} s")
        found[name] = peer
    except Exception as error:  # the others go on
        say(f"{name}'s peer: {str(error)[:300]}")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    say(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}; large products")
    say(f"{matmul_rate('bfloat16') / 1e12:.0f} TFLOP/s, of 989 on paper")
    steps, found, threads = {}, {}, []
    prepared = {name: prepare(name) for name in STEPS}
    specs = {
        name: peers.specification(STEPS[name][2], *prepared[name][:1], "train", prepared[name][1])
        for name in STEPS
    }

    def build(names):
        for name in names:
            if name in STEPS:
                build_peer(name, specs[name], found)

    for name in STEPS:
        setup, batch = prepared[name]
        steps[name, OURS] = Step(f"{name}, {OURS}", setup, batch, setup.options)
        if len(steps) == 1:
            for names in (("DETR-R50",), ("MAE-B/16",), ("ViT-B/16", "ViT-L/16")):
                threads.append(threading.Thread(target=build, args=(names,), daemon=True))
                threads[-1].start()
    if "DETR-R50" in STEPS and left() > 150:
        (setup, batch), ours = prepared["DETR-R50"], steps["DETR-R50", OURS]
        mode = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
        options = {**setup.options, **mode}
        step = Step(f"DETR-R50, {CONCURRENT}", setup, batch, options, ours)
        steps["DETR-R50", CONCURRENT] = step
    for thread in threads:
        thread.join(max(left() - 50, 0))
    say("all is built: turns of 10 steps")
    for name in STEPS:
        each = {option: step for (other, option), step in steps.items() if other == name}
        if name in found:
            each["peer"] = found[name]
        turns = {option: [] for option in each}
        for number in range(5):
            for option in list(each) if number % 2 else reversed(list(each)):
                if left() > 10:
                    turns[option].append(each[option].seconds(10))
        for option, times in turns.items():
            if not times:
                continue
            median = statistics.median(times)
            told = f"{name}, {option}: {1e3 * median:.2f} ms a step ({1e3 * min(times):.2f} to "
            told += f"{1e3 * max(times):.2f})"
            if option != "peer":
                step = each[option]
                told += f", {step.rows / median:,.0f} images/s, "
                told += f"MFU {step.flops / median / 989e12:.1%}"
                pairs = zip(turns.get("peer", ()), times, strict=False)
                ratios = [theirs / ours for theirs, ours in pairs]
                if ratios:
                    told += f", the peer's time over it {statistics.median(ratios):.3f}"
                    told += f" ({min(ratios):.3f} to {max(ratios):.3f})"
            say(told)
        if name in found:
            found.pop(name).close()
    for step in steps.values():
        if left() > 10:
            step.trace()
    say(f"memory: {jax.devices()[0].memory_stats()}")


main()
