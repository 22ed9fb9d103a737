"""Memory and traffic of one device, from the layout rules: `python experiments/scaling/plan.py`.

No device is needed: parameters are shapes, the mesh is abstract. Prints the tables of README.md.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh

from vitlab.models.vit import VARIANTS, ViT
from vitlab.training.layout import AXES, LAYOUT, bytes_on_a_device, lay_out, lay_out_like

GB = 1e9
PEAK, MFU = 989e12, 0.5  # of an H100 or H200: bfloat16, dense, FLOP/s; and what we aim at
LINKS = {"NVLink": 450 * GB, "InfiniBand": 50 * GB}  # bytes/s out of one GPU: NVLink 4, 400 Gb/s
SIZES = {"B/16": 196, "L/16": 196, "g/14": 256}  # tokens of 224 x 224 pixels


@dataclasses.dataclass
class Plan:
    """One model under one mesh: bytes on a device, bytes a device sends in a step."""

    variant: str
    mesh: dict[str, int]

    def __post_init__(self):
        model = ViT(self.variant, num_classes=1000, pool="gap")
        image = jnp.zeros((1, 224, 224, 3))
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        mesh = AbstractMesh(tuple(self.mesh.get(axis, 1) for axis in AXES), AXES)
        optimizer = jax.eval_shape(optax.adamw(1e-3).init, params)
        shardings = lay_out(LAYOUT, params, mesh)
        state = {"params": params, "optimizer": optimizer, "ema": params}
        placed = lay_out_like(state, params, shardings, mesh)
        held = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed
        )
        self.state_bytes = bytes_on_a_device(held)
        self.params = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
        self.own_bytes = bytes_on_a_device(held["params"])
        self.width, self.depth = VARIANTS[self.variant.partition("/")[0]][:2]
        self.tokens = SIZES[self.variant]

    @property
    def flops(self) -> float:
        """Of one image, forward and backward: every weight twice, thrice; and attention."""
        forward = 2 * self.params * self.tokens + 4 * self.depth * self.tokens**2 * self.width
        return 3 * forward

    def sent(self, images: int) -> float:
        """Bytes out of one device in a step on `images` for each device (ring algorithms).

        Gradients are summed over `data`: 2 (n - 1) / n of what a device holds of them. `fsdp`
        gathers the weights for the forward and again for the backward pass, and scatters the sums.
        `tensor` sums activations (bfloat16) twice a block in each direction.
        """
        data, fsdp, tensor = (self.mesh.get(axis, 1) for axis in AXES)
        part = 4 * self.params / tensor
        weights = 3 * (fsdp - 1) / fsdp * part + 2 * (data - 1) / data * part / fsdp
        activations = 2 * images * tensor * self.tokens * self.width
        return weights + 4 * self.depth * 2 * (tensor - 1) / tensor * activations


def main() -> None:
    """Prints the tables."""
    print("GB of state on one device:\n")
    table(lambda plan: plan.state_bytes)
    for images in (32, 256):
        print(f"\nGB sent, {images} images on each device:\n")
        table(lambda plan, images=images: plan.sent(images))

    print("\n| model | compute, ms an image | layout | " + " | ".join(LINKS) + " |")
    print("|---" * (3 + len(LINKS)) + "|")
    for variant in SIZES:
        for name, mesh in meshes().items():
            plan = Plan(variant, mesh)
            seconds = plan.flops / (PEAK * MFU)
            each = plan.sent(1) - plan.sent(0)  # what every further image adds
            cells = []
            for link in LINKS.values():
                left = seconds - each / link
                cells.append(f"{plan.sent(0) / link / left:.0f}" if left > 0 else "never")
            print(f"| ViT-{variant} | {seconds * 1e3:.3f} | {name} | " + " | ".join(cells) + " |")

    print("\n| model | images/s on a device | JPEG, MB/s | checkpoint, GB |")
    print("|---|---|---|---|")
    for variant in SIZES:
        plan = Plan(variant, {})
        rate = PEAK * MFU / plan.flops
        print(
            f"| ViT-{variant} | {rate:,.0f} | {rate * 110e3 / 1e6:,.0f} | "
            f"{plan.state_bytes / GB:.1f} |"
        )


def table(bytes_of: Callable[[Plan], float]) -> None:
    """Prints one number for each model under each mesh, in gigabytes."""
    print("| model | parameters | " + " | ".join(meshes()) + " |")
    print("|---" * (2 + len(meshes())) + "|")
    for variant in SIZES:
        plans = [Plan(variant, mesh) for mesh in meshes().values()]
        cells = [f"{bytes_of(plan) / GB:.2f}" for plan in plans]
        print(f"| ViT-{variant} | {plans[0].params:,} | " + " | ".join(cells) + " |")


def meshes() -> dict[str, dict[str, int]]:
    """The layouts that are compared."""
    return {
        "data 8": {"data": 8},
        "data 1024": {"data": 1024},
        "fsdp 8": {"fsdp": 8},
        "data 128, fsdp 8": {"data": 128, "fsdp": 8},
        "fsdp 64": {"fsdp": 64},
        "data 64, fsdp 4, tensor 4": {"data": 64, "fsdp": 4, "tensor": 4},
    }


if __name__ == "__main__":
    main()
