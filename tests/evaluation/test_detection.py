import json
import pathlib
import types
from typing import NamedTuple

import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.evaluation import detection
from vitlab.evaluation.boxes import box_iou, match
from vitlab.evaluation.detection import Detections
from vitlab.evaluation.masks import encode_masks, mask_area, mask_boxes

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"


def image(*objects, image_id=0, crowd=(), difficult=()):
    """The truth of one image: objects are (label, x0, y0, x1, y1)."""
    rows = np.array(objects, np.float64).reshape(-1, 5)
    places = np.arange(len(rows))
    boxes = rows[:, 1:]
    return types.SimpleNamespace(
        image_id=image_id,
        boxes=boxes,
        labels=rows[:, 0].astype(np.int32),
        crowd=np.isin(places, crowd),
        difficult=np.isin(places, difficult),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )


def seen(*detections):
    """What was found in one image: detections are (label, score, x0, y0, x1, y1)."""
    rows = np.array(detections, np.float32).reshape(-1, 6)
    return Detections(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int32))


def coco(truth, found, classes=2):
    evaluation = detection.coco_evaluation(truth, found, [f"class {c}" for c in range(classes)])
    return detection.coco_metrics(evaluation)


@pytest.fixture(scope="module")
def problem():
    """The drawn problem, by image, and what pycocotools says of it."""
    with np.load(FIXTURES / "detection_metrics.npz") as arrays:
        arrays = dict(arrays)

    def of(kind, number):
        rows = arrays[f"{kind}/image"] == number
        fields = ("boxes", "labels", *(["scores"] if kind == "found" else ["crowd", "area"]))
        return {field: arrays[f"{kind}/{field}"][rows] for field in fields}

    truth, found = [], []
    for number, image_id in enumerate(arrays["image_ids"]):
        t = of("truth", number)
        t["difficult"] = np.zeros(len(t["labels"]), bool)
        truth.append(types.SimpleNamespace(image_id=int(image_id), **t))
        found.append(Detections(**of("found", number)))
    return truth, found, arrays


def test_cocos_numbers_are_pycocotools(problem):
    """With crowds, images without objects or detections, odd ids, equal scores, and more than 100
    detections of a class in an image."""
    truth, found, arrays = problem
    assert 0 in arrays["image_ids"]
    assert 0 in arrays["category_ids"]
    assert arrays["truth/crowd"].any()
    assert max(np.bincount(f.labels).max(initial=0) for f in found) > 100
    assert min(len(f) for f in found) == min(len(t.labels) for t in truth) == 0
    assert (arrays["stats"] > 0.2).all()
    names = list("abcdef")
    evaluation = detection.coco_evaluation(truth, found, names)
    np.testing.assert_allclose(evaluation.stats, arrays["stats"], rtol=0, atol=1e-6)
    expected = dict(zip(names, arrays["per_class"], strict=True))
    assert (expected.pop("e"), expected.pop("f")) == (-1, -1)  # no object, only crowds
    assert detection.per_class_ap(evaluation) == pytest.approx(expected, abs=1e-6)
    recall, precision = detection.precision_recall(evaluation)
    np.testing.assert_allclose(recall, np.arange(101) / 100, atol=1e-9)
    assert list(precision) == list("abcd")
    for label, name in enumerate("abcd"):
        np.testing.assert_allclose(precision[name], arrays["precision"][:, label], atol=1e-6)
    metrics = detection.coco_metrics(evaluation)
    assert list(metrics.values()) == pytest.approx(arrays["stats"][:9], abs=1e-6)
    assert json.loads(json.dumps(metrics)) == metrics


def test_the_order_of_the_images_does_not_matter(problem):
    truth, found, arrays = problem
    evaluation = detection.coco_evaluation(truth[::-1], found[::-1], list("abcdef"))
    np.testing.assert_allclose(evaluation.stats, arrays["stats"], rtol=0, atol=1e-12)


def test_images_of_the_same_id_are_two():
    """As in two splits taken as one."""
    truth = [image((0, 0, 0, 50, 50), image_id=7), image((1, 0, 0, 50, 50), image_id=7)]
    found = [seen((0, 0.9, 0, 0, 50, 50)), seen((1, 0.9, 0, 0, 50, 50))]
    assert coco(truth, found)["AP"] == pytest.approx(1)
    assert coco(truth, found[::-1])["AP"] == 0


def test_the_evaluator_is_silent(capfd):
    coco([image((0, 0, 0, 50, 50))], [seen((0, 0.9, 0, 0, 50, 50))])
    assert capfd.readouterr() == ("", "")


def test_a_perfect_detector_of_one_object():
    metrics = coco([image((0, 10, 10, 40, 40))], [seen((0, 0.5, 10, 10, 40, 40))])
    assert set(metrics) == {"AP", "AP50", "AP75", "AP_small", "AR1", "AR10", "AR100"}
    assert metrics == pytest.approx(dict.fromkeys(metrics, 1.0))
    assert all(type(value) is float for value in metrics.values())


def test_ap_is_the_fraction_of_thresholds_that_the_overlap_reaches():
    # 100 x 100 moved by 10: 9000 / 11000 = 0.818, at least 0.5, 0.55, ..., 0.8.
    metrics = coco([image((0, 0, 0, 100, 100))], [seen((0, 1, 10, 0, 110, 100))])
    assert metrics["AP"] == pytest.approx(0.7)
    assert metrics["AR100"] == pytest.approx(0.7)


def test_without_detections_ap_is_0():
    metrics = coco([image((0, 0, 0, 50, 50)), image(image_id=1)], [seen(), seen()])
    assert metrics == dict.fromkeys(metrics, 0.0)
    assert "AP_medium" in metrics


@pytest.mark.parametrize("found", [seen(), seen((1, 0.9, 0, 0, 9, 9))])
@pytest.mark.parametrize("truth", [image(), image((0, 0, 0, 9, 9), crowd=[0])])
def test_without_objects_ap_is_0_and_sizes_are_left_out(truth, found):
    evaluation = detection.coco_evaluation([truth], [found], ["a", "b"])
    metrics = detection.coco_metrics(evaluation)
    assert metrics == dict.fromkeys(("AP", "AP50", "AP75", "AR1", "AR10", "AR100"), 0.0)
    assert detection.per_class_ap(evaluation) == {}
    assert detection.precision_recall(evaluation)[1] == {}
    assert detection.voc_ap([truth], [found], ["a", "b"]) == (0.0, {})


def test_a_crowd_absorbs_what_lies_in_it():
    truth = [image((0, 0, 0, 50, 50), (0, 100, 100, 300, 300), crowd=[1])]
    inside = [(0, 0.9, 110 + 20 * i, 110, 130 + 20 * i, 130) for i in range(5)]
    hit = (0, 0.5, 0, 0, 50, 50)
    assert coco(truth, [seen(*inside, hit)])["AP"] == pytest.approx(1)
    outside = (0, 0.9, 400, 400, 450, 450)
    assert coco(truth, [seen(*inside, hit, outside)])["AP"] == pytest.approx(0.5)
    other_class = [(1, *box[1:]) for box in inside]
    both = [image((0, 0, 0, 50, 50), (0, 100, 100, 300, 300), (1, 0, 0, 50, 50), crowd=[1])]
    assert coco(both, [seen(*other_class, hit, (1, *hit[1:]))])["AP"] == pytest.approx(
        (1 + 1 / 6) / 2
    )


def test_false_positives_in_images_without_objects_count():
    truth = [image((0, 0, 0, 50, 50), image_id=3), image(image_id=4)]
    hit, wrong = seen((0, 0.5, 0, 0, 50, 50)), seen((0, 0.9, 0, 0, 50, 50))
    assert coco(truth, [hit, seen()])["AP"] == pytest.approx(1)
    assert coco(truth, [hit, wrong])["AP"] == pytest.approx(0.5)


def test_an_object_without_area_is_one_that_is_never_found():
    truth = [image((0, 0, 0, 50, 50), (0, 70, 70, 70, 90))]
    found = [seen((0, 0.9, 0, 0, 50, 50), (0, 0.1, 70, 70, 70, 90))]
    assert coco(truth, found)["AR100"] == pytest.approx(0.5)
    assert coco(truth, found)["AP_small"] == 0


def test_only_the_best_100_detections_of_a_class_in_an_image_count():
    truth = [image((0, 0, 0, 50, 50))]
    wrong = [(0, 0.5, 200, 200, 250, 250)] * 100
    hit = (0, 0.4, 0, 0, 50, 50)
    assert coco(truth, [seen(*wrong[1:], hit)])["AP"] == pytest.approx(1 / 100)
    assert coco(truth, [seen(*wrong, hit)])["AP"] == 0


def test_coco_results_have_the_ids_of_the_data_set():
    found = [seen(), seen((1, 0.5, 1, 2, 11, 22), (0, 0.25, 0, 0, 3, 4))]
    results = detection.coco_results(found, image_ids=[139, 0], category_ids=[90, 0])
    assert results == [
        {"image_id": 0, "category_id": 0, "bbox": [1, 2, 10, 20], "score": 0.5},
        {"image_id": 0, "category_id": 90, "bbox": [0, 0, 3, 4], "score": 0.25},
    ]
    assert json.loads(json.dumps(results)) == results
    assert detection.coco_results([seen()], [1], [5]) == []


def test_voc_ap_of_a_hand_worked_example():
    """Four objects; by score: right, wrong, right, right, and one is never found."""
    truth = [
        image((0, 0, 0, 50, 50), (0, 100, 0, 150, 50), image_id=1),
        image((0, 0, 0, 50, 50), (0, 100, 0, 150, 50), image_id=2),
    ]
    found = [
        seen((0, 0.9, 0, 0, 50, 50), (0, 0.6, 100, 0, 150, 50)),
        seen((0, 0.8, 200, 200, 250, 250), (0, 0.7, 0, 0, 50, 50)),
    ]
    # Precision 1, 1/2, 2/3, 3/4 at recall 1/4, 1/4, 2/4, 3/4; made monotone 1, 3/4, 3/4, 3/4.
    area = (1 + 3 / 4 + 3 / 4) / 4
    # Recall 0, 0.1 and 0.2 are reached at precision 1, 0.3 to 0.7 at 3/4, 0.8 and above never.
    eleven = (3 * 1 + 5 * 3 / 4) / 11
    assert detection.voc_ap(truth, found, ["a"]) == (
        pytest.approx(area),
        pytest.approx({"a": area}),
    )
    mean, _ = detection.voc_ap(truth, found, ["a"], metric="11_point")
    assert mean == pytest.approx(eleven)


def test_11_points_hold_a_recall_of_exactly_three_tenths():
    truth = [image(*[(0, 100 * i, 0, 100 * i + 50, 50) for i in range(10)])]
    found = [seen(*[(0, 0.9, 100 * i, 0, 100 * i + 50, 50) for i in range(3)])]
    assert detection.voc_ap(truth, found, ["a"], metric="11_point")[0] == pytest.approx(4 / 11)


def test_voc_counts_a_second_detection_of_an_object_as_wrong_even_near_a_free_one():
    """The devkit looks at the best overlap only; COCO would take the free one."""
    truth = [image((0, 0, 0, 100, 100), (0, 20, 0, 120, 100))]
    found = [seen((0, 0.9, 0, 0, 100, 100), (0, 0.8, 5, 0, 105, 100))]
    assert detection.voc_ap(truth, found, ["a"])[0] == pytest.approx(0.5)
    assert coco(truth, found)["AP50"] == pytest.approx(1)


def test_voc_ignores_difficult_objects():
    truth = [image((0, 0, 0, 50, 50), (0, 100, 0, 150, 50), (1, 0, 0, 9, 9), difficult=[1, 2])]
    found = [seen((0, 0.9, 100, 0, 150, 50), (0, 0.8, 101, 0, 151, 50), (0, 0.7, 0, 0, 50, 50))]
    assert detection.voc_ap(truth, found, ["a", "b"]) == (1.0, {"a": 1.0})


def test_voc_overlap_of_inclusive_pixels():
    """The devkit's (1, 1, 10, 10) and (1, 6, 10, 15), each 10 x 10 pixels, share 50 of 150."""
    kit = np.array([[1, 1, 10, 10], [1, 6, 10, 15]])
    boxes = kit - [1, 1, 0, 0]
    truth, found = [image((0, *boxes[0]))], [seen((0, 1, *boxes[1]))]
    assert box_iou(boxes[:1], boxes[1:]).item() == 1 / 3
    assert detection.voc_ap(truth, found, ["a"], iou=1 / 3)[0] == 1
    assert detection.voc_ap(truth, found, ["a"], iou=0.34)[0] == 0


def voc_loop(truth, found, label, eleven):
    """The devkit's VOCevaldet, line by line; None without an object."""
    npos = sum((t.labels == label)[~t.difficult & ~t.crowd].sum() for t in truth)
    if not npos:
        return None
    rows = [(-f.scores[j], i, j) for i, f in enumerate(found) for j in range(len(f))]
    rows = sorted(r for r in rows if found[r[1]].labels[r[2]] == label)
    taken, tp, fp = set(), [], []
    for _, i, j in rows:
        best, place = -np.inf, None
        b = found[i].boxes[j].astype(float)
        for k, g in enumerate(truth[i].boxes):
            width = min(b[2], g[2]) - max(b[0], g[0])
            height = min(b[3], g[3]) - max(b[1], g[1])
            if truth[i].labels[k] != label or width <= 0 or height <= 0:
                continue
            areas = (b[2] - b[0]) * (b[3] - b[1]) + (g[2] - g[0]) * (g[3] - g[1])
            overlap = width * height / (areas - width * height)
            if overlap > best:
                best, place = overlap, k
        if best >= 0.5:
            if not truth[i].difficult[place] and not truth[i].crowd[place]:
                tp.append((i, place) not in taken)
                fp.append((i, place) in taken)
                taken.add((i, place))
        else:
            tp.append(False)
            fp.append(True)
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    recall, precision = tp / npos, tp / (fp + tp)
    if eleven:
        best = [precision[recall >= t / 10].max(initial=0) for t in range(11)]
        return sum(best) / 11
    recall, precision = [0, *recall, 1], [0, *precision, 0]
    for i in reversed(range(len(precision) - 1)):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


@pytest.mark.parametrize("metric", ["area", "11_point"])
def test_voc_ap_equals_the_devkits_loop(problem, metric):
    truth, found, _ = problem
    rng = np.random.default_rng(0)
    truth = [
        types.SimpleNamespace(**vars(t) | {"difficult": rng.random(len(t.labels)) < 0.2})
        for t in truth
    ]
    mean, per_class = detection.voc_ap(truth, found, list("abcdef"), metric=metric)
    expected = {n: voc_loop(truth, found, i, metric == "11_point") for i, n in enumerate("abcdef")}
    expected = {name: value for name, value in expected.items() if value is not None}
    assert list(expected) == list("abcd")
    assert per_class == pytest.approx(expected, abs=1e-9)
    assert mean == pytest.approx(np.mean(list(expected.values())))
    assert mean > 0.2


def test_confusion_has_the_true_class_in_rows_and_the_background_last():
    truth = [
        image((0, 0, 0, 50, 50), (1, 100, 0, 150, 50), (1, 200, 0, 250, 50)),
        image(),
        image((0, 0, 0, 50, 50), (1, 100, 0, 300, 50), difficult=[0], crowd=[1]),
    ]
    found = [
        # Right; taken for class 0; a second one on the first; one below the score.
        seen(
            (0, 0.9, 0, 0, 50, 50),
            (0, 0.8, 100, 0, 150, 45),
            (1, 0.9, 2, 0, 52, 50),
            (1, 0.2, 200, 0, 250, 50),
        ),
        seen((1, 0.4, 0, 0, 50, 50)),
        # On the difficult one, in the crowd, on nothing.
        seen((0, 0.9, 0, 0, 50, 50), (1, 0.9, 110, 0, 130, 50), (0, 0.9, 400, 0, 450, 50)),
    ]
    matrix = detection.confusion(truth, found, ["a", "b"])
    assert matrix.tolist() == [[1, 0, 0], [1, 0, 1], [1, 2, 0]]
    assert detection.confusion(truth, found, ["a", "b"], score=0)[1].tolist() == [1, 1, 0]


def test_crowd_and_difficult_may_be_0_and_1_as_data_sets_write_them():
    """Of one right detection, one on a difficult object, one in a crowd, and one of nothing."""
    objects = [(0, 0, 0, 50, 50), (1, 100, 0, 300, 50), (0, 400, 0, 450, 50)]
    truth = image(*objects, crowd=[1], difficult=[2])
    rows = [(0, 0.9, 400, 0, 450, 50), (1, 0.8, 110, 0, 130, 50), (0, 0.7, 0, 0, 50, 50)]
    found = [seen(*rows, (0, 0.5, 500, 0, 550, 50))]
    for kind in (bool, int, np.uint8):
        truth.crowd, truth.difficult = truth.crowd.astype(kind), truth.difficult.astype(kind)
        assert detection.voc_ap([truth], found, ["a", "b"]) == (1.0, {"a": 1.0})
        matrix = detection.confusion([truth], found, ["a", "b"])
        assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_a_match_takes_the_largest_overlap_first():
    rows, columns = match(np.array([[0.6, 0.8], [0.4, 0.9], [0.5, 0.1]]), 0.5)
    assert list(zip(rows, columns, strict=True)) == [(1, 1), (0, 0)]
    assert all(len(places) == 0 for places in match(np.zeros((0, 3)), 0.5))


def test_iou_equals_a_count_of_pixels():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.integers(0, 12, (2, 20, 2, 2)), axis=2).reshape(2, 20, 4)
    masks = np.zeros((2, 20, 12, 12), bool)
    for side in range(2):
        for i, (x0, y0, x1, y1) in enumerate(boxes[side]):
            masks[side, i, y0:y1, x0:x1] = True
    shared = (masks[0][:, None] & masks[1]).sum((2, 3))
    either = (masks[0][:, None] | masks[1]).sum((2, 3))
    area = masks[0].sum((1, 2))[:, None]
    np.testing.assert_allclose(box_iou(*boxes), shared / np.maximum(either, 1))
    crowd = np.arange(20) % 2 == 0
    expected = np.where(crowd, shared / np.maximum(area, 1), shared / np.maximum(either, 1))
    np.testing.assert_allclose(box_iou(*boxes, crowd), expected)


TRUTH = image((0, 0, 0, 9, 9), image_id=42)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (seen((0, 0.9, 0, 0, np.nan, 9)), "image 42: 1 boxes are not finite"),
        (seen((0, np.inf, 0, 0, 9, 9)), "image 42: 1 scores are not finite"),
        (seen((0, 0.9, 9, 0, 0, 9)), "image 42: boxes must be x0, y0, x1, y1"),
        (seen((2, 0.9, 0, 0, 9, 9)), r"image 42: labels must be in \[0, 2\)"),
        (seen((-1, 0.9, 0, 0, 9, 9)), r"image 42: labels must be in \[0, 2\)"),
        (Detections(np.zeros((2, 4)), np.zeros(2), np.zeros(1, int)), r"must be \[k, 4\]"),
        (Detections(np.zeros((1, 4)), np.zeros(2), np.zeros(1, int)), r"scores \(2,\)"),
        (Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0)), "whole numbers"),
    ],
)
def test_detections_that_have_no_metric_are_refused(found, message):
    names = ["a", "b"]
    for function in (detection.coco_evaluation, detection.voc_ap, detection.confusion):
        with pytest.raises(InputError, match=message):
            function([TRUTH], [found], names)
    with pytest.raises(InputError, match=message):
        detection.coco_results([found], [42], [1, 2])


def test_truth_that_does_not_fit_is_refused():
    def check(truth, message, **options):
        with pytest.raises(InputError, match=message):
            detection.voc_ap(truth, [seen()], ["a"], **options)

    check([TRUTH, TRUTH], "detections in 1 images must be as many as the 2")
    with pytest.raises(InputError, match="there must be one"):
        detection.voc_ap([], [], ["a"])
    check([image((1, 0, 0, 9, 9))], r"truth of image 0: labels must be in \[0, 1\)")
    check([types.SimpleNamespace(**vars(TRUTH) | {"crowd": np.zeros(2, bool)})], r"crowd \(2,\)")
    check([TRUTH], "metric 'voc' must be", metric="voc")


class Runs(NamedTuple):
    """A mask as run lengths."""

    size: tuple[int, int]
    counts: tuple[int, ...]


def masks_from_coco(stored):
    """Truth and detections of COCO's json."""
    data, results = json.loads(str(stored["truth"])), json.loads(str(stored["results"]))
    labels = {category["id"]: label for label, category in enumerate(data["categories"])}

    def segmentation(found):
        if isinstance(found, dict):
            return Runs(tuple(found["size"]), tuple(found["counts"]))
        return tuple(np.array(polygon).reshape(-1, 2) for polygon in found)

    truth, found = [], []
    for row in data["images"]:
        objects = [o for o in data["annotations"] if o["image_id"] == row["id"]]
        boxes = np.array([o["bbox"] for o in objects], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        truth.append(
            types.SimpleNamespace(
                image_id=row["id"],
                width=row["width"],
                height=row["height"],
                boxes=boxes,
                labels=np.array([labels[o["category_id"]] for o in objects], np.int32),
                crowd=np.array([o["iscrowd"] for o in objects], bool),
                difficult=np.zeros(len(objects), bool),
                area=np.array([o["area"] for o in objects], np.float64),
                segmentations=tuple(segmentation(o["segmentation"]) for o in objects),
            )
        )
        rows = [r for r in results if r["image_id"] == row["id"]]
        masks = [r["segmentation"] for r in rows]
        found.append(
            Detections(
                mask_boxes(masks),
                np.array([r["score"] for r in rows], np.float32),
                np.array([labels[r["category_id"]] for r in rows], np.int32),
                masks,
            )
        )
    return truth, found, data, results


@pytest.fixture(scope="module")
def masks_problem():
    """A drawn problem of masks, and what pycocotools says of it."""
    with np.load(FIXTURES / "segmentation_metrics.npz") as arrays:
        stored = {
            key.removeprefix("masks/"): arrays[key] for key in arrays if key.startswith("masks")
        }
    return *masks_from_coco(stored), stored


def test_cocos_numbers_of_masks_are_pycocotools(masks_problem):
    """With polygons of several parts, crowds as run lengths, images without objects or detections,
    odd ids, equal scores, and a mask without a pixel."""
    truth, found, _, _, stored = masks_problem
    outlines = [s for t in truth for s in t.segmentations]
    assert {Runs, tuple} == {type(s) for s in outlines}
    assert max(len(s) for s in outlines if type(s) is tuple) > 1
    assert min(mask_area(f.masks).min(initial=1) for f in found) == 0
    assert min(len(f) for f in found) == min(len(t.labels) for t in truth) == 0
    assert (stored["stats"] > 0.2).all()
    evaluation = detection.coco_evaluation(truth, found, list("abcd"), of="masks")
    np.testing.assert_allclose(evaluation.stats, stored["stats"], rtol=0, atol=1e-6)
    expected = dict(zip("abcd", stored["per_class"], strict=True))
    assert expected.pop("d") == -1
    assert detection.per_class_ap(evaluation) == pytest.approx(expected, abs=1e-6)
    of_boxes = detection.coco_evaluation(truth, found, list("abcd"))
    assert not np.allclose(of_boxes.stats, evaluation.stats, atol=1e-3)
    without = [Detections(f.boxes, f.scores, f.labels) for f in found]
    np.testing.assert_array_equal(
        detection.coco_evaluation(truth, without, list("abcd")).stats, of_boxes.stats
    )


def test_true_masks_may_be_coco_s_dicts(masks_problem):
    """Compressed, as those of detections are, and not; crowds and masks without a pixel too."""
    truth, found, _, _, stored = masks_problem

    def plain(runs):
        return {"size": list(runs.size), "counts": list(runs.counts)}

    def compressed(runs):
        pixels = np.repeat(np.arange(len(runs.counts)) % 2 == 1, runs.counts)
        return encode_masks(pixels.reshape(1, *runs.size[::-1]).swapaxes(1, 2))[0]

    for form in (plain, compressed):
        given = []
        for t in truth:
            outlines = [form(s) if isinstance(s, Runs) else s for s in t.segmentations]
            given.append(types.SimpleNamespace(**vars(t) | {"segmentations": outlines}))
        evaluation = detection.coco_evaluation(given, found, list("abcd"), of="masks")
        np.testing.assert_allclose(evaluation.stats, stored["stats"], rtol=0, atol=1e-6)

        seen_one, empty = with_mask([[1, 0], [0, 0]]), with_mask(np.zeros((2, 2)))
        outlines = tuple(form(t.segmentations[0]) for t in (seen_one, empty))
        two = image((0, 0, 0, 1, 1), (0, 0, 0, 1, 1))
        two = types.SimpleNamespace(**vars(two), height=2, width=2, segmentations=outlines)
        evaluation = detection.coco_evaluation([two], [masked([[1, 0], [0, 0]])], ["a"], "masks")
        assert detection.coco_metrics(evaluation)["AP"] == pytest.approx(1)


def test_coco_results_have_the_masks(masks_problem):
    truth, found, data, results, _ = masks_problem
    ids = [category["id"] for category in data["categories"]]
    rows = detection.coco_results(found, [t.image_id for t in truth], ids)
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == len(results)
    for row in results:
        assert any(
            row["segmentation"] == r["segmentation"] and row["image_id"] == r["image_id"]
            for r in rows
        )


def with_mask(mask, image_id=0, **fields):
    """The truth of one object, as run lengths."""
    mask = np.array(mask, bool)
    runs = mask.T.ravel()
    ends = np.flatnonzero(np.diff(runs, prepend=False))
    counts = np.diff([0, *ends, runs.size]).tolist()
    truth = vars(image((0, 0, 0, 1, 1), image_id=image_id))
    truth |= dict(height=mask.shape[0], width=mask.shape[1], area=np.array([mask.sum()], float))
    truth["segmentations"] = (Runs(mask.shape, tuple(counts)),)
    return types.SimpleNamespace(**truth | fields)


def masked(*masks):
    encoded = encode_masks(np.array(masks, bool))
    scores, labels = np.linspace(0.9, 0.5, len(masks)), np.zeros(len(masks), int)
    return Detections(mask_boxes(encoded), scores, labels, encoded)


def test_a_hand_worked_mask():
    """3 of 4 pixels: IoU 0.75, at least 0.5, 0.55, ..., 0.75; the box around it is the same."""
    square, corner = [[1, 1, 0], [1, 1, 0]], [[1, 1, 0], [1, 0, 0]]
    truth = with_mask(square, boxes=np.array([[0.0, 0, 2, 2]]))
    found = masked(corner)
    evaluation = detection.coco_evaluation([truth], [found], ["a"], of="masks")
    assert detection.coco_metrics(evaluation)["AP"] == pytest.approx(0.6)
    of_boxes = detection.coco_evaluation([truth], [found], ["a"])
    assert detection.coco_metrics(of_boxes)["AP"] == pytest.approx(1)
    # The same as a polygon.
    polygon = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], np.float64)
    truth.segmentations = ((polygon,),)
    evaluation = detection.coco_evaluation([truth], [found], ["a"], of="masks")
    assert detection.coco_metrics(evaluation)["AP"] == pytest.approx(0.6)


def test_without_detections_ap_of_masks_is_0():
    truth = with_mask([[1, 0], [0, 0]])
    evaluation = detection.coco_evaluation([truth], [seen()], ["a"], of="masks")
    assert detection.coco_metrics(evaluation)["AP"] == 0


def test_encoded_masks_have_the_area_and_the_box_of_their_pixels():
    masks = np.zeros((3, 40, 50), bool)
    masks[0, 5:7, 30] = True
    masks[1] = True
    masks[1, 0] = masks[1, :, :2] = False
    encoded = encode_masks(masks)
    assert json.loads(json.dumps(encoded)) == encoded
    assert [mask["size"] for mask in encoded] == [[40, 50]] * 3
    assert mask_area(encoded).tolist() == [2, 39 * 48, 0]
    assert mask_boxes(encoded).tolist() == [[30, 5, 31, 7], [2, 1, 50, 40], [0, 0, 0, 0]]
    assert encode_masks(masks[:0]) == []
    assert (mask_area([]).shape, mask_boxes([]).shape) == ((0,), (0, 4))


def test_masks_that_have_no_metric_are_refused():
    square, other = [[1, 1, 0], [1, 1, 0]], [[1, 1], [1, 1]]
    truth = with_mask(square, image_id=42)

    def check(truth, found, message):
        with pytest.raises(InputError, match=message):
            detection.coco_evaluation([truth], [found], ["a"], of="masks")

    bare = types.SimpleNamespace(**vars(truth) | {"segmentations": (None,)})
    check(bare, masked(square), "truth of image 42: 0 of 1 objects have a mask")
    bare.segmentations = ((),)
    check(bare, masked(square), "truth of image 42: 0 of 1 objects have a mask")
    check(truth, seen((0, 0.9, 0, 0, 2, 2)), "detections in image 42: 0 of 1 have a mask")
    check(truth, masked(other), "detections in image 42: a mask of 2 x 2 must be 2 x 3")
    for mask in (*encode_masks(np.array([other], bool)), Runs((2, 2), (0, 4))):
        bare.segmentations = (mask,)
        check(bare, masked(square), "truth of image 42: a mask of 2 x 2 must be 2 x 3")
    bare.segmentations = ({"size": [2, 3], "count": [0, 6]},)
    check(bare, masked(square), "truth of image 42: a mask must have 'size' and 'counts'")
    found = masked(square, square)
    found = Detections(found.boxes, found.scores, found.labels, found.masks[:1])
    with pytest.raises(InputError, match="image 42: 1 masks must be as many as the 2 boxes"):
        detection.coco_results([found], [42], [1])
    with pytest.raises(InputError, match="of 'segm' must be 'boxes' or 'masks'"):
        detection.coco_evaluation([truth], [masked(square)], ["a"], of="segm")
    for masks in (np.zeros((4, 5), bool), np.zeros((1, 4, 5))):
        with pytest.raises(InputError, match=r"must be bool\[n, height, width\]"):
            encode_masks(masks)
