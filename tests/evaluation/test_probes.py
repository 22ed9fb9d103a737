import functools
import inspect

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from vitlab.errors import InputError
from vitlab.evaluation import probes
from vitlab.evaluation.probes import few_shot, knn, linear_probe, logistic_probe

quick_linear = functools.partial(linear_probe, learning_rates=(0.01, 0.1), epochs=5)


def predict_few_shot(train, train_labels, features, num_classes):
    """The class of each feature that `few_shot` calls right when it is asked about it alone."""
    accuracy = np.array(
        [
            [
                few_shot(train, train_labels, [x], [c], num_classes, shots=(3,), draws=1)[3]
                for c in range(num_classes)
            ]
            for x in features
        ]
    )
    return accuracy.argmax(axis=1)


def predictions(protocol, *arguments):
    result = protocol(*arguments)
    return getattr(result, "predictions", result)


@pytest.fixture(scope="module")
def blobs():
    """Overlapping classes 0..4: train features and labels, evaluation features and labels."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(5, 12))
    labels, train_labels = rng.integers(0, 5, 203), rng.integers(0, 5, 400)
    noise = functools.partial(rng.normal, scale=1.5)
    train = centers[train_labels] + noise(size=(400, 12))
    features = centers[labels] + noise(size=(203, 12))
    return train.astype(np.float32), train_labels, features.astype(np.float32), labels


@pytest.fixture(scope="module")
def digits():
    """1,297 training and 500 evaluation images of scikit-learn's digits as 64 pixels."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = pixels[order].astype(np.float32), labels[order]
    return pixels[500:], labels[500:], pixels[:500], labels[:500]


def separable(present=(0, 1, 2, 3)):
    """24 examples of 4 classes, of which those in `present` occur, and a constant dimension."""
    labels = np.resize(present, 24)
    features = 5 * np.eye(4)[labels] + np.random.default_rng(0).normal(scale=0.1, size=(24, 4))
    return np.pad(features, ((0, 0), (0, 1)), constant_values=0.7), labels


# kNN


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (50, 1.0), (400, 0.01)])
def test_knn_equals_a_loop_over_the_definition(blobs, k, temperature):
    train, train_labels, features, _ = (np.asarray(x, np.float64) for x in blobs)
    expected = []
    for x in features:
        cosine = train @ x / np.linalg.norm(train, axis=1) / np.linalg.norm(x)
        votes = np.zeros(5)
        for i in np.argsort(-cosine, kind="stable")[:k]:
            votes[int(train_labels[i])] += np.exp(cosine[i] / temperature)
        expected.append(votes.argmax())
    result = knn(*blobs[:3], 5, k=k, temperature=temperature)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.int32


def test_knn_equals_scikit_learns(blobs, digits):
    for train, train_labels, features, _ in (blobs, digits):
        reference = KNeighborsClassifier(
            20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
        )
        expected = reference.fit(train, train_labels).predict(features)
        np.testing.assert_array_equal(knn(train, train_labels, features, 10), expected)


def test_knn_does_not_depend_on_the_chunk_nor_on_scale(blobs):
    train, train_labels, features, _ = blobs
    expected = knn(train, train_labels, features, 5)
    for chunk in (1, 64, 203, 10_000):
        result = knn(train, train_labels, features, 5, chunk=chunk)
        np.testing.assert_array_equal(result, expected)
    result = knn(train * np.float32(1e-25), train_labels, features * np.float32(1e30), 5)
    np.testing.assert_array_equal(result, expected)


def test_all_neighbours_vote_where_k_is_larger_than_the_split(blobs):
    train, train_labels, features, _ = blobs
    np.testing.assert_array_equal(
        knn(train, train_labels, features, 5, k=1000), knn(train, train_labels, features, 5, k=400)
    )


def test_knn_ties_go_to_the_first_neighbour_and_the_lowest_class():
    train = np.repeat(np.eye(2), 4, axis=0)
    labels = [3, 1, 1, 1, 2, 2, 0, 0]
    assert knn(train, labels, np.eye(2), 4, k=1).tolist() == [3, 2]
    assert knn(train, labels, np.eye(2), 4, k=2).tolist() == [1, 2]
    assert knn(train, labels, np.eye(2), 4, k=4).tolist() == [1, 0]
    # A zero feature is as near to all: the first k vote.
    assert knn(train, labels, np.zeros((1, 2)), 4, k=1).tolist() == [3]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a fact about XLA on CPUs")
def test_knn_selects_neighbours_without_sorting_the_whole_split():
    """XLA turns top_k into a sort where its result is sliced: 30 times slower."""
    shapes = np.zeros((8, 4), np.float32), np.zeros((500, 4), np.float32), np.zeros(500, np.int32)
    compiled = probes._vote.lower(*shapes, 0.07, 20, 10).compile()
    assert " sort(" not in compiled.as_text()


# Probes


@pytest.mark.slow
def test_linear_probe_reaches_logistic_regression_on_digits(digits):
    train, train_labels, features, labels = digits
    scale = train.std(axis=0) + 1e-6
    reference = LogisticRegression(max_iter=1000).fit(train / scale, train_labels)
    expected = reference.score(features / scale, labels)
    linear = linear_probe(train, train_labels, features, 10)
    logistic = logistic_probe(train, train_labels, features, 10)
    assert expected > 0.95
    assert np.mean(linear.predictions == labels) >= expected - 0.01
    assert np.mean(logistic.predictions == labels) >= expected - 0.01


def test_linear_probe_equals_gradient_descent_written_out(blobs):
    train, train_labels, features, _ = (np.asarray(x, np.float64) for x in blobs)
    mean, std = train.mean(axis=0), train.std(axis=0)
    x, y = (train - mean) / std, np.eye(5)[train_labels.astype(int)]
    kernel, bias = np.zeros((12, 5)), np.zeros(5)
    velocity = [np.zeros((12, 5)), np.zeros(5)]
    for step in range(7):
        rate = 0.3 * (1 + np.cos(np.pi * step / 7)) / 2
        exponential = np.exp(x @ kernel + bias)
        error = (exponential / exponential.sum(axis=1, keepdims=True) - y) / len(x)
        gradient = x.T @ error, error.sum(axis=0)
        velocity = [0.9 * v + g for v, g in zip(velocity, gradient, strict=True)]
        kernel, bias = kernel - rate * velocity[0], bias - rate * velocity[1]
    expected = ((features - mean) / std @ kernel + bias).argmax(axis=1)
    result = linear_probe(
        *blobs[:3], 5, learning_rates=(0.3,), epochs=7, batch_size=400
    )  # a batch is the split, so the order means nothing
    np.testing.assert_array_equal(result.predictions, expected)


def test_learning_rates_that_train_side_by_side_do_not_meet(blobs):
    together = quick_linear(*blobs[:3], 5)
    assert list(together.holdout_accuracy) == [0.01, 0.1]
    for rate in together.holdout_accuracy:
        alone = quick_linear(*blobs[:3], 5, learning_rates=(rate,))
        assert alone.holdout_accuracy[rate] == together.holdout_accuracy[rate]
        if rate == together.chosen:
            np.testing.assert_array_equal(alone.predictions, together.predictions)


@pytest.mark.parametrize("probe", [quick_linear, logistic_probe])
def test_probes_choose_the_first_of_the_best_on_the_holdout(blobs, probe):
    result = probe(*blobs[:3], 5)
    best = max(result.holdout_accuracy.values())
    assert result.chosen == next(v for v, a in result.holdout_accuracy.items() if a == best)
    assert all(round(a * 40, 6).is_integer() for a in result.holdout_accuracy.values())
    assert "labels" not in inspect.signature(probe).parameters  # of the evaluation split
    assert result.predictions.dtype == np.int32


@pytest.mark.parametrize("protocol", [knn, quick_linear, logistic_probe])
def test_a_prediction_does_not_depend_on_the_other_evaluation_examples(blobs, protocol):
    train, train_labels, features, _ = blobs
    expected = predictions(protocol, train, train_labels, features, 5)
    subset = np.random.default_rng(0).permutation(len(features))[:50]
    result = predictions(protocol, train, train_labels, features[subset], 5)
    np.testing.assert_array_equal(result, expected[subset])


def test_logistic_probe_is_scikit_learns_with_the_chosen_c(blobs):
    train, train_labels, features, _ = (np.asarray(x, np.float64) for x in blobs)
    result = logistic_probe(*blobs[:3], 5)
    mean, std = train.mean(axis=0), train.std(axis=0)
    model = LogisticRegression(C=result.chosen, max_iter=1000, tol=1e-8)
    expected = model.fit((train - mean) / std, train_labels).predict((features - mean) / std)
    assert np.mean(result.predictions == expected) > 0.99


@pytest.mark.parametrize("protocol", [knn, quick_linear, logistic_probe, predict_few_shot])
@pytest.mark.parametrize("present", [(0, 1, 2, 3), (1, 3), (2,)])
def test_separable_features_are_told_apart_whatever_classes_are_absent(protocol, present):
    train, train_labels = separable(present=present)
    result = predictions(protocol, train, train_labels, train[: len(present)], 4)
    assert result.tolist() == list(present)


def test_a_dimension_that_is_constant_in_training_says_nothing(blobs):
    train, train_labels, features, _ = blobs
    constant = np.array([0.0, 0.1, 1e6])
    padded = np.c_[train, np.tile(constant, (len(train), 1))]
    evaluation = np.c_[features, np.tile(constant + 0.5, (len(features), 1))]
    np.testing.assert_array_equal(
        logistic_probe(padded, train_labels, evaluation, 5).predictions,
        logistic_probe(train, train_labels, features, 5).predictions,
    )


# Few-shot


@pytest.mark.parametrize(("each", "dim"), [(4, 5), (2, 20)])
def test_few_shot_equals_least_squares_with_the_penalty_as_rows(each, dim):
    """Ridge regression is least squares with sqrt(l2) I under x and 0 under y."""
    rng = np.random.default_rng(0)
    train_labels, labels = np.repeat(np.arange(3), each), rng.integers(0, 3, 300)
    centers = rng.normal(size=(3, dim))
    train = 3 + centers[train_labels] + rng.normal(size=(3 * each, dim))
    features = 3 + centers[labels] + rng.normal(size=(300, dim))
    for l2 in (1.0, 1024.0):
        mean, std = train.mean(axis=0), train.std(axis=0)
        x, z = (np.c_[(f - mean) / std, np.full(len(f), 100)] for f in (train, features))
        y = 2 * np.eye(3)[train_labels] - 1
        x_rows, y_rows = np.r_[x, np.sqrt(l2) * np.eye(dim + 1)], np.r_[y, np.zeros((dim + 1, 3))]
        weights = np.linalg.lstsq(x_rows, y_rows, rcond=None)[0]
        expected = np.mean((z @ weights).argmax(axis=1) == labels)
        result = few_shot(train, train_labels, features, labels, 3, shots=(each,), l2=l2)
        assert result == {each: pytest.approx(expected, abs=1e-9)}
        assert 0.4 < expected < 1  # some are wrong, so that it says something


def test_more_shots_help_and_the_seed_decides(digits):
    train, train_labels, features, labels = digits
    result = few_shot(*digits, 10)
    assert list(result) == [1, 5, 10, 25]
    assert list(result.values()) == sorted(result.values())
    assert result[25] > 0.85
    assert few_shot(*digits, 10) == result
    assert few_shot(*digits, 10, seed=1) != result
    # A number of shots is drawn the same whatever others are asked for.
    assert few_shot(*digits, 10, shots=(10,)) == {10: result[10]}


def test_a_small_class_gives_all_it_has_and_impossible_shots_are_left_out():
    train, train_labels = separable()
    keep = np.r_[np.flatnonzero(train_labels != 2), np.flatnonzero(train_labels == 2)[:3]]
    train, train_labels = train[keep], train_labels[keep]  # 6, 6, 3, 6 examples
    result = few_shot(train, train_labels, train, train_labels, 4, shots=(3, 5, 6, 7, 25), l2=1)
    assert result == {3: 1.0, 5: 1.0, 6: 1.0}
    with pytest.raises(InputError, match="no class has 7 examples to learn from"):
        few_shot(train, train_labels, train, train_labels, 4, shots=(7, 25))


# Input


@pytest.mark.parametrize("protocol", [knn, quick_linear, logistic_probe, "few_shot"])
@pytest.mark.parametrize(
    ("train", "train_labels", "features", "message"),
    [
        (np.zeros((0, 2)), [], np.ones((1, 2)), r"train_features \(0, 2\)"),
        (np.ones((2, 2)), [0, 1], np.ones((0, 2)), r"features \(0, 2\)"),
        (np.ones((2, 2)), [0, 1], np.ones((1, 3)), r"features \(1, 3\) must have the dim of"),
        (np.ones((2, 2)), [0], np.ones((1, 2)), r"train_labels int64\[1\] must be integers"),
        (np.ones((2, 2)), [0.0, 1.0], np.ones((1, 2)), "train_labels float64"),
        (np.ones((2, 2)), [0, 3], np.ones((1, 2)), r"train_labels 3 of example 1 .* \[0, 3\)"),
        (np.ones((2, 2)), [0, -1], np.ones((1, 2)), "train_labels -1 of example 1"),
        ([[0, 0], [0, np.inf]], [0, 1], np.ones((1, 2)), "train_features of example 1"),
        (np.ones((2, 2)), [0, 1], [[0, np.nan]], "^features of example 0 must be finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(protocol, train, train_labels, features, message):
    if protocol == "few_shot":
        protocol = functools.partial(few_shot, labels=[0] * len(features))
    with pytest.raises(InputError, match=message) as error:
        protocol(train, train_labels, features, num_classes=3)
    assert "\n" not in str(error.value)


def test_settings_that_mean_nothing_are_refused(blobs):
    train, train_labels, features, labels = blobs
    arrays = train, train_labels, features
    for protocol, setting in [
        (knn, dict(k=0)),
        (knn, dict(temperature=0.0)),
        (knn, dict(chunk=-1)),
        (linear_probe, dict(learning_rates=())),
        (linear_probe, dict(learning_rates=(0.1, np.nan))),
        (linear_probe, dict(epochs=0)),
        (linear_probe, dict(batch_size=0)),
        (logistic_probe, dict(cs=(0.0, 1.0))),
        (functools.partial(few_shot, labels=labels), dict(shots=(0, 5))),
        (functools.partial(few_shot, labels=labels), dict(draws=0)),
        (functools.partial(few_shot, labels=labels), dict(l2=0)),
    ]:
        with pytest.raises(InputError, match=f"{next(iter(setting))} .* above 0"):
            protocol(*arrays, num_classes=5, **setting)
    with pytest.raises(InputError, match="labels 5 of example 0"):
        few_shot(*arrays, np.full(len(features), 5), 5)
    for probe in (quick_linear, logistic_probe):
        with pytest.raises(InputError, match="2 examples or more"):
            probe(train[:1], train_labels[:1], features, 5)
