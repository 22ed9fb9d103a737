"""Which attention is fastest for which shape, in bfloat16: cuDNN's, XLA's.

    python experiments/speed/attention.py [--quick]

Times `vitlab.ops.attention` forward with backward, and forward alone, by either; on shapes that
ViT, MAE and DETR have, an odd number of tokens with one of padding, with the options of XLA that a
step has. `_FUSED_LOGITS` there should be what this says. Without a GPU both are XLA's. The boxes of
a PlainDETR add something for each row and column; of that also how far the output and the gradients
of query, key, rows and columns are from float32's, relative to the largest.
"""

import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp

from vitlab.ops import attention as ops
from vitlab.training.setup import CUBLAS

QUICK = "--quick" in sys.argv
# What it is of, batch, queries, keys, heads, head_dim, what masks the keys.
SHAPES = (
    ("ViT-B/16 at 224", 256, 198, 198, 12, 64, "length"),
    ("ViT-B/16 at 224 without the class token", 256, 196, 196, 12, 64, None),
    ("ViT-B/16 at 384", 64, 578, 578, 12, 64, "length"),
    ("ViT-S/16 at 224", 256, 198, 198, 6, 64, "length"),
    ("MAE-B's encoder", 256, 50, 50, 12, 64, None),
    ("MAE's decoder", 256, 198, 198, 16, 32, "length"),
    ("CIFAR's ViT", 512, 66, 66, 6, 64, "length"),
    ("DETR's encoder at 1024", 8, 1024, 1024, 8, 32, "keys"),
    ("DETR's queries to the image", 8, 100, 1024, 8, 32, "keys"),
    ("DETR's queries to each other", 8, 100, 100, 8, 32, None),
    ("PlainDETR's queries to the image", 8, 1100, 1600, 8, 32, "grid"),
)
OPTIONS = CUBLAS if jax.default_backend() == "gpu" else {}
REPEATS, LAYERS = (1, 1) if QUICK else (10, 4)


def loss(query, key, bias, mask, layers=LAYERS):
    for _ in range(layers):
        query = ops.attention(query, key, key, mask, bias)
    return query.astype(jnp.float32).sum(), query


def compiled(backward, **more):
    run = partial(loss, **more)
    run = jax.grad(run, (0, 1, 2), has_aux=True) if backward else run
    return jax.jit(run, compiler_options=OPTIONS)


def milliseconds(arrays, backward):
    """Of a layer, among several in a row."""
    run = compiled(backward)
    jax.block_until_ready(run(*arrays))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(REPEATS):
            made = run(*arrays)
        jax.block_until_ready(made)
        times.append((time.perf_counter() - began) / REPEATS / LAYERS)
    return 1e3 * statistics.median(times)


def errors(arrays):
    """Of the gradients and the output of a layer in bfloat16."""
    run = compiled(True, layers=1)
    with jax.default_matmul_precision("highest"):
        *floats, mask = arrays
        exact = run(*jax.tree.map(lambda x: x.astype(jnp.float32), floats), mask)
    pairs = zip(jax.tree.leaves(run(*arrays)), jax.tree.leaves(exact), strict=True)
    return [float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs]


print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, bfloat16, milliseconds a layer")
ops._FUSED_LOGITS = 0
there = ops._has_cudnn()
for name, batch, queries, keys, heads, head_dim, masked in SHAPES:
    batch = 2 if QUICK else batch
    draw = partial(jax.random.normal, dtype=jnp.bfloat16)
    query = draw(jax.random.key(0), (batch, queries, heads, head_dim))
    key = draw(jax.random.key(1), (batch, keys, heads, head_dim))
    mask = bias = None
    if masked == "grid":
        side = round(keys**0.5)
        bias = (draw(jax.random.key(2), (batch, heads, queries, side)),) * 2
    elif masked == "length":
        mask = jnp.full(batch, keys - 1)
    elif masked:
        mask = jnp.broadcast_to(jnp.arange(keys) < 0.8 * keys, (batch, keys))
    print(f"{name}, {list(query.shape)} to {keys}, {batch * heads * queries * keys:,} logits")
    for backward in (True, False):
        took = []
        for by_cudnn in (True, False):
            ops._has_cudnn = lambda by_cudnn=by_cudnn: there and by_cudnn
            took.append(milliseconds((query, key, bias, mask), backward))
        what = "forward, backward" if backward else "forward"
        print(
            f"  {what}: cuDNN {took[0]:.4f}, XLA {took[1]:.4f}: {took[1] / took[0]:.2f} x",
            flush=True,
        )
    if bias:
        ops._has_cudnn = lambda: there
        print("  errors:", *(f"{x:.1e}" for x in errors((query, key, bias, mask))))
