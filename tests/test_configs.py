"""Every file in `configs/` at a tiny size: built, two steps, evaluated, resumed, exit 0.

The ImageNet ones read a data set that TFDS prepares here, as ArrayRecord, with ImageNet's name,
version and features.
"""

import gzip
import io
import json
import pathlib
import re
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from vitlab import config as config_lib
from vitlab.config import Duration
from vitlab.main import main
from vitlab.training.schedules import ScheduleConfig, make_schedule
from vitlab.training.setup import Setup

ROOT = pathlib.Path(__file__).parents[1]
TINY_VIT = {"model.width": 16, "model.depth": 1, "model.num_heads": 2, "model.mlp_dim": 16}
IMAGENET = {"data.workers": 0, "data.split": "train"}
TINY_BACKBONE = {key.replace("model", "model.backbone"): size for key, size in TINY_VIT.items()}
TINY_MAE = {
    **TINY_BACKBONE, "model.decoder_width": 16, "model.decoder_depth": 1, "model.decoder_heads": 2,
    "evaluators.features.features.train_split": "train",
}  # fmt: skip
TINY_SIMCLR = {
    **TINY_BACKBONE, "model.projector_width": 8, "model.projector_dim": 4,
    "evaluators.features.features.train_split": "train",
}  # fmt: skip
TINY_DETECTOR = {
    **TINY_BACKBONE, "model.width": 16, "model.num_heads": 2, "model.mlp_dim": 16,
    "model.encoder_layers": 1, "model.decoder_layers": 2, "model.num_queries": 4,
    "data.workers": 0,
}  # fmt: skip
TINY_RESNET = {
    **{key: size for key, size in TINY_DETECTOR.items() if "backbone" not in key},
    "model.backbone.depths": "(1,1)", "model.backbone.widths": "(4,4)",
}  # fmt: skip
TINY_SEGMENTER = {**TINY_BACKBONE, "model.depth": 1, "model.num_heads": 2, "model.mlp_dim": 16}
TINY_UNET = {"model.backbone.widths": "(4,4,4,4)", "model.backbone.depths": "(1,1,1,1)",
             "model.widths": "(4,4,4,4)"}  # fmt: skip
TINY_EOMT = {**TINY_BACKBONE, "model.num_blocks": 1, "model.num_queries": 6}
TINY_DIGITS = {"data.split": "train[:20]", "evaluators.features.features.train_split": "train[:30]"}
OVERRIDES = {
    "quickstart": TINY_VIT,
    "vit_fashion_mnist": TINY_VIT,
    "vit_cifar10": {**TINY_VIT, "data.workers": 0},
    "image_folder": {**TINY_VIT, "data.workers": 2, "evaluators.val.split": "test"},
    "vit_s16_imagenet": {**TINY_VIT, **IMAGENET, "evaluators.minival.split": "train[:3]"},
    "vit_b16_imagenet": {**TINY_VIT, **IMAGENET, "evaluators.minival.split": "train[:3]"},
    "deit3_b16_imagenet": {**TINY_VIT, **IMAGENET},
    "resnet50_imagenet": {**IMAGENET, "model.depths": "(1,1,1,1)", "model.widths": "(4,4,4,4)"},
    "mae_b16_imagenet": {**TINY_MAE, **IMAGENET},
    "mae_l16_imagenet": {**TINY_MAE, **IMAGENET},
    "mae_finetune_b16_imagenet": {**TINY_VIT, **IMAGENET, "init_from": ""},
    "simclr_vit_s16_imagenet": {**TINY_SIMCLR, **IMAGENET},
    "simclr_r50_imagenet": {
        **TINY_SIMCLR,
        **IMAGENET,
        "model.backbone": dict(name="resnet", variant="18", depths=(1,) * 4, widths=(4,) * 4),
    },
    "mae_cifar10": {**TINY_MAE, "data.workers": 0},
    "simclr_cifar10": {**TINY_SIMCLR, "data.workers": 0},
    "finetune_cifar10": {**TINY_VIT, "data.workers": 0},
    "mae_fashion_mnist": TINY_MAE,
    "simclr_fashion_mnist": {**TINY_SIMCLR, "evaluators.test.split": "test"},
    "finetune_fashion_mnist": {**TINY_VIT, "data.split": "train"},
    "mae_image_folder": {
        **{k: v for k, v in TINY_MAE.items() if "features" not in k},
        "data.workers": 0,
    },
    "simclr_image_folder": {
        **{k: v for k, v in TINY_SIMCLR.items() if "features" not in k},
        "data.workers": 0,
    },
    "finetune_digits": {**TINY_VIT, "data.split": "train[:20]"},
    "mae_digits": {**TINY_MAE, **TINY_DIGITS},
    "simclr_digits": {**TINY_SIMCLR, **TINY_DIGITS},
    "detr_digit_scenes": {**TINY_RESNET, "model.num_queries": 5},
    "detr_bccd": TINY_RESNET,
    "detr_own_data": TINY_RESNET,
    "detr_r50_coco": TINY_RESNET,
    "detr_vit_s16_coco": TINY_DETECTOR,
    "segmenter_digit_scenes": {
        "model.backbone.widths": "(4,4)",
        "model.backbone.depths": "(1,1)",
        "model.widths": "(4,4)",
    },
    "segmenter_vit_s16_ade20k": {**TINY_SEGMENTER, "data.workers": 0},
    "segmenter_camvid": {**TINY_SEGMENTER, "data.workers": 0},
    "segmenter_own_data": {**TINY_UNET, "data.workers": 0},
    "unet_camvid": {**TINY_UNET, "data.workers": 0},
    "eomt_digit_scenes": TINY_EOMT,
    "eomt_own_data": {**TINY_EOMT, "model.num_queries": 100, "data.workers": 0},
    "eomt_vit_s16_coco_panoptic": {**TINY_EOMT, "model.num_queries": 100, "data.workers": 0},
}
# A few among the quick tests, the others among the slow ones.
QUICK = ("quickstart",)
CONFIGS = [
    pytest.param(path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
    for path in sorted((ROOT / "configs").glob("*.py"))
]


def picture(rng, size, mode="RGB", kind="JPEG"):
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Arguments of each config that point it to data made here."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("5.1.0")
        url_infos = None

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=[f"n{i:08d}" for i in range(1000)]),
                "file_name": tfds.features.Text(),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._examples(9), "validation": self._examples(5)}

        def _generate_examples(self, size):
            return self._examples(size)

        def _examples(self, size):
            for i in range(size):
                image = io.BytesIO(picture(rng, (40 + i, 60)))
                yield i, {"image": image, "label": 100 * i, "file_name": f"{i}.jpg"}

    Imagenet2012(data_dir=root / "tfds", file_format="array_record").download_and_prepare()

    (root / "idx").mkdir()
    for stem, size in (("train", 9), ("t10k", 5)):
        images = rng.integers(0, 256, (size, 28, 28), np.uint8)
        labels = rng.integers(0, 10, size, np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            file = root / "idx" / f"{stem}-{name}-ubyte.gz"
            file.write_bytes(gzip.compress(header + array.tobytes()))
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / "folder" / split / name
            folder.mkdir(parents=True)
            for i in range(5):
                (folder / f"{i}.png").write_bytes(picture(rng, (32, 32), kind="PNG"))
    return root


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Six images with boxes in every format that a detector's config reads."""
    import tensorflow_datasets as tfds

    root, rng = tmp_path_factory.mktemp("boxes"), np.random.default_rng(0)
    images = {f"{i}.jpg": picture(rng, (48, 64)) for i in range(6)}
    box = (8, 4, 40, 30)  # x0, y0, x1, y1

    class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.1.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017")]
        url_infos = None

        def _info(self):
            objects = {
                "area": np.int64, "bbox": tfds.features.BBoxFeature(), "id": np.int64,
                "is_crowd": np.bool_,
                "label": tfds.features.ClassLabel(names=[f"c{i}" for i in range(80)]),
            }  # fmt: skip
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(objects),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            x0, y0, x1, y1 = box
            place = tfds.features.BBox(y0 / 48, x0 / 64, y1 / 48, x1 / 64)
            found = {"area": 700, "bbox": place, "id": 1, "is_crowd": False, "label": 79}
            for i, (name, data) in enumerate(images.items()):
                objects = [found] * (i % 3)
                yield (
                    name,
                    {
                        "image": io.BytesIO(data),
                        "image/filename": name,
                        "image/id": i,
                        "objects": objects,
                    },
                )

    Coco(data_dir=root / "tfds", file_format="array_record").download_and_prepare()
    for split in ("train", "val"):
        for folder in (f"coco/{split}2017", f"yolo/images/{split}", "voc/JPEGImages"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for name, data in images.items():
                (root / folder / name).write_bytes(data)
        file = root / f"coco/annotations/instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        x0, y0, x1, y1 = box
        rows = [
            {"id": i + 1, "image_id": i, "category_id": 7, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for i in range(5)
        ]
        listed = [
            {"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(images)
        ]
        categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        file.write_text(
            json.dumps({"images": listed, "annotations": rows, "categories": categories})
        )
        labels = root / f"yolo/labels/{split}"
        labels.mkdir(parents=True)
        for name in images:
            (labels / name.replace("jpg", "txt")).write_text("1 0.4 0.4 0.3 0.5\n")
    names = "names: [cat, dog]\ntrain: images/train\nval: images/val\n"
    (root / "yolo/data.yaml").write_text(names)
    lists, xml = root / "voc/ImageSets/Main", root / "voc/Annotations"
    lists.mkdir(parents=True)
    xml.mkdir()
    for split in ("train", "val", "test"):
        (lists / f"{split}.txt").write_text("\n".join(name[0] for name in images))
    for name in images:
        sides = "".join(
            f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        (xml / f"{name[0]}.xml").write_text(
            f"<annotation><object><name>cell</name><bndbox>{sides}</bndbox></object></annotation>"
        )
    return root


def detector(name, boxes, monkeypatch):
    """The argument that points a detector's config to data made here, and its preprocessings with
    few boxes."""
    from vitlab.data import digit_scenes

    monkeypatch.setattr(digit_scenes, "_SCENES", {"train": 12, "test": 6})
    argument = {
        "detr_digit_scenes": "epochs=1",
        "detr_bccd": f"size=48,path={boxes / 'voc'}",
        "detr_own_data": f"size=64,max_boxes=4,source=yolo:{boxes / 'yolo/data.yaml'}",
        "detr_r50_coco": "size=64",
        "detr_vit_s16_coco": f"size=64,path={boxes / 'coco'}",
    }[name]
    monkeypatch.setenv("TFDS_DATA_DIR", str(boxes / "tfds"))
    spec = f"{ROOT / 'configs' / name}.py:{argument}"
    config = config_lib.load(spec)
    sections = {f"evaluators.{k}": section for k, section in config["evaluators"].items()}
    few = {
        f"{key}.preprocess": re.sub(r"pad_boxes\(\d+\)", "pad_boxes(4)", section["preprocess"])
        for key, section in {"data": config["data"], **sections}.items()
    }
    return spec, few if name not in ("detr_digit_scenes", "detr_own_data") else {}


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Six images with masks in every layout that a segmenter's config reads."""
    root, rng = tmp_path_factory.mktemp("masks"), np.random.default_rng(0)
    for split, ade in (("train", "training"), ("val", "validation"), ("test", "testing")):
        places = {
            "camvid": (split, f"{split}annot"),
            "ade": (f"images/{ade}", f"annotations/{ade}"),
            "own": (f"images/{split}", f"masks/{split}", f"labels/{split}"),
            "coco": (f"{split}2017", f"annotations/panoptic_{split}2017"),
        }
        for name, folders in places.items():
            for folder in folders:
                (root / name / folder).mkdir(parents=True)
            segments = []
            for i in range(6):
                (root / name / folders[0] / f"{i}.jpg").write_bytes(picture(rng, (48, 64)))
                ids = np.zeros((48, 64), np.uint8)
                ids[10:40, 4 * i : 4 * i + 30] = 1 + i % 2
                pixels = np.stack([ids, 0 * ids, 0 * ids], axis=-1) if name == "coco" else ids
                Image.fromarray(pixels).save(root / name / folders[1] / f"{i}.png")
                for labels in folders[2:]:
                    (root / name / labels / f"{i}.txt").write_text("0 0.1 0.2 0.6 0.2 0.4 0.8")
                found = {"id": 1 + i % 2, "category_id": 3, "bbox": [4 * i, 10, 30, 30],
                         "area": 900, "iscrowd": 0}  # fmt: skip
                segments.append({"image_id": i, "file_name": f"{i}.png", "segments_info": [found]})
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(6)
            ],
            "categories": [
                {"id": 3, "name": "cat", "isthing": 1}, {"id": 4, "name": "sky", "isthing": 0}
            ],
            "annotations": segments,
        }  # fmt: skip
        (root / f"coco/annotations/panoptic_{split}2017.json").write_text(json.dumps(content))
    (root / "own/data.yaml").write_text("names: [a]\ntrain: images/train\nval: images/val\n")
    (root / "own/classes.txt").write_text("sky\nroad\ntree\n")
    (root / "ade/classes.txt").write_text("wall\ntree\n")
    return root


def segmenter(name, masks, monkeypatch):
    """The argument that points a segmenter's config to data made here."""
    from vitlab.data import digit_scenes

    monkeypatch.setattr(digit_scenes, "_SCENES", {"train": 12, "test": 6})
    monkeypatch.setenv("TFDS_DATA_DIR", str(masks / "tfds"))
    argument = {
        "segmenter_digit_scenes": "epochs=1",
        "eomt_digit_scenes": "epochs=1",
        "segmenter_vit_s16_ade20k": f"path={masks / 'ade'},size=32",
        "segmenter_camvid": f"path={masks / 'camvid'},height=48",
        "unet_camvid": f"path={masks / 'camvid'},height=48",
        "segmenter_own_data": f"source=masks:{masks / 'own'},size=32",
        "eomt_own_data": f"source=yolo:{masks / 'own/data.yaml'},size=32",
        "eomt_vit_s16_coco_panoptic": f"path={masks / 'coco'},size=64",
    }[name]
    return f"{ROOT / 'configs' / name}.py:{argument}"


@pytest.mark.parametrize("name", CONFIGS)
def test_config_runs_and_resumes(name, data, tmp_path, monkeypatch, capsys, request):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data / "tfds")) if "imagenet" in name else None
    folder = {"fashion_mnist": "idx", "cifar10": "folder", "image_folder": "folder"}
    places = [f":path={data / place}" for part, place in folder.items() if part in name]
    spec, more = f"{ROOT / 'configs' / name}.py{''.join(places)}", {}
    if name.startswith("detr_"):
        spec, more = detector(name, request.getfixturevalue("boxes"), monkeypatch)
    if name.startswith(("segmenter_", "unet_", "eomt_")):
        spec = segmenter(name, request.getfixturevalue("masks"), monkeypatch)
    overrides = {
        **OVERRIDES[name], **more, "batch_size": 4, "total_steps": 2, "schedule.warmup_steps": 1,
        "checkpoint.every_steps": 1, "checkpoint.keep": 2,
        "logging.every_steps": 1, "logging.tensorboard": False,
    }  # fmt: skip
    workdir = tmp_path / "run"
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    command = ["--config", spec, "--workdir", str(workdir), *flags]
    assert main(command) == 0
    first = json.loads((workdir / "result.json").read_text())
    assert first["step"] == 2
    assert all(np.isfinite(v) for v in first["metrics"].values())
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "00000002")
    assert main(command) == 0
    assert "going on from step 1" in capsys.readouterr().out
    again = json.loads((workdir / "result.json").read_text())
    assert (again["fingerprint"], again["metrics"]) == (first["fingerprint"], first["metrics"])


# Training examples, by a part of the config's name.
EXAMPLES = {
    "imagenet": 1_281_167, "cifar10": 50_000, "mae_fashion_mnist": 60_000, "finetune_digits": 100,
    "simclr_fashion_mnist": 60_000, "finetune_fashion_mnist": 600, "quickstart": 1437,
    "digit_scenes": 8000, "_digits": 1437, "camvid": 367, "bccd": 205, "coco": 118_287,
    "folder": 200, "own_data": 200,
}  # fmt: skip


def test_a_training_of_one_epoch_is_longer_than_its_warmup():
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem in ("segmenter_vit_s16_ade20k", "vit_fashion_mnist"):  # of a fixed length
            continue
        config = config_lib.load(f"{path}:epochs=1")
        schedule = config_lib.section(config["schedule"], ScheduleConfig)
        examples = next(size for part, size in EXAMPLES.items() if part in path.stem)
        total = Duration(1, "epochs").steps(config["batch_size"], examples)
        # Which refuses a warm-up that does not fit.
        rate = make_schedule(schedule, 1.0, total, config["batch_size"], examples)
        assert total == 1 or rate(total - 1) > 0, path.stem


def test_the_recipe_is_the_published_one(data, monkeypatch):
    """The plain ViT-S/16 of arXiv:2205.01580: every number of the table."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(data / "tfds"))
    config = config_lib.load(str(ROOT / "configs" / "vit_s16_imagenet.py:epochs=300"))
    assert config.pop("total_epochs") == 300
    config["total_steps"] = 371_588  # of the real data set
    config["data"]["split"] = config["evaluators"]["minival"]["split"] = "train"
    setup = Setup(config)
    count = sum(np.prod(leaf.shape) for leaf in _leaves(setup.target.params))
    assert count == 22_122_472
    exp = setup.experiment
    assert exp.optimizer.weight_decay * exp.optimizer.lr == pytest.approx(1e-4)
    assert [float(setup.schedule(s)) for s in (0, 5000, 10_000)] == pytest.approx([0, 5e-4, 1e-3])
    moments = [leaf.dtype.name for leaf in _leaves(setup.target.opt_state) if leaf.ndim]
    assert set(moments) == {"bfloat16", "float32"}
    assert float(setup.schedule(371_588)) == pytest.approx(0, abs=1e-9)
    assert (exp.batch_size, exp.optimizer.clip_norm, exp.optimizer.args["b2"]) == (1024, 1.0, 0.999)
    assert setup.task.augment_config.mixup == 0.2
    assert setup.task.loss_config.name == "softmax"
    assert str(setup.preprocess) == "decode|inception_crop(224)|flip_lr|randaug|value_range(-1,1)"
    for evaluator in setup.evaluators:
        assert str(evaluator.preprocess) == (
            "decode|resize_small(256)|central_crop(224)|value_range(-1,1)"
        )
    assert (setup.target.params["head"]["kernel"].shape) == (384, 1000)


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)
