"""What one of eight devices holds of a ViT-B/16, and the traffic that XLA put in.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python experiments/scaling/measure.py

Makes the train state of every mesh, counts the bytes of its arrays on the first device, compiles
the step, and adds up the results of its collectives. Prints a table of README.md.
"""

import collections
import re

import jax

from vitlab import config as config_lib
from vitlab.training import footprint
from vitlab.training.setup import Setup

MESHES = [
    {"data": 8, "fsdp": 1, "tensor": 1},
    {"data": 1, "fsdp": 8, "tensor": 1},
    {"data": 2, "fsdp": 2, "tensor": 2},
]
OVERRIDES = {
    "model": {"name": "vit", "variant": "B/16", "num_classes": 1000, "pool": "gap"},
    "data.preprocess": "decode(channels=3)|resize(224)|value_range(-1,1)",
    "batch_size": 64,
    "evaluators": {},
    "checkpoint.best": "",
}
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}


def main() -> None:
    """Prints the table."""
    print("| mesh | parameters | optimizer | average | all | a step | collectives |")
    print("|---|---|---|---|---|---|---|")
    for mesh in MESHES:
        overrides = {**OVERRIDES, "parallelism.mesh": mesh}
        config = config_lib.load(
            "configs/quickstart.py", [(key, str(value)) for key, value in overrides.items()]
        )
        setup = Setup(config)
        state = setup.fresh_state(print)
        parts = [held(tree) for tree in (state.params, state.opt_state, state.ema)]
        del state
        compiled = setup.compile_step()
        cells = [footprint.size_text(size) for size in (*parts, sum(parts))]
        cells += [footprint.size_text(footprint.step_bytes(compiled)), collectives(compiled)]
        print(f"| {' '.join(f'{k} {v}' for k, v in mesh.items())} | {' | '.join(cells)} |")


def held(tree) -> int:
    """Bytes of arrays on the first device."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def collectives(compiled) -> str:
    """Of a compiled step, each kind with the bytes of its results."""
    sizes = collections.Counter()
    for line in compiled.as_text().splitlines():
        match = re.match(r"\s*(?:ROOT )?%[\w.-]+ = (.*?) (all-\w+|reduce-scatter)(-start)?\(", line)
        if match:
            for kind, shape in re.findall(r"(f32|s32|u32|bf16|pred)\[([\d,]*)\]", match[1]):
                count = 1
                for side in filter(None, shape.split(",")):
                    count *= int(side)
                sizes[match[2]] += count * BYTES[kind]
    return ", ".join(f"{kind} {footprint.size_text(size)}" for kind, size in sizes.items())


if __name__ == "__main__":
    main()
