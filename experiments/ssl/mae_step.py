"""Measures what a step of MAE costs beside a step of the same encoder on every token.

    python experiments/ssl/mae_step.py VARIANT BATCH [STEPS]

Prints FLOPs by XLA's count and seconds of both training steps (loss, gradients, AdamW), the two
timed in turn, with the median of each and their ratio.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import optax

from vitlab.models.mae import MAE, reconstruction_loss
from vitlab.models.vit import ViT

variant, batch, steps = sys.argv[1], int(sys.argv[2]), int((*sys.argv, 5)[3])
dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
optimizer = optax.adamw(1e-4)
images = jax.random.normal(jax.random.key(0), (batch, 224, 224, 3))
noise = jax.random.uniform(jax.random.key(1), (batch, 196))
labels = jnp.arange(batch) % 1000


def vit(**fields):
    return ViT(variant, pos_embed="sincos2d_mae", weight_init="mae", dtype=dtype, **fields)


mae, classifier = MAE(vit(), dtype=dtype), vit(num_classes=1000)


def mae_loss(variables, images, noise, labels):
    prediction, stages = mae.apply(variables, images, noise, train=True)
    return reconstruction_loss(prediction, images, stages["mask"], 16).mean()


def full_loss(variables, images, noise, labels):
    logits, _ = classifier.apply(variables, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def prepare(model, loss, *inputs):
    variables = jax.jit(model.init)(jax.random.key(2), *(x[:1] for x in inputs))
    state = variables, optimizer.init(variables)

    def step(state, *batch):
        variables, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(variables, *batch), moments, variables)
        return optax.apply_updates(variables, updates), moments

    data = (images, noise, labels)
    compiled = jax.jit(step, donate_argnums=0).lower(state, *data).compile()
    return compiled, state, compiled.cost_analysis()["flops"]


programs = {
    "mae": prepare(mae, mae_loss, images, noise),
    "full": prepare(classifier, full_loss, images),
}
states = {name: program[1] for name, program in programs.items()}
times = {name: [] for name in programs}
for _ in range(steps + 1):
    for name, (compiled, _, _) in programs.items():
        began = time.perf_counter()
        states[name] = jax.block_until_ready(compiled(states[name], images, noise, labels))
        times[name].append(time.perf_counter() - began)
medians = {name: statistics.median(each[1:]) for name, each in times.items()}
flops = {name: program[2] for name, program in programs.items()}
print(f"ViT-{variant}, batch {batch}, {jax.devices()[0].device_kind}, {dtype.__name__}")
for name in programs:
    print(f"  {name:4}  {flops[name] / 1e9:9.1f} GFLOP  {medians[name]:7.3f} s a step")
print(
    f"  ratio {flops['mae'] / flops['full']:.3f} FLOP  {medians['mae'] / medians['full']:.3f} time"
)
