"""How long a ViT's training step takes to trace and to compile, without and with `scan`.

python experiments/speed/compile.py [BATCH]
"""

import sys
import time

import jax
import jax.numpy as jnp
import optax

from vitlab.models.vit import ViT

jax.config.update("jax_enable_compilation_cache", False)
batch = int((*sys.argv, 4)[1])
dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
optimizer = optax.adamw(1e-4)
print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, batch {batch}, {dtype.__name__}")
total = {}
for scan in (False, True):
    for variant in ("B/16", "L/16"):
        model = ViT(variant, num_classes=1000, scan=scan, dtype=dtype)

        def loss(variables, images, labels, model=model):
            logits, _ = model.apply(variables, images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(state, images, labels, loss=loss):
            variables, moments = state
            gradients = jax.grad(loss)(variables, images, labels)
            updates, moments = optimizer.update(gradients, moments, variables)
            return optax.apply_updates(variables, updates), moments

        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        state = variables, jax.eval_shape(optimizer.init, variables)
        began = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(state, images, labels)
        traced = time.perf_counter()
        lowered.compile()
        done = time.perf_counter()
        total[variant, scan] = done - began
        print(
            f"ViT-{variant}, scan={scan}: traced in {traced - began:.1f} s, compiled in "
            f"{done - traced:.1f} s",
            flush=True,
        )
for scan in (False, True):
    ratio = total["L/16", scan] / total["B/16", scan]
    print(f"scan={scan}: ViT-L takes {ratio:.2f} of ViT-B's time")
