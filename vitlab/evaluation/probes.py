"""Protocols that judge frozen features: weighted kNN, linear and logistic probe, few-shot.

What all of them take: `train_features: f32[m, dim]` and `train_labels: i32[m]`, a training split;
`features: f32[n, dim]`, the evaluation split; `num_classes`, labels being in [0, num_classes). A
class without a training example does no harm. Each draw is a function of the seed alone. All raise
InputError where the arrays do not fit each other, are empty or not finite, a label is out of range,
or a setting is not above 0.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from threadpoolctl import threadpool_limits

from vitlab.errors import InputError
from vitlab.evaluation.collapse import check_features


class ProbeResult(NamedTuple):
    """What a probe with one swept setting found.

    Attributes:
      predictions: i32[n], the predicted class of each evaluation example.
      chosen: the value of the setting that they come from.
      holdout_accuracy: value -> accuracy on the held-out tenth of the training features.
    """

    predictions: np.ndarray
    chosen: float
    holdout_accuracy: dict[float, float]


def knn(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 256,
) -> np.ndarray:
    """Weighted k-nearest-neighbour classification, exact: i32[n], the predicted classes.

    The k training features (all, where there are fewer) of largest cosine similarity vote for their
    class with weight exp(similarity / temperature): Wu et al. 2018, arXiv:1805.01978; the defaults
    are DINO's. Of equal similarities the lowest training index is nearer, of equal votes the lowest
    class wins. The device holds the training features and chunk * m similarities.
    """
    train_features, train_labels, features = _check(
        train_features, train_labels, features, num_classes
    )
    _check_positive(k=k, temperature=temperature, chunk=chunk)
    k, chunk = min(k, len(train_features)), min(chunk, len(features))
    train = _normalize(jnp.asarray(train_features))
    labels = jnp.asarray(train_labels)
    # Padded to whole chunks, so that there is one shape and one compilation.
    padded = np.pad(features, ((0, -len(features) % chunk), (0, 0)))
    predictions = [
        np.asarray(_vote(padded[start : start + chunk], train, labels, temperature, k, num_classes))
        for start in range(0, len(padded), chunk)
    ]
    return np.concatenate(predictions)[: len(features)]


@partial(jax.jit, static_argnums=(4, 5))
def _vote(
    queries: Array, train: Array, labels: Array, temperature: float, k: int, num_classes: int
) -> Array:
    similarities = jnp.matmul(_normalize(queries), train.T, precision="highest")
    similarity, nearest = jax.lax.top_k(similarities, k)
    # Only ratios of weights matter: relative to the nearest one they cannot overflow. Its slice in
    # place of max would make XLA sort the whole row, some 30 times slower on a CPU.
    weight = jnp.exp((similarity - similarity.max(axis=1, keepdims=True)) / temperature)
    votes = jax.nn.one_hot(labels[nearest], num_classes) * weight[:, :, None]
    return votes.sum(axis=1).argmax(axis=1).astype(jnp.int32)


def _normalize(features: Array) -> Array:
    """Each row to l2 norm 1; over its largest entry first, so that no square overflows."""
    tiny = jnp.finfo(features.dtype).tiny
    features = features / jnp.maximum(jnp.abs(features).max(axis=1, keepdims=True), tiny)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), tiny)


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    num_classes: int,
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> ProbeResult:
    """A linear classifier trained by SGD, with the learning rate that a holdout prefers.

    Softmax cross-entropy, momentum 0.9, cosine decay to 0, no weight decay, weights from zero, on
    features standardised by the training mean and deviation: what the affine-free batch norm before
    the head of MAE's linear probe (arXiv:2111.06377) does in its limit. All learning rates train
    side by side in one compiled program, on nine tenths of the training features (m >= 2); the one
    with the best accuracy on the other tenth (of equals the first listed) then trains on all.

    The rates are for the mean loss of a batch, unscaled. A batch larger than the split is the
    split; the incomplete last batch of an epoch is left out, each epoch has a new order.
    """
    _check_positive(learning_rates=learning_rates, epochs=epochs, batch_size=batch_size)

    def fit_predict(train, labels, evaluation, rates):
        size = min(batch_size, len(train))
        rates, key = np.asarray(rates, np.float32), jax.random.key(seed)
        heads = _train_heads(train, labels, rates, key, num_classes, epochs, size)
        # One rate at a time: the logits of all could be larger than the features.
        return np.stack([_classify(head, evaluation) for head in zip(*heads, strict=True)])

    arrays = _check(train_features, train_labels, features, num_classes)
    return _sweep(fit_predict, learning_rates, arrays, seed)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _train_heads(features, labels, rates, key, num_classes, epochs, batch_size):
    """One head for each rate: (kernels f32[rates, dim, classes], biases f32[rates, classes])."""
    n, dim = features.shape
    steps = n // batch_size

    def mean_loss(head, rows):
        logits = _logits(head, features[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def train(rate):
        optimizer = optax.sgd(optax.cosine_decay_schedule(rate, epochs * steps), momentum=0.9)

        def step(state, rows):
            head, momentum = state
            update, momentum = optimizer.update(jax.grad(mean_loss)(head, rows), momentum)
            return (optax.apply_updates(head, update), momentum), None

        def epoch(state, key):
            order = jax.random.permutation(key, n)[: steps * batch_size]
            return jax.lax.scan(step, state, order.reshape(steps, batch_size))

        head = jnp.zeros((dim, num_classes)), jnp.zeros(num_classes)
        state = head, optimizer.init(head)
        (head, _), _ = jax.lax.scan(epoch, state, jax.random.split(key, epochs))
        return head

    # All rates see the same order, so that a step is one matrix product for all of them.
    return jax.vmap(train)(rates)


def _logits(head: tuple[Array, Array], features: Array) -> Array:
    kernel, bias = head
    return jnp.matmul(features, kernel, precision="highest") + bias


@jax.jit
def _classify(head: tuple[Array, Array], features: Array) -> Array:
    return _logits(head, features).argmax(axis=1).astype(jnp.int32)


def logistic_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    num_classes: int,
    cs: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0),
    max_iter: int = 1000,
    seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression to convergence: scikit-learn's L-BFGS, on the CPU.

    Standardised, held out and refitted as `linear_probe`; `chosen` is scikit-learn's C, the weight
    of the summed loss against the l2 penalty. Each C starts from the fit before it, so an ascending
    list is quickest. scikit-learn warns where `max_iter` (that of CLIP's linear evaluation,
    arXiv:2103.00020) came before convergence.
    """
    _check_positive(cs=cs, max_iter=max_iter)

    def fit_predict(train, labels, evaluation, values):
        if (labels == labels[0]).all():  # scikit-learn refuses a single class
            return np.full((len(values), len(evaluation)), labels[0])
        from sklearn.linear_model import LogisticRegression  # which takes a second, so only now

        model = LogisticRegression(max_iter=max_iter, warm_start=True)
        # Products with few classes are thin, and OpenBLAS multiplies those faster on one thread:
        # for 10 classes twice as fast as on 2 idle cores, far more where the cores are shared.
        with threadpool_limits(1 if num_classes < 100 else None, user_api="blas"):
            fits = (model.set_params(C=c).fit(train, labels) for c in values)
            return np.stack([fitted.predict(evaluation) for fitted in fits])

    arrays = _check(train_features, train_labels, features, num_classes)
    return _sweep(fit_predict, cs, arrays, seed)


def _sweep(
    fit_predict: Callable[..., np.ndarray], values: Sequence[float], arrays: tuple, seed: int
) -> ProbeResult:
    """Chooses one of `values` on a tenth of the training features and refits it on all of them.

    `fit_predict(train, labels, evaluation, values)` returns i32[values, n], predicted classes.
    """
    train_features, train_labels, features = arrays
    if len(train_features) < 2:
        raise InputError("train_features must have 2 examples or more: one to train, one held out")
    order = np.random.default_rng(seed).permutation(len(train_features))
    held, kept = np.split(order, [max(1, len(order) // 10)])
    train, holdout = _standardize(train_features[kept], train_features[held])
    predicted = fit_predict(train, train_labels[kept], holdout, values)
    accuracy = (predicted == train_labels[held]).mean(axis=1)
    chosen = float(values[accuracy.argmax()])
    train, evaluation = _standardize(train_features, features)
    predictions = fit_predict(train, train_labels, evaluation, [chosen])[0]
    holdout_accuracy = {float(v): float(a) for v, a in zip(values, accuracy, strict=True)}
    return ProbeResult(predictions, chosen, holdout_accuracy)


def few_shot(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    shots: Sequence[int] = (1, 5, 10, 25),
    draws: int = 5,
    seed: int = 0,
    l2: float = 2.0**10,
) -> dict[int, float]:
    """Ridge regression onto one-hot labels from few examples: {shots: accuracy}, a mean over draws.

    As big_vision's evaluators/fewshot_lsr.py: targets +1 for the class and -1 for the others,
    features standardised by the drawn examples, a constant feature of 100 for the bias (so large
    that the penalty hardly reaches it), solved in closed form. `l2` is its default for every data
    set, so nothing is tuned on `labels: i32[n]`, which serve for the accuracy only. Unlike there, a
    feature that is constant in a draw is dropped, where 1e-5 is added to each deviation.

    A class with fewer examples than `shots` gives all it has, as in big_vision. Shots that no class
    has are left out: they would report a smaller number under a larger name. InputError where none
    is left. The small sets of a draw are parts of its larger ones.
    """
    train_features, train_labels, features = _check(
        train_features, train_labels, features, num_classes
    )
    labels = _check_labels("labels", labels, len(features), num_classes)
    _check_positive(shots=shots, draws=draws, l2=l2)
    largest = np.bincount(train_labels).max()
    accuracies = {int(count): [] for count in shots if count <= largest}
    if not accuracies:
        raise InputError(
            f"few_shot: no class has {min(shots)} examples to learn from, the largest has {largest}"
        )
    for draw in range(draws):
        order = np.random.default_rng((seed, draw)).permutation(len(train_labels))
        order = order[np.argsort(train_labels[order], kind="stable")]
        by_class = train_labels[order]
        place_in_class = np.arange(len(order)) - np.searchsorted(by_class, by_class)
        for count, accuracy in accuracies.items():
            drawn = order[place_in_class < count]
            train, evaluation = _standardize(train_features[drawn], features)
            targets = 2 * np.eye(num_classes)[train_labels[drawn]] - 1
            predicted = _ridge(train, targets, evaluation, l2).argmax(axis=1)
            accuracy.append(np.mean(predicted == labels))
    return {count: float(np.mean(accuracy)) for count, accuracy in accuracies.items()}


def _ridge(train: np.ndarray, targets: np.ndarray, features: np.ndarray, l2: float) -> np.ndarray:
    """What ridge regression of f64[m, classes] targets gives for f32[n, dim]: f32[n, classes]."""
    train, features = (np.pad(x, ((0, 0), (0, 1)), constant_values=100) for x in (train, features))
    x = train.astype(np.float64)
    # Two forms of one solution, of which the smaller system is solved.
    if x.shape[0] < x.shape[1]:
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(x.shape[0]), targets)
    else:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ targets)
    return features @ weights.astype(np.float32)


def _standardize(train: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both less the mean, and over the standard deviation, of `train` in each dimension; f32."""
    mean = train.mean(axis=0, dtype=np.float64)
    train, features = train - mean.astype(np.float32), features - mean.astype(np.float32)
    std = np.sqrt(np.einsum("nd,nd->d", train, train, dtype=np.float64) / len(train))
    # What varies by no more than float32's rounding is constant: over infinity it becomes 0.
    scale = np.where(std > 1e-6 * np.abs(mean), std, np.inf).astype(np.float32)
    return train / scale, features / scale


def _check(train_features, train_labels, features, num_classes):
    """The arrays as f32[m, dim], i32[m], f32[n, dim]."""
    train_features = check_features("train_features", train_features)
    features = check_features("features", features)
    if features.shape[1] != train_features.shape[1]:
        raise InputError(
            f"features {features.shape} must have the dim of train_features {train_features.shape}"
        )
    labels = _check_labels("train_labels", train_labels, len(train_features), num_classes)
    return train_features, labels, features


def _check_labels(name: str, labels: np.ndarray, n: int, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{name} {labels.dtype}{list(labels.shape)} must be integers, one for each of the "
            f"{n} features"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise InputError(
            f"{name} {labels[wrong[0]]} of example {wrong[0]} must be in [0, {num_classes})"
        )
    return labels.astype(np.int32)


def _check_positive(**settings: float | Sequence[float]) -> None:
    for name, value in settings.items():
        if not np.size(value) or not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
            raise InputError(f"{name} {value} must be finite and above 0")
