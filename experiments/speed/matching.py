"""How long the matching of DETR takes: eight images, six layers, 100 queries, as in a step.

    python experiments/speed/matching.py

The objects are about as many as COCO's, small and in groups. The predictions are as alike as an
untrained decoder's, as scattered as those of one that has begun to learn, or mostly right: what the
queries have in common is what makes targets compete for them. The search takes 58, 13 and 0 steps
on average here, at most 223, 33 and 0.
"""

import statistics
import time

import jax
import numpy as np

from vitlab.models.detr import Boxes
from vitlab.models.set_loss import SetLoss, Targets
from vitlab.ops.matching import hungarian

IMAGES, LAYERS, QUERIES, CLASSES, BATCHES = 8, 6, 100, 91, 16
STAGES = ("untrained", "begun", "trained")


def costs(stage, seed):
    """f32[images * layers, targets, queries], and how many targets there are, i32[...]."""
    rng = np.random.default_rng(seed)
    counts = np.minimum(1 + rng.lognormal(1.4, 1, IMAGES).astype(int), 63)
    # In groups, and small, as people in a street.
    group = rng.uniform(0.2, 0.8, (IMAGES, 3, 2))[
        np.arange(IMAGES)[:, None], rng.integers(0, 3, 63)
    ]
    centre = np.clip(group + 0.08 * rng.normal(size=(IMAGES, 63, 2)), 0, 1)
    boxes = np.concatenate([centre, 0.15 * np.exp(rng.normal(size=(IMAGES, 63, 2)))], axis=-1)
    labels = rng.integers(0, CLASSES, (IMAGES, 63))
    shape = (IMAGES, LAYERS, QUERIES)
    logits = rng.normal(size=(*shape, CLASSES + 1))
    if stage == "untrained":
        # Queries differ along a few directions alone.
        mixed = rng.normal(size=(IMAGES, LAYERS, QUERIES, 3)) @ rng.normal(size=(3, 4))
        found, logits = 0.5 + 0.03 * mixed, 0.1 * logits
    else:
        found = rng.uniform(size=(1, LAYERS, QUERIES, 4)) * (1, 1, 0.5, 0.5)
        found = found + 0.02 * rng.normal(size=(*shape, 4))
    if stage == "trained":
        logits[..., -1] += 6
        for image, count in enumerate(counts):
            for layer in range(LAYERS):
                near = rng.permutation(QUERIES)[: 3 * count]
                target = np.arange(len(near)) % count
                noise = 0.03 * rng.normal(size=(len(near), 4))
                found[image, layer, near] = boxes[image, target] + noise
                logits[image, layer, near, labels[image, target]] += 6
    found = Boxes(logits.astype(np.float32), np.clip(found, 0.01, 1).astype(np.float32))
    mask = np.arange(63) < counts[:, None]
    targets = Targets(boxes.astype(np.float32), labels, mask)
    cost = SetLoss()._cost(found, targets).reshape(-1, 63, QUERIES)
    return cost, np.repeat(counts, LAYERS).astype(np.int32)


def main():
    solve = jax.jit(hungarian)
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}: milliseconds of a batch, mean")
    for stage in STAGES:
        times = []
        for seed in range(BATCHES):
            problem = jax.device_put(costs(stage, seed))
            jax.block_until_ready(solve(*problem))
            for _ in range(5):
                began = time.perf_counter()
                jax.block_until_ready(solve(*problem))
                times.append(1e3 * (time.perf_counter() - began))
        print(f"{stage}: {statistics.mean(times):.2f} ({min(times):.2f} to {max(times):.2f})")


main()
