"""Learning-rate schedules: warm-up, a body, an optional cooldown."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax

from vitlab.config import Duration, check_unread
from vitlab.errors import InputError

# The schedules that make use of a field.
_READ_BY = {
    "end_factor": ("cosine", "linear", "poly"),
    "power": ("poly",),
    "timescale": ("rsqrt",),
    "decay_factor": ("stair",),
}


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """`config.schedule`.

    Attributes:
        name: `cosine`, `linear` and `poly` fall to `end_factor`, the last as `(1 - t)^power` over
            the time t from 0 to 1 (DeepLab, 1606.00915); `constant`; `rsqrt` falls as
            `sqrt(t / (t + step))` after the warm-up, with `t` the `timescale` ("Scaling Vision
            Transformers", Zhai et al. 2022); `stair` multiplies by `decay_factor` at each of
            `decay_at`.
        warmup: linear from `start_factor`, a fraction of the peak.
        cooldown: linear to 0 at the end, whatever the body. One run of `rsqrt` serves several
            lengths: `config.resume` cools it down from any of its checkpoints.
        start_factor: see `warmup`.
        end_factor: what cosine, linear and poly end at, as a fraction of the peak.
        power: of poly.
        timescale: of rsqrt.
        decay_at: of stair: fractions of the whole training, ascending.
        decay_factor: of stair.
    """

    name: Literal["cosine", "linear", "poly", "constant", "rsqrt", "stair"] = "cosine"
    warmup: Duration = Duration()
    cooldown: Duration = Duration()
    start_factor: float = 0.0
    end_factor: float = 0.0
    power: float = 0.9
    timescale: Duration = Duration(10_000, "steps")
    decay_at: tuple[float, ...] = ()
    decay_factor: float = 0.1

    def __post_init__(self):
        if (self.name == "stair") != bool(self.decay_at):
            raise InputError(
                f"decay_at is {list(self.decay_at)} and the schedule {self.name}: stair "
                "needs fractions of the training such as [0.5, 0.75], others none"
            )
        if not 0 <= self.start_factor <= 1 or self.start_factor and not self.warmup.amount:
            raise InputError(
                f"start_factor is {self.start_factor}: a fraction in [0, 1] of the peak, which "
                "needs a warm-up"
            )
        unread = [field for field, names in _READ_BY.items() if self.name not in names]
        check_unread(self, unread, f"to the schedule {self.name}")
        for name in ("end_factor", "decay_factor"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it cannot be negative")
        if self.power <= 0 or not self.timescale.amount:
            raise InputError("power and timescale must be above 0")
        if any(not 0 < at < 1 for at in self.decay_at) or list(self.decay_at) != sorted(
            self.decay_at
        ):
            raise InputError(f"decay_at is {self.decay_at} but must ascend between 0 and 1")


def make_schedule(
    config: ScheduleConfig, peak: float, total_steps: int, batch_size: int, examples: int
) -> optax.Schedule:
    """A function from the step (i32[]) to the learning rate (f32[]).

    Args:
        config: which schedule.
        peak: the learning rate that the warm-up reaches.
        total_steps: steps of the whole training.
        batch_size: global, in examples.
        examples: examples an epoch.

    Raises:
        InputError: warm-up and cooldown together are longer than the training, or a decay is within
            the warm-up.
    """
    warmup = config.warmup.steps(batch_size, examples)
    cooldown = config.cooldown.steps(batch_size, examples)
    if warmup + cooldown > total_steps:
        raise InputError(
            f"config.schedule: {warmup} steps of warm-up and {cooldown} of cooldown do not fit in "
            f"a training of {total_steps} steps; set config.schedule.warmup_steps, 0 for none"
        )
    length = max(1, total_steps - warmup)
    if config.name == "cosine":
        body = optax.cosine_decay_schedule(peak, length, config.end_factor)
    elif config.name == "linear":
        body = optax.linear_schedule(peak, peak * config.end_factor, length)
    elif config.name == "poly":
        body = optax.polynomial_schedule(peak, peak * config.end_factor, config.power, length)
    elif config.name == "constant":
        body = optax.constant_schedule(peak)
    elif config.name == "stair":
        edges: dict[int, float] = {}
        for at in config.decay_at:
            step = max(1, round(at * total_steps))
            if step < warmup:
                raise InputError(
                    f"config.schedule.decay_at: {at} is step {step} of {total_steps}, within the "
                    f"{warmup} steps of the warm-up"
                )
            edges[step - warmup] = edges.get(step - warmup, 1.0) * config.decay_factor
        body = optax.piecewise_constant_schedule(peak, edges)
    else:
        timescale = config.timescale.steps(batch_size, examples)

        def body(step):
            return peak * jnp.sqrt(timescale / (timescale + step))

    rise = optax.linear_schedule(config.start_factor * peak, peak, warmup)
    whole = optax.join_schedules([rise, body], [warmup]) if warmup else body
    if not cooldown:
        return whole

    def with_cooldown(step):
        return whole(step) * jnp.clip((total_steps - step) / cooldown, 0.0, 1.0)

    return with_cooldown
