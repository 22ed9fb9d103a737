"""Curves: a panel for each kind of metric that was recorded, a line for each source."""

import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.evaluation.curves import curves

RECORDS = [
    {"step": 20, "train/loss": 1.0, "train/accuracy": 0.5, "images_per_second": 900.0},
    {"step": 10, "train/loss": 2.0, "train/accuracy": 0.25, "images_per_second": 800.0},
    {"step": 20, "a$b_$/nll": 1.5, "a$b_$/accuracy": 0.4, "a$b_$/ece": 0.1},
    {"step": 30, "train/loss": None, "train/lr": 0.1},
    {"step": 30, "train/loss": float("nan")},
]


def test_curves_show_each_source_in_order_of_step(drawn, tmp_path):
    curves(RECORDS, tmp_path / "report" / "curves.png")
    assert (tmp_path / "report" / "curves.png").stat().st_size > 5000
    loss, accuracy = drawn[0].axes
    assert (loss.get_title("left"), accuracy.get_title("left")) == ("loss", "accuracy")
    train, evaluator = loss.lines
    np.testing.assert_array_equal(train.get_xdata(), [10, 20, 30])
    np.testing.assert_array_equal(train.get_ydata(), [2, 1, np.nan])
    np.testing.assert_array_equal(evaluator.get_xydata(), [[20, 1.5]])
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), [0.25, 0.5])
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == ["train  1", "a$b_$  1.5"]
    assert train.get_color() == accuracy.lines[0].get_color() != evaluator.get_color()
    assert evaluator.get_color() == accuracy.lines[1].get_color()


def test_long_curves_are_smoothed_over_what_was_recorded(drawn, tmp_path):
    noise = np.random.default_rng(0).normal(size=1000)
    records = [{"step": i, "train/loss": 1 + x} for i, x in enumerate(noise)]
    curves(records, tmp_path / "curves.png")
    (loss,) = drawn[0].axes
    raw, smooth = (line.get_ydata() for line in loss.lines)
    np.testing.assert_array_equal(raw, 1 + noise)
    np.testing.assert_allclose(smooth[-1], 1 + noise[-10:].mean())


def test_curves_without_a_loss_or_an_accuracy_say_so(drawn, tmp_path):
    curves([{"step": 1, "images_per_second": 3.0}], tmp_path / "curves.png")
    assert "no loss" in drawn[0].texts[0].get_text()
    curves([], tmp_path / "curves.png")
    with pytest.raises(InputError, match="record 1 has no step"):
        curves([{"step": 1}, {"train/loss": 1.0}], tmp_path / "curves.png")


def test_curves_of_features_and_alarms(drawn, tmp_path):
    records = [
        {"step": 10, "train/loss": 2.0},
        {"step": 20, "f/knn_accuracy": 0.4, "f/linear_accuracy": 0.5, "f/feature_std": 0.01},
        {"step": 20, "alarm": "collapse"},
    ]
    curves(records, tmp_path / "curves.png")
    loss, accuracy, spread = drawn[0].axes
    assert [line.get_label() for line in accuracy.lines[1:]] == ["f knn  0.4", "f linear  0.5"]
    for axes in (loss, accuracy, spread):
        assert list(axes.lines[0].get_xdata()) == [20, 20]  # the alarm


def test_curves_of_segmentation_and_of_shots(drawn, tmp_path):
    names = ("mIoU", "pixel_accuracy", "mIoU_present", "boundary_F", "PQ", "SQ", "AP", "AP50")
    val = {f"val/{name}": 0.1 * place for place, name in enumerate(names)}
    shots = {f"f/{count}_shot_accuracy": 0.01 * count for count in (25, 1, 10, 5)}
    records = [{"step": 1, "train/loss": 2.0}, {"step": 2, **val}, {"step": 2, **shots}]
    curves(records, tmp_path / "curves.png")
    found = {
        axes.get_title("left"): [line.get_label() for line in axes.lines] for axes in drawn[0].axes
    }
    assert found == {
        "loss": ["train  2"],
        "accuracy": ["f 1-shot  0.01", "f 5-shot  0.05", "f 10-shot  0.1", "f 25-shot  0.25"],
        "mean IoU": ["val  0"],
        "panoptic quality": ["val  0.4"],
        "average precision": ["val AP  0.6", "val AP50  0.7"],
    }
    lines = [line for axes in drawn[0].axes for line in axes.lines]
    looks = {line.get_label().rpartition("  ")[0]: line for line in lines}
    looks = {(line.get_color(), line.get_linestyle()) for line in looks.values()}
    assert len(looks) == 8  # no two are alike
