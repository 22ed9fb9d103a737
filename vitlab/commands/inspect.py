"""`vitlab inspect`: pictures of what the backbone of a run, or of published weights, sees."""

import os

from etils import epath

from vitlab.commands.arguments import Argument, Given, Option, Verb
from vitlab.commands.terminal import Output
from vitlab.errors import InputError
from vitlab.own_files import OwnFiles

VERB = Verb(
    "inspect",
    ("WORKDIR IMAGE ... --out DIR [--OPTION VALUE ...]",),
    "Draws what the backbone of a run, or of published weights, sees, whatever it was trained for. "
    "Pictures show the image as the model sees it; stripes are padding that it leaves out.",
    (
        Argument(
            "WORKDIR",
            "a working directory, its checkpoints/STEP, or WEIGHTS as of vitlab predict",
            path="file",
        ),
        Argument(
            "IMAGE",
            "files, folders, or patterns in quotes such as 'photos/**/*.jpg'",
            path="file",
            repeated=True,
        ),
    ),
    (
        Option("out", "DIR", "the folder of the pictures", path="folder", required=True),
        Option(
            "what",
            "KIND,...",
            "what is drawn, such as attention,pca; default all that the backbone has",
            {
                "attention": "what each head attends to, by the class token or, without one, by "
                "all patches on average, and by the probe of a MAP head. Above each map are its "
                "maximum and the sum over all patches; the rest of 100 % is on other tokens",
                "rollout": "attention through all blocks, by attention rollout",
                "pca": "the first three principal components of the features as red, green and "
                "blue",
                "neighbours": "the images that are most alike, by the cosine of their features",
            },
            several=True,
        ),
        Option(
            "blocks",
            "NUMBERS",
            "whose attention: all, or from 0 on such as 0,5,11; default -1, the last",
        ),
        Option(
            "layer",
            "STAGE",
            "what is compared, by default pre_logits, and coloured where it has places, by "
            "default the last of the backbone",
        ),
        Option("k", "COUNT", "neighbours of each", default=5, number=int, least=1, most=20),
        Option(
            "among",
            "WHERE",
            "where to look for them: a folder, or a source such as folder:photos; default the "
            "images themselves",
            path="file",
        ),
        Option("split", "SPLIT", "of that source; default train"),
        Option(
            "preprocess",
            "OPS",
            "default the run's first evaluator's, without boxes and segments, or the weights'",
        ),
    ),
    (
        "vitlab inspect runs/vit photos --out seen",
        "vitlab inspect runs/mae 'photos/*.jpg' --out seen --what attention --blocks all",
        "vitlab inspect runs/simclr cat.jpg dog.jpg --out seen --among folder:photos",
        "vitlab inspect hf:facebook/dinov2-small photos --out seen --what attention,pca",
    ),
    "DIR/attention/IMAGE.png, DIR/rollout/IMAGE.png, DIR/pca.png, DIR/neighbours.png.",
    "an image could not be read",
)


def run(given: Given, output: Output) -> int:
    """Draws as the command line says.

    Returns:
        The exit code: 1 where an image could not be read.

    Raises:
        InputError: anything in the command line is wrong.
    """
    workdir, *images = given.plain
    options = given.options
    if "split" in options and "among" not in options:
        raise InputError("--split is of --among: name a source there, such as folder:photos")

    from vitlab.data.image_paths import ImageFiles, image_paths
    from vitlab.data.preprocess import Preprocess
    from vitlab.training.inspection import Inspection

    files = ImageFiles(image_paths(images))
    among = _among(options["among"], options.get("split")) if "among" in options else None
    task, variables, preprocess = _looked_into(workdir, options.get("preprocess"), output)
    asked = tuple(dict.fromkeys(kind.strip() for kind in options.get("what", "").split(",")))
    asked = tuple(filter(None, asked))
    look = _look(options, asked or _possible(task.model, len(files), among))
    if "neighbours" in look.kinds and len(files) < 2 and among is None:
        raise InputError("--what neighbours needs two images, or --among a folder or source")
    pictures, broken = [], []

    def wrote(path, what):
        pictures.append({"path": os.fspath(path), "what": what})
        output.text(f"{os.fspath(path)}  {what}")

    def broke(line):
        broken.append(line)
        output.broken(line)

    inspection = Inspection(
        task,
        variables,
        Preprocess.parse(preprocess),
        look,
        OwnFiles(epath.Path(options["out"]).expanduser(), "inspect"),
        wrote,
        broke,
    )
    inspection.run(files, among)
    output.document({"pictures": pictures, "broken": broken})
    return 1 if broken else 0


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

    look = {"kinds": kinds, "layer": options.get("layer", ""), "count": options["k"]}
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


def _looked_into(name: str, preprocess: str | None, output: Output):
    """The task, the variables that the run's first evaluator looks at, and the preprocessing."""
    from vitlab.deploy.published import published_model
    from vitlab.training.trained import load_trained
    from vitlab.weights.hub import is_published

    if is_published(name):
        model = published_model(name, preprocess or "", predicts=False)
        if model.note:
            output.note(model.note)
        return model.task, model.variables, model.preprocess
    trained = load_trained(name)
    sections, decay = list(trained.experiment.evaluators.values()), trained.experiment.ema_decay
    if not sections and preprocess is None:
        raise InputError(
            "the run has no evaluators to take the preprocessing from: give --preprocess, such "
            "as 'decode|resize(224)|value_range(-1,1)'"
        )
    ema = sections[0].wants_ema(decay) if sections else decay is not None
    variables = trained.ema if ema else trained.variables
    return trained.task, variables, sections[0].preprocess if preprocess is None else preprocess
