"""What each token of a Vision Transformer attends to, to be looked at.

    # f32[batch, blocks, heads, tokens, tokens], of queries and keys
    weights = attention_weights(model, variables, images)
    seen = weights[:, -1, :, 0, model.num_prefix :]  # by the class token, of each patch

The attention itself keeps nothing: `Attention` hands its weights out only where the collection
"intermediates" is mutable, as it is here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from vitlab.errors import InputError
from vitlab.models.eomt import EoMT
from vitlab.models.vit import ViT
from vitlab.ops.windows import pad_to_multiple


def attention_weights(
    module: nn.Module,
    variables: Mapping[str, Any],
    images: Array,
    content: Array | None = None,
    blocks: Sequence[int] | None = None,
) -> Array:
    """The attention of every token to every token, as the blocks have used it.

    Args:
        module: a `ViT`; or a model with one as its `backbone`, which is run by itself, as the
            detector or segmenter runs it. Only an `EoMT` is run as a whole.
        variables: of the module.
        images: f[batch, height, width, channels], normalized.
        content: i32[batch, 2], height and width in pixels of what is no padding: no patch beyond is
            attended to. None: there is no padding. A model with a backbone pads images that the
            patch does not divide on the right and below, as a segmenter does.
        blocks: which, from 0 on; None: all.

    Returns:
        f32[batch, blocks, heads, tokens, tokens], of the query in the last axis but one and of the
        key in the last. A row has the sum 1. Tokens are ordered class, registers, patches row by
        row. An EoMT's queries come before them, and in the blocks before they join, each of them
        attends to itself.

    Raises:
        InputError: there is no ViT in the module, or it has no such block, or the patch does not
            divide the images.
    """
    vit = vit_of(module)
    wanted = range(vit.depth) if blocks is None else blocks
    for block in wanted:
        if not 0 <= block < vit.depth:
            raise InputError(f"the ViT has no block {block}: its blocks are 0 to {vit.depth - 1}")
    if isinstance(module, EoMT):
        module = module.clone(backbone=_unrolled(vit))
        _, state = module.apply(variables, images, content, mutable=["intermediates"])
        sown = state["intermediates"]["backbone"]
    else:
        sown = _sown(module, variables, images, content)
    weights = [sown["encoder"][f"block_{i}"]["attention"]["weights"][0] for i in range(vit.depth)]
    tokens = weights[-1].shape[-1]
    return jnp.stack([_among(tokens, weights[i]) for i in wanted], axis=1)


def probe_weights(module: nn.Module, variables: Mapping[str, Any], images: Array) -> Array:
    """What the probe of a ViT with pool="map" attends to: f32[batch, heads, patches]. Arguments as
    of `attention_weights`.

    Raises:
        InputError: there is no such ViT in the module.
    """
    if vit_of(module).pool != "map":
        raise InputError(f"a ViT with pool={vit_of(module).pool!r} has no probe: that is of 'map'")
    sown = _sown(module, variables, images, head=True)
    return sown["map_head"]["attention"]["weights"][0][:, :, 0]


def whole_image_tokens(module: nn.Module) -> slice:
    """The tokens that stand for the whole image: the class token, or without one every patch."""
    vit, before = vit_of(module), _queries(module)
    return slice(before, before + 1) if vit.class_token else slice(before + vit.num_prefix, None)


def vit_of(module: nn.Module) -> ViT:
    """The module itself, or its `backbone`.

    Raises:
        InputError: neither is a ViT.
    """
    vit = getattr(module, "backbone", module)
    if not isinstance(vit, ViT):
        raise InputError(f"a {type(vit).__name__} has no attention: a ViT has")
    return vit


def _sown(module, variables, images, content=None, head=False):
    """What the attention of the ViT's blocks, and of its head, hands out, as nested dicts."""
    vit = vit_of(module)
    if vit is not module:
        variables = {k: tree["backbone"] for k, tree in variables.items() if "backbone" in tree}
        images, content = pad_to_multiple(images, content, vit.patch_size)
    call = {} if head else {"content": content, "method": "feature_maps"}
    _, state = _unrolled(vit).apply(variables, images, **call, mutable=["intermediates"])
    return state["intermediates"]


def _unrolled(vit: ViT) -> ViT:
    """The same function of the same parameters, out of whose blocks values can be handed."""
    return vit.clone(scan=False, remat="none", parent=None)


def _queries(module: nn.Module) -> int:
    return module.num_queries if isinstance(module, EoMT) else 0


def _among(tokens: int, weights: Array) -> Array:
    """f32[batch, heads, tokens, tokens], with the queries that are not there yet."""
    lacking = tokens - weights.shape[-1]
    if not lacking:
        return weights
    weights = jnp.pad(weights, [(0, 0), (0, 0), (lacking, 0), (lacking, 0)])
    itself = jnp.arange(lacking)
    return weights.at[..., itself, itself].set(1)
