"""How many floating-point operations a program's matrix products and convolutions take.

Counted in its jaxpr, before XLA: a multiplication and its addition are two operations. XLA's own
count (`Compiled.cost_analysis`) has each loop's body once, which is wrong for `scan` and
accumulation, and what the backward pass computes again (remat), which is work but no progress.
"""

import math
from typing import Any

from jax.extend.core import Jaxpr
from jax.interpreters import partial_eval

# How JAX names what a checkpointed function computes again in the backward pass.
_AGAIN = "rematted_computation"


def count(program: Any) -> float:
    """FLOPs of a `ClosedJaxpr` over all its devices, as model FLOPs utilisation wants them.

    Loops count as often as they turn (a `while`, of which nobody knows, once), of branches the
    dearest; what no result needs, such as gradients of frozen parameters, and what is computed
    again count nothing. Neither do zeros that a strided convolution's gradient puts in between, nor
    depthwise convolutions where they are sums of products (on a CPU).
    """
    jaxpr, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    return _of(jaxpr)


def _of(jaxpr: Any) -> float:
    return sum(
        _of_equation(each) for each in jaxpr.eqns if _AGAIN not in str(each.source_info.name_stack)
    )


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        sides = equation.invars[0].aval.shape
        return 2.0 * _size(equation.outvars[0]) * math.prod(sides[axis] for axis in contracted)
    if name == "conv_general_dilated":
        features = params["dimension_numbers"].rhs_spec[0]
        kernel = _size(equation.invars[1]) / equation.invars[1].aval.shape[features]
        return 2.0 * _size(equation.outvars[0]) * kernel / math.prod(params["lhs_dilation"])
    if name.startswith("dot_product_attention_"):  # cuDNN's, where it stands for products
        query, key = (x.aval.shape for x in equation.invars[:2])  # [batch, tokens, heads, depth]
        products = 4 if "bwd" in name else 2
        return 2.0 * products * math.prod(query) * key[1]
    inner = [_of(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    times = {"scan": params.get("length"), "shard_map": getattr(params.get("mesh"), "size", None)}
    return sum(inner) * (times.get(name) or 1)


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _jaxprs(value: Any) -> list[Any]:
    """The programs in a parameter of an equation: one, several (branches), or none."""
    values = value if isinstance(value, tuple | list) else [value]
    found = [getattr(each, "jaxpr", each) for each in values]
    return [each for each in found if isinstance(each, Jaxpr)]
