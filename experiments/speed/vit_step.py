"""Times a ViT's training step, or its forward pass, of any version of vitlab on the path.

    PYTHONPATH=CHECKOUT python experiments/speed/vit_step.py VARIANT BATCH STEPS [inference]

A step is cross-entropy, gradients and AdamW on images that are already there. It needs nothing but
`vitlab.models.vit`, so that checkouts of old and new versions can take turns. Prints the least and
the median time.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import optax

from vitlab.models.vit import ViT

variant, batch, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = ViT(variant, num_classes=1000)
optimizer = optax.adamw(1e-4)
images = jax.random.normal(jax.random.key(0), (batch, 224, 224, 3))
labels = jnp.arange(batch) % 1000
variables = jax.jit(model.init)(jax.random.key(1), images[:1])


def loss(variables):
    logits, _ = model.apply(variables, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(state):
    variables, moments = state
    updates, moments = optimizer.update(jax.grad(loss)(variables), moments, variables)
    return optax.apply_updates(variables, updates), moments


if "inference" in sys.argv:
    forward = jax.jit(lambda variables: model.apply(variables, images)[0])
    state = variables

    def step(state):
        jax.block_until_ready(forward(state))
        return state
else:
    step, state = jax.jit(train, donate_argnums=0), (variables, optimizer.init(variables))
times = []
for _ in range(steps + 2):
    began = time.perf_counter()
    state = jax.block_until_ready(step(state))
    times.append(time.perf_counter() - began)
times = times[2:]
what = "inference" if "inference" in sys.argv else "training"
print(
    f"ViT-{variant}, batch {batch}, {what}: least {min(times):.3f} s, median "
    f"{statistics.median(times):.3f} s"
)
