"""Preprocessing strings of published weights against their sources' own transforms.

    python preprocessing.py PHOTOS            needs torch, torchvision, timm, transformers

For every photograph of a folder the same crop by both; what is printed is the greatest difference
in grey levels.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch

# timm and transformers import torchvision, whose compiled operators may not be there.
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm.data  # noqa: E402
import transformers as hf  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms  # noqa: E402

from vitlab.data.preprocess import Preprocess  # noqa: E402
from vitlab.weights import preprocessing  # noqa: E402

MEAN, STD = preprocessing.IMAGENET
HALF = (0.5, 0.5, 0.5)


def grey_levels(tensor, mean, std):
    """[channels, height, width], normalised -> [height, width, channels] of 0 to 255."""
    pixels = np.asarray(tensor) * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
    return pixels.transpose(1, 2, 0) * 255


def from_torchvision():
    for resize, name in ((256, "bicubic"), (235, "bicubic"), (232, "bilinear")):
        mode = transforms.InterpolationMode(name)
        steps = [transforms.Resize(resize, interpolation=mode), transforms.CenterCrop(224)]
        text = preprocessing.torchvision((224, 224), resize, name)
        yield f"torchvision, {resize} to 224, {name}", transforms.Compose(steps), text


def from_timm():
    for crop, mode, name in (
        (0.9, "center", "bicubic"),
        (0.95, "center", "bilinear"),
        (1.0, "squash", "bicubic"),
        (0.96, "squash", "bicubic"),
    ):
        config = {"crop_pct": crop, "crop_mode": mode, "interpolation": name}
        config |= {"mean": MEAN, "std": STD}
        transform = timm.data.create_transform((3, 224, 224), is_training=False, **config)

        def run(image, transform=transform):
            return grey_levels(transform(image), MEAN, STD)

        yield f"timm, {crop} {mode}, {name}", run, preprocessing.timm(config, (224, 224))


def from_transformers():
    crop = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    imagenet = {"image_mean": list(MEAN), "image_std": list(STD)}
    for name, fields in (
        ("ViTImageProcessorPil", {}),
        ("BitImageProcessorPil", crop | imagenet),
        ("SiglipImageProcessorPil", {}),
        ("ViTImageProcessor", {}),
        ("BitImageProcessor", crop | imagenet),
        ("SiglipImageProcessor", {}),
        ("DINOv3ViTImageProcessor", {}),
    ):
        processor = getattr(hf, name)(**fields)
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            path = pathlib.Path(folder, "preprocessor_config.json")
            config = json.loads(path.read_text())

        def run(image, processor=processor):
            pixels = processor(image, return_tensors="np")["pixel_values"][0]
            return grey_levels(pixels, processor.image_mean, processor.image_std)

        yield f"transformers, {name}", run, preprocessing.hugging_face(config, None)


def from_detr():
    for name in ("DetrImageProcessorPil", "DetrImageProcessor"):
        processor = getattr(hf, name)()

        def run(image, processor=processor):
            pixels = processor(image, return_tensors="np", do_pad=False)["pixel_values"][0]
            levels = grey_levels(pixels, MEAN, STD)
            missing = [(0, 1333 - side) for side in levels.shape[:2]]
            return np.pad(levels, [*missing, (0, 0)])

        config = {"size": {"shortest_edge": 800, "longest_edge": 1333}, "resample": 2}
        config |= {"image_mean": MEAN, "image_std": STD}
        yield f"transformers, {name}", run, preprocessing.hugging_face(config, None)


def main():
    photos = sorted(pathlib.Path(sys.argv[1]).glob("*.jpg"))
    for cases in (from_torchvision(), from_timm(), from_transformers(), from_detr()):
        for name, theirs, text in cases:
            ours, worst, beyond = Preprocess.parse(text), 0.0, 0.0
            for photo in photos:
                wanted = np.asarray(theirs(Image.open(photo).convert("RGB")), float)
                rng = np.random.default_rng(0)
                found = ours({"image": photo.read_bytes()}, rng)["image"]
                assert found.shape == wanted.shape, (name, photo)
                difference = np.abs(found - wanted)
                worst = max(worst, difference.max())
                beyond += (difference > 1.01).mean() / len(photos)
            print(f"{name:38} {worst:5.2f} at most, {beyond:.4%} above 1 | {text}", flush=True)


if __name__ == "__main__":
    main()
