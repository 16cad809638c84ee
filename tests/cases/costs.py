"""Costs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, layer_case, normal
from manual_backprop.layers import Apply, LinearCrossEntropy

# ── what is drawn ────────────────────────────────────────────────────────────────────────────────────────────────────


def labels(classes: int, *shape: int) -> Draw:
    """Logits and integer labels."""
    return lambda rng: (rng.standard_normal((*shape, classes)), integers(rng, classes, shape))


def integers(rng, classes: int, shape: tuple[int, ...]):
    return rng.integers(0, classes, shape).astype(np.int32)


def many_classes(rng):
    """More classes than the labels' dtype counts."""
    return rng.standard_normal((7, 300)), np.array([0, 5, 44, 99, 200, 255, 1], np.uint8)


def unsigned(rng):
    return rng.standard_normal((7, 5)), rng.integers(0, 5, 7).astype(np.uint32)


def shifted(rng):
    """Logits far from zero: only their differences matter."""
    logits, classes = labels(5, 7)(rng)
    return logits + 300, classes


def distributions(classes: int, *shape: int) -> Draw:
    """Logits, and labels that sum to anything: the general case."""
    return lambda rng: (rng.standard_normal((*shape, classes)), rng.uniform(size=(*shape, classes)))


def shares(*shape: int) -> Draw:
    """Numbers, and targets between 0 and 1."""
    return lambda rng: (rng.standard_normal(shape), rng.uniform(0.1, 0.9, shape))


def tokens(classes: int, size: int, *shape: int) -> Draw:
    """Activations, the weight of a head, integer labels."""
    return lambda rng: (
        rng.standard_normal((*shape, size)),
        rng.standard_normal((classes, size)),
        integers(rng, classes, shape),
    )


def scaled_tokens(rng):
    hidden, weight, classes = tokens(8192, 64, 512)(rng)
    return hidden, 0.05 * weight, classes


def weighted(draw: Draw, *shapes: tuple[int, ...]) -> Draw:
    """The same and, last, positive weights of these shapes."""
    return lambda rng: (*draw(rng), *(rng.uniform(0.5, 1.5, shape) for shape in shapes))


def masked(draw: Draw, *shape: int) -> Draw:
    """The same and, last, a mask."""
    return lambda rng: (*draw(rng), np.arange(np.prod(shape, dtype=int)).reshape(shape) % 3 > 0)


# ── references ───────────────────────────────────────────────────────────────────────────────────────────────────────


def mean(costs):
    """Of the costs of the items."""
    return lambda *args: jnp.mean(costs(*args))


def summed(costs):
    return lambda *args: jnp.sum(costs(*args))


def weighted_mean(costs):
    """By the last argument."""
    return lambda *args: jnp.average(costs(*args[:-1]), weights=args[-1].astype(args[0].dtype))


def weighted_sum(costs):
    return lambda *args: jnp.sum(costs(*args[:-1]) * args[-1])


def squares(prediction, target):
    return jnp.sum(2 * optax.l2_loss(prediction, target), axis=-1)


squared_error = mean(squares)
integer_costs = optax.softmax_cross_entropy_with_integer_labels
integer_cross_entropy = mean(integer_costs)
cross_entropy = mean(optax.softmax_cross_entropy)


def smoothed(logits, labels, label_smoothing=0.1, z_loss=0.0):
    rows = jax.nn.one_hot(labels, logits.shape[-1]) if labels.ndim < logits.ndim else labels
    costs = optax.softmax_cross_entropy(logits, (1 - label_smoothing) * rows + label_smoothing / rows.shape[-1])
    return costs + z_loss * jnp.square(jax.nn.logsumexp(logits, -1))


def not_ignored(logits, labels):
    """The mean over the labels that are not -100; PyTorch's default."""
    valid = labels != -100
    return jnp.sum(jnp.where(valid, integer_costs(logits, jnp.where(valid, labels, 0)), 0)) / jnp.sum(valid)


def some_ignored(draw: Draw) -> Draw:
    def ignoring(rng):
        *first, labels = draw(rng)
        return *first, np.where(np.arange(labels.size).reshape(labels.shape) % 3 == 1, -100, labels)

    return ignoring


def by_class(logits, labels, class_weights):
    """PyTorch's weights of classes, with smoothing: of each class in the cost, of the label in the mean."""
    costs = -0.9 * jnp.take_along_axis(class_weights * jax.nn.log_softmax(logits), labels[:, None], -1)[:, 0]
    costs -= 0.1 * jnp.mean(class_weights * jax.nn.log_softmax(logits), -1)
    return jnp.sum(costs) / jnp.sum(class_weights[labels])


def rows_by_class(logits, labels, class_weights):
    return jnp.mean(optax.softmax_cross_entropy(logits, class_weights * (0.9 * labels + 0.1 / 5)))


def everything(logits, labels, class_weights, weights):
    """Class weights, weights and ignored labels: W = Σ w v."""
    valid = labels != -100
    index = jnp.where(valid, labels, 0)
    w = jnp.where(valid, weights, 0)
    return jnp.sum(w * class_weights[index] * integer_costs(logits, index)) / jnp.sum(w * class_weights[index])


def head_ignoring(hidden, weight, labels, weights):
    """Weights and ignored labels, whose weight has no gradient."""
    return everything(hidden @ weight.T, labels, jnp.ones(len(weight)), weights)


def everything_drawn(rng):
    logits, classes = some_ignored(labels(5, 7))(rng)
    return logits, classes, rng.uniform(0.5, 1.5, 5), rng.uniform(0.5, 1.5, 7)


def binary_costs(logits, target, positive_weight=1.0):
    return -positive_weight * target * jax.nn.log_sigmoid(logits) - (1 - target) * jax.nn.log_sigmoid(-logits)


def logarithms(draw: Draw) -> Draw:
    return lambda rng: tuple(np.log(np.abs(x) + 0.1) for x in draw(rng))


def gaussian_kl(mean, log_variance):
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance, -1)


def cosine(u, v):
    return optax.losses.cosine_similarity(u, v, epsilon=1e-16)


def contrast(queries, keys, symmetric=False, normalized=True):
    if normalized:
        queries, keys = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, keys))
    s = queries @ jnp.swapaxes(keys, -1, -2) / 0.2
    own = jnp.broadcast_to(jnp.arange(s.shape[-1]), s.shape[:-1])
    costs = integer_costs(s, own)
    return 0.5 * (costs + integer_costs(jnp.swapaxes(s, -1, -2), own)) if symmetric else costs


def head(costs):
    """costs of the logits hidden weightᵀ."""
    return lambda hidden, weight, *rest: costs(hidden @ weight.T, *rest)


def capped(logits, labels):
    return smoothed(3 * jnp.tanh(logits / 3), labels, z_loss=0.01)


def half(draw: Draw) -> Draw:
    """Smaller activations: a softcap's derivative is not nothing."""
    return lambda rng: (lambda hidden, *rest: (0.5 * hidden, *rest))(*draw(rng))


OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01}
BACKWARD = {"gradients": "backward", "chunk": 4}

OPS = [
    Case("squared_error", mb.ops.squared_error(), squared_error, normal((7, 5), (7, 5)), normal((4096, 512), (4096, 512))),
    Case("squared_error, two leading axes", mb.ops.squared_error(), squared_error, normal((2, 7, 5), (2, 7, 5))),
    Case("squared_error, none", mb.ops.squared_error(reduction="none"), squares, normal((7, 5), (7, 5))),
    Case("squared_error, weights", mb.ops.squared_error(weights=True), weighted_mean(squares), weighted(normal((7, 5), (7, 5)), (7,))),
    Case("mean_squared_error", mb.ops.mean_squared_error(), lambda a, t: 2 * jnp.mean(optax.l2_loss(a, t)), normal((7, 5), (7, 5)), normal((4096, 512), (4096, 512))),
    Case("mean_squared_error, sum, weights", mb.ops.mean_squared_error(reduction="sum", weights=True), weighted_sum(lambda a, t: jnp.square(a - t)), weighted(normal((7,), (7,)), (7,))),
    Case("absolute_error", mb.ops.absolute_error(), lambda a, t: jnp.mean(jnp.abs(a - t)), normal((7, 5), (7, 5)), normal((4096, 512), (4096, 512))),
    Case("absolute_error, mask", mb.ops.absolute_error(weights=True), weighted_mean(lambda a, t: jnp.abs(a - t)), masked(normal((7, 5), (7, 5)), 7, 5)),
    Case("huber", mb.ops.huber(), mean(optax.huber_loss), normal((7, 5), (7, 5)), normal((4096, 512), (4096, 512))),
    Case("huber, none, weights", mb.ops.huber(delta=0.7, reduction="none", weights=True), lambda a, t, w: w * optax.huber_loss(a, t, delta=0.7), weighted(normal((7, 5), (7, 5)), (7, 5))),
    Case("binary_cross_entropy", mb.ops.binary_cross_entropy(), mean(binary_costs), shares(7, 5), shares(2048, 512)),
    Case("binary_cross_entropy, positive weight", mb.ops.binary_cross_entropy(positive_weight=True, reduction="sum"), lambda *args: jnp.sum(binary_costs(*args)), weighted(shares(7, 5), (5,))),
    Case("binary_cross_entropy, all weights", mb.ops.binary_cross_entropy(positive_weight=True, weights=True), weighted_mean(binary_costs), weighted(shares(7, 5), (1,), (7, 5))),
    Case("kl_divergence", mb.ops.kl_divergence(), mean(optax.losses.kl_divergence), shares(7, 5), shares(2048, 512)),
    Case("kl_divergence, weights", mb.ops.kl_divergence(weights=True), weighted_mean(optax.losses.kl_divergence), weighted(shares(2, 7, 5), (2, 7))),
    Case("kl_divergence, log target", mb.ops.kl_divergence(log_target=True, reduction="none"), optax.losses.kl_divergence_with_log_targets, logarithms(normal((7, 5), (7, 5)))),
    Case("gaussian_kl", mb.ops.gaussian_kl(), mean(gaussian_kl), normal((7, 5), (7, 5)), normal((4096, 512), (4096, 512))),
    Case("gaussian_kl, sum, two leading axes", mb.ops.gaussian_kl(reduction="sum"), summed(gaussian_kl), normal((2, 7, 5), (2, 7, 5))),
    Case("gaussian_kl, weights", mb.ops.gaussian_kl(weights=True), weighted_mean(gaussian_kl), weighted(normal((7, 5), (7, 5)), (7,))),
    Case("cosine_similarity", mb.ops.cosine_similarity(), cosine, normal((7, 5), (7, 5)), normal((4096, 512), (4096, 512))),
    Case("cosine_similarity, broadcast", mb.ops.cosine_similarity(axis=-2), lambda u, v: optax.losses.cosine_similarity(u, v, axis=-2), normal((5, 3), (2, 5, 1))),
    Case("info_nce", mb.ops.info_nce(temperature=0.2), mean(contrast), normal((7, 5), (7, 5)), normal((512, 128), (512, 128))),
    Case("info_nce, symmetric", mb.ops.info_nce(temperature=0.2, symmetric=True, reduction="none"), lambda q, k: contrast(q, k, symmetric=True), normal((2, 7, 5), (2, 7, 5))),
    Case("info_nce, as they are", mb.ops.info_nce(temperature=0.2, normalized=False), mean(lambda q, k: contrast(q, k, normalized=False)), normal((7, 5), (7, 5))),
    Case("softmax_cross_entropy, integers", mb.ops.softmax_cross_entropy(), integer_cross_entropy, labels(5, 7), labels(8192, 512)),
    Case("softmax_cross_entropy, text", mb.ops.softmax_cross_entropy(), integer_cross_entropy, labels(5, 2, 7)),
    Case("softmax_cross_entropy, uint8", mb.ops.softmax_cross_entropy(), integer_cross_entropy, many_classes),
    Case("softmax_cross_entropy, uint32", mb.ops.softmax_cross_entropy(), integer_cross_entropy, unsigned),
    Case("softmax_cross_entropy, shifted", mb.ops.softmax_cross_entropy(), integer_cross_entropy, shifted),
    Case("softmax_cross_entropy, rows", mb.ops.softmax_cross_entropy(), cross_entropy, distributions(5, 7)),
    Case("softmax_cross_entropy, smoothed", mb.ops.softmax_cross_entropy(**OPTIONS, weights=True), weighted_mean(lambda z, t: smoothed(z, t, z_loss=0.01)), weighted(labels(5, 7), (7,))),
    Case("softmax_cross_entropy, ignored", mb.ops.softmax_cross_entropy(ignored=-100), not_ignored, some_ignored(labels(5, 7))),
    Case("softmax_cross_entropy, class weights", mb.ops.softmax_cross_entropy(label_smoothing=0.1, class_weights=True), by_class, weighted(labels(5, 7), (5,))),
    Case("softmax_cross_entropy, rows, class weights", mb.ops.softmax_cross_entropy(label_smoothing=0.1, class_weights=True), rows_by_class, weighted(distributions(5, 7), (5,))),
    Case("softmax_cross_entropy, all weights", mb.ops.softmax_cross_entropy(class_weights=True, weights=True, ignored=-100), everything, everything_drawn),
    Case("softmax_cross_entropy, none", mb.ops.softmax_cross_entropy(reduction="none", **OPTIONS), lambda z, t: smoothed(z, t, z_loss=0.01), distributions(5, 7)),
    Case("linear_cross_entropy", mb.ops.linear_cross_entropy(chunk=128), head(integer_cross_entropy), tokens(11, 5, 7), scaled_tokens),
    Case("linear_cross_entropy, slices of tokens", mb.ops.linear_cross_entropy(chunk=3, softcap=3.0, **OPTIONS), mean(head(capped)), half(tokens(11, 5, 2, 5))),
    Case("linear_cross_entropy, ignored", mb.ops.linear_cross_entropy(chunk=5, ignored=-100), head(not_ignored), some_ignored(tokens(11, 3, 7))),
    Case("linear_cross_entropy, weights", mb.ops.linear_cross_entropy(chunk=5, weights=True), weighted_mean(head(integer_costs)), weighted(tokens(11, 3, 7), (7,))),
    Case("linear_cross_entropy, ignored, weights", mb.ops.linear_cross_entropy(chunk=5, ignored=-100, weights=True), head_ignoring, weighted(some_ignored(tokens(11, 3, 7)), (7,))),
    Case("linear_cross_entropy, ignored, weights, slices of classes", mb.ops.linear_cross_entropy(**BACKWARD, ignored=-100, weights=True), head_ignoring, weighted(some_ignored(tokens(11, 3, 7)), (7,))),
    Case("linear_cross_entropy, slices of classes", mb.ops.linear_cross_entropy(**BACKWARD, softcap=3.0, **OPTIONS), mean(head(capped)), half(tokens(11, 5, 2, 5))),
    Case("linear_cross_entropy, none, weights", mb.ops.linear_cross_entropy(**BACKWARD, reduction="none", weights=True), lambda *args: args[-1] * head(integer_costs)(*args[:-1]), weighted(tokens(11, 3, 2, 5), (2, 5))),
    Case("linear_cross_entropy, mask, sum", mb.ops.linear_cross_entropy(**BACKWARD, reduction="sum", weights=True), weighted_sum(head(integer_costs)), masked(tokens(11, 3, 7), 7)),
]  # fmt: skip


LAYERS: list[Case] = [
    layer_case("Apply, a cost", Apply(mb.ops.squared_error()), lambda p, x: squared_error(*x), normal((7, 5), (7, 5))),
    layer_case(
        "LinearCrossEntropy",
        LinearCrossEntropy(11, chunk=3),
        lambda p, x: integer_cross_entropy(x[0] @ p["weight"].T, x[1]),
        lambda rng: (rng.standard_normal((7, 5)), integers(rng, 11, (7,))),
    ),
    layer_case(
        "LinearCrossEntropy, weights",
        LinearCrossEntropy(11, gradients="backward", chunk=4, weights=True),
        lambda p, x: jnp.average(integer_costs(x[0] @ p["weight"].T, x[1]), weights=x[2]),
        lambda rng: (rng.standard_normal((7, 5)), integers(rng, 11, (7,)), rng.uniform(0.5, 1.5, 7)),
    ),
]


def counted(costs):
    """The mean of costs by a mask, last; nothing of what is masked is looked at, and no items cost 0."""

    def reference(x, *args):
        *rest, target, mask = args
        shown = lambda x: jnp.where(mask[(..., *[None] * (x.ndim - mask.ndim))], x, 0)
        of_item = costs(shown(x), *rest, shown(target))
        return jnp.sum(jnp.where(mask, of_item, 0)) / jnp.maximum(jnp.sum(mask), 1)

    return reference


def with_nan(rng):
    """The second row is no number, and masked."""
    x = rng.standard_normal((4, 3))
    x[1] = np.nan, np.inf, -np.inf
    return x, np.array([True, False, True, True])


def logits_with_nan(rng):
    x, mask = with_nan(rng)
    return x, np.array([0, 2, 1, 1], np.int32), mask


def tokens_with_nan(rng):
    x, mask = with_nan(rng)
    return x, rng.standard_normal((5, 3)), np.array([0, 2, 4, 1], np.int32), mask


def all_masked(draw: Draw) -> Draw:
    return lambda rng: (*draw(rng)[:-1], np.zeros(4, bool))


def possible_divergence(log_prediction, log_target):
    """Of the outcomes that the target does not exclude, whose logarithm is -∞."""
    some = log_target > -jnp.inf
    u, q = (jnp.where(some, x, 0) for x in (log_target, log_prediction))
    return jnp.mean(jnp.sum(jnp.where(some, jnp.exp(u) * (u - q), 0), -1))


def excluded(rng):
    q, u = rng.standard_normal((2, 4, 3))
    q[:, 1], u[:, 1], u[0, 0] = -np.inf, -np.inf, -np.inf
    return q, u


def out_of_range(draw: Draw) -> Draw:
    """A label that is no class, where it is masked."""

    def drawn(rng):
        *first, labels, mask = draw(rng)
        return *first, np.where(mask, labels, 77), mask

    return drawn


def shares_with_nan(rng):
    """Entries with a mask of their own; where it is False, they and their targets are no numbers, or no shares."""
    x, rows = with_nan(rng)
    mask = np.broadcast_to(rows[:, None], x.shape)
    return x, np.where(mask, rng.uniform(0.1, 0.9, x.shape), [np.nan, 7.0, -1.0]), mask


def targets_with_nan(rng):
    x, target, mask = shares_with_nan(rng)
    return x, target, mask[:, 0]


def without_class_one(logits):
    """The labels 1, 0, 2, 2, where the class 1 has no weight."""
    v = jnp.array([1.0, 0.0, 2.0], logits.dtype)
    return mb.ops.softmax_cross_entropy(class_weights=True)(logits, jnp.array([1, 0, 2, 2]), v)


def of_the_others(logits):
    return integer_costs(logits[1:], jnp.array([0, 2, 2])) @ jnp.array([0.2, 0.4, 0.4], logits.dtype)


def second_alone(costs):
    """Of two costs; the first one's cotangent is 0."""
    return lambda *args: costs(*args) @ jnp.array([0.0, 1.0])


def of_second(costs):
    return lambda *args: costs(*(x[1:] for x in args))[0]


def safe_divergence(log_prediction, target):
    t = jnp.where(target == 0, 1, target)
    return jnp.sum(jnp.where(target == 0, 0, t * (jnp.log(t) - log_prediction)), -1)


LARGE = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 0, 1e-30], [3.0, 3.0, 3.0]])
CLASSES = np.array([0, 1, 2, 2], np.int32)
UNLIKELY = np.array([1, 0, 0, 1], np.int32)
SIGNS = np.array([[1.0, 0, 1], [0, 1, 0.5], [0, 1, 1], [1, 1, 0]])

# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = [
    Case("squared_error, large", mb.ops.squared_error(), squared_error, exactly(LARGE, -LARGE[::-1])),
    Case("absolute_error, ties", mb.ops.absolute_error(), mean(lambda a, t: jnp.abs(a - t)), exactly(LARGE, LARGE[::-1])),
    Case("huber, large and ties", mb.ops.huber(), mean(optax.huber_loss), exactly(LARGE, np.abs(LARGE))),
    Case("binary_cross_entropy, large", mb.ops.binary_cross_entropy(), mean(optax.sigmoid_binary_cross_entropy), exactly(LARGE, SIGNS)),
    Case("binary_cross_entropy, sure and right", mb.ops.binary_cross_entropy(reduction="none"), binary_costs, exactly(np.linspace(-13, -11, 97), np.zeros(97))),
    Case("binary_cross_entropy, a small positive weight", mb.ops.binary_cross_entropy(reduction="none", positive_weight=True), binary_costs, exactly(np.linspace(-20, -18, 97), np.full(97, 0.5), np.full(1, 1e-3))),
    Case("binary_cross_entropy, masked NaN", mb.ops.binary_cross_entropy(weights=True), counted(binary_costs), shares_with_nan),
    Case("squared_error, masked NaN", mb.ops.squared_error(weights=True), counted(squares), targets_with_nan),
    Case("mean_squared_error, masked NaN", mb.ops.mean_squared_error(weights=True), counted(lambda a, t: jnp.square(a - t)), shares_with_nan),
    Case("kl_divergence, masked NaN", mb.ops.kl_divergence(weights=True), counted(safe_divergence), targets_with_nan),
    Case("kl_divergence, an excluded outcome that has no say", second_alone(mb.ops.kl_divergence(reduction="none")), of_second(safe_divergence), exactly(np.log([[0.5, 0.5], [0.2, 0.8]]), np.array([[0.0, 1.0], [0.3, 0.7]]))),
    Case("gaussian_kl, masked NaN", mb.ops.gaussian_kl(weights=True), counted(gaussian_kl), targets_with_nan),
    Case("gaussian_kl, far and narrow", mb.ops.gaussian_kl(), mean(gaussian_kl), exactly(LARGE / 100, np.minimum(LARGE, 20))),
    Case("gaussian_kl, almost the standard one", mb.ops.gaussian_kl(), mean(gaussian_kl), exactly(LARGE / 1e7, LARGE[::-1] / 1e8)),
    Case("kl_divergence, small shares", mb.ops.kl_divergence(), mean(optax.losses.kl_divergence), exactly(-np.abs(LARGE), SIGNS + 1e-4)),
    Case("kl_divergence, excluded outcomes", mb.ops.kl_divergence(log_target=True), possible_divergence, excluded),
    Case("cosine_similarity, nothing and large", mb.ops.cosine_similarity(), cosine, exactly(np.concatenate([LARGE, np.zeros((1, 3))]), np.ones((5, 3)))),
    Case("cosine_similarity, shorter than eps", mb.ops.cosine_similarity(eps=5.0), lambda u, v: optax.losses.cosine_similarity(u, v, epsilon=25.0), exactly(SIGNS, LARGE)),
    Case("info_nce, parallel", mb.ops.info_nce(temperature=0.2), mean(contrast), exactly(LARGE, LARGE)),
    Case("softmax_cross_entropy, large", mb.ops.softmax_cross_entropy(), integer_cross_entropy, exactly(LARGE, CLASSES)),
    Case("softmax_cross_entropy, large and wrong", mb.ops.softmax_cross_entropy(), integer_cross_entropy, exactly(LARGE, UNLIKELY)),
    Case("softmax_cross_entropy, an impossible class", mb.ops.softmax_cross_entropy(), integer_cross_entropy, exactly(np.where(LARGE == 1e4, -np.inf, LARGE), np.array([1, 1, 1, 1]))),
    Case("softmax_cross_entropy, an impossible class of no weight", without_class_one, of_the_others, exactly(np.array([[0.3, -np.inf, 1.2], [-0.7, -np.inf, 0.1], [1.0, 2.0, 3.0], [3.0, -2.0, -1.0]]))),
    Case("softmax_cross_entropy, an impossible class that has no say", second_alone(mb.ops.softmax_cross_entropy(reduction="none")), of_second(optax.softmax_cross_entropy), exactly(np.array([[1.0, -np.inf], [1.0, 2.0]]), np.array([[1.0, 0.0], [0.3, 0.7]]))),
    Case("softmax_cross_entropy, masked NaN", mb.ops.softmax_cross_entropy(weights=True), counted(integer_costs), logits_with_nan),
    Case("softmax_cross_entropy, masked, of no class", mb.ops.softmax_cross_entropy(weights=True), counted(integer_costs), out_of_range(logits_with_nan)),
    Case("softmax_cross_entropy, all masked", mb.ops.softmax_cross_entropy(weights=True), counted(integer_costs), all_masked(logits_with_nan)),
    Case("linear_cross_entropy, masked NaN", mb.ops.linear_cross_entropy(chunk=3, weights=True), counted(head(integer_costs)), tokens_with_nan),
    Case("linear_cross_entropy, masked, of no class", mb.ops.linear_cross_entropy(chunk=3, weights=True), counted(head(integer_costs)), out_of_range(tokens_with_nan)),
    Case("linear_cross_entropy by classes, masked, of no class", mb.ops.linear_cross_entropy(**BACKWARD, weights=True), counted(head(integer_costs)), out_of_range(tokens_with_nan)),
    Case("linear_cross_entropy, all masked", mb.ops.linear_cross_entropy(chunk=3, weights=True), counted(head(integer_costs)), all_masked(tokens_with_nan)),
    Case("linear_cross_entropy by classes, masked NaN", mb.ops.linear_cross_entropy(**BACKWARD, weights=True), counted(head(integer_costs)), tokens_with_nan),
    Case("linear_cross_entropy, large", mb.ops.linear_cross_entropy(chunk=3), head(integer_cross_entropy), exactly(LARGE, np.eye(3), CLASSES)),
    Case("linear_cross_entropy by classes, large", mb.ops.linear_cross_entropy(gradients="backward", chunk=2), head(integer_cross_entropy), exactly(LARGE, np.eye(3), CLASSES)),
]  # fmt: skip


# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    Case("squared_error, none of none", mb.ops.squared_error(reduction="none"), squares, normal((0, 5), (0, 5))),
    Case("huber, none", mb.ops.huber(reduction="sum"), summed(optax.huber_loss), normal((0, 5), (0, 5))),
    Case("kl_divergence, none", mb.ops.kl_divergence(reduction="sum"), summed(optax.losses.kl_divergence), shares(0, 5)),
    Case("gaussian_kl, none", mb.ops.gaussian_kl(reduction="sum"), summed(gaussian_kl), normal((0, 5), (0, 5))),
    Case("cosine_similarity, none", mb.ops.cosine_similarity(), cosine, normal((0, 5), (0, 5))),
    Case("info_nce, none", mb.ops.info_nce(temperature=0.2, reduction="sum"), summed(contrast), normal((0, 7, 5), (0, 7, 5))),
    Case("softmax_cross_entropy, none of none", mb.ops.softmax_cross_entropy(reduction="sum"), summed(integer_costs), labels(5, 0)),
    Case("linear_cross_entropy, none", mb.ops.linear_cross_entropy(reduction="sum"), summed(head(integer_costs)), tokens(11, 5, 0)),
    Case("linear_cross_entropy by classes, none", mb.ops.linear_cross_entropy(**BACKWARD, reduction="none"), head(integer_costs), tokens(11, 5, 0)),
]  # fmt: skip


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    classes, shape = draw(st.integers(2, 6)), tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    reduction = draw(st.sampled_from(["mean", "sum", "none"]))
    reduced = {"mean": mean, "sum": summed, "none": lambda costs: costs}[reduction]
    smoothing, z_loss = draw(st.sampled_from([0.0, 0.1])), draw(st.sampled_from([0.0, 0.01]))
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "reduction": reduction}
    gradients = draw(st.sampled_from(["backward"] if reduction == "none" else ["forward", "backward"]))
    chunk, size = draw(st.integers(1, 9)), draw(st.integers(1, 4))

    def costs(logits, labels):
        return smoothed(logits, labels, smoothing, z_loss)

    def entries(name, costs, **bound):
        return Case(name, getattr(mb.ops, name)(reduction=reduction, **bound), reduced(costs), shares(*shape, classes))

    rows = [
        Case("rows", mb.ops.softmax_cross_entropy(**options), reduced(costs), distributions(classes, *shape)),
        Case("integers", mb.ops.softmax_cross_entropy(**options), reduced(costs), labels(classes, *shape)),
        Case("head", mb.ops.linear_cross_entropy(gradients=gradients, chunk=chunk, **options), reduced(head(costs)), tokens(classes, size, *shape)),
        entries("squared_error", squares),
        entries("mean_squared_error", lambda a, t: jnp.square(a - t)),
        entries("huber", lambda a, t: optax.huber_loss(a, t, delta=0.5), delta=0.5),
        entries("binary_cross_entropy", binary_costs),
        entries("kl_divergence", optax.losses.kl_divergence),
        Case("gaussian_kl", mb.ops.gaussian_kl(reduction=reduction), reduced(gaussian_kl), normal((*shape, 5), (*shape, 5))),
        Case("cosine_similarity", mb.ops.cosine_similarity(), cosine, normal((*shape, 5), (*shape, 5))),
        Case("info_nce", mb.ops.info_nce(temperature=0.2, reduction=reduction), reduced(contrast), normal((*shape, classes, 5), (*shape, classes, 5))),
    ]  # fmt: skip
    return draw(st.sampled_from(rows))


Z, ROWS, IDS = np.ones((7, 3), np.float32), np.ones((7, 3), np.float32), np.arange(7) % 3
H, TABLE = np.ones((7, 5), np.float32), np.ones((3, 5), np.float32)

# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "an unknown reduction": (lambda: mb.ops.huber(reduction="avg"), "huber: reduction is 'avg'; wants 'mean', 'sum' or 'none'"),
    "weights of another shape": (lambda: mb.ops.squared_error(weights=True)(Z, ROWS, ROWS), "squared_error: weights has shape (7, 3); wants (7,), one for each item"),
    "a target of another shape": (lambda: mb.ops.absolute_error()(Z, ROWS[:6]), "absolute_error: target has shape (6, 3); wants (7, 3), as prediction"),
    "the mean of nothing": (lambda: mb.ops.mean_squared_error()(Z[:0], ROWS[:0]), "mean_squared_error: the batch is empty, shape (0, 3)"),
    "integers to predict with": (lambda: mb.ops.huber()(IDS, IDS), "huber: prediction is int32; wants floating point"),
    "no delta": (lambda: mb.ops.huber(delta=0), "huber: delta is 0; wants a number above 0"),
    "a class where a share is due": (lambda: mb.ops.binary_cross_entropy()(Z, ROWS * 2), "binary_cross_entropy: target holds 2.0; wants numbers from 0 to 1"),
    "a positive weight that does not fit": (lambda: mb.ops.binary_cross_entropy(positive_weight=True)(Z, ROWS, np.ones(7, np.float32)), "binary_cross_entropy: positive_weight has shape (7,), logits (7, 3); it must broadcast to them"),
    "shares of another shape": (lambda: mb.ops.kl_divergence()(Z, ROWS[0]), "kl_divergence: target has shape (3,); wants (7, 3), as log_prediction"),
    "a scalar distribution": (lambda: mb.ops.kl_divergence()(Z[0, 0], ROWS[0, 0]), "kl_divergence: log_prediction has shape (); wants [..., outcomes]"),
    "a log variance of another shape than the mean's": (lambda: mb.ops.gaussian_kl()(Z, ROWS[0]), "gaussian_kl: log_variance has shape (3,); wants (7, 3), as mean"),
    "a scalar Gaussian": (lambda: mb.ops.gaussian_kl()(Z[0, 0], ROWS[0, 0]), "gaussian_kl: mean has shape (); wants [..., entries]"),
    "no Gaussians": (lambda: mb.ops.gaussian_kl()(Z[:0], ROWS[:0]), "gaussian_kl: the batch is empty, shape (0, 3)"),
    "an integer log variance": (lambda: mb.ops.gaussian_kl()(Z, Z.astype(int)), "gaussian_kl: log_variance is int32; wants floating point"),
    "no eps": (lambda: mb.ops.cosine_similarity(eps=0.0), "cosine_similarity: eps is 0.0; wants a number above 0"),
    "vectors that do not broadcast": (lambda: mb.ops.cosine_similarity()(Z, H), "cosine_similarity: u has shape (7, 3), v (7, 5); wants shapes that broadcast"),
    "an axis that is not there": (lambda: mb.ops.cosine_similarity(axis=2)(Z, Z), "cosine_similarity: axis 2 is out of range"),
    "no temperature": (lambda: mb.ops.info_nce(temperature=0.0), "info_nce: temperature is 0.0; wants a number above 0"),
    "keys of another shape": (lambda: mb.ops.info_nce()(Z, Z[:6]), "info_nce: keys has shape (6, 3); wants (7, 3), as queries"),
    "one query": (lambda: mb.ops.info_nce()(Z[0], Z[0]), "info_nce: queries have shape (3,); wants [..., n, d]"),
    "a smoothing of one": (lambda: mb.ops.softmax_cross_entropy(label_smoothing=1.0), "softmax_cross_entropy: label_smoothing is 1.0; wants a number in [0, 1)"),
    "class weights of another shape": (lambda: mb.ops.softmax_cross_entropy(class_weights=True)(Z, IDS, Z[:, 0]), "softmax_cross_entropy: class_weights has shape (7,); wants (3,), one for each class"),
    "rows to ignore": (lambda: mb.ops.softmax_cross_entropy(ignored=-1)(Z, ROWS), "softmax_cross_entropy: labels are rows, of shape (7, 3); wants integers, for ignored=-1"),
    "a label that is not the ignored one": (lambda: mb.ops.softmax_cross_entropy(ignored=-100)(Z, IDS - 1), "softmax_cross_entropy: label -1 is outside 0 … 2"),
    "no classes": (lambda: mb.ops.softmax_cross_entropy(reduction="sum")(Z[:, :0], IDS), "softmax_cross_entropy: logits have shape (7, 0); wants at least one class"),
    "an unknown way": (lambda: mb.ops.linear_cross_entropy(gradients="forwards"), "linear_cross_entropy: gradients is 'forwards'; wants 'forward' or 'backward'"),
    "no chunk": (lambda: mb.ops.linear_cross_entropy(chunk=0), "linear_cross_entropy: chunk is 0; wants a whole number, at least 1"),
    "no softcap": (lambda: mb.ops.linear_cross_entropy(softcap=0.0), "linear_cross_entropy: softcap is 0.0; wants a number above 0"),
    "gradients before dC is known": (lambda: mb.ops.linear_cross_entropy(reduction="none"), "linear_cross_entropy: reduction 'none' wants gradients='backward'"),
    "a head of another size": (lambda: mb.ops.linear_cross_entropy()(H, TABLE[:, :4], IDS), "linear_cross_entropy: hidden has shape (7, 5), weight (3, 4); hidden's last axis must be 4"),
    "a head without classes": (lambda: mb.ops.linear_cross_entropy()(H, TABLE[:0], IDS), "linear_cross_entropy: weight has shape (0, 5); wants [classes, d]"),
    "labels of fewer tokens": (lambda: mb.ops.linear_cross_entropy()(H, TABLE, IDS[:6]), "linear_cross_entropy: labels has shape (6,); wants (7,), as hidden without its last axis"),
    "float labels for a head": (lambda: mb.ops.linear_cross_entropy()(H, TABLE, IDS.astype(np.float32)), "linear_cross_entropy: labels are float32; wants integers"),
    "a label beyond the head": (lambda: mb.ops.linear_cross_entropy()(H, TABLE, IDS + 1), "linear_cross_entropy: label 3 is outside 0 … 2"),
    "complex targets": (lambda: mb.ops.mean_squared_error()(Z, ROWS * 1j), "mean_squared_error: target is complex64; wants real numbers"),
    "complex targets in rows": (lambda: mb.ops.squared_error()(Z, ROWS * 1j), "squared_error: target is complex64; wants real numbers"),
    "complex answers": (lambda: mb.ops.binary_cross_entropy()(Z, ROWS * 1j), "binary_cross_entropy: target is complex64; wants real numbers"),
    "complex labels": (lambda: mb.ops.softmax_cross_entropy()(Z, ROWS * 1j), "softmax_cross_entropy: labels is complex64; wants real numbers"),
    "complex weights": (lambda: mb.ops.huber(weights=True)(Z, ROWS, ROWS * 1j), "huber: weights is complex64; wants real numbers"),
    "nothing for a head": (lambda: LinearCrossEntropy(3).init(jax.random.key(0), ()), "LinearCrossEntropy: x is a tuple of 0; wants a tuple (hidden, labels)"),
    "a head without labels": (lambda: LinearCrossEntropy(3).init(jax.random.key(0), H), "LinearCrossEntropy: x is a ndarray; wants a tuple (hidden, labels)"),
}  # fmt: skip
