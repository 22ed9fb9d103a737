"""Images a second of one core: from a photograph's bytes to a batch of crops, 224 x 224, flipped.

    python experiments/speed/input.py FOLDER --before OLD --torchvision PYTHON --tensorflow PYTHON

Every variant is a process of its own, pinned to the same core, and all take turns: a round is one
pass of each over the photographs, and a ratio is one of two neighbours in a round. What is counted
is the processor's time, of all threads, so other programs on the machine disturb little.

`--before` is a folder with an older vitlab, `--turbojpeg` one with libturbojpeg.so.0 of version 3
or newer, `--torchvision` and `--tensorflow` are interpreters that have these; what is not given is
not measured. `--longer N` first makes the longer side of every photograph N pixels, `--presize N`
adds vitlab on what `config.data.presize=N` keeps.
"""

import argparse
import io
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

# big_vision's crop and torchvision's default one, as vitlab spells them.
BIG_VISION = "decode|inception_crop(224)|flip_lr|value_range(-1,1)"
TORCHVISION = (
    'decode|inception_crop(224,8,ratio_max=1.3333333,antialias=True,sampling="area")|flip_lr|'
    "value_range(-1,1)"
)
BATCH = 64
SHRINK = BIG_VISION.replace("decode", "decode(shrink=True)")


def batched(photographs):
    return (photographs[i : i + BATCH] for i in range(0, len(photographs), BATCH))


class Photographs:
    """Encoded photographs in memory, as a source."""

    class_names = ranges = ()

    def __init__(self, photographs):
        self.photographs = photographs

    def __len__(self):
        return len(self.photographs)

    def __getitem__(self, index):
        return {"image": self.photographs[index], "label": 0}

    def describe(self, index):
        return str(index)


def vitlab(chain):
    from vitlab.data.pipeline import train_batches
    from vitlab.data.preprocess import Preprocess

    preprocess = Preprocess.parse(chain)

    def run(photographs, epoch):
        size = len(photographs)
        batches = train_batches(
            Photographs(photographs), preprocess, batch_size=BATCH, seed=epoch, threads=0
        )
        for _ in range(size // BATCH):
            next(batches)
        batches.close()

    return run


def torchvision(antialias):
    import torch

    torch.set_num_threads(1)
    if torch.version.cuda is None:  # Beside a torch without CUDA torchvision's own ops are missing.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, antialias=antialias),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    def run(photographs, epoch):
        torch.manual_seed(epoch)
        for batch in batched(photographs):
            torch.stack([transform(Image.open(io.BytesIO(x)).convert("RGB")) for x in batch])

    return run


def torchvision_io(antialias):
    import torch

    torchvision(antialias)
    from torchvision import io as images
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(224, antialias=antialias)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def run(photographs, epoch):
        torch.manual_seed(epoch)
        for batch in batched(photographs):
            files = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in batch]
            torch.stack([transform(images.decode_jpeg(x, images.ImageReadMode.RGB)) for x in files])

    return run


def tensorflow(area_min):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def crop(data):
        shape = tf.io.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([0, 0, 4], tf.float32),
            area_range=(area_min, 1.0),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (224, 224))
        return tf.cast(tf.image.random_flip_left_right(image) + 0.5, tf.uint8)

    def run(photographs, epoch):
        del epoch
        if not made:
            made.append(tf.data.Dataset.from_tensor_slices(photographs).map(crop).batch(BATCH))
        for _ in made[0]:
            pass

    made = []
    return run


VARIANTS = {
    "vitlab": (vitlab, BIG_VISION),
    "vitlab, libturbojpeg": (vitlab, BIG_VISION),
    "vitlab, before": (vitlab, BIG_VISION),
    "vitlab, shrink": (vitlab, SHRINK),
    "vitlab, presized": (vitlab, BIG_VISION),
    "tf.data, decode_and_crop": (tensorflow, 0.05),
    "vitlab, torchvision's crop": (vitlab, TORCHVISION),
    "vitlab, the same, libturbojpeg": (vitlab, TORCHVISION),
    "torchvision, PIL": (torchvision, True),
    "torchvision, io": (torchvision_io, True),
}


def work(name, files):
    """The other end of `Variant`: a pass over the files for each line that comes in."""
    make, argument = VARIANTS[name]
    run = make(argument)
    photographs = [pathlib.Path(file).read_bytes() for file in files]
    run(photographs, 0)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.process_time()
        run(photographs, int(line))
        print((time.process_time() - began) / len(photographs), flush=True)


class Variant:
    def __init__(self, name, python, root, files, core, libraries):
        environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if libraries:
            environment["LD_LIBRARY_PATH"] = str(libraries)
        self.process = subprocess.Popen(
            [python, __file__, "--work", name, *map(str, files)],
            env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.sched_setaffinity(self.process.pid, {core})
        self.ready = self.process.stdout.readline() == "ready\n"
        if not self.ready:
            said = self.process.stderr.read().strip().splitlines()
            print(f"{name}: not measured: {said[-1][:150] if said else 'it ended'}")

    def seconds(self, epoch):
        self.process.stdin.write(f"{epoch}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def enlarged(files, longer, folder):
    """The photographs at another size, in JPEG of quality 90."""
    from PIL import Image

    folder.mkdir(parents=True)
    for file in files:
        with Image.open(file) as picture:
            scale = longer / max(picture.size)
            size = [round(side * scale) for side in picture.size]
            picture = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            picture.save(folder / file.name, quality=90)
    return sorted(folder.iterdir())


def presized(files, size, folder):
    from vitlab.data.presized import Presized
    from vitlab.data.sources import open_source

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    source = Presized(open_source(f"images:{files[0].parent}", "train"), size)
    (folder / "presized").mkdir()
    for index in range(len(source)):
        name = pathlib.Path(source.describe(index)).name
        (folder / "presized" / name).write_bytes(source[index]["image"])
    return [folder / "presized" / file.name for file in files]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--before", type=pathlib.Path)
    parser.add_argument("--turbojpeg", type=pathlib.Path)
    parser.add_argument("--torchvision")
    parser.add_argument("--tensorflow")
    parser.add_argument("--longer", type=int)
    parser.add_argument("--presize", type=int)
    parser.add_argument("--scratch", type=pathlib.Path, help="an empty folder for both")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(root))
    files = sorted(options.folder.glob("*.jpg"))[: options.count // BATCH * BATCH]
    if options.longer:
        files = enlarged(files, options.longer, options.scratch / "enlarged")
    kib = sum(file.stat().st_size for file in files) / len(files) / 1024
    print(f"{len(files)} photographs of {kib:.1f} KiB on average")
    variants = {}

    def add(name, python=sys.executable, root=root, files=files, libraries=None):
        variant = Variant(name, python, root, files, options.core, libraries)
        if variant.ready:
            variants[name] = variant

    add("vitlab")
    if options.turbojpeg:
        add("vitlab, libturbojpeg", libraries=options.turbojpeg)
    if options.before:
        add("vitlab, before", root=options.before)
    add("vitlab, shrink")
    if options.presize:
        add("vitlab, presized", files=presized(files, options.presize, options.scratch))
    if options.tensorflow:
        add("tf.data, decode_and_crop", options.tensorflow)
    add("vitlab, torchvision's crop")
    if options.turbojpeg:
        add("vitlab, the same, libturbojpeg", libraries=options.turbojpeg)
    if options.torchvision:
        add("torchvision, PIL", options.torchvision)
        add("torchvision, io", options.torchvision)
    times = {name: [] for name in variants}
    for round_ in range(options.rounds):
        names = list(variants)
        random.Random(round_).shuffle(names)
        for name in names:
            times[name].append(variants[name].seconds(round_ + 1))
    for variant in variants.values():
        variant.close()
    rows = {}
    for name, seconds in times.items():
        rate = 1 / statistics.median(seconds)
        rows[name] = {"images_per_second": rate, "seconds": seconds}
        print(f"{name:30} {rate:7.0f} images/s", end="")
        theirs = name.startswith("torchvision")
        beside = (
            ("vitlab, torchvision's crop", "vitlab, the same, libturbojpeg")
            if theirs
            else ("vitlab", "vitlab, libturbojpeg")
        )
        for other in beside:
            if other in times:
                ratios = sorted(a / b for a, b in zip(seconds, times[other], strict=True))
                print(f"   {statistics.median(ratios):.2f} x the time of {other}", end="")
                print(f" ({ratios[0]:.2f} to {ratios[-1]:.2f})", end="")
        print()
    if options.json:
        options.json.write_text(json.dumps({"kib": kib, "variants": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3:])
    else:
        main()
