"""Any optax optimizer by name, with regex rules for what each parameter gets."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

from vitlab import config as config_lib
from vitlab.errors import InputError
from vitlab.training.rules import check_pattern, match_rules, path_string

# These take a learning rate too, but need the loss's value, each example's gradient or other
# parameters in evaluation; or take no schedule; or what they do is not linear in the rate.
_NOT_PLAIN = (
    "momo", "momo_adam", "lbfgs", "sophia", "dpsgd", "schedule_free_adamw", "schedule_free_sgd",
    "rprop", "sm3", "optimistic_adam",
    "fromage", "madgrad", "cocob",
)  # fmt: skip
# These divide by what the rates so far make of the gradients, which is 0 after a rate of 0.
_DIVIDE_BY_RATES = ("prodigy", "dadapt_adamw")


def _check_not_negative(section: Any) -> None:
    for name in ("lr", "weight_decay"):
        if getattr(section, name) < 0:
            raise InputError(f"{name} is {getattr(section, name)}: it cannot be negative")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the parameters get whose path matches `pattern`.

    Attributes:
        pattern: a regex that must match the whole path, such as `"head/.*"` or `".*kernel"`.
        lr: factor on the learning rate.
        weight_decay: factor on the weight decay.
        freeze: never updated, and without optimizer state.
    """

    pattern: str
    lr: float = 1.0
    weight_decay: float = 1.0
    freeze: bool = False

    def __post_init__(self):
        check_pattern(self.pattern)
        _check_not_negative(self)


# Muon's second is for what is no matrix, which it leaves to Adam.
DECAYS = ("weight_decay", "adam_weight_decay")

# As big_vision and the recipes do: matrices and filters decay; biases, norms, tokens do not.
KERNELS_DECAY = (Rule(".*kernel"), Rule(".*", weight_decay=0.0))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """`config.optimizer`.

    Attributes:
        name: a function of `optax` or `optax.contrib`: adamw, sgd, lars, lamb, lion, muon, ...
        lr: peak learning rate.
        weight_decay: the optimizer's own, decoupled and scaled by the scheduled rate for adamw,
            lamb, lion, ...; for sgd, which has none, L2 added to the gradient as PyTorch does.
            lars and lamb do not adapt the rate of what does not decay, as in the papers' code. What
            estimates one number for all parameters (dog, prodigy, dadapt_adamw) has one for each
            factor that the rules give the decay, and one alone without a decay.
        clip_norm: global gradient norm to clip to; None does not clip.
        layer_decay: layer-wise learning-rate decay: factor `layer_decay ** (last - layer)`.
        rules: first match wins; every parameter must match one.
        args: further arguments of the optax function, checked against its signature.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    clip_norm: float | None = None
    layer_decay: float = 1.0
    rules: tuple[Rule, ...] = KERNELS_DECAY
    args: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay is {self.layer_decay} but must be in (0, 1]")
        _check_not_negative(self)
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise InputError(f"clip_norm is {self.clip_norm}; use None for no clipping")


def make_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    params: Any,
    layer_of: Callable[[str], int] | None = None,
    num_layers: int = 0,
) -> optax.GradientTransformation:
    """Clipping, the named optimizer with its groups of weight decay, and per-parameter rates.

    Args:
        config: see `OptimizerConfig`.
        schedule: step to learning rate.
        params: the parameters, or their shapes.
        layer_of: path of a parameter to its layer, for `layer_decay`.
        num_layers: the highest layer that `layer_of` gives.

    Raises:
        InputError: an unknown optimizer or argument, a parameter that no rule covers, or a first
            rate of 0 where that makes NaN of the parameters.
    """
    rules = match_rules(config.rules, params, "config.optimizer.rules")
    # Groups are optimizers of their own: no more of them than differ.
    decays = config.weight_decay or "weight_decay_rate" in config.args
    differ = decays or config.name in ("lars", "lamb")
    groups = jax.tree.map(
        lambda rule: "frozen" if rule.freeze else f"decay_{rule.weight_decay if differ else 1:g}",
        rules,
    )
    present = sorted(set(jax.tree.leaves(groups)))
    transforms = {}
    for group in present:
        if group == "frozen":
            transforms[group] = optax.set_to_zero()
        else:
            factor_of_group = float(group.removeprefix("decay_"))
            transforms[group] = _named_optimizer(config, schedule, factor_of_group)

    def factor(path, rule):
        if config.layer_decay == 1.0:
            return rule.lr
        if layer_of is None:
            raise InputError("config.optimizer.layer_decay: this model has no layers to decay over")
        return rule.lr * config.layer_decay ** (num_layers - layer_of(path_string(path)))

    factors = jax.tree_util.tree_map_with_path(factor, rules)
    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    # Those that are offered are linear in the learning rate, so a constant factor on the update is
    # a factor on the rate.
    if present == ["frozen"]:
        raise InputError(
            "config.optimizer.rules freezes every parameter: there is nothing to train"
        )
    parts.append(optax.partition(transforms, groups))
    if any(f != 1.0 for f in jax.tree.leaves(factors)):
        parts.append(_scale_each(factors))
    optimizer = optax.chain(*parts)
    divides = config.name in _DIVIDE_BY_RATES and not config.args.get("safeguard_warmup")
    if divides and schedule(0) == 0:
        raise InputError(
            f"config.optimizer.name: {config.name} divides by the learning rate of the first step, "
            "which is 0; set config.schedule.start_factor=0.01, or warmup_steps=0"
        )
    try:
        # Optax looks at most arguments only here.
        state = jax.eval_shape(optimizer.init, params)
        jax.eval_shape(optimizer.update, params, state, params)
    except (TypeError, ValueError) as e:
        reason = str(e).partition("\n")[0]
        raise InputError(f"config.optimizer.args: optax's {config.name} fails: {reason}") from e
    return optimizer


def frozen_parameters(config: OptimizerConfig, params: Any) -> Any:
    """A tree like `params` of bools: whether a rule freezes the parameter."""
    rules = match_rules(config.rules, params, "config.optimizer.rules")
    return jax.tree.map(lambda rule: rule.freeze, rules)


def _named_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, decay_factor: float
) -> optax.GradientTransformation:
    if config.name not in optimizer_names():
        raise InputError(
            f"config.optimizer.name: no optimizer {config.name!r}"
            f"{config_lib.nearest(config.name, optimizer_names())}"
        )
    make = getattr(optax, config.name, None) or getattr(optax.contrib, config.name)
    weight_decay = config.weight_decay * decay_factor
    parameters = inspect.signature(make).parameters
    legal = set(parameters) - {"learning_rate", "mask", "weight_decay_mask", *DECAYS}
    for key in config.args:
        if key not in legal:
            raise InputError(
                f"config.optimizer.args.{key} is no argument of optax's {config.name}"
                f"{config_lib.nearest(key, legal)}"
            )
    # A list in a config file stands for the tuple that optax expects.
    args = {k: tuple(v) if isinstance(v, list) else v for k, v in config.args.items()}
    if "weight_decay" in parameters:
        args |= {key: weight_decay for key in DECAYS if key in parameters}
    elif weight_decay and config.name != "sgd":
        raise InputError(
            f"config.optimizer.weight_decay: optax's {config.name} has none; "
            "use one that has, such as adamw"
        )
    if decay_factor == 0:
        args.pop("weight_decay_rate", None)
        if config.name == "lars":
            args.setdefault("trust_ratio_mask", False)
        elif config.name == "lamb":
            args.pop("weight_decay")
            args.setdefault("eps", parameters["eps"].default)
            make = optax.adam  # which is lamb without its trust ratio
    try:
        if args.get("weight_decay_rate"):  # Adafactor's own, which no schedule scales
            args["weight_decay_rate"] *= decay_factor
        optimizer = make(schedule, **args)
    except (TypeError, ValueError) as e:
        raise InputError(f"config.optimizer.args: optax's {config.name} fails: {e}") from e
    if config.name == "sgd" and weight_decay:
        return optax.chain(optax.add_decayed_weights(weight_decay), optimizer)
    return optimizer


def optimizer_names() -> list[str]:
    """Every name that `config.optimizer.name` can be: optax's functions of a learning rate."""
    names = set()
    for module in (optax, optax.contrib):
        for name, value in inspect.getmembers(module, inspect.isfunction):
            takes_rate = next(iter(inspect.signature(value).parameters), "") == "learning_rate"
            if takes_rate and not name.startswith(("scale_by", "_")) and name not in _NOT_PLAIN:
                names.add(name)
    return sorted(names)


def _scale_each(factors: Any) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u, f: u * f, updates, factors), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
