"""Pictures made new: each augmentation against NumPy, by hand; uniform where it says so; the same wherever it runs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import manual_backprop as mb
from manual_backprop.training import augment, placing
from manual_backprop.training.loop import Step, Training, examples, train

SHAPE = (5, 7, 11, 3)  # examples, height, width, channels


def bytes_of(shape=SHAPE, seed=0, least=1):
    return np.random.default_rng(seed).integers(least, 256, shape).astype(np.uint8)


def windows(picture, padding: int) -> dict[tuple[int, int], np.ndarray]:
    """Every window of the padded picture, by its corner."""
    height, width, channels = picture.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, channels), picture.dtype)
    padded[padding : padding + height, padding : padding + width] = picture
    corners = [(i, j) for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    return {(i, j): padded[i : i + height, j : j + width] for i, j in corners}


def corner(crop, picture, padding: int) -> tuple[int, int]:
    (found,) = [at for at, window in windows(picture, padding).items() if (window == crop).all()]
    return found


def chi_square(counts) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_a_crop_is_a_window_of_the_padded_picture(dtype):
    x = jnp.asarray(bytes_of()).astype(dtype)
    y = augment.random_crop(jax.random.key(1), x, 3)
    assert y.dtype == x.dtype and y.shape == x.shape
    corners = {corner(np.asarray(crop), np.asarray(picture), 3) for crop, picture in zip(y, x, strict=True)}
    assert len(corners) > 1  # each its own


def test_the_corners_of_crops_are_equally_likely():
    """25 of them, 5,000 draws: χ² of 24 degrees of freedom is below 51.2 in 999 cases of 1,000."""
    picture = bytes_of((4, 6, 1), seed=3)
    crops = augment.random_crop(jax.random.key(0), jnp.broadcast_to(picture, (5000, 4, 6, 1)), 2)
    of = {window.tobytes(): at for at, window in windows(picture, 2).items()}
    counts = np.zeros((5, 5))
    for crop in np.asarray(crops):
        counts[of[crop.tobytes()]] += 1
    assert chi_square(counts) < 51.2


def test_a_crop_without_padding_is_the_picture():
    x = bytes_of()
    np.testing.assert_array_equal(augment.random_crop(jax.random.key(0), x, 0), x)


def test_a_flip_is_a_mirror_image_of_half_of_them():
    x = bytes_of((1000, 3, 5, 2))
    y = np.asarray(augment.random_flip(jax.random.key(0), x))
    flipped = np.array([(after == before[:, ::-1]).all() for after, before in zip(y, x, strict=True)])
    kept = np.array([(after == before).all() for after, before in zip(y, x, strict=True)])
    assert (flipped ^ kept).all() and abs(flipped.sum() - 500) < 52  # 3.3 deviations


def test_cutout_is_a_square_of_zeros_around_a_pixel():
    """All centres are equally likely: 20 of them, 4,000 draws; χ² of 19 degrees of freedom < 43.8 in 999 of 1,000."""
    x = np.ones((4000, 4, 5, 2), np.float32)
    y = np.asarray(augment.cutout(jax.random.key(0), x, 3))
    squares = {}
    for row in range(4):
        for column in range(5):
            hole = np.ones((4, 5, 2), np.float32)
            hole[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 0
            squares[hole.tobytes()] = row, column
    assert len(squares) == 20
    counts = np.zeros((4, 5))
    for picture in y:
        counts[squares[picture.tobytes()]] += 1
    assert chi_square(counts) < 43.8


@pytest.mark.parametrize("size", [1, 2, 4])
def test_cutouts_largest_square_has_that_side(size):
    y = np.asarray(augment.cutout(jax.random.key(0), np.ones((500, 6, 7, 1), np.float32), size))
    assert ((y == 0).sum((1, 2, 3)).max()) == size * size


def test_mixup_mixes_pairs_by_weights_that_sum_to_one():
    """Every example is λ of itself and 1 - λ of one other, picture and target alike; the others are a permutation."""
    n = 7
    x = np.random.default_rng(0).normal(size=(n, 3, 5, 2)).astype(np.float32)
    y, targets = augment.mixup(jax.random.key(2), x, np.eye(n, dtype=np.float32), 1.0)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    assert (np.count_nonzero(targets, axis=-1) <= 2).all() and np.all(targets >= 0)
    # Target m of example n is what of picture m is in picture n.
    np.testing.assert_allclose(y, np.einsum("nm,mhwc->nhwc", targets, x), atol=1e-6)
    others = [int(np.argmax(np.where(np.arange(n) == i, 0, row))) if row[i] < 1 else i for i, row in enumerate(targets)]
    assert sorted(others) == list(range(n)) and others != list(range(n))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixups_shares_have_the_mean_and_variance_of_beta(alpha):
    """Read from a batch whose targets tell the halves apart: λ ~ Beta(α, α) has variance 1 / (4 (2α + 1))."""
    n = 20_000
    targets = np.stack([np.arange(n), np.ones(n)], -1).astype(np.float32)
    _, mixed = augment.mixup(jax.random.key(0), np.zeros((n, 1, 1, 1), np.float32), targets, alpha)
    order = np.asarray(jax.random.permutation(jax.random.split(jax.random.key(0))[0], n))
    apart = np.abs(order - np.arange(n)) > n // 10
    share = ((mixed[:, 0] - order) / (np.arange(n) - order + ~apart))[apart]
    assert abs(share.mean() - 0.5) < 0.015
    np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.05)
    if alpha == 1:
        assert chi_square(np.histogram(share, 20, (0, 1))[0]) < 43.8


def test_standardised_and_moments_against_numpy():
    x = bytes_of((13, 5, 7, 3))
    mean, std = augment.moments(x, 255)
    np.testing.assert_allclose(mean, (x / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (x / 255).std((0, 1, 2)), rtol=1e-12)
    y = np.asarray(augment.standardised(x, mean, std, 255))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, (x / 255 - mean) / std, atol=1e-6)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(augment.standardised(np.float32(x) / 255, mean, std), y, atol=1e-5)
    assert augment.moments(np.full((2, 3, 3, 1), 51, np.uint8), 255) == ((0.2,), (1.0,))


def test_the_mean_over_both_ways():
    w = np.random.default_rng(0).normal(size=(5 * 7 * 2, 3))
    logits = lambda x: x.reshape(len(x), -1) @ w
    x = np.random.default_rng(1).normal(size=(4, 5, 7, 2))
    both = augment.both_ways(logits)
    np.testing.assert_allclose(both(x), 0.5 * (logits(x) + logits(x[:, :, ::-1])), rtol=1e-12)
    np.testing.assert_allclose(both(x), both(x[:, :, ::-1]), rtol=1e-12)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CLASSES = 5
X = bytes_of((23, 8, 9, 3))
LABELS = np.arange(23) % CLASSES
TARGETS = np.eye(CLASSES, dtype=np.float32)[LABELS]
MEAN, STD = augment.moments(X, 255)
ALL = augment.augmented(255, MEAN, STD, flip=True, crop=2, cut=3, mix=0.4)


def test_without_augmentation_a_batch_is_examples_standardised():
    x, labels = augment.augmented(255, MEAN, STD)(jax.random.key(0), (X, LABELS), 11)
    index = np.array([np.flatnonzero(labels[i] == LABELS) for i in range(11)], object)
    whole = np.asarray(augment.standardised(X, MEAN, STD, 255))
    assert x.shape == (11, 8, 9, 3) and x.dtype == jnp.float32
    assert all(any((whole[j] == one).all() for j in places) for one, places in zip(np.asarray(x), index, strict=True))


def test_a_batch_is_the_steps_one_after_another():
    """Crop and flip of bytes, then standardised, then a hole, then mixed: each with its own key."""
    chosen, *keys = jax.random.split(jax.random.key(7), 5)
    x, targets = examples(chosen, (X, TARGETS), 11)
    x = augment.random_flip(keys[1], augment.random_crop(keys[0], x, 2))
    x = augment.cutout(keys[2], augment.standardised(x, MEAN, STD, 255), 3)
    x, targets = augment.mixup(keys[3], x, targets, 0.4)
    drawn = ALL(jax.random.key(7), (X, TARGETS), 11)
    np.testing.assert_array_equal(drawn[0], x)
    np.testing.assert_array_equal(drawn[1], targets)


def test_with_one_left_out_the_others_draw_the_same():
    key, white = jax.random.key(3), (255, MEAN, STD)
    flipped = augment.augmented(*white, flip=True)(key, (X, LABELS), 64)[0]
    plain = augment.augmented(*white)(key, (X, LABELS), 64)[0]
    with_hole = augment.augmented(*white, flip=True, cut=3)(key, (X, LABELS), 64)[0]
    mirrored = np.array([(a == b[:, ::-1]).all() for a, b in zip(*map(np.asarray, (flipped, plain)), strict=True)])
    assert 10 < mirrored.sum() < 54
    np.testing.assert_array_equal(np.where(with_hole == 0, flipped, with_hole), flipped)


def test_what_comes_in_from_outside_is_black():
    x, _ = augment.augmented(255, MEAN, STD, crop=4)(jax.random.key(0), (X, LABELS), 64)
    black = np.asarray(augment.standardised(np.zeros((1, 1, 1, 3), np.uint8), MEAN, STD, 255))
    assert X.min() > 0 and (np.asarray(x) == black).all(-1).any((1, 2)).mean() > 0.8


FUNCTIONS = {
    "crop": lambda key, x: augment.random_crop(key, x, 2),
    "flip": augment.random_flip,
    "cutout": lambda key, x: augment.cutout(key, x, 3),
    "mixup": lambda key, x: augment.mixup(key, x, jnp.eye(len(x)), 0.4),
    "standardised": lambda key, x: augment.standardised(x, MEAN, STD, 255),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_and_over_many_keys_at_once(name):
    function, keys = FUNCTIONS[name], jax.random.split(jax.random.key(0), 3)
    x = jnp.asarray(X[:8], jnp.float32)
    one_by_one = [function(key, x) for key in keys]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    for made in (jax.vmap(function, (0, None))(keys, x), jax.lax.map(lambda key: function(key, x), keys)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-5), made, stacked)
    if name != "mixup":  # whose sum of products a compiled program may round once
        jax.tree.map(np.testing.assert_array_equal, jax.jit(function)(keys[0], x), one_by_one[0])
    if name not in ("standardised",):
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, one_by_one[:2]), strict=True))


def test_a_batch_is_a_function_of_seed_and_step():
    draw = jax.jit(ALL, static_argnums=2)
    key = lambda seed, step: jax.random.fold_in(jax.random.key(seed), step)
    first = draw(key(0, 5), (X, TARGETS), 16)
    jax.tree.map(np.testing.assert_array_equal, first, draw(key(0, 5), (X, TARGETS), 16))
    for other in (key(0, 6), key(1, 5)):
        assert (draw(other, (X, TARGETS), 16)[0] != first[0]).any()


def classifier() -> mb.Objective:
    model = mb.Serial(mb.layers.Apply(mb.ops.flatten(from_axis=1)), mb.layers.Dense(CLASSES))
    return mb.Objective(model, mb.layers.Apply(mb.ops.softmax_cross_entropy(label_smoothing=0.1)))


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 4, "model": 2}], ids=str)
def test_a_mesh_draws_the_same_batches(axes):
    """To the bit, each device its own part; and a few steps train alike."""
    types = (jax.sharding.AxisType.Auto,) * len(axes)
    many = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)
    one = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=types[:1])
    batches, costs = [], []
    for mesh in (one, many):
        data, draw = placing.fed((jnp.asarray(X), jnp.asarray(TARGETS)), ALL, 16, mesh)
        step = Step(classifier(), optax.sgd(0.1, 0.9), 16, 3, draw)
        first: Training = placing.started(step, data, mesh)
        batch = jax.jit(lambda data, training, step=step: step.batch(data, training)[0])(data, first)
        batches.append(jax.tree.map(np.asarray, batch))
        if mesh is many:
            assert batch[0].sharding.shard_shape(batch[0].shape)[0] == 16 // axes["data"]
        costs.append([metrics.cost for _, metrics in train(step, first, data, 6, 3)])
    jax.tree.map(np.testing.assert_array_equal, *batches)
    np.testing.assert_allclose(np.concatenate(costs[0]), np.concatenate(costs[1]), rtol=1e-5)


MISTAKES = {
    "crop, not pictures": (lambda k: augment.random_crop(k, X[0], 2), "random_crop: x has shape (8, 9, 3); wants [examples"),
    "flip, not pictures": (lambda k: augment.random_flip(k, X[0]), "random_flip: x has shape (8, 9, 3)"),
    "both ways, not pictures": (lambda k: augment.both_ways(lambda x: x)(X[0]), "both_ways: x has shape (8, 9, 3)"),
    "padding": (lambda k: augment.random_crop(k, X, 8), "random_crop: padding is 8; wants 0 … 7 for pictures of this size"),
    "negative padding": (lambda k: augment.random_crop(k, X, -1), "random_crop: padding is -1; wants 0 … 7"),
    "hole": (lambda k: augment.cutout(k, X, 9), "cutout: size is 9; wants 0 … 8"),
    "alpha": (lambda k: augment.mixup(k, np.float32(X), TARGETS, 0.0), "mixup: alpha is 0.0; wants a number above 0"),
    "alpha nan": (lambda k: augment.mixup(k, np.float32(X), TARGETS, np.nan), "mixup: alpha is nan"),
    "bytes": (lambda k: augment.mixup(k, X, TARGETS, 0.2), "mixup: x is uint8; wants floating point"),
    "labels": (lambda k: augment.mixup(k, np.float32(X), LABELS, 0.2), "mixup: targets are int64[23] for 23 pictures; wants distributions"),
    "other targets": (lambda k: augment.mixup(k, np.float32(X), TARGETS[:7], 0.2), "mixup: targets are float32[7, 5] for 23 pictures"),
    "channels": (lambda k: augment.standardised(X, (0.5,), (0.5,), 255), "standardised: mean [0.5], std [0.5] for 3 channels"),
    "no spread": (lambda k: augment.standardised(X, MEAN, (1, 0, 1), 255), "no std of 0"),
    "a batch of labels mixed": (lambda k: ALL(k, (X, LABELS), 4), "jax.nn.one_hot(labels, classes)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    call, message = MISTAKES[name]
    with pytest.raises(mb.InputError) as raised:
        call(jax.random.key(0))
    assert message in str(raised.value) and "\n" not in str(raised.value)
