from pathlib import Path

import numpy as np
import pytest

from tests.data.refusals import fails
from vitlab.data.annotations import RLE
from vitlab.data.sources import open_source

META = """<meta><task><original_size><width>10</width><height>20</height></original_size><labels>
<label><name>dog</name></label><label><name>cat</name></label>
<label><name>eye</name><type>points</type><parent>cat</parent></label></labels></task></meta>"""


@pytest.fixture
def formats() -> Path:
    path = Path(__file__).parents[3] / "shared" / "data" / "formats" / "cvat"
    if not path.is_dir():
        pytest.skip("needs CVAT's export in ../shared/data/formats/cvat")
    return path


@pytest.fixture
def cvat(tmp_path):
    """cvat(*inside) writes an export, and gives the source string."""

    def write(*inside, meta=META):
        text = "\n".join(["<annotations>", meta, *inside, "</annotations>"])
        (tmp_path / "annotations.xml").write_text(text)
        return f"cvat:{tmp_path}/annotations.xml"

    return write


def image(*shapes, name="a.png", extra="", size='width="10" height="20"'):
    return f'<image id="0" name="{name}" {size} {extra}>{"".join(shapes)}</image>'


def box(label="cat", frame="", rotation="", **sides):
    sides = {"xtl": 1, "ytl": 2, "xbr": 5, "ybr": 4} | sides
    said = " ".join(f'{key}="{value}"' for key, value in sides.items())
    return f'<box label="{label}" {frame} {said} {rotation}/>'


def mask(rle="1, 2, 3", left=2, top=3, width=3, height=2):
    place = f'left="{left}" top="{top}" width="{width}" height="{height}"'
    return f'<mask label="dog" rle="{rle}" {place}/>'


def by_name(source):
    return {Path(source.describe(i)).name: source.annotation(i) for i in range(len(source))}


@pytest.mark.parametrize("subset", ["Test", "Train", "Validation"])
def test_an_export_of_a_project(formats, subset):
    source = open_source(f"cvat:{formats}/annotations.xml", subset.lower())
    assert source.class_names == ("label1", "label2")
    assert source.category_ids == (1, 2)
    found = by_name(source)
    assert found["img0.jpg"].boxes.tolist() == [[0, 2, 4, 4]]
    assert found["img0.jpg"].segmentations == (None,)
    assert found["img1.jpg"].boxes.tolist() == [[1, 2, 6, 5]]
    ((polygon,),) = found["img1.jpg"].segmentations
    assert polygon.tolist() == [[1, 2], [3, 4], [6, 5]]
    first = ("Test", "Train", "Validation").index(subset) * 2
    assert [found[name].image_id - first for name in ("img0.jpg", "img1.jpg")] == [1, 2]
    assert Path(source.describe(0)).parent == formats / "images" / subset
    assert source[0]["image"].startswith(b"\xff\xd8")
    assert [note.rpartition(": ")[2] for note in source.notes] == [
        "a <polyline> was left out",
        "a <points> was left out",
    ]


def test_every_shape(cvat):
    square = 'points="1.5,2;3,4;1,8"'
    spec = cvat(
        image(
            box(),
            f'<polygon label="dog" {square}><attribute name="a">b</attribute></polygon>',
            box(rotation='rotation="90.0"'),
            '<ellipse label="cat" cx="5" cy="10" rx="2" ry="4" rotation="90"/>',
            mask(),
        )
    )
    source = open_source(spec, "train")
    assert source.class_names == ("dog", "cat")
    assert source.notes == []
    found = source.annotation(0)
    assert found.labels.tolist() == [1, 0, 1, 1, 0]
    np.testing.assert_allclose(
        found.boxes,
        [[1, 2, 5, 4], [1, 2, 3, 8], [2, 1, 4, 5], [1, 8, 9, 12], [3, 3, 5, 4]],
        atol=1e-12,
    )
    plain, (polygon,), (turned,), (ellipse,), pixels = found.segmentations
    assert plain is None
    assert polygon.tolist() == [[1.5, 2], [3, 4], [1, 8]]
    np.testing.assert_allclose(turned, [[4, 1], [4, 5], [2, 5], [2, 1]], atol=1e-12)
    np.testing.assert_allclose(((ellipse - [5, 10]) / [4, 2]) ** 2 @ [1, 1], 1)
    assert found.area[3] == pytest.approx(np.pi * 8, rel=2e-3)
    assert isinstance(pixels, RLE)
    assert np.argwhere(pixels.mask()).tolist() == [[3, 3], [3, 4]]


def test_boxes_turn_clockwise(cvat):
    turned = box(xtl=2, ytl=8, xbr=6, ybr=12, rotation='rotation="30"')
    ((polygon,),) = open_source(cvat(image(turned)), "train").annotation(0).segmentations
    # The upper left corner goes right, and up.
    assert polygon[0].tolist() == pytest.approx([4 - 2 * (3**0.5 - 1) / 2, 10 - (3**0.5 + 1)])


def test_masks_are_those_of_rows(cvat):
    rng = np.random.default_rng(0)
    for density in (0.1, 0.5, 0.9, 1.0):
        inside = rng.random((20, 10)) < density
        inside[0, 3] = inside[-1, 4] = True
        for top, left, height, width in ((0, 0, 20, 10), (0, 3, 20, 2), (4, 2, 7, 8)):
            part = inside[top : top + height, left : left + width]
            edges = np.flatnonzero(np.diff(part.ravel(), prepend=False))
            runs = np.diff([0, *edges, part.size])
            shape = mask(", ".join(map(str, runs)), left, top, width, height)
            found = open_source(cvat(image(shape)), "train").annotation(0)
            expected = np.zeros((20, 10), bool)
            expected[top : top + height, left : left + width] = part
            np.testing.assert_array_equal(found.segmentations[0].mask(), expected)
            assert sum(found.segmentations[0].counts[1::2]) == expected.sum()
            y, x = np.nonzero(expected)
            assert found.boxes[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_what_is_no_object_is_left_out_and_noted(cvat, tmp_path):
    spec = cvat(
        image(
            '<tag label="cat"/>',
            box(),
            '<polygon label="cat" points="1,2;3,4"/>',
            '<skeleton label="cat"><points label="eye" points="1,2"/></skeleton>',
            mask("6"),
        ),
        image('<tag label="no"/>', name="b.png"),
    )
    source = open_source(spec, "train")
    assert {name: len(each) for name, each in by_name(source).items()} == {"a.png": 1, "b.png": 0}
    where = f"{tmp_path}/annotations.xml: a.png: shape"
    assert source.notes == [
        f"{where} 1: a <tag> was left out, and 1 more like it",
        f"{where} 3: a <polygon> that covers nothing was left out",
        f"{where} 4: a <skeleton> was left out",
        f"{where} 5: a <mask> that covers nothing was left out",
    ]


def test_tracks_are_objects_of_the_frames_in_which_they_are_not_outside(cvat, tmp_path):
    def shown(frame, outside=0, **sides):
        return box("", f'frame="{frame}" outside="{outside}" keyframe="0"', **sides)

    spec = cvat(
        f'<track id="0" label="dog">{shown(3)}{shown(4, xtl=2)}{shown(5, 1)}</track>',
        f'<track id="1" label="cat">{shown(12)}{shown(3)}</track>',
    )
    source = open_source(spec, "train")
    found = by_name(source)
    assert sorted(found) == ["frame_000003.PNG", "frame_000004.PNG", "frame_000012.PNG"]
    first, second, last = (found[name] for name in sorted(found))
    assert (first.image_id, second.image_id, last.image_id) == (1, 2, 3)
    assert (first.width, first.height) == (10, 20)
    assert first.labels.tolist() == [0, 1]
    assert second.boxes.tolist() == [[2, 2, 5, 4]]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "frame_000004.jpg").touch()
    assert "frame_000004.jpg" in by_name(open_source(spec, "train"))


def test_where_the_images_are(cvat, tmp_path, monkeypatch, write_image):
    write_image(tmp_path / "photos" / "deep" / "b.png")
    images = [
        image(size="", name="deep/b.png", extra='subset="Train"'),
        image(name="c.png", extra='subset="odd"'),
    ]
    spec = cvat(*images)
    monkeypatch.setenv("HOME", str(tmp_path))
    source = open_source("cvat:~/annotations.xml?images=~/photos", "TRAIN")
    assert source.describe(0) == f"{tmp_path}/photos/deep/b.png"
    assert (source.annotation(0).width, source.annotation(0).height) == (6, 4)  # As its file says.
    assert open_source(spec, "odd").describe(0) == f"{tmp_path}/images/c.png"
    fails(spec, "split 'val' does not exist: there is Train, odd", "val")
    (tmp_path / "images" / "odd").mkdir(parents=True)
    both = open_source(f"{spec}", "odd")
    assert both.describe(0) == f"{tmp_path}/images/odd/c.png"


def test_segments(cvat):
    spec = cvat(image('<polygon label="dog" points="2,4;8,4;8,12;2,12"/>', mask()))
    source = open_source(spec, "train")
    assert source.segment_names == ("dog", "cat", "background")
    counts = np.bincount(source.segments(0).semantic().ravel(), minlength=3)
    assert counts.tolist() == [50, 0, 150]  # Two pixels of the mask, of which none is below 4.


def test_z_order_says_which_object_is_seen(cvat):
    small, large = "4,4;6,4;6,6;4,6", "2,2;8,2;8,8;2,8"

    def polygon(label, points, z):
        return f'<polygon label="{label}" points="{points}" {z}/>'

    below, above = 'z_order="-1"', 'z_order="1"'
    for z, seen in ((("", ""), "cat"), ((below, ""), "dog"), ((above, above), "cat")):
        shapes = polygon("cat", small, z[0]), polygon("dog", large, z[1])
        source = open_source(cvat(image(*shapes)), "train")
        segments = source.segments(0)
        assert source.segment_names[segments.labels[segments.map[5, 5]]] == seen


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (image(box("emu")), "a.png: shape 1: the label 'emu' is not among those of <meta>: dog, c"),
        (image(box("eye")), "the label 'eye' is not among those of <meta>"),
        (image("<box/>"), "the label '' is not among those of <meta>"),
        (image('<box label="cat"/>'), "annotations.xml: a.png: shape 1 has no xtl"),
        (image(box(), box(xtl="x")), "shape 2: xtl is 'x' but must be a finite number"),
        (image(box(ybr="inf")), "shape 1: ybr is 'inf' but must be a finite number"),
        (image(box(rotation='rotation=""')), "rotation is '' but must be a finite number"),
        (image('<polygon label="cat"/>'), "shape 1 has no points"),
        (image('<polygon label="cat" points="1,2;3"/>'), "points must be x,y;x,y;..."),
        (image('<polygon label="cat" points="1,2;3,x"/>'), "points is 'x' but must be a finite"),
        (image('<ellipse label="cat" cx="1" cy="2" rx="1"/>'), "shape 1 has no ry"),
        (image(mask("1, 2")), "rle must be lengths of runs that sum to 3 x 2, not 3"),
        (image(mask("-1, 7")), "rle must be lengths of runs that sum to 3 x 2"),
        (image(mask("0.5, 5.5")), "rle must be lengths of runs that sum to 3 x 2"),
        (image(mask("1; 5")), "rle is '1; 5' but must be a finite number"),
        (image(box(rotation='z_order="top"')), "shape 1: z_order is 'top' but must be a finite"),
        (image(mask(left=8)), "shape 1: does not lie within the 10 x 20 image"),
        (image(mask(top=-1)), "shape 1: does not lie within the 10 x 20 image"),
        (image(mask("0", width=0)), "shape 1: does not lie within the 10 x 20 image"),
        (
            image(mask("1e10", 0, 0, 10**5, 10**5), size='width="100000" height="100000"'),
            "shape 1: a mask of 100000 x 100000 is too large",
        ),
        (image(mask(), size=""), "a.png: shape 1: a mask needs the width and height of its image"),
        (image(size='width="0" height="2"'), "image 1 has a width and height of 0 x 2"),
        (
            image(size='width="9" height="1e20"'),
            "has a width and height of 9 x 100000000000000000000",
        ),
        (image(size='width="x" height="2"'), "image 1: size is 'x' but must be a finite number"),
        ("<image/>", "annotations.xml: image 1 has no name"),
        (image(name="../a.png"), "'../a.png' is not the name of a file in"),
        (image(name="/etc/a.png"), "'/etc/a.png' is not the name of a file in"),
        (image(name=""), "'' is not the name of a file in"),
        (image() * 2, "images/a.png twice"),
        (f"<track>{box()}</track>", "annotations.xml: track 1 has no frame"),
        ("", "split 'train' does not exist: there is none"),
    ],
)
def test_wrong_annotations(cvat, inside, message):
    fails(cvat(inside), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation/>", "is not CVAT's: <annotations> is expected, not <annotation>"),
        ("<annotations>", "annotations.xml:1: is not xml (no element found at column 14)"),
        ("<annotations/>", "its <meta> has no <labels>, or one without a <name>"),
        (
            "<annotations><meta><job><labels><label/></labels></job></meta></annotations>",
            "its <meta> has no <labels>, or one without a <name>",
        ),
        (
            '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotations>&b;</annotations>',
            "annotations.xml: has a DOCTYPE, which annotations never need: remove it",
        ),
    ],
)
def test_not_cvat(cvat, tmp_path, text, message):
    spec = cvat()
    (tmp_path / "annotations.xml").write_text(text)
    fails(spec, message)


def test_missing_files(tmp_path):
    fails(f"cvat:{tmp_path}/no.xml", f"{tmp_path}/no.xml: cannot be read (No such file")
    fails(f"cvat:{tmp_path}/no.xml?classes=a", "unknown option 'classes', cvat: takes images")
