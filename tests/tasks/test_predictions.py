"""What predictions write, and what they draw of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.class_colors import class_colors
from vitlab.evaluation.boxes import Detections
from vitlab.evaluation.detection import coco_results
from vitlab.evaluation.masks import encode_masks
from vitlab.evaluation.segments import FoundSegments
from vitlab.tasks.predictions import ObjectPrediction, SegmentPrediction
from vitlab.tasks.task import task_class

BLACK = np.zeros((20, 20, 3), np.uint8)
ZOOM = 64  # of so small a picture


def test_boxes_are_written_as_they_are_scored_and_drawn_within_the_image():
    """A box that reaches beyond its image has one AP, whichever command measures it."""
    vit = dict(name="vit", width=8, depth=1, num_heads=2, patch_size=8)
    model = dict(name="plain_detr", backbone=vit, num_queries=2)
    task = task_class("detection").from_config(model, {}, {}, ("cat", "dog"), jnp.float32)
    boxes = np.array([[[-3, 5, 9, 31], [2, 2, 8, 8]]], np.float32)
    scores, labels = np.array([[0.9, 0.8]], np.float32), np.array([[1, 0]], np.int32)
    outputs = {"boxes": boxes, "scores": scores, "labels": labels}
    (prediction,) = task.predictions([outputs], [(20, 20)], ())
    rows = prediction.records(4, (3, 7))
    scored = coco_results([Detections(boxes[0], scores[0], labels[0])], [4], (3, 7))
    keys = ("image_id", "category_id", "bbox")
    assert [[row[key] for key in keys] for row in rows] == [
        [row[key] for key in keys] for row in scored
    ]
    within = ObjectPrediction(boxes[0].clip(0, 20), scores[0], labels[0], task.classes)
    assert prediction.draw(BLACK).tobytes() == within.draw(BLACK).tobytes()


@pytest.mark.parametrize("least", [0.3, 0.6])
def test_what_is_drawn_of_instances_is_what_is_told(least):
    """Whatever the panoptic segments take of them; stuff lies behind, the background nowhere."""
    names, things = ("cat", "dog", "sky", "background"), (True, True, False, False)
    places = np.full((20, 20), 1, np.int32)
    places[:4] = 0
    places[15:, 15:] = 2  # a dog of the panoptic segments alone
    segments = FoundSegments(places, np.array([2, 3, 1], np.int32))
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 8:12, 2:6], masks[1, 8:12, 12:16] = True, True
    boxes = np.array([[2, 8, 6, 12], [12, 8, 16, 12]], np.float32)
    objects = Detections(
        boxes, np.array([0.7, 0.4], np.float32), np.array([0, 1], np.int32), encode_masks(masks)
    )
    prediction = SegmentPrediction(segments, names, objects, things)
    pixels = np.asarray(prediction.draw(BLACK, least)).astype(int)

    def at(x, y):
        return pixels[round(y * ZOOM), round(x * ZOOM)]

    cat, dog, sky = class_colors(np.arange(3)) * 0.392  # translucent, on black
    np.testing.assert_allclose(at(4, 10.5), cat, atol=2)
    told = ["1 x cat", "1 x dog"] if least == 0.3 else ["1 x cat"]
    assert prediction.told(least).split(", ") == told
    np.testing.assert_allclose(at(14, 10.5), dog if least == 0.3 else 0, atol=2)
    np.testing.assert_allclose(at(10, 1), sky, atol=2)
    assert not at(10, 14).any()
    assert not pixels[14 * ZOOM : 20 * ZOOM, 14 * ZOOM : 20 * ZOOM].any()
    assert pixels.shape[1] > 20 * ZOOM  # the sky's name
