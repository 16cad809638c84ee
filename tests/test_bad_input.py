"""A mistake is one line: which layer or argument, what it got, what it wants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
import manual_backprop as mb
from manual_backprop.layers import Apply, Dense, LayerNorm

KEY = jax.random.key(0)
CLASSIFIER = mb.Objective(mb.models.mlp(11, 3), Apply(mb.ops.softmax_cross_entropy()))
REGRESSOR = mb.Objective(mb.models.mlp(11, 3), Apply(mb.ops.squared_error()))
X, LABELS, TARGET = jnp.ones((7, 5)), jnp.arange(7) % 3, jnp.ones((7, 3))


def grad(objective, example, batch):
    """The gradient on a batch, with parameters made for another."""
    params, state = objective.init(KEY, example)
    return mb.value_and_grad(objective)(params, state, batch)


MISTAKES = {
    "wrong feature count": (
        lambda: grad(CLASSIFIER, (X, LABELS), (jnp.ones((7, 4)), LABELS)),
        "model: Serial[0] Dense(11): dense: x has shape (7, 4), w (5, 11); x's last axis must be 5",
    ),
    "batch sizes that differ, labels": (
        lambda: grad(CLASSIFIER, (X, LABELS), (X, LABELS[:6])),
        "cost: softmax_cross_entropy: logits have shape (7, 3), labels (6,); wants labels (7,) of integers, or (7, 3)",
    ),
    "batch sizes that differ, targets": (
        lambda: grad(REGRESSOR, (X, TARGET), (X, TARGET[:6])),
        "squared_error: prediction has shape (7, 3), target (6, 3); wants both [examples, outputs], alike",
    ),
    "batch sizes that differ, at init": (
        lambda: REGRESSOR.init(KEY, (X, TARGET[:6])) and grad(REGRESSOR, (X, TARGET[:6]), (X, TARGET[:6])),
        "target (6, 3)",
    ),
    "label out of range": (
        lambda: grad(CLASSIFIER, (X, LABELS), (X, LABELS.at[4].set(3))),
        "softmax_cross_entropy: label 3 is outside 0 … 2, the 3 classes",
    ),
    "negative label": (
        lambda: grad(CLASSIFIER, (X, LABELS), (X, LABELS.at[4].set(-1))),
        "softmax_cross_entropy: label -1 is outside 0 … 2",
    ),
    "float labels": (
        lambda: grad(CLASSIFIER, (X, LABELS), (X, LABELS.astype(float))),
        "softmax_cross_entropy: labels are float32; wants integers: convert them with .astype(int)",
    ),
    "empty batch, squared error": (
        lambda: grad(REGRESSOR, (X, TARGET), (X[:0], TARGET[:0])),
        "squared_error: the batch is empty, shape (0, 3); wants at least one example",
    ),
    "empty batch, cross-entropy": (
        lambda: grad(CLASSIFIER, (X, LABELS), (X[:0], LABELS[:0])),
        "softmax_cross_entropy: the batch is empty, shape (0, 3)",
    ),
    "integer x": (
        lambda: grad(CLASSIFIER, (X, LABELS), (X.astype(int), LABELS)),
        "dense: x is int32; wants floating point: convert it with .astype",
    ),
    "integer logits": (lambda: mb.ops.softmax_cross_entropy()(jnp.ones((2, 3), int), LABELS[:2]), "logits is int32"),
    "integer prediction": (lambda: mb.ops.squared_error()(jnp.ones((2, 3), int), TARGET[:2]), "prediction is int32"),
    "integer activation": (lambda: mb.ops.gelu()(jnp.arange(3)), "gelu: x is int32"),
    "relu of booleans": (lambda: mb.ops.relu()(jnp.ones(3, bool)), "relu: x is bool"),
    "leaky_relu of integers": (lambda: mb.ops.leaky_relu()(jnp.arange(3)), "leaky_relu: x is int32"),
    "a matrix for a bias": (
        lambda: mb.ops.dense()(X, jnp.ones((5, 3)), jnp.ones((1, 3))),
        "dense: b has shape (1, 3), w (5, 3); b must be (3,)",
    ),
    "a vector for a weight": (lambda: mb.ops.dense()(X, jnp.ones(5), jnp.ones(3)), "dense: w has shape (5,); wants [in, out]"),
    "a scalar x": (lambda: mb.ops.dense()(jnp.ones(()), jnp.ones((1, 3)), jnp.ones(3)), "dense: x has shape ()"),
    "a scalar prediction": (lambda: mb.ops.squared_error()(jnp.ones(()), jnp.ones(())), "prediction has shape ()"),
    "scale of another size": (
        lambda: mb.ops.layer_norm()(X, jnp.ones(4), jnp.ones(5)),
        "layer_norm: scale has shape (4,), x (7, 5); scale must be (5,)",
    ),
    "bias of another size": (lambda: mb.ops.layer_norm()(X, jnp.ones(5), jnp.ones(1)), "layer_norm: bias has shape (1,)"),
    "nothing to normalise": (lambda: mb.ops.layer_norm()(jnp.ones((3, 0)), jnp.ones(0), jnp.ones(0)), "x has shape (3, 0)"),
    "zero layers": (lambda: mb.Serial(), "Serial: got 0 layers; wants at least 1"),
    "zero branches": (lambda: mb.Parallel(Dense(3)), "Parallel: got 1 layers; wants at least 2"),
    "zero sizes": (lambda: mb.models.mlp(), "mlp: got no sizes; wants at least one layer"),
    "zero depth": (lambda: mb.models.chain(0), "chain: depth is 0; wants at least one layer"),
    "zero repeats": (lambda: mb.Repeat(Dense(5), 0), "Repeat: n is 0; wants a whole number, at least 1"),
    "zero neurons": (lambda: mb.models.mlp(4, 0), "Dense: features is 0; wants a whole number, at least 1"),
    "an op for a layer": (lambda: mb.Serial(Dense(3), mb.ops.relu()), "Serial: got relu(); wants a layer: an op becomes one by layers.Apply(op)"),
    "a class for a layer": (lambda: mb.Serial(Dense(3), LayerNorm), "Serial: got LayerNorm; wants a layer"),
    "one place": (lambda: mb.Tied(Dense(3), ("w",)), "Tied: got 1 places; wants at least two"),
    "tied shapes that differ": (
        lambda: mb.Tied(mb.Serial(Dense(5), Dense(3)), (0, "w"), (1, "w")).init(KEY, X),
        "Tied: (0, 'w') holds float32[5, 5], (1, 'w') holds float32[5, 3]; wants one shape and dtype",
    ),
    "a fraction of layers": (lambda: mb.Repeat(Dense(5), 2.0), "Repeat: n is 2.0; wants a whole number"),
    "a truth for a size": (lambda: Dense(True), "Dense: features is True; wants a whole number"),
    "a class of layers": (lambda: mb.Serial(Dense), "Serial: got Dense; wants a layer: a class is none before it is called"),
    "a list of layers": (lambda: mb.Serial([Dense(2)]), "wants a layer: unpack a list with *"),
    "an array for an option": (
        lambda: mb.ops.leaky_relu(negative_slope=jnp.array([0.1, 0.2])),
        "leaky_relu: negative_slope is an array (2,); wants a number",
    ),
    "a list for an objective": (lambda: mb.value_and_grad([Dense(1)]), "value_and_grad: got [Dense(1)]; wants a layer"),
    "an op for a cost": (
        lambda: mb.Objective(Dense(3), mb.ops.squared_error()),
        "Objective's cost: got squared_error(); wants a layer: an op becomes one by layers.Apply(op)",
    ),
    "a constructor for a layer": (lambda: mb.Residual(mb.ops.relu), "Residual: got relu; wants a layer: relu makes ops: layers.Apply(relu())"),
    "an op to repeat": (lambda: mb.Repeat(mb.ops.relu(), 3), "Repeat: got relu()"),
    "an op to recompute": (lambda: mb.Recompute(mb.ops.relu()), "Recompute: got relu()"),
    "an op to tie": (lambda: mb.Tied(mb.ops.relu(), (0,), (1,)), "Tied: got relu()"),
    "a constructor for an activation": (lambda: mb.models.mlp(4, 3, activation=mb.ops.relu), "Apply: got relu; wants an op: call it: relu()"),
    "a name for an activation": (lambda: mb.models.mlp(4, 3, activation="relu"), "Apply: got 'relu'; wants an op: such as ops.sigmoid()"),
    "a tuple for a size": (lambda: mb.models.mlp((16, 16), 10), "Dense: features is (16, 16); wants a whole number"),
    "branches into a Dense": (
        lambda: mb.Serial(mb.Parallel(Dense(3), Dense(3)), Dense(2)).init(KEY, X),
        "Serial[1] Dense(2): Dense: x is a tuple of 2; wants one array [..., features]",
    ),
    "branches into an activation": (
        lambda: mb.Serial(mb.Parallel(Dense(3), Dense(3)), Apply(mb.ops.relu())).init(KEY, X),
        "Serial[1] Apply(relu()): relu: got a tuple of 2; wants x",
    ),
    "a model for an objective": (
        lambda: mb.value_and_grad(Dense(3))(Dense(3).init(KEY, X)[0], (), (X, TARGET)),
        "dense: got a tuple of 2; wants x",
    ),
    "an op for an objective": (lambda: mb.value_and_grad(mb.ops.relu()), "value_and_grad: got relu()"),
    "no target": (lambda: CLASSIFIER.init(KEY, X), "Objective: the batch is a"),
    "integer x at init": (lambda: Dense(3).init(KEY, X.astype(int)), "Dense: x is int32; wants floating point"),
    "integer x for a norm": (lambda: LayerNorm().init(KEY, X.astype(int)), "LayerNorm: x is int32"),
    "an integer bias": (lambda: mb.ops.dense()(X, jnp.ones((5, 3)), jnp.ones(3, int)), "dense: b is int32"),
    "a repeat that changes the dtype": (
        lambda: mb.Repeat(Dense(5), 2).forward(mb.Repeat(Dense(5), 2).init(KEY, X)[0], (), X.astype(jnp.bfloat16)),
        "Repeat Dense(5): maps bfloat16[7, 5] to float32[7, 5]; wants the input's shape and dtype kept",
    ),
    "a place counted from the end": (
        lambda: mb.Tied(mb.Serial(Dense(5), Dense(5)), (0, "w"), (-1, "w")).init(KEY, X),
        "Tied: there is no place (-1, 'w') in the parameters of Serial(Dense(5), Dense(5))",
    ),
    "a place twice": (lambda: mb.Tied(Dense(5), ("w",), ("w",)), "are one place, or one holds the other"),
    "a place in a place": (lambda: mb.Tied(mb.Serial(Dense(5)), (0,), (0, "w")), "are one place, or one holds the other"),
    "a place in a leaf": (
        lambda: mb.Tied(mb.Serial(Dense(5), Dense(5)), (0, "w", 0), (1, "w", 0)).init(KEY, X),
        "Tied: there is no place (0, 'w', 0)",
    ),
    "a place that is not there": (
        lambda: mb.Tied(mb.Serial(Dense(5), Dense(5)), (0, "w"), (2, "w")).init(KEY, X),
        "Tied: there is no place (2, 'w')",
    ),
    "a residual that changes the shape": (
        lambda: mb.Residual(Dense(3)).init(KEY, X),
        "Residual Dense(3): maps float32[7, 5] to float32[7, 3]; wants the input's shape and dtype kept",
    ),
    "a repeat that changes the shape": (lambda: mb.Repeat(Dense(3), 2).init(KEY, X), "Repeat Dense(3): maps float32[7, 5]"),
    "a cost that is no scalar": (
        lambda: grad(mb.models.mlp(3), X, X),
        "value_and_grad: the cost has shape (7, 3); wants a scalar: end with a cost",
    ),
    "an unknown option": (lambda: mb.ops.layer_norm(epsilon=1), "layer_norm: option 'epsilon' is unknown; did you mean 'eps'?"),
    "no option that is required": (lambda: mb.ops.dropout(), "dropout: got no keep_probability; wants a number"),
    "an op that is not made yet, with options": (lambda: mb.ops.dropout(X), "apply it to arrays as dropout(keep_probability=…)(…)"),
    "a list of arrays": (lambda: mb.ops.concatenate()([X, X]), "concatenate: got a list of 2; wants arrays: unpack them with *, or stack them"),
    "a list for x": (lambda: mb.ops.relu().forward([1.0, 2.0]), "relu: got a list of 2; wants arrays"),
    "branches into a Dropout": (
        lambda: mb.layers.Dropout(0.5).forward({}, (), (X, X), KEY),
        "dropout: got a tuple of 2; wants arrays",
    ),
    "too few arguments": (lambda: mb.ops.layer_norm()(X), "layer_norm: got 1 arguments, missing a required argument: 'scale'; wants x, scale, bias"),
    "too many arguments": (lambda: mb.ops.relu()(X, X), "relu: got 2 arguments, too many positional arguments; wants x"),
    "too many arguments, of the pair": (lambda: mb.ops.relu().forward(X, X), "relu: got 2 arguments, too many positional arguments"),
    "an unknown argument": (lambda: mb.ops.relu()(x=X, y=X), "relu: got 2 arguments, got an unexpected keyword argument 'y'; wants x"),
    "a mask for a switch": (
        lambda: mb.ops.attention(mask=jnp.ones((3, 4), bool)),
        "attention: mask is an array (3, 4); wants True or False: an array is an argument, not an option",
    ),
    "a truth for a number": (lambda: mb.ops.leaky_relu(negative_slope=True), "leaky_relu: negative_slope is True; wants a number"),
    "a number for a truth": (lambda: mb.ops.dense(bias=1), "dense: bias is 1; wants True or False"),
    "a function for a name": (lambda: mb.ops.rnn(activation=jnp.tanh), "; wants 'tanh' or 'relu'"),
    "None for a reduction": (lambda: mb.ops.huber(reduction=None), "huber: reduction is None; wants 'mean', 'sum' or 'none'"),
    "two axes for one": (lambda: mb.ops.cumsum(axis=(0, 1)), "cumsum: axis is (0, 1); wants a whole number"),
    "a number for a shape": (lambda: mb.ops.reshape(shape=3), "reshape: shape is 3; wants a tuple (each a whole number)"),
    "a size below -1": (lambda: mb.ops.broadcast_to(shape=(-2, 3)), "broadcast_to: shape is (-2, 3); wants sizes, or -1 to keep one"),
    "a layer's option": (lambda: LayerNorm(eps="1e-5"), "layer_norm: eps is '1e-5'; wants a number"),
    "a layer's own option": (lambda: mb.layers.BatchNorm(momentum="a"), "BatchNorm: momentum is 'a'; wants a number"),
    "a layer's axis": (lambda: mb.layers.LSTM(3, axis=None), "lstm: axis is None; wants a whole number"),
    "a number for a key": (
        lambda: mb.value_and_grad(CLASSIFIER)(*CLASSIFIER.init(KEY, (X, LABELS)), (X, LABELS), 0),
        "value_and_grad: key is 0; wants one key, such as jax.random.key(0)",
    ),
    "no key": (lambda: mb.ops.dropout(keep_probability=0.5)(X, None), "dropout: got None; wants an array"),
    "half a key": (lambda: mb.ops.dropout(keep_probability=0.5)(X, jnp.zeros(3, jnp.uint32)), "dropout: key is uint32[3]; wants one key"),
    "several keys": (lambda: mb.ops.dropout(keep_probability=0.5)(X, jax.random.split(KEY)), "dropout: key is key<fry>[2]; wants one key"),
    "an op that is not made yet": (lambda: mb.ops.relu(X), "relu: binds options, by keyword; apply it to arrays as relu()(…)"),
    "a model without its batch axis": (lambda: Dense(3).init(KEY, jnp.ones(())), "Dense: x has shape (); wants [..., features]"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", [*MISTAKES, *cases.MISTAKES])
def test_a_mistake_is_one_line(mistake):
    make, message = (MISTAKES | cases.MISTAKES)[mistake]
    with pytest.raises(mb.InputError) as raised:
        make()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_under_jit_a_label_beyond_the_classes_makes_the_cost_nan():
    """Values are not known there; the behaviour is that of jnp.take_along_axis, which fills with NaN."""
    params, state = CLASSIFIER.init(KEY, (X, LABELS))
    (cost, _), _ = jax.jit(mb.value_and_grad(CLASSIFIER))(params, state, (X, LABELS.at[4].set(3)))
    assert np.isnan(cost)


HEADS = {
    "softmax_cross_entropy": lambda hidden, weight, labels: mb.ops.softmax_cross_entropy()(hidden @ weight.T, labels),
    "by tokens": mb.ops.linear_cross_entropy(),
    "by classes": mb.ops.linear_cross_entropy(gradients="backward", chunk=2),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("label", range(-8, 6))
def test_under_jit_a_head_does_as_the_cost_alone(head, label):
    hidden, weight = (jnp.asarray(np.random.default_rng(0).standard_normal(shape)) for shape in ((2, 5), (3, 5)))
    cost = jax.jit(HEADS[head])(hidden, weight, jnp.array([1, label]))
    assert np.isnan(cost) == (not -3 <= label < 3)


def test_under_jit_a_negative_label_counts_from_the_end():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((7, 3)))
    gradient = jax.jit(jax.grad(mb.ops.softmax_cross_entropy()))
    np.testing.assert_array_equal(gradient(logits, LABELS - 3), gradient(logits, LABELS))
