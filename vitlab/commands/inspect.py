"""`vitlab inspect`: pictures of what the backbone of a run sees."""

import os
import sys

from etils import epath

from vitlab.commands.arguments import parse as parse_arguments
from vitlab.config import nearest
from vitlab.errors import InputError

USAGE = """\
usage: vitlab inspect WORKDIR IMAGE ... --out DIR [--OPTION VALUE ...]

Draws what the backbone of a run sees, whatever it was trained for, into PNG files:

  attention   DIR/attention/IMAGE.png: what each head attends to, by the class token or, without
              one, by all patches on average, and by the probe of a MAP head. Brightest is each
              map's own maximum, which is written above it beside the sum over all patches; what
              is missing of 100 % is on the class token, registers and an EoMT's queries
  rollout     DIR/rollout/IMAGE.png: attention through all blocks, by attention rollout
  pca         DIR/pca.png: the first three principal components of the features as red, green and
              blue, over all images together
  neighbours  DIR/neighbours.png: the images that are most alike, by the cosine of their features

  WORKDIR       a working directory, or one of its checkpoints/STEP
  IMAGE         files, folders, or patterns in quotes such as 'photos/**/*.jpg'
  --what        which of these, such as attention,pca; default all that the backbone has
  --blocks      whose attention is drawn: all, or numbers from 0 on such as 0,5,11; -1, the last, is
                the default
  --layer       the stage that is compared, as in vitlab evaluate (pre_logits), and coloured where
                it has places (the last of the backbone)
  --k           how many neighbours, up to 20; default 5
  --among       where to look for them: a folder, or a source such as folder:photos. Default: the
                images themselves
  --split       of that source; default train
  --preprocess  default the one of the run's first evaluator, whose boxes and segments are left out

  vitlab inspect runs/vit photos --out seen
  vitlab inspect runs/mae 'photos/*.jpg' --out seen --what attention --blocks all
  vitlab inspect runs/simclr cat.jpg dog.jpg --out seen --what neighbours --among folder:photos

Pictures show the image as the model sees it; stripes are padding that it leaves out. Exit code 1
where an image could not be read."""

OPTIONS = ("out", "what", "blocks", "layer", "k", "among", "split", "preprocess")


def run(arguments: list[str]) -> int:
    """Draws as the command line says.

    Returns:
        The exit code: 1 where an image could not be read.

    Raises:
        InputError: anything in the command line is wrong.
    """
    plain, options = parse_arguments(arguments, OPTIONS)
    if len(plain) < 2:
        raise InputError("vitlab inspect needs a working directory and images, such as runs/mae *")
    if "out" not in options:
        raise InputError("vitlab inspect needs --out DIR, the folder of the pictures")
    if "split" in options and "among" not in options:
        raise InputError("--split is of --among: name a source there, such as folder:photos")

    from vitlab.data.image_paths import ImageFiles, image_paths
    from vitlab.training.inspection import Inspection
    from vitlab.training.trained import load_trained

    files = ImageFiles(image_paths(plain[1:]))
    among = _among(options["among"], options.get("split")) if "among" in options else None
    trained = load_trained(plain[0])
    asked = _kinds(options["what"]) if "what" in options else ()
    look = _look(options, asked or _possible(trained.task.model, len(files), among))
    if "neighbours" in look.kinds and len(files) < 2 and among is None:
        raise InputError("--what neighbours needs two images, or --among a folder or source")
    broken = []

    def broke(line):
        broken.append(line)
        print(f"vitlab: broken: {line}", file=sys.stderr, flush=True)

    inspection = Inspection(
        trained.task,
        _variables(trained),
        _preprocess(options.get("preprocess"), trained.experiment),
        look,
        epath.Path(options["out"]).expanduser(),
        lambda path, what: print(f"{os.fspath(path)}  {what}", flush=True),
        broke,
    )
    inspection.run(files, among)
    return 1 if broken else 0


def _kinds(text: str) -> tuple[str, ...]:
    from vitlab.training.inspection import KINDS

    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"argument --what has no {kind!r}{nearest(kind, KINDS)}")
    return kinds


def _possible(model, images: int, among) -> tuple[str, ...]:
    """What can be drawn; says what cannot."""
    from vitlab.models.attention_weights import vit_of
    from vitlab.training.inspection import KINDS

    kinds = KINDS
    try:
        vit_of(model)
    except InputError as error:
        print(f"note: {error}: attention and rollout are left out")
        kinds = ("pca", "neighbours")
    if images < 2 and among is None:
        print("note: one image has no neighbours: name more, or --among a folder or source")
        kinds = tuple(kind for kind in kinds if kind != "neighbours")
    return kinds


def _look(options, kinds):
    from vitlab.training.inspection import Look

    look = {"kinds": kinds, "layer": options.get("layer", "")}
    if "blocks" in options:
        try:
            all_of_them = options["blocks"] == "all"
            numbers = () if all_of_them else map(int, options["blocks"].split(","))
            look["blocks"] = None if all_of_them else tuple(numbers)
        except ValueError:
            raise InputError(
                f"argument --blocks is {options['blocks']!r} but must be all, or numbers such as "
                "0,5,11"
            ) from None
    if "k" in options:
        if not options["k"].isdecimal() or not 1 <= int(options["k"]) <= 20:
            raise InputError(f"argument --k is {options['k']!r} but must be a number from 1 to 20")
        look["count"] = int(options["k"])
    return Look(**look)


def _among(spec: str, split: str | None):
    from vitlab.data.image_paths import ImageFiles, image_paths
    from vitlab.data.sources import open_source

    if os.path.isdir(os.path.expanduser(spec)):
        if split is not None:
            raise InputError(
                f"--split is of a source, and --among {spec} is a folder: write "
                f"folder:{spec} or images:{spec}"
            )
        return ImageFiles(image_paths([spec]))
    return open_source(spec, split or "train")


def _variables(trained):
    """Those that the run's first evaluator looks at."""
    sections = list(trained.experiment.evaluators.values())
    decay = trained.experiment.ema_decay
    ema = sections[0].wants_ema(decay) if sections else decay is not None
    return trained.ema if ema else trained.variables


def _preprocess(text: str | None, experiment):
    from vitlab.data.preprocess import Preprocess

    if text is None:
        sections = list(experiment.evaluators.values())
        if not sections:
            raise InputError(
                "the run has no evaluators to take the preprocessing from: give --preprocess, such "
                "as 'decode|resize(224)|value_range(-1,1)'"
            )
        text = sections[0].preprocess
    return Preprocess.parse(text)
