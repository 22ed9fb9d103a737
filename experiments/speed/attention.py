"""Which attention is fastest for which shape: XLA's, cuDNN's, and either on padded tokens.

    python experiments/speed/attention.py [--quick]

Times forward with backward in bfloat16, of the shapes that a step of ViT and MAE has, and prints
each beside XLA's. `vitlab.ops.attention` should choose by what this says. cuDNN is left out where
there is no GPU.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

QUICK = "--quick" in sys.argv
# What it is of, batch, tokens, heads, head_dim.
SHAPES = (
    ("ViT-B/16 at 224", 256, 197, 12, 64),
    ("ViT-L/16 at 224", 128, 197, 16, 64),
    ("ViT-B/16 at 384", 64, 577, 12, 64),
    ("ViT-B/16 at 512", 32, 1025, 12, 64),
    ("MAE-B's encoder", 256, 50, 12, 64),
    ("MAE's decoder", 256, 197, 16, 32),
    ("DETR's encoder at 1024", 8, 1024, 8, 32),
)
REPEATS, LAYERS = (1, 1) if QUICK else (10, 8)


def attend(implementation, padded):
    def attention(query, key, value):
        if not padded:
            return jax.nn.dot_product_attention(query, key, value, implementation=implementation)
        tokens = query.shape[1]
        more = [(0, 0), (0, -tokens % padded), (0, 0), (0, 0)]
        query, key, value = (jnp.pad(x, more) for x in (query, key, value))
        mask = (jnp.arange(key.shape[1]) < tokens)[None, None, None]
        y = jax.nn.dot_product_attention(
            query, key, value, mask=mask, implementation=implementation
        )
        return y[:, :tokens]

    return attention


def seconds(attention, shape):
    """Of a layer, forward and backward, among several in a row."""

    def loss(x):
        for _ in range(LAYERS):
            x = attention(x, x, x)
        return x.astype(jnp.float32).sum()

    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    step = jax.jit(jax.grad(loss))
    step(x).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(REPEATS):
            y = step(x)
        y.block_until_ready()
        times.append((time.perf_counter() - began) / REPEATS / LAYERS)
    return statistics.median(times)


print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, bfloat16, forward and backward")
gpu = jax.default_backend() == "gpu"
for name, batch, *rest in SHAPES:
    shape = (2 if QUICK else batch, *rest)
    plain = seconds(attend("xla", 0), shape)
    print(f"{name}, {list(shape)}: XLA {plain * 1e3:.3f} ms", flush=True)
    for implementation in ("xla", "cudnn") if gpu else ("xla",):
        for padded in (0, 8, 64):
            if (implementation, padded) == ("xla", 0):
                continue
            what = f"{implementation}, tokens padded to {padded}" if padded else implementation
            try:
                took = seconds(attend(implementation, padded), shape)
            except Exception as error:  # what cuDNN does not have
                print(f"  {what}: {str(error).splitlines()[0][:120]}")
                continue
            print(f"  {what}: {took * 1e3:.3f} ms, {plain / took:.2f} x XLA's speed", flush=True)
