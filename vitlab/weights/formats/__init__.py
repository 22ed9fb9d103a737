"""The formats of published weights, the particular ones before those whose names they share."""

from vitlab.errors import InputError
from vitlab.weights.formats.big_vision import BIG_VISION
from vitlab.weights.formats.convnets import CONVNEXT, RESNET, TIMM_CONVNEXT, TORCHVISION_CONVNEXT
from vitlab.weights.formats.detr import HF_DETR
from vitlab.weights.formats.facebook import DINOV2, DINOV3, MAE_FORMAT, MAE_VIT
from vitlab.weights.formats.format import Format, Source
from vitlab.weights.formats.hugging_face import HF_MAE, HF_SIGLIP, HF_VIT
from vitlab.weights.formats.hugging_face_dino import HF_DINOV2, HF_DINOV3
from vitlab.weights.formats.timm import TIMM, TIMM_DINOV3

FORMATS: tuple[Format, ...] = (
    MAE_FORMAT,
    MAE_VIT,
    DINOV2,
    DINOV3,
    TIMM,
    TIMM_DINOV3,
    BIG_VISION,
    HF_MAE,
    HF_VIT,
    HF_DINOV2,
    HF_DINOV3,
    HF_SIGLIP,
    HF_DETR,
    RESNET,
    TIMM_CONVNEXT,
    TORCHVISION_CONVNEXT,
    CONVNEXT,
)


def recognise(source: Source, name: str = "") -> tuple[Format, Source]:
    """The format of a file, and the file under the names of its table.

    Args:
        source: what is in the file.
        name: of a format, where the caller knows it.

    Raises:
        InputError: it is none of them, or not the one that it should be.
    """
    known = {each.name: each for each in FORMATS}
    if name and name not in known:
        raise InputError(f"there is no format {name!r}: {', '.join(known)}")
    for each in (known[name],) if name else FORMATS:
        seen = each.recognise(source, named=bool(name))
        if seen is not None:
            return each, seen
    names = list(source.tensors)
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if name:
        raise InputError(f"{source.where} is not of the format {name}: it has {some or 'nothing'}")
    raise InputError(
        f"{source.where} has a format that is not known here: its names are {some or 'none'}"
    )
