"""How long the matching of DETR takes: eight images, six layers, 100 queries, as in a step.

    python experiments/speed/matching.py

The objects are as many as COCO's, 7 in an image on average and at most 63. The predictions are as
alike as an untrained decoder's, as scattered as those of one that has begun to learn, or mostly
right: what the queries have in common is what makes targets compete for them.
"""

import statistics
import time

import jax
import numpy as np

from vitlab.models.detr import Boxes
from vitlab.models.set_loss import SetLoss, Targets
from vitlab.ops.matching import hungarian

IMAGES, LAYERS, QUERIES, CLASSES, BATCHES = 8, 6, 100, 91, 8
STAGES = ("untrained", "begun", "trained")


def costs(stage, seed):
    """f32[images * layers, targets, queries], and how many targets there are, i32[...]."""
    rng = np.random.default_rng(seed)
    shape = (IMAGES, LAYERS, QUERIES)
    counts = np.minimum(1 + rng.geometric(1 / 6.4, IMAGES), 63)
    boxes = rng.uniform(0.1, 0.9, (IMAGES, 63, 4)) * (1, 1, 0.4, 0.4)
    labels = rng.integers(0, CLASSES, (IMAGES, 63))
    logits = rng.normal(size=(*shape, CLASSES + 1))
    if stage == "untrained":
        found = 0.5 + 0.02 * rng.normal(size=(*shape, 4))
        logits = 0.1 * logits
    else:
        found = rng.uniform(0.1, 0.9, (1, LAYERS, QUERIES, 4)) * (1, 1, 0.4, 0.4)
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
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}: milliseconds of a batch, median")
    for stage in STAGES:
        times = []
        for seed in range(BATCHES):
            problem = jax.device_put(costs(stage, seed))
            jax.block_until_ready(solve(*problem))
            for _ in range(5):
                began = time.perf_counter()
                jax.block_until_ready(solve(*problem))
                times.append(1e3 * (time.perf_counter() - began))
        print(f"{stage}: {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})")


main()
