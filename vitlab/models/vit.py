"""The Vision Transformer (Dosovitskiy et al., 2010.11929) and what the field has added since.

Patches of the image become tokens with positions, blocks of attention and MLP turn them into
features, a pool and a head turn those into logits. The defaults are the paper's; the models of
big_vision, DeiT III, MAE, DINOv2, DINOv3 and SigLIP are settings of `ViT`'s fields.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from vitlab.errors import InputError
from vitlab.models.transformer import XAVIER, XAVIER_QKV, Attention, Block, Encoder, LayerNorm, Mlp
from vitlab.ops.convolution import Conv, convolve
from vitlab.ops.dropout import dropout
from vitlab.ops.keys import row_keys
from vitlab.ops.padding import content_mask
from vitlab.ops.positions import resize_position_embedding, rope_2d, sincos_2d

# Width, depth, MLP width, heads: 2106.04560 table 2, but Ti and S are DeiT's and So400m SigLIP's.
VARIANTS = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}
# MAE draws the patch kernel as a matrix.
XAVIER_PATCH = nn.initializers.xavier_uniform(in_axis=(0, 1, 2), out_axis=3)
TRUNCATED = nn.initializers.truncated_normal(0.02)
# Of the patch kernel, of those of query, key and value, of all others of the blocks; the standard
# deviations of the class token and of learned positions, None for width**-0.5.
WEIGHT_INITS = {
    "big_vision": (nn.initializers.lecun_normal(), XAVIER, XAVIER, 0.0, None),
    "mae": (XAVIER_PATCH, XAVIER_QKV, XAVIER, 0.02, 0.02),
    "deit": (TRUNCATED, TRUNCATED, TRUNCATED, 0.02, 0.02),
}


class LearnedPosition(nn.Module):
    """A table of positions, f32[rows, columns, width], drawn for the grid that `init` sees. On
    another grid it is interpolated, bicubic and antialiased as in timm; a checkpoint made for
    another interpolation is resized by that one when it is loaded (`ops.positions`)."""

    width: int
    std: float

    @nn.compact
    def __call__(self, grid):
        # Not self.param alone, which refuses a stored table of another grid.
        table = self.get_variable("params", "table")
        if table is None:
            table = self.param("table", nn.initializers.normal(self.std), (*grid, self.width))
        row, old = table.reshape(1, -1, self.width), table.shape[:2]
        return resize_position_embedding(row, grid, old_grid=old).reshape(*grid, self.width)


class PatchEmbedding(nn.Module):
    """A convolution that strides by its kernel's size, with the same parameters as `nn.Conv`, but
    of whole patches as the channels of one pixel: cuDNN takes a fifteenth of the time for that.

    Not as a product of matrices: where no convolution wants the channels last, XLA on a GPU lays
    out the tokens of all blocks with the batch last, and transposes them in each.
    """

    width: int
    patch_size: int
    use_bias: bool
    kernel_init: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """x: f[batch, height, width, channels] -> f[batch, rows, columns, width]."""
        p, shape = self.patch_size, (self.patch_size,) * 2 + (x.shape[-1], self.width)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
        kernel = kernel.reshape(1, 1, -1, self.width)
        x = convolve(x, kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


class ConvStem(nn.Module):
    """Patches by 3x3 convolutions of stride 2, each of twice the channels of the one before, and a
    1x1 ("Early Convolutions Help Transformers See Better", 2106.14881): with few images, or few
    epochs, a ViT learns much from it. LayerNorm where that has batch statistics."""

    patch_size: int
    width: int
    make_norm: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x, content=None):
        """x: f[batch, height, width, channels]; content: see `ViT.feature_maps`."""
        conv = partial(Conv, kernel_size=3, stride=2, padding=1, use_bias=False, dtype=self.dtype)
        number = self.patch_size.bit_length() - 1
        for i in range(number):
            channels = max(self.width >> (number - i), 8)
            x = conv(channels, name=f"conv_{i}")(x)
            x = nn.relu(self.make_norm(name=f"norm_{i}")(x))
            if content is not None:  # zero, as it is outside of an image
                x = x * content_mask(content, x.shape[1:3], 2 ** (i + 1))[..., None]
        return Conv(self.width, 1, dtype=self.dtype, name="out")(x)


class MAPHead(nn.Module):
    """Multi-head attention pooling (2106.04560): a learned probe attends to the tokens."""

    make_attention: Callable
    make_mlp: Callable
    make_norm: Callable

    @nn.compact
    def __call__(self, x):
        """x: f[batch, tokens, width] -> f[batch, width]."""
        probe = self.param("probe", XAVIER, (1, 1, x.shape[-1])).astype(x.dtype)
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, x.shape[-1]))
        x = self.make_attention(name="attention")(probe, x)
        x = x + self.make_mlp(name="mlp")(self.make_norm(name="norm")(x))
        return x[:, 0]


class ViT(nn.Module):
    """A Vision Transformer: `ViT("S/16", num_classes=1000)`, or by `width`, `depth` and so on.

    `output, intermediates = model.apply(variables, images, train=False)`, images
    f[batch, height, width, channels] with sides that the patch divides, square or not; training
    with any dropout needs `rngs={"dropout": key}`. Tokens are ordered class, registers, patches.
    """

    variant: str | None = None  # of VARIANTS, alone or as "S/16"; the next five fields override it
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None  # without a variant 4 x width
    num_heads: int | None = None
    num_classes: int | None = None  # None: no head, the output is what the head would get
    stem: Literal["patch", "conv"] = "patch"  # how patches are embedded; conv: see `ConvStem`
    pos_embed: Literal["learned", "sincos2d", "sincos2d_mae", "rope", "none"] = "learned"
    rope_theta: float = 100.0
    rope_periods: tuple[float, ...] | None = None  # in the place of powers of theta
    pool: Literal["cls", "gap", "map", "none"] = "cls"  # gap, map: of patches; none: every token
    class_token: bool | None = None  # None: only if the pool is cls
    class_position: bool = True  # learned positions have one for the class token too
    num_registers: int = 0  # 2309.16588
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    qkv_bias: Literal["qkv", "qv", "none"] = "qkv"  # which of query, key, value have one
    qk_norm: bool = False  # 2302.05442
    layer_scale: float | None = None  # its initial value (2103.17239); None: there is none
    pre_norm: bool = False  # a norm before the blocks, and no bias of the patch embedding (CLIP)
    norm_after_pool: bool = False  # the last norm is after the pool (MAE's fine-tuning)
    rep_size: int | bool = False  # width of a tanh layer before the head; True: the model's
    weight_init: Literal["big_vision", "mae", "deit"] = "big_vision"  # see `WEIGHT_INITS`
    head_init_std: float = 0.0  # of the head, normal
    head_init_bias: float = 0.0  # big_vision's sigmoid loss starts at -6.9
    norm_eps: float = 1e-6
    dropout: float = 0.0  # of the tokens, of each branch and inside the MLP
    drop_path: float = 0.0  # the last block's rate; it grows linearly over the depth, from 0
    drop_path_uniform: bool = False  # the rate is that of every block (DeiT III, DINOv2)
    patch_dropout: float = 0.0  # fraction of patches left out of a training step (2212.00794)
    scan: bool = False  # compile one block and loop over it: same parameters, same outputs
    # What the backward pass computes again: nothing, all, or by a policy in jax.checkpoint_policies
    remat: Literal["none", "full", "dots_saveable", "dots_with_no_batch_dims_saveable"] = "none"
    axis_name: str | None = None  # of `pmap`, whose devices count their rows together
    dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

    def __post_init__(self):
        size, slash, patch = (self.variant or "").partition("/")
        if self.variant is not None and (size not in VARIANTS or bool(slash) != patch.isdecimal()):
            legal = f"one of {', '.join(VARIANTS)}, alone or with a patch size as in 'S/16'"
            raise InputError(f"ViT variant {self.variant!r} is unknown: it must be {legal}")
        sizes = VARIANTS.get(size, (self.width, None, 4 * (self.width or 0), None))
        fields = ("width", "depth", "mlp_dim", "num_heads", "patch_size")
        for field, value in zip(fields, (*sizes, int(patch or 0)), strict=True):
            if getattr(self, field) is None:
                setattr(self, field, value)
            if (getattr(self, field) or 0) < 1:
                raise InputError(f"ViT needs a positive {field}, or a variant such as 'S/16'")
        for field, kind in ViT.__annotations__.items():
            value, legal = getattr(self, field), get_args(kind)
            if get_origin(kind) is Literal and value not in legal:
                raise InputError(f"ViT {field} is {value!r}: one of {', '.join(legal)}")
            if field in ("dropout", "drop_path", "patch_dropout") and not 0 <= value < 1:
                raise InputError(f"ViT {field} is {value}: it must be in [0, 1)")
        unit = self.num_heads * {"rope": 4}.get(self.pos_embed, 1)
        if self.width % unit:
            heads = f"num_heads={self.num_heads} and pos_embed={self.pos_embed}"
            raise InputError(f"ViT width {self.width} is no multiple of {unit}, with {heads}")
        if self.stem == "conv" and self.patch_size & (self.patch_size - 1):
            raise InputError(
                f"ViT patch_size is {self.patch_size}: with stem='conv' it must be a power of 2"
            )
        if self.class_token is None:
            self.class_token = self.pool == "cls"
        if self.pool == "cls" and not self.class_token:
            raise InputError("ViT pool='cls' needs a class token, but class_token is False")
        super().__post_init__()

    def setup(self):
        width, dtype = self.width, self.dtype
        normal = nn.initializers.normal
        norm = partial(LayerNorm, self.norm_eps, dtype=dtype)
        init, qkv_init, kernel_init, token_std, std = WEIGHT_INITS[self.weight_init]
        if self.stem == "conv":
            self.patch_embedding = ConvStem(self.patch_size, width, norm, dtype)
        else:
            self.patch_embedding = PatchEmbedding(
                width, self.patch_size, not self.pre_norm, init, dtype
            )
        std = std or width**-0.5
        self.position_embedding = LearnedPosition(width, std)
        prefix = []
        if self.class_token:
            prefix += [self.param("cls", normal(token_std), (1, 1, width))]
        if self.class_token and self.class_position and self.pos_embed == "learned":
            # Not +=, which would change an array of numpy.
            prefix[0] = prefix[0] + self.param("cls_position", normal(std), (1, 1, width))
        if self.num_registers:  # not zeros: registers that start equal stay equal
            prefix += [self.param("registers", normal(0.02), (1, self.num_registers, width))]
        self.prefix = prefix

        attend = partial(Attention, self.num_heads, out_init=kernel_init, dtype=dtype)
        mlp = partial(Mlp, self.mlp_dim, self.mlp, kernel_init=kernel_init, dtype=dtype)
        qkv = {"qkv_bias": self.qkv_bias, "qkv_init": qkv_init}
        block_attend = partial(attend, qk_norm=norm if self.qk_norm else None, **qkv)
        block_mlp = partial(mlp, dropout=self.dropout)
        block = partial(self.block_class(), block_attend, block_mlp, norm, self.layer_scale)
        block = partial(block, dropout=self.dropout)
        self.encoder = Encoder(self.depth, block, self.drop_path, self.scan, self.drop_path_uniform)
        self.norm_pre, self.norm, self.fc_norm = norm(), norm(), norm()
        self.map_head = MAPHead(attend, mlp, norm)
        self.pre_logits = nn.Dense(width if self.rep_size is True else self.rep_size, dtype=dtype)
        kernel, bias = normal(self.head_init_std), nn.initializers.constant(self.head_init_bias)
        wide = jnp.promote_types(dtype, jnp.float32)
        self.head = nn.Dense(self.num_classes or 0, dtype=wide, kernel_init=kernel, bias_init=bias)

    @nn.nowrap
    def block_class(self):  # `Block`, or one whose backward pass computes again what `remat` says
        policy = getattr(jax.checkpoint_policies, self.remat, None)
        again = partial(nn.remat, policy=policy, prevent_cse=not self.scan)
        return Block if self.remat == "none" else again(Block)

    def row_keys(self, x):  # key[batch], new ones at each call, for draws on x f[batch, ...]
        return row_keys(self.make_rng("dropout"), len(x), self.axis_name)

    def embed(self, images, content=None):
        """images f[batch, height, width, channels]; content: see `feature_maps` -> the patches'
        tokens with positions, f[batch, patches, width]; the rotary table f32[patches, 2,
        head_dim // 2] or None; stages. Raises InputError if the patch does not divide the images.
        """
        p, (height, width) = self.patch_size, (*images.shape, 0, 0)[1:3]
        if images.ndim != 4 or height % p or width % p or not height * width:
            fit = " x ".join(str(max(side // p, 1) * p) for side in (height, width))
            legal = f"(batch, height, width, channels) in whole patches of {p}: {fit}, say"
            raise InputError(f"ViT images are {images.shape}, but must be {legal}")
        grid = (height // p, width // p)
        seen = {"content": content} if self.stem == "conv" else {}  # a patch sees no other
        x = self.patch_embedding(images, **seen)
        stages, rope = {"patch_embedding": x}, None
        if self.pos_embed == "learned":
            x = x + self.position_embedding(grid).astype(x.dtype)
        elif self.pos_embed == "rope":
            head_dim = self.width // self.num_heads
            rope = rope_2d(grid, head_dim, self.rope_theta, self.rope_periods)
        elif self.pos_embed != "none":
            table = sincos_2d(grid, self.width, endpoint=self.pos_embed == "sincos2d")
            x = x + table.astype(x.dtype)
        stages["with_position"] = x
        return rearrange(x, "b h w d -> b (h w) d"), rope, stages

    def with_prefix(self, prefix, tokens, rope=None, mask=None):
        """Puts tokens that are no patches, f[1, some, width] each, before the tokens, with rows of
        the rotary table that turn nothing, and with a mask that lets them be attended to."""
        prefix = [p.astype(tokens.dtype) for p in prefix]
        # shape[0], not len, which a batch of any size in an exported model has none of.
        prefix = [jnp.broadcast_to(p, (tokens.shape[0], *p.shape[1:])) for p in prefix]
        x = jnp.concatenate([*prefix, tokens], axis=1)
        number = x.shape[1] - tokens.shape[1]
        if rope is not None:  # cosine 1, sine 0
            still = jnp.zeros((*rope.shape[:-3], number, *rope.shape[-2:]))
            rope = jnp.concatenate([still.at[..., 0, :].set(1), rope], axis=-3)
        if mask is not None:
            mask = jnp.pad(mask, [(0, 0), (number, 0)], constant_values=True)
        return x, rope, mask

    def encode(self, tokens, rope=None, train=False, mask=None):
        """The blocks and the norm, on the tokens of all patches or of any of them (as in MAE).
        tokens f[batch, patches, width]; their rows of the rotary table f32[(batch,) patches, 2,
        head_dim // 2]; mask bool[batch, patches], what is no padding
        -> f[batch, num_prefix + patches, width], stages."""
        x, rope, mask = self.with_prefix(self.prefix, tokens, rope, mask)
        random, stages = train and (self.dropout or self.drop_path), {}
        keys, block_keys = (self.row_keys(x) if random else None for _ in range(2))
        x = dropout(x, self.dropout, keys)
        if self.pre_norm:
            x = stages["norm_pre"] = self.norm_pre(x)
        x, blocks = self.encoder(x, rope, mask, block_keys)
        x = x if self.norm_after_pool else self.norm(x)
        return x, stages | blocks | {"encoder": x}

    def __call__(self, images, train=False):
        """images f[batch, height, width, channels] -> output, intermediates.

        The output is f[batch, num_classes], or the pooled features if that is None; with
        pool="none" the same of every token. Intermediates: "patch_embedding" and "with_position"
        f[batch, rows, columns, width]; "norm_pre", "block_0/attention", "block_0/mlp", "block_0",
        ..., "encoder" f[batch, tokens, width]; "pooled", "pre_logits", "logits".
        """
        tokens, rope, stages = self.embed(images)
        if train and self.patch_dropout:
            count = max(1, int(tokens.shape[1] * (1 - self.patch_dropout)))
            draw = jax.vmap(partial(jax.random.uniform, shape=tokens.shape[1:2]))
            kept = jnp.argsort(draw(self.row_keys(tokens)))[:, :count]
            tokens = jnp.take_along_axis(tokens, kept[..., None], axis=1)
            rope = rope if rope is None else rope[kept]
        x, encoder_stages = self.encode(tokens, rope, train)
        stages |= encoder_stages
        if self.pool == "cls":
            x = x[:, 0]
        elif self.pool == "gap":
            x = x[:, self.num_prefix :].mean(axis=1)
        elif self.pool == "map":
            x = self.map_head(x[:, self.num_prefix :])
        stages["pooled"] = x
        x = self.fc_norm(x) if self.norm_after_pool else x
        x = stages["pre_logits"] = nn.tanh(self.pre_logits(x)) if self.rep_size else x
        if self.num_classes:
            x = stages["logits"] = self.head(x)
        return x, stages

    def feature_maps(self, images, train=False, content=None):
        """{patch_size: f[batch, rows, columns, width]}: all patches after the last norm.

        content i32[batch, 2]: height and width in pixels of what is no padding; patches beyond are
        attended to by none. What is padding in a patch that is not should be zero."""
        tokens, rope, stages = self.embed(images, content)
        mask = None
        if content is not None:
            grid = stages["with_position"].shape[1:3]
            mask = content_mask(content, grid, self.patch_size).reshape(tokens.shape[:2])
        x = self.encode(tokens, rope, train, mask)[0]
        x = self.norm(x) if self.norm_after_pool else x  # there is no pool
        x = x[:, self.num_prefix :]
        return {self.patch_size: x.reshape(stages["with_position"].shape)}

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the feature maps, in pixels."""
        return (self.patch_size,)

    @property
    def num_prefix(self) -> int:
        """The number of tokens before the patches: the class token and the registers."""
        return self.class_token + self.num_registers

    @property
    def num_layers(self) -> int:
        """The number of blocks, for layer-wise learning rates."""
        return self.depth

    @nn.nowrap
    def layer_of(self, path: str) -> int:
        """The layer of a parameter path: 0 before the blocks, i + 1 for "encoder/block_i/...",
        num_layers + 1 for the last norm and the head."""
        block = re.match(r"encoder/block_(\d+)/", path)
        before = ("patch_embedding/", "position_embedding/", "cls", "registers", "norm_pre/")
        last = 0 if path.startswith(before) else self.depth + 1
        return int(block[1]) + 1 if block else last
