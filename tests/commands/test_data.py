import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.commands.cli import main as vitlab


@pytest.fixture
def cats(tmp_path):
    """A COCO json of two images, with three boxes of two classes in the first."""
    rng = np.random.default_rng(0)
    for name, (width, height) in (("a.png", (200, 100)), ("b.png", (50, 40))):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    boxes = [(3, [0, 0, 20, 20], 0), (3, [0, 0, 100, 96], 0), (4, [5, 5, 60, 60], 1)]
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 200, "height": 100},
            {"id": 2, "file_name": "b.png", "width": 50, "height": 40},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "[dog]"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": label, "bbox": box, "iscrowd": crowd}
            for i, (label, box, crowd) in enumerate(boxes)
        ],
    }
    return tmp_path, content


def check(folder, content, capsys):
    (folder / "train.json").write_text(json.dumps(content))
    code = vitlab(["data", "check", f"coco:{folder}/train.json"])
    return code, [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_check_counts(cats, capsys):
    code, lines = check(*cats, capsys)
    assert code == 0
    assert lines == [
        "images 2",
        "image sizes 50 to 200 wide, 40 to 100 high, 2 different",
        "images without objects 1",
        "boxes 3",
        "boxes per image median 1.5, at most 3",
        "small, below 32 x 32 1",
        "medium 1",
        "large, from 96 x 96 on 1",
        "crowd 1",
        "difficult 0",
        "of each class boxes",
        "cat 2",
        "[dog] 1",
        "",
        "nothing is broken",
    ]


def test_check_lists_what_is_broken(cats, capsys):
    folder, content = cats
    (folder / "b.png").write_bytes(b"no image")
    content["images"][0]["height"] = 90
    content["images"].append({"id": 9, "file_name": "c.png", "width": 5, "height": 5})
    first = content["annotations"][0]
    content["annotations"] += [{**first, "id": 10}, {**first, "id": 11}]
    content["annotations"] += [{**first, "id": 20 + i, "bbox": [i, 2, 0, 1]} for i in range(25)]
    code, lines = check(folder, content, capsys)
    assert code == 1
    # The box of 96 pixels in an image of 90 is odd too.
    at = lines.index("annotations that are odd: 26")
    assert all(line.startswith(f"{folder}/a.png: ") for line in lines[at + 1 : at + 21])
    assert lines[at + 21] == "... and 6 more"
    at = lines.index("images that cannot be read: 2")
    assert sorted(line.partition("(")[0] for line in lines[at + 1 : at + 3]) == [
        f"{folder}/b.png: the image ",
        f"{folder}/c.png: cannot be read ",
    ]
    at = lines.index("images of another size than annotated: 1")
    assert lines[at + 1] == f"{folder}/a.png: is 200 x 100 but annotated as 200 x 90"
    at = lines.index("boxes that occur more than once: 1")
    assert lines[at + 1] == f"{folder}/a.png: 'cat' at (0, 0, 20, 20)"
    assert "nothing is broken" not in lines
    assert "boxes 30" in lines  # Those of images that cannot be read are counted too.


def test_check_of_whole_images(tmp_path, capsys):
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    assert vitlab(["data", "check", f"folder:{tmp_path}"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    expected = ["images 3", "image sizes 6 x 4", "of each class images", "cat 2", "dog 1"]
    assert lines == [*expected, "", "nothing is broken"]
    assert vitlab(["data", "check", f"images:{tmp_path}"]) == 0
    assert "of each class" not in capsys.readouterr().out
    (tmp_path / "dog" / "c.png").write_bytes(b"")
    assert vitlab(["data", "check", f"folder:{tmp_path}", "--split", "train[:3]"]) == 1
    assert f"{tmp_path}/dog/c.png: the image (0 bytes) is not a JPEG" in capsys.readouterr().out


def test_check_of_bccd(capsys):
    path = Path(__file__).parents[3] / "shared" / "data" / "bccd"
    if not path.is_dir():
        pytest.skip("needs the blood cells of BCCD in ../shared/data/bccd")
    assert vitlab(["data", "check", f"voc:{path}", "--split=test"]) == 0
    out = capsys.readouterr().out
    assert "image sizes              640 x 480" in out
    assert vitlab(["data", "check", f"voc:{path}", "--split=val"]) == 1
    assert "BloodImage_00338.jpg: a box of 'RBC' has no area" in capsys.readouterr().out


def test_preview_draws_an_image_each(cats, capsys):
    folder, content = cats
    (folder / "train.json").write_text(json.dumps(content))
    command = ["data", "preview", f"coco:{folder}/train.json", "--out", str(folder / "out")]
    assert vitlab([*command, "--count", "1"]) == 0
    assert [path.name for path in (folder / "out").iterdir()] == ["0000.png"]
    assert vitlab(command) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["0000.png", "0001.png"]
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f"{folder}/out/0000.png  {folder}/{line[-5:]}"
    sizes = {Image.open(path).size for path in (folder / "out").iterdir()}
    assert sizes == {(1200, 600), (1250, 1000)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "vitlab data has no action ''; choose from check, preview"),
        (["chek", "digits"], "has no action 'chek'; did you mean 'check'?"),
        (["check"], "vitlab data check needs one source, such as voc:PATH"),
        (["check", "a:b", "c:d"], "needs one source"),
        (["check", "coco:no.json"], "no.json: cannot be read"),
        (["check", "digits", "--out", "x"], "argument --out does not exist"),
        (["check", "digits", "--split"], "argument --split needs a value"),
        (["preview", "images:.", "--count", "0"], "--count is '0' but must be a number from 1 on"),
        (["preview", "images:."], "vitlab data preview needs --out DIR"),
        (["preview", "images:.", "--out", "x"], "has no objects to draw: the source is of whole"),
    ],
)
def test_wrong_command_lines(arguments, message, capsys, tmp_path, monkeypatch):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert vitlab(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_usage(capsys):
    assert vitlab(["data", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: vitlab data check SOURCE")
