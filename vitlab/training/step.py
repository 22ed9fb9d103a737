"""The train state, and the one step that changes it."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitlab.errors import InputError
from vitlab.ops import keys
from vitlab.ops.collectives import part_of_rows, roll_rows, total
from vitlab.tasks.task import Task


def normalizer(scale: np.ndarray, shift: np.ndarray) -> Callable[[jax.Array], jax.Array]:
    """The last op of a preprocessing string: pixels in [0, 255] to f32 `pixels * scale + shift`."""
    return lambda images: images.astype(jnp.float32) * scale + shift


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes, and all that a checkpoint holds.

    Attributes:
        step: i32[], steps done. With the seed it is the whole random state and data position.
        params: f32 parameters.
        model_state: the model's other collections (`batch_stats`).
        opt_state: the optimizer's.
        ema: exponential moving average of the variables (`params` and `model_state`), or None.
        totals: `{metric: (sum f32[], count f32[])}` since the last log, kept here so that what a
            resumed run logs is what the unbroken run would have logged.
        nonfinite_step: i32[], the first step whose loss or gradient was not finite, or -1.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any
    totals: dict[str, tuple[jax.Array, jax.Array]]
    nonfinite_step: jax.Array

    def variables(self, ema: bool = False) -> dict[str, Any]:
        """What `model.apply` takes: the variables, or their average."""
        return self.ema if ema else {"params": self.params, **self.model_state}

    def is_finite(self) -> bool:
        """Whether all that an update changes is: parameters, model_state, opt_state and ema.

        A small program for each shape, as one of all arrays takes seconds to compile. Every process
        of several must ask, and all get the same answer.
        """
        arrays = jax.tree.leaves((self.params, self.model_state, self.opt_state, self.ema))
        # One after the other: collectives of several programs at once can wait for each other.
        return all(bool(_all_finite(array)) for array in arrays)


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    normalize: Callable[[jax.Array], jax.Array],
    seed: int,
    accumulate: int = 1,
    ema_decay: float | None = None,
    frozen: Any = None,
    axis_name: str | None = None,
    total_steps: int = 1,
) -> Callable[[TrainState, dict[str, jax.Array]], TrainState]:
    """A pure function `(state, batch) -> state`, to be compiled.

    Args:
        task: what is learned.
        optimizer: see `make_optimizer`.
        normalize: from pixels f32 in [0, 255] to what the model takes.
        seed: of every random draw.
        accumulate: parts that the batch is cut into, augmented one after the other, with one update
            for all: the gradient of the whole batch in less memory.
        ema_decay: of the average of the variables; None keeps none.
        frozen: a tree like the parameters of bools, true where they are never updated; their
            gradients count in no norm, and XLA does not compute them.
        axis_name: the mapped axis where the step sees one device's rows of the batch (`pmap`);
            None where it sees all of them.
        total_steps: of the run, for what changes along it.
    """

    def step_fn(state: TrainState, batch: dict[str, jax.Array]) -> TrainState:
        step = state.step
        progress = jnp.full(batch["id"].shape, step / total_steps, jnp.float32)
        batch = {**batch, "progress": progress}

        def loss_fn(params, model_state, part):
            part = task.augment(part, normalize, seed, step)
            key = keys.batch_key(seed, "model", step)
            terms, metrics, new_state = task.loss(params, model_state, part, key)
            return terms, (metrics, new_state)

        terms, metrics, model_state, grads = gradients(
            loss_fn, state.params, state.model_state, batch, accumulate, axis_name
        )
        if frozen is not None:
            grads = jax.tree.map(lambda g, f: jnp.zeros_like(g) if f else g, grads, frozen)
        loss = sum(weight * mean(value, count) for value, count, weight in terms.values())
        grad_norm = optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = optax.incremental_update({"params": params, **model_state}, ema, 1.0 - ema_decay)

        one = jnp.ones((), jnp.float32)
        measured = {"loss": (loss, one), "grad_norm": (grad_norm, one), **metrics}
        if len(terms) > 1:
            measured |= {name: term[:2] for name, term in terms.items()}
        totals = {}
        for name, (value, count) in measured.items():
            before = state.totals.get(name, (0.0, 0.0))  # a fresh state has none
            totals[name] = (before[0] + value, before[1] + count)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        first = (state.nonfinite_step < 0) & ~finite
        return TrainState(
            step=step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=ema,
            totals=totals,
            nonfinite_step=jnp.where(first, step + 1, state.nonfinite_step),
        )

    return step_fn


def gradients(
    loss_fn: Callable,
    params: Any,
    model_state: Any,
    batch: Any,
    accumulate: int,
    axis_name: str | None = None,
):
    """Loss terms, metrics, new model state and gradients of one batch, over all devices.

    The loss is `sum of weight * sum / count` over its terms, with counts of the whole batch. With
    `accumulate` parts those are needed before the first gradient; they depend on no parameter, so
    XLA drops the forward pass that would compute them.

    Args:
        loss_fn: `(params, model_state, batch) -> (terms, (metrics, model_state))`.
        params: what to differentiate by.
        model_state: the model's other collections.
        batch: arrays whose leading axis `accumulate` divides. A part of it has `before` besides: of
            each of its rows the row before, which is in another part.
        accumulate: number of parts.
        axis_name: see `make_train_step`.

    Returns:
        `terms {name: (sum, count, weight)}`, `metrics {name: (sum, count)}`, model state, grads.
    """

    def scaled(params, model_state, part, index, counts):
        with part_of_rows(index, accumulate):
            terms, (metrics, new_state) = loss_fn(params, model_state, part)
        if counts is None:
            counts = total({name: count for name, (_, count, _) in terms.items()}, axis_name)
        loss = sum(
            weight * mean(terms[name][0], counts[name]) for name, (_, _, weight) in terms.items()
        )
        return loss, (terms, metrics, new_state)

    grad_fn = jax.grad(scaled, has_aux=True)
    if accumulate == 1:
        grads, (terms, metrics, new_state) = grad_fn(params, model_state, batch, 0, None)
        return *_over_devices(terms, metrics, axis_name), new_state, total(grads, axis_name)
    # What a row is mixed with is in another part.
    batch = {**batch, "before": jax.tree.map(lambda x: roll_rows(x, axis_name), batch)}
    # Every part takes every n-th row, so that it is spread over the devices as the batch is.
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    indices = jnp.arange(accumulate)

    def count_part(args):
        part, index = args
        with part_of_rows(index, accumulate):
            terms, (_, new_state) = loss_fn(params, model_state, part)
        same = zip(jax.tree.leaves(model_state), jax.tree.leaves(new_state), strict=True)
        if any(a is not b for a, b in same):  # frozen statistics are handed through as they are
            raise InputError(
                "config.accumulate: a model with batch statistics sees other examples, so "
                "parts of a batch do not equal the batch; use 1"
            )
        return {name: count for name, (_, count, _) in terms.items()}

    counts = jax.tree.map(jnp.sum, jax.lax.map(count_part, (parts, indices)))
    counts = total(counts, axis_name)

    def add_part(so_far, args):
        part, index = args
        grads, (terms, metrics, _) = grad_fn(params, model_state, part, index, counts)
        return jax.tree.map(jnp.add, so_far, grads), (terms, metrics)

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, (terms, metrics) = jax.lax.scan(add_part, zeros, (parts, indices))
    metrics = jax.tree.map(lambda x: x.sum(0), metrics)
    terms = {name: (sums.sum(0), count.sum(0), w[0]) for name, (sums, count, w) in terms.items()}
    return *_over_devices(terms, metrics, axis_name), model_state, total(grads, axis_name)


def mean(value: jax.Array, count: jax.Array) -> jax.Array:
    """value / count, and the value where there is nothing to count: what a batch without any
    object learns is divided by 1, as in DETR."""
    return value / jnp.where(count == 0, 1.0, count)


def _over_devices(terms, metrics, axis_name):
    weights = {name: weight for name, (_, _, weight) in terms.items()}
    sums = {name: term[:2] for name, term in terms.items()}
    sums, metrics = total((sums, metrics), axis_name)
    return {name: (*sums[name], weights[name]) for name in terms}, metrics
