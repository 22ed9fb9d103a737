"""Images a second, waiting for input, and model FLOPs utilisation."""

import time

import jax

# Dense bfloat16 peak of one device, FLOP/s, from the vendors' data sheets; SXM forms of the GPUs.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops() -> float:
    """`PEAK_FLOPS` of a device of this process, or 0 where it is not known, as of a CPU."""
    kind = jax.devices()[0].device_kind
    # The longest name wins: "TPU v5 lite" is also a "TPU v5".
    name = max((name for name in PEAK_FLOPS if name in kind), key=len, default="")
    return PEAK_FLOPS.get(name, 0.0)


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a large matrix product on one device: what this machine can do, here and now.

    Args:
        dtype: `float32` or `bfloat16`, of the factors and the product.
    """
    # On an accelerator many at once, which take longer than it takes to ask for them.
    side, times = (2048, 1) if jax.default_backend() == "cpu" else (8192, 20)
    a, b = jax.random.normal(jax.random.key(0), (2, side, side)).astype(dtype)
    b = b * side**-0.5

    @jax.jit
    def products(a, b):
        return jax.lax.fori_loop(0, times, lambda _, x: x @ b, a)

    def seconds():
        began = time.perf_counter()
        products(a, b).block_until_ready()
        return time.perf_counter() - began

    seconds()
    return 2 * side**3 * times / min(seconds() for _ in range(5))


class Throughput:
    """Measures between two log steps, evaluations and checkpoints left out.

    Args:
        batch_size: global.
        step_flops: of one device in one step, see `vitlab.training.flops`.
    """

    def __init__(self, batch_size: int, step_flops: float):
        self.batch_size = batch_size
        self.peak = peak_flops()
        self.step_flops = step_flops
        self.reset()

    def reset(self) -> None:
        """Starts a new interval."""
        self._began = time.monotonic()
        self._waited = 0.0
        self._paused = 0.0

    def waited(self, seconds: float) -> None:
        """Counts time in which the loop waited for a batch."""
        self._waited += seconds

    def paused(self, seconds: float) -> None:
        """Takes out time that was not training."""
        self._paused += seconds

    def measure(self, steps: int) -> dict[str, float]:
        """`images_per_second`, `input_wait` (a fraction), and `mfu` where the peak is known."""
        seconds = max(time.monotonic() - self._began - self._paused, 1e-9)
        values = {
            "images_per_second": steps * self.batch_size / seconds,
            "input_wait": self._waited / seconds,
        }
        if self.peak:
            values["mfu"] = steps * self.step_flops / seconds / self.peak
        return values
