"""Parameters of one run in another model: every one accounted for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.errors import InputError
from vitlab.ops.positions import resize_position_embedding
from vitlab.weights.transfer import transfer

RNG = np.random.default_rng(0)
SOURCE = {
    "encoder/kernel": RNG.normal(size=(3, 3)).astype(np.float32),
    "position_embedding/table": RNG.normal(size=(4, 6, 8)).astype(np.float32),
    "head/kernel": np.ones((3, 5), np.float32),
    "old": np.ones(2, np.float32),
}
TARGET = {
    "encoder/kernel": np.zeros((3, 3), np.float32),
    "position_embedding/table": np.zeros((5, 3, 8), np.float32),
    "head/kernel": np.zeros((3, 7), np.float32),
    "extra": np.full(2, 5.0, np.float32),
}


def test_everything_is_reported():
    filled, report = transfer(TARGET, SOURCE, ["head/.*", "extra", "old"])
    assert report.loaded == ("encoder/kernel",)
    assert report.resized == ("position_embedding/table",)
    assert report.new == ("head/kernel", "extra")
    assert report.unused == ("old",)
    np.testing.assert_array_equal(filled["encoder/kernel"], SOURCE["encoder/kernel"])
    np.testing.assert_array_equal(filled["extra"], TARGET["extra"])
    np.testing.assert_array_equal(filled["head/kernel"], TARGET["head/kernel"])
    expected = resize_position_embedding(
        jnp.asarray(SOURCE["position_embedding/table"].reshape(1, 24, 8)), (5, 3), old_grid=(4, 6)
    )
    np.testing.assert_allclose(
        filled["position_embedding/table"].reshape(15, 8), expected[0], atol=1e-6
    )
    assert "1 unused: old" in str(report)


def test_nothing_is_silent():
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        transfer(TARGET, SOURCE)
    message = str(error.value)
    assert "head/kernel is (3, 5) there and (3, 7) here" in message
    assert "extra is not there" in message
    assert "old is not in this model" in message
    assert "config.init_allow" in message
    with pytest.raises(InputError, match="'\\[' is no regular expression"):
        transfer(TARGET, SOURCE, ["["])


@pytest.mark.slow
def test_a_vit_takes_over_another_image_size():
    from vitlab.models.vit import ViT

    model = ViT(width=8, depth=1, num_heads=2, patch_size=4)

    def variables(size):
        return model.init(jax.random.key(0), jnp.zeros((1, *size, 3)))["params"]

    def flat(tree):
        from flax.traverse_util import flatten_dict

        return {k: np.asarray(v) for k, v in flatten_dict(tree, sep="/").items()}

    _, report = transfer(flat(variables((24, 16))), flat(variables((16, 16))))
    assert report.resized == ("position_embedding/table",)
    assert not report.new
    assert not report.unused


PRETRAINED = {
    "backbone/encoder/kernel": np.full((3, 3), 2.0, np.float32),
    "backbone/position_embedding/table": SOURCE["position_embedding/table"],
    "batch_stats/backbone/mean": np.ones(3, np.float32),
    "batch_stats/projector_norm/mean": np.ones(4, np.float32),
    "decoder/kernel": np.ones((3, 4), np.float32),
    "mask_token": np.ones(4, np.float32),
}
CLASSIFIER = {
    "encoder/kernel": np.zeros((3, 3), np.float32),
    "position_embedding/table": np.zeros((5, 3, 8), np.float32),
    "batch_stats/mean": np.zeros(3, np.float32),
    "head/kernel": np.zeros((3, 7), np.float32),
}


def test_a_pretrained_backbone_goes_into_a_classifier():
    """The encoder is taken, the decoder left, the head new, the positions resized."""
    filled, report = transfer(CLASSIFIER, PRETRAINED, ["head/.*"])
    assert report.loaded == ("encoder/kernel", "batch_stats/mean")
    assert report.resized == ("position_embedding/table",)
    assert report.new == ("head/kernel",)
    assert report.unused == ()
    assert report.left == ("batch_stats/projector_norm/mean", "decoder/kernel", "mask_token")
    assert "left behind: projector_norm (1), decoder (1), mask_token (1)" in str(report)
    np.testing.assert_array_equal(filled["encoder/kernel"], 2.0)
    np.testing.assert_array_equal(filled["batch_stats/mean"], 1.0)
    with pytest.raises(InputError, match="head/kernel is not there"):
        transfer(CLASSIFIER, PRETRAINED)


def test_backbones_are_matched_between_models_of_other_parts():
    """A detector's own decoder is not the autoencoder's, though they have one name and shape."""
    detector = {
        "backbone/encoder/kernel": np.zeros((3, 3), np.float32),
        "backbone/extra": np.zeros(2, np.float32),
        "decoder/kernel": np.zeros((3, 4), np.float32),
        "queries": np.zeros((5, 3), np.float32),
    }
    source = {k: v for k, v in PRETRAINED.items() if "position" not in k and "batch" not in k}
    filled, report = transfer(detector, source, ["backbone/extra"])
    assert report.loaded == ("backbone/encoder/kernel",)
    assert report.left == ("decoder/kernel", "mask_token")
    assert report.new == ("backbone/extra", "decoder/kernel", "queries")
    assert not filled["decoder/kernel"].any()
    with pytest.raises(InputError, match="backbone/extra is not there"):
        transfer(detector, source)
    # a classifier into a detector: all of it but the head is a backbone
    _, report = transfer(detector, CLASSIFIER, ["backbone/.*", "batch_stats/.*"])
    assert report.loaded == ("backbone/encoder/kernel",)


def test_models_of_the_same_parts_are_matched_whole():
    filled, report = transfer(PRETRAINED, PRETRAINED)
    assert len(report.loaded) == len(PRETRAINED)
    assert report.left == ()
    assert filled["decoder/kernel"].all()
