"""ResNets and ConvNeXts of timm, torchvision and Meta."""

import dataclasses
import re
from typing import Any

import flax.linen as nn

from vitlab.errors import InputError
from vitlab.models import convnext, resnet
from vitlab.models.convnext import ConvNeXt
from vitlab.models.resnet import ResNet
from vitlab.weights import preprocessing
from vitlab.weights.formats.format import Format, Shapes, Source
from vitlab.weights.formats.timm import IMAGENET_CROP, described, pretrained, refuse_others
from vitlab.weights.table import Rule, batch_norm, conv, linear, norm, same

# timm's with a blur before every stride, which has no parameters.
_OTHERS = re.compile(r"resnet(aa|blur)|test_")
_ARGUMENTS = {"num_classes", "in_chans", "drop_rate", "drop_path_rate"}
BATCHES = {r".*\.num_batches_tracked": "counts batches"}


def resnet_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    """Of a ResNet in torchvision's names."""
    refuse_others(source, _OTHERS)
    for key in sorted(source.config.get("model_args", {}).keys() - _ARGUMENTS):
        raise InputError(f"{source.where}: model_args.{key} is not known here")
    bottleneck = "layer1.0.conv3.weight" in source
    depths = tuple(source.count(f"layer{s}.{{i}}.conv1.weight") for s in range(1, 5))
    middle = "conv2" if bottleneck else "conv1"
    widths = tuple(source.shape(f"layer{s}.0.{middle}.weight", 4)[0] for s in range(1, 5))
    if source.shape("conv1.weight", 4)[2:] not in ((7, 7), (3, 3)):
        raise InputError(f"{source.where}: conv1 is {source.shape('conv1.weight')}: no 7x7 or 3x3")
    published = {sizes: name for name, sizes in resnet.VARIANTS.items()}
    variant = published.get((bottleneck, depths))
    return ResNet, {
        "variant": variant or ("50" if bottleneck else "18"),
        "num_classes": source.shape("fc.weight", 2)[0] if "fc.weight" in source else None,
        "stem": "imagenet" if source.shape("conv1.weight")[2] == 7 else "small",
        "depths": None if variant else depths,
        "widths": widths,
    }


def resnet_rules(model: ResNet) -> list[Rule]:
    """The table of a ResNet."""
    theirs, ours = "layer{s+1}.{b}", "stage_{s+1}/block_{b}"
    return [
        *conv("conv1", "stem_conv"),
        *batch_norm("bn1", "stem_norm"),
        *conv(f"{theirs}.conv{{c+1}}", f"{ours}/conv{{c+1}}"),
        *batch_norm(f"{theirs}.bn{{c+1}}", f"{ours}/norm{{c+1}}"),
        *conv(f"{theirs}.downsample.0", f"{ours}/downsample_conv"),
        *batch_norm(f"{theirs}.downsample.1", f"{ours}/downsample_norm"),
        *linear("fc", "head"),
    ]


def _resnet_preprocess(source: Source, size: tuple[int, int]) -> tuple[str, bool]:
    if source.config.get("pretrained_cfg"):
        return preprocessing.of_timm(IMAGENET_CROP)(source, size)
    # torchvision's IMAGENET1K_V1.
    return preprocessing.torchvision(size, round(max(size) * 256 / 224), "bilinear"), False


def _resnet_config(model: ResNet, shapes: Shapes, size: tuple[int, int]) -> dict[str, Any]:
    """timm's config.json of a ResNet, whose names are torchvision's too."""
    for field, published in (("stem", "imagenet"), ("depths", None), ("widths", ResNet.widths)):
        if getattr(model, field) != published:
            raise InputError(f"timm's ResNet has no {field}={getattr(model, field)!r}")
    channels = shapes["stem_conv/kernel"][2]
    bottleneck, _ = resnet.VARIANTS[model.variant]
    return {
        "architecture": f"resnet{model.variant}",
        "num_classes": model.num_classes or 0,
        "num_features": model.widths[-1] * (4 if bottleneck else 1),
        "model_args": {"in_chans": channels},
        "pretrained_cfg": pretrained(model.num_classes, channels, size, "conv1", "fc"),
    }


def _convnext(source: Source, stem: str, depths: tuple[int, ...], widths: tuple[int, ...], head):
    refuse_others(source, _OTHERS)
    published = {sizes: name for name, sizes in convnext.VARIANTS.items()}
    variant = published.get((depths, widths))
    return ConvNeXt, {
        "variant": variant or "T",
        "num_classes": source.shape(head, 2)[0] if head in source else None,
        "patch_size": source.patch_size(stem),
        "depths": None if variant else depths,
        "widths": None if variant else widths,
    }


def _block(theirs: str, names: tuple[str, ...], ours: str, scale: list[Rule]) -> list[Rule]:
    """A block, of the names of its depthwise convolution, norm and two linear layers."""
    return [
        *conv(f"{theirs}.{names[0]}", f"{ours}/dwconv"),
        *norm(f"{theirs}.{names[1]}", f"{ours}/norm"),
        *_dense(f"{theirs}.{names[2]}", f"{ours}/fc1"),
        *_dense(f"{theirs}.{names[3]}", f"{ours}/fc2"),
        *scale,
    ]


def _dense(theirs: str, ours: str) -> list[Rule]:
    """A linear layer, which timm's smallest models have as a convolution of 1 x 1."""
    weight, bias = linear(theirs, ours)
    return [dataclasses.replace(weight, load=lambda a, _: [a[0].reshape(a[0].shape[:2]).T]), bias]


def _timm_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    depths = tuple(source.count(f"stages.{s}.blocks.{{i}}.conv_dw.weight") for s in range(4))
    widths = tuple(source.shape(f"stages.{s}.blocks.0.conv_dw.weight", 4)[0] for s in range(4))
    return _convnext(source, "stem.0.weight", depths, widths, "head.fc.weight")


def _timm_rules(model: ConvNeXt) -> list[Rule]:
    theirs, ours = "stages.{s}.blocks.{b}", "stage_{s+1}/block_{b}"
    scale = same(f"{theirs}.gamma", f"{ours}/layer_scale")
    return [
        *conv("stem.0", "stem_conv"),
        *norm("stem.1", "stem_norm"),
        *norm("stages.{s}.downsample.0", "stage_{s+1}/downsample_norm"),
        *conv("stages.{s}.downsample.1", "stage_{s+1}/downsample_conv"),
        *_block(theirs, ("conv_dw", "norm", "mlp.fc1", "mlp.fc2"), ours, scale),
        *norm("head.norm", "norm"),
        *linear("head.fc", "head"),
    ]


def _timm_config(model: ConvNeXt, shapes: Shapes, size: tuple[int, int]) -> dict[str, Any]:
    """timm's config.json of a ConvNeXt: an architecture that there is, and what differs from it."""
    if model.patch_size != 4:  # of 2 it would halve the map once more
        raise InputError(f"timm's ConvNeXt has no patch_size={model.patch_size}")
    depths, widths = convnext.VARIANTS[model.variant]
    channels, widths = shapes["stem_conv/kernel"][2], model.widths or widths
    return {
        "architecture": "convnext_tiny",
        "num_classes": model.num_classes or 0,
        "num_features": widths[-1],
        "model_args": {
            "in_chans": channels,
            "depths": list(model.depths or depths),
            "dims": list(widths),
        },
        "pretrained_cfg": pretrained(model.num_classes, channels, size, "stem.0", "head.fc"),
    }


def _facebook_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    depths = tuple(source.count(f"stages.{s}.{{i}}.dwconv.weight") for s in range(4))
    widths = tuple(source.shape(f"stages.{s}.0.dwconv.weight", 4)[0] for s in range(4))
    return _convnext(source, "downsample_layers.0.0.weight", depths, widths, "head.weight")


def _facebook_rules(model: ConvNeXt) -> list[Rule]:
    theirs, ours = "stages.{s}.{b}", "stage_{s+1}/block_{b}"
    scale = same(f"{theirs}.gamma", f"{ours}/layer_scale")
    return [
        *conv("downsample_layers.0.0", "stem_conv"),
        *norm("downsample_layers.0.1", "stem_norm"),
        *norm("downsample_layers.{s}.0", "stage_{s+1}/downsample_norm"),
        *conv("downsample_layers.{s}.1", "stage_{s+1}/downsample_conv"),
        *_block(theirs, ("dwconv", "norm", "pwconv1", "pwconv2"), ours, scale),
        *norm("norm", "norm"),
        *linear("head", "head"),
    ]


def _torchvision_fields(source: Source) -> tuple[type[nn.Module], dict[str, Any]]:
    blocks = [f"features.{2 * s + 1}" for s in range(4)]
    depths = tuple(source.count(f"{each}.{{i}}.block.0.weight") for each in blocks)
    widths = tuple(source.shape(f"{each}.0.block.0.weight", 4)[0] for each in blocks)
    return _convnext(source, "features.0.0.weight", depths, widths, "classifier.2.weight")


def _torchvision_rules(model: ConvNeXt) -> list[Rule]:
    rules = [
        *conv("features.0.0", "stem_conv"),
        *norm("features.0.1", "stem_norm"),
        *norm("classifier.0", "norm"),
        *linear("classifier.2", "head"),
    ]
    names = ("block.0", "block.2", "block.3", "block.5")
    for s in range(4):
        theirs, ours = f"features.{2 * s + 1}.{{b}}", f"stage_{s + 1}/block_{{b}}"
        scale = Rule(
            (f"{theirs}.layer_scale",),
            (f"{ours}/layer_scale",),
            lambda a, _: [a[0].reshape(-1)],
        )
        rules += _block(theirs, names, ours, [scale])
        rules += norm(f"features.{2 * s}.0", f"stage_{s + 1}/downsample_norm")
        rules += conv(f"features.{2 * s}.1", f"stage_{s + 1}/downsample_conv")
    return rules


def _torchvision_preprocess(source: Source, size: tuple[int, int]) -> tuple[str, bool]:
    depth = source.count("features.5.{i}.block.0.weight")
    width = source.shape("features.0.0.weight", 4)[0]
    resize = {(9, 96): 236, (27, 96): 230}.get((depth, width), 232)
    return preprocessing.torchvision(size, round(max(size) * resize / 224), "bilinear"), True


RESNET = Format(
    name="resnet",
    title="timm and torchvision ResNet",
    signs=("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"),
    fields=resnet_fields,
    rules=resnet_rules,
    preprocess=_resnet_preprocess,
    unused=BATCHES,
    writes=_resnet_config,
    described=described,
)

TIMM_CONVNEXT = Format(
    name="timm-convnext",
    title="timm ConvNeXt",
    signs=("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    fields=_timm_fields,
    rules=_timm_rules,
    preprocess=preprocessing.of_timm({**IMAGENET_CROP, "crop_pct": 0.875}),
    writes=_timm_config,
    described=described,
)

TORCHVISION_CONVNEXT = Format(
    name="torchvision-convnext",
    title="torchvision ConvNeXt",
    signs=("features.0.0.weight", "features.1.0.block.0.weight"),
    fields=_torchvision_fields,
    rules=_torchvision_rules,
    preprocess=_torchvision_preprocess,
)

CONVNEXT = Format(
    name="convnext",
    title="ConvNeXt, its authors' files",
    signs=("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    fields=_facebook_fields,
    rules=_facebook_rules,
    preprocess=preprocessing.of_timm({**IMAGENET_CROP, "crop_pct": 0.875}),
)
