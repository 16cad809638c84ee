"""Activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, layer_case, normal
from manual_backprop.layers import Apply, Dense, PReLU


def softshrink(x, threshold=0.5):
    return jnp.sign(x) * jax.nn.relu(jnp.abs(x) - threshold)


def hardshrink(x, threshold=0.5):
    return jnp.where(jnp.abs(x) <= threshold, 0, x)


def thresholded(x, threshold=0.0, value=0.0):
    return jnp.where(x <= threshold, value, x)


# The same function for each of ACTIVATIONS, its options at their defaults.
REFERENCES = {
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "tanh": jax.nn.tanh,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": jax.nn.gelu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_tanh": jax.nn.hard_tanh,
    "hardshrink": hardshrink,
    "softshrink": softshrink,
    "tanhshrink": lambda x: x - jnp.tanh(x),
    "threshold": thresholded,
}


def scaled(factor: float, *shapes: tuple[int, ...]) -> Draw:
    return lambda rng: tuple(factor * rng.standard_normal(shape) for shape in shapes)


def swiglu(gate, value):
    return jax.nn.silu(gate) * value


def geglu(approximate: bool):
    return lambda gate, value: jax.nn.gelu(gate, approximate) * value


def prelu(x, slope):
    return jnp.where(x >= 0, x, slope * jnp.where(x >= 0, 0, x))


def steep_softplus(x, beta):
    """Where e^(βx) or βx is beyond every number, x itself."""
    return jnp.where(x > 50 / beta, x, jax.nn.softplus(beta * jnp.minimum(x, 50 / beta)) / beta)


# Draws that reach kinks at -3 and 6; and squares of squares that stay finite.
SCALE = {"relu6": 4, "hard_sigmoid": 4, "hard_silu": 4, "squared_relu": 0.25}
LARGE = (1024, 4096)

# The kinks of all, and a little beside them. There the derivative is jax.nn's, exactly; the oracle takes any between the two.
KINKS = np.array([one + beside for one in (-3, -1, 0, 1, 3, 6) for beside in (-0.125, 0, 0.125)])
KINKED = ("relu", "relu6", "leaky_relu", "elu", "selu", "hard_sigmoid", "hard_silu", "hard_tanh")

OPS = [
    *(
        Case(
            name,
            mb.ops.ACTIVATIONS[name](),
            reference,
            scaled(SCALE.get(name, 1), (7, 5)),
            large=scaled(SCALE.get(name, 1), LARGE),
        )
        for name, reference in REFERENCES.items()
    ),
    Case(
        "leaky_relu, -0.3", mb.ops.leaky_relu(negative_slope=-0.3), lambda x: jax.nn.leaky_relu(x, -0.3), normal((7, 5))
    ),
    Case("elu, 0.7", mb.ops.elu(alpha=0.7), lambda x: jax.nn.elu(x, 0.7), normal((7, 5))),
    Case("celu, 0.7", mb.ops.celu(alpha=0.7), lambda x: jax.nn.celu(x, 0.7), normal((7, 5))),
    Case("softplus, beta", mb.ops.softplus(beta=3), lambda x: jax.nn.softplus(3 * x) / 3, normal((7, 5))),
    Case(
        "softplus, threshold",
        mb.ops.softplus(beta=0.5, threshold=0.2),
        lambda x: jnp.where(0.5 * x > 0.2, x, jax.nn.softplus(0.5 * x) / 0.5),
        normal((7, 5)),
    ),
    Case("gelu, erf", mb.ops.gelu(approximate=False), lambda x: jax.nn.gelu(x, approximate=False), normal((7, 5))),
    Case(
        "hard_tanh, 0 to 2",
        mb.ops.hard_tanh(low=0, high=2),
        lambda x: jnp.where(x > 2, 2, jnp.where(x < 0, 0, x)),
        normal((7, 5)),
    ),
    Case("hardshrink, 0.2", mb.ops.hardshrink(threshold=0.2), lambda x: hardshrink(x, 0.2), normal((7, 5))),
    Case("softshrink, 0.2", mb.ops.softshrink(threshold=0.2), lambda x: softshrink(x, 0.2), normal((7, 5))),
    Case(
        "threshold, 0.2", mb.ops.threshold(threshold=0.2, value=-3), lambda x: thresholded(x, 0.2, -3), normal((7, 5))
    ),
    Case("prelu", mb.ops.prelu(), prelu, normal((2, 7, 5), (5,)), large=normal(LARGE, (4096,))),
    Case("prelu, one slope", mb.ops.prelu(), prelu, normal((7, 5), ())),
    Case("prelu, slopes of another axis", mb.ops.prelu(), prelu, normal((2, 7, 5), (7, 1))),
    Case("glu", mb.ops.glu(), jax.nn.glu, normal((7, 10)), large=normal(LARGE)),
    Case("glu, an axis between", mb.ops.glu(axis=-2), lambda x: jax.nn.glu(x, -2), normal((3, 14, 5))),
    *(Case(f"{name}, kinks", mb.ops.ACTIVATIONS[name](), REFERENCES[name], exactly(KINKS)) for name in KINKED),
    Case("geglu", mb.ops.geglu(), geglu(True), normal((7, 5), (7, 5)), large=normal((1024, 2048), (1024, 2048))),
    Case("geglu, erf", mb.ops.geglu(approximate=False), geglu(False), normal((7, 5), (7, 5))),
    Case("swiglu", mb.ops.swiglu(), swiglu, normal((7, 5), (7, 5)), large=normal((1024, 2048), (1024, 2048))),
]


LAYERS: list[Case] = [
    layer_case("PReLU", PReLU(), lambda p, x: prelu(x, p["slope"]), normal((2, 7, 5))),
    layer_case("PReLU, one slope", PReLU(shared=True), lambda p, x: prelu(x, p["slope"]), normal((7, 5))),
    layer_case(
        "Parallel into a gate",
        mb.Serial(mb.Parallel(Dense(3), Dense(3)), Apply(mb.ops.swiglu())),
        lambda p, x: swiglu(x @ p[0][0]["w"] + p[0][0]["b"], x @ p[0][1]["w"] + p[0][1]["b"]),
        normal((7, 5)),
    ),
]

# Far out, at zero, and where squares and cubes overflow or underflow.
FAR = np.array(
    [
        0.0,
        1e-45,
        -1e-45,
        1e-30,
        -1e-30,
        1e-4,
        -1e-4,
        9.0,
        -9.0,
        20,
        -20,
        89,
        -89,
        1e4,
        -1e4,
        1e13,
        -1e13,
        1e30,
        -1e30,
        3e38,
        -3e38,
    ]
)
# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = [
    *(
        Case(f"{name}, far", mb.ops.ACTIVATIONS[name](), reference, exactly(FAR))
        for name, reference in REFERENCES.items()
    ),
    *(
        Case(f"{name}, not a number", mb.ops.ACTIVATIONS[name](), REFERENCES[name], exactly(np.array([np.nan, 1.0])))
        for name in KINKED + ("hardshrink", "softshrink", "threshold", "squared_relu")
    ),
    Case(
        "softplus, steep and far",
        mb.ops.softplus(beta=30.0),
        lambda x: steep_softplus(x, 30.0),
        exactly(np.append(FAR, [np.inf, -np.inf])),
    ),
    Case(
        "prelu, infinite",
        mb.ops.prelu(),
        prelu,
        exactly(np.array([[np.inf, 2], [3, -np.inf], [-4, 5]]), np.array([0.25, -0.5])),
    ),
    Case("gelu, erf, far", mb.ops.gelu(approximate=False), lambda x: jax.nn.gelu(x, approximate=False), exactly(FAR)),
    Case("softplus, threshold, far", mb.ops.softplus(threshold=20.0), jax.nn.softplus, exactly(FAR)),
    Case("swiglu, far", mb.ops.swiglu(), swiglu, exactly(FAR, np.ones_like(FAR))),
    Case("geglu, far", mb.ops.geglu(), geglu(True), exactly(FAR, np.ones_like(FAR))),
    Case("glu, far", mb.ops.glu(), jax.nn.glu, exactly(np.concatenate([np.ones_like(FAR), FAR]))),
    Case("prelu, far", mb.ops.prelu(), prelu, exactly(FAR[:, None], np.array([0.25]))),
]

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    Case("gelu, no examples", mb.ops.gelu(), jax.nn.gelu, normal((0, 5))),
    Case("relu, no examples", mb.ops.relu(), jax.nn.relu, normal((0, 5))),
    Case("prelu, no examples", mb.ops.prelu(), prelu, normal((0, 5), (5,))),
    Case("glu, no examples", mb.ops.glu(), jax.nn.glu, normal((0, 10))),
    Case("swiglu, no examples", mb.ops.swiglu(), swiglu, normal((0, 5), (0, 5))),
]


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    number = draw(st.sampled_from([0.25, 1.0, 1.5]))
    axis = draw(st.integers(-len(shape), max(len(shape) - 1, -1))) if shape else None
    rows = [
        *(
            case._replace(draw=scaled(SCALE.get(case.unit.name, 1), shape))
            for case in OPS
            if case.unit.name in REFERENCES
        ),
        Case("elu", mb.ops.elu(alpha=number), lambda x: jax.nn.elu(x, number), normal(shape)),
        Case("celu", mb.ops.celu(alpha=number), lambda x: jax.nn.celu(x, number), normal(shape)),
        Case("softplus", mb.ops.softplus(beta=number), lambda x: jax.nn.softplus(number * x) / number, normal(shape)),
        Case(
            "hard_tanh",
            mb.ops.hard_tanh(low=-number, high=2),
            lambda x: jnp.where((x > 2) | (x < -number), jnp.sign(x), x),
            normal(shape),
        ),
        Case("swiglu", mb.ops.swiglu(), swiglu, normal(shape, shape)),
        Case("geglu", mb.ops.geglu(), geglu(True), normal(shape, shape)),
        Case(
            "prelu",
            mb.ops.prelu(),
            prelu,
            normal(shape, draw(st.sampled_from([(), shape[-1:], (*shape[:-1], 1) if shape else ()]))),
        ),
    ]
    if shape:
        doubled = tuple(2 * size for size in shape)
        rows += [Case("glu", mb.ops.glu(axis=axis), lambda x: jax.nn.glu(x, axis), normal(doubled))]
    return draw(st.sampled_from(rows))


X = jnp.ones((7, 5))

# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "gelu of integers": (lambda: mb.ops.gelu()(jnp.arange(3)), "gelu: x is int32; wants floating point"),
    "hard_tanh of integers": (lambda: mb.ops.hard_tanh()(jnp.arange(3)), "hard_tanh: x is int32"),
    "log_sigmoid of integers": (lambda: mb.ops.log_sigmoid()(jnp.arange(3)), "log_sigmoid: x is int32"),
    "swiglu of integers": (lambda: mb.ops.swiglu()(X, jnp.ones((7, 5), int)), "swiglu: value is int32"),
    "a gate of another shape": (
        lambda: mb.ops.geglu()(X, jnp.ones((7, 3))),
        "geglu: value has shape (7, 3); wants (7, 5), as gate",
    ),
    "one argument for two": (
        lambda: Apply(mb.ops.swiglu()).forward({}, (), X),
        "swiglu: got one array; wants gate, value",
    ),
    "an odd axis": (lambda: mb.ops.glu()(X), "glu: x has shape (7, 5); wants axis -1 of even size"),
    "an axis that is not there": (
        lambda: mb.ops.glu(axis=2)(X),
        "glu: axis 2 is out of range; wants -2 … 1 for 2 axes",
    ),
    "glu of integers": (lambda: mb.ops.glu()(X.astype(int)), "glu: x is int32"),
    "glu over two axes": (lambda: mb.ops.glu(axis=(0, 1)), "glu: axis is (0, 1); wants a whole number"),
    "low above high": (lambda: mb.ops.hard_tanh(low=1, high=-1), "hard_tanh: low is 1, high -1; wants low ≤ high"),
    "a celu without its scale": (lambda: mb.ops.celu(alpha=0), "celu: alpha is 0; wants a number above 0"),
    "a softplus without its scale": (
        lambda: mb.ops.softplus(beta=-1.0),
        "softplus: beta is -1.0; wants a number above 0",
    ),
    "a name for a number": (lambda: mb.ops.softplus(beta="2"), "softplus: beta is '2'; wants a number"),
    "a negative threshold": (
        lambda: mb.ops.softshrink(threshold=-0.1),
        "softshrink: threshold is -0.1; wants at least 0",
    ),
    "slopes of another size": (
        lambda: mb.ops.prelu()(X, jnp.ones(7)),
        "prelu: slope has shape (7,), x (7, 5); slope must broadcast to x",
    ),
    "more slopes than numbers": (lambda: mb.ops.prelu()(jnp.ones(5), X), "prelu: slope has shape (7, 5), x (5,)"),
    "an integer slope": (lambda: mb.ops.prelu()(X, jnp.ones(5, int)), "prelu: slope is int32"),
    "a scalar into PReLU": (lambda: PReLU().init(jax.random.key(0), jnp.ones(())), "PReLU: x has shape ()"),
}
