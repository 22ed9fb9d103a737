"""Training steps and input alone, with the data from the host and on the device, in turns.

    python experiments/speed/device_cache.py configs/vit_cifar10.py:path=DIR,device [KEY=VALUE ...]

The values change the config. Prints the median and the best of the turns, in images a second.
"""

import statistics
import sys
import time

import jax
import numpy as np

from vitlab import config as config_lib
from vitlab.data.pipeline import train_batches
from vitlab.training.feeding import FromDevice, FromHost
from vitlab.training.setup import Setup
from vitlab.training.throughput import Throughput

TURNS, STEPS = 6, 20


def steps(setup):
    """A function that takes some steps."""
    step_fn = setup.compile_step()
    throughput = Throughput(setup.experiment.batch_size, 0)
    feed = FromDevice(setup, step_fn) if setup.cache else FromHost(setup, step_fn, 0, throughput)
    state, step = setup.fresh_state(print), 0

    def run(count):
        nonlocal state, step
        stop = step + count
        while step < stop:
            state, taken = feed(state, step, stop - step)
            step += taken
        jax.block_until_ready(state)

    return run


def host_input(setup):
    """A function that makes some batches on the host."""
    exp = setup.experiment
    batches = train_batches(
        setup.source,
        setup.preprocess,
        batch_size=exp.batch_size,
        seed=exp.seed,
        workers=exp.data.workers,
    )
    return lambda count: [next(batches) for _ in range(count)]


def device_input(setup):
    """A function that makes some batches on the device."""
    examples, _, _ = setup.cache.read()
    batch = jax.jit(setup.cache.batch)
    ids = np.arange(setup.experiment.batch_size, dtype=np.int32) % len(setup.source)
    return lambda count: jax.block_until_ready([batch(examples, ids, ids) for _ in range(count)])


def main():
    spec, *overrides = sys.argv[1:]
    pairs = [tuple(override.split("=", 1)) for override in overrides]
    host, device = (
        Setup(config_lib.load(spec, [*pairs, ("data.cache", cache)])) for cache in ("", "device")
    )
    ways = {
        "step, from the host": steps(host),
        "step, on the device": steps(device),
        "input alone, from the host": host_input(host),
        "input alone, on the device": device_input(device),
    }
    rates = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, run in ways.items():
            began = time.monotonic()
            run(STEPS)
            images = STEPS * host.experiment.batch_size
            if turn:  # the first compiles and fills what is ahead
                rates[name].append(images / (time.monotonic() - began))
    print(jax.devices()[0].device_kind)
    for name, found in rates.items():
        print(f"{name}: median {statistics.median(found):,.0f}, best {max(found):,.0f} images/s")


if __name__ == "__main__":
    main()
