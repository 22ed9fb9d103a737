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


def test_check_as_json_and_quietly(cats, capsys):
    folder, content = cats
    (folder / "train.json").write_text(json.dumps(content))
    command = ["data", "check", f"coco:{folder}/train.json"]
    assert vitlab([*command, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert vitlab([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["boxes"], found["crowd"]) == (2, 3, 1)
    assert found["image_sizes"] == {"width": [50, 200], "height": [40, 100], "different": 2}
    assert found["boxes_per_image"] == {"median": 1.5, "most": 3}
    assert found["classes"] == {"cat": 2, "[dog]": 1}
    assert not any(found["broken"].values())
    (folder / "b.png").write_bytes(b"no image")
    assert vitlab([*command, "--quiet"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == "images that cannot be read: 1"
    assert second.startswith(f"  {folder}/b.png: the image")
    assert vitlab([*command, "--json"]) == 1
    broken = json.loads(capsys.readouterr().out)["broken"]
    assert broken["images_that_cannot_be_read"] == [second.strip()]


def test_check_of_whole_images(tmp_path, capsys):
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    assert vitlab(["data", "check", f"folder:{tmp_path}"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    expected = ["images 3", "image sizes 6 x 4", "of each class images", "cat 2", "dog 1"]
    assert lines == [*expected, "", "nothing is broken"]
    for name in ("a.svg", "b.SVG", "notes"):
        (tmp_path / "dog" / name).write_bytes(b"")
    assert vitlab(["data", "check", f"folder:{tmp_path}"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2:5] == ["other files are not read", ".svg 2", "no suffix 1"]
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


def test_check_counts_objects_without_a_mask(cats, capsys):
    folder, content = cats
    content["annotations"][1]["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    code, lines = check(folder, content, capsys)
    assert code == 0
    assert "without a mask 2" in lines


@pytest.fixture
def masks(tmp_path):
    """A folder of two images with masks."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("cat\nsky\n[dog]")
    for name, ids in (("a", [[0, 0, 1, 255]]), ("b", [[1, 1, 1, 1]])):
        Image.new("RGB", (4, 1)).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(np.array(ids, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def test_check_counts_pixels(masks, capsys):
    assert vitlab(["data", "check", f"masks:{masks}"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "images 2",
        "image sizes 4 x 1",
        "of each class images, part of all pixels",
        "cat 1 25.00%",
        "sky 2 62.50%",
        "[dog] 0 0.00%",
        "(void) 1 12.50%",
        "",
        "classes without a pixel: 1",
        "'[dog]' has none, but 12.50% of all are void, as the id 255 is: if these are its own, "
        "give the classes colours in classes.txt, such as [dog] 255 255 255",
    ]


def test_masks_of_0_and_255_are_two_classes_by_their_colours(masks, capsys):
    for name in "ab":
        Image.fromarray(np.array([[0, 0, 255, 255]], np.uint8)).save(masks / f"masks/{name}.png")
    (masks / "classes.txt").write_text("ground\ncell\n")
    assert vitlab(["data", "check", f"masks:{masks}"]) == 1
    assert "'cell' has none, but 50.00% of all are void" in capsys.readouterr().out
    (masks / "classes.txt").write_text("ground 0 0 0\ncell 255 255 255\n")
    assert vitlab(["data", "check", f"masks:{masks}"]) == 0


def test_check_lists_broken_masks(masks, capsys):
    (masks / "masks" / "a.png").write_bytes(b"no mask")
    Image.new("L", (4, 2), 1).save(masks / "masks" / "b.png")
    Image.new("RGB", (4, 1)).save(masks / "images" / "c.jpg")
    Image.new("L", (4, 1), 7).save(masks / "masks" / "c.png")
    assert vitlab(["data", "check", f"masks:{masks}"]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = lines.index("masks that cannot be used: 3")
    found = sorted(line.removeprefix(f"{masks}/masks/") for line in lines[at + 1 : at + 4])
    assert found == [
        "a.png: the image (7 bytes) is not a PNG or TIFF",
        f"b.png: is 4 x 2 but its image {masks}/images/b.jpg is 4 x 1",
        "c.png: has ids that are of no class and not void: 7 (4 pixels); ?ignore=ID makes one void",
    ]


@pytest.fixture
def rooms(tmp_path):
    """A panoptic json of one image with a cat on a rug; a part of it is void."""
    infos = [
        {"id": 5, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0},
        {"id": 9, "category_id": 2},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 1}],
        "categories": [
            {"id": 1, "name": "cat", "isthing": 1},
            {"id": 2, "name": "rug", "isthing": 0},
        ],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": infos}],
    }
    (tmp_path / "rooms.json").write_text(json.dumps(content))
    (tmp_path / "rooms").mkdir()
    Image.new("RGB", (4, 1)).save(tmp_path / "a.jpg")
    colors = np.array([[[5, 0, 0], [9, 0, 0], [9, 0, 0], [0, 0, 0]]], np.uint8)
    Image.fromarray(colors).save(tmp_path / "rooms" / "a.png")
    return tmp_path


def test_check_of_panoptic_segments(rooms, capsys):
    spec = f"panoptic:{rooms}/rooms.json"
    assert vitlab(["data", "check", spec]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"boxes 1", "cat 1 25.00%", "rug 1 50.00%", "(void) 1 25.00%"} <= set(lines)
    Image.new("RGB", (4, 1), (9, 0, 0)).save(rooms / "rooms" / "a.png")
    assert vitlab(["data", "check", spec]) == 1
    out = capsys.readouterr().out
    assert "masks that cannot be used: 1" in out
    assert f"{rooms}/rooms/a.png: has no pixel of the segment 5 of the json" in out


@pytest.mark.parametrize("source", ["masks:{}", "panoptic:{}/rooms.json"])
def test_preview_draws_segments(masks, rooms, source):
    command = ["data", "preview", source.format(masks), "--out", str(masks / "out"), "--count=1"]
    assert vitlab(command) == 0
    first = np.asarray(Image.open(masks / "out" / "0000.png"))
    assert first.shape[0] == 320
    assert first.shape[1] > 1280
    assert vitlab([*command, "--draw", "segments"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(masks / "out" / "0000.png")), first)
    # Things of panoptic segments are objects too.
    code = vitlab([*command, "--draw", "objects"])
    assert code == (2 if source.startswith("masks") else 0)
    if code == 0:
        assert Image.open(masks / "out" / "0000.png").size == (1280, 320)


def test_preview_draws_an_image_each(cats, capsys):
    folder, content = cats
    (folder / "train.json").write_text(json.dumps(content))
    command = ["data", "preview", f"coco:{folder}/train.json", "--out", str(folder / "out")]
    assert vitlab([*command, "--count", "1"]) == 0
    assert [path.name for path in (folder / "out").glob("*.png")] == ["0000.png"]
    assert vitlab(command) == 0
    assert sorted(path.name for path in (folder / "out").glob("*.png")) == ["0000.png", "0001.png"]
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f"{folder}/out/0000.png  {folder}/{line[-5:]}"
    sizes = {Image.open(path).size for path in (folder / "out").glob("*.png")}
    assert sizes == {(1200, 600), (1250, 1000)}


def test_preview_replaces_no_image(cats, capsys):
    folder, content = cats
    (folder / "b.png").rename(folder / "0001.png")
    content["images"][1]["file_name"] = "0001.png"
    (folder / "train.json").write_text(json.dumps(content))
    before = (folder / "0001.png").read_bytes()
    command = ["data", "preview", f"coco:{folder}/train.json", "--out", str(folder)]
    assert vitlab(command) == 2
    assert f"{folder}/0001.png is there and this command did not" in capsys.readouterr().err
    assert (folder / "0001.png").read_bytes() == before
    assert not (folder / "0000.png").exists()
    assert vitlab([*command, "--count", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "vitlab data needs ACTION and SOURCE, such as vitlab data check voc:"),
        (["chek", "digits"], "there is no action 'chek'; did you mean 'check'?"),
        (["check"], "vitlab data needs SOURCE, such as vitlab data check voc:"),
        (["check", "a:b", "c:d"], "'c:d' is one argument too many"),
        (["check", "coco:no.json"], "no.json: cannot be read"),
        (["check", "digits", "--out", "x"], "--out is of vitlab data preview"),
        (["check", "digits", "--split"], "argument --split needs a value"),
        (["preview", "images:.", "--count", "0"], "--count is '0' but must be a whole number"),
        (["preview", "images:."], "vitlab data preview needs --out DIR"),
        (["preview", "images:.", "--out", "x"], "has no objects to draw"),
        (["preview", "images:.", "--out", "x", "--draw", "a"], "--draw is 'a' but must be objects"),
        (["preview", "images:.", "--out=x", "--draw=segments"], "has no segments to draw"),
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
