"""The oracle at work on others: custom derivative rules that public libraries ship, against their own values.

The reference is None: the library's function, seen through to what it computes. What is not accepted is listed, and why.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from manual_backprop.testing import check_vjp

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((7, 5)), jnp.float32)
POSITIVE = jnp.asarray(RNG.uniform(0.2, 3, (7, 5)), jnp.float32)
UNIT = jnp.asarray(RNG.uniform(0.05, 0.95, (7, 5)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 5, 7), jnp.int32)
ROWS = jax.nn.softmax(jnp.asarray(RNG.standard_normal((7, 5)), jnp.float32))
SQUARE = jnp.asarray(RNG.standard_normal((4, 4)) + 4 * np.eye(4), jnp.float32)
SIGNS = jnp.asarray(RNG.integers(0, 2, (7, 5)), jnp.float32)

NAMES = ("relu relu6 sigmoid softplus silu log_sigmoid leaky_relu hard_tanh hard_sigmoid hard_silu celu elu selu gelu "
         "squareplus mish sparse_plus sparse_sigmoid softmax log_softmax logsumexp standardize glu soft_sign")  # fmt: skip
FUNCTIONS = {f"jax.nn.{name}": (getattr(jax.nn, name), (X[:, :4],)) for name in NAMES.split()}
FUNCTIONS |= {
    "jnp.logaddexp": (jnp.logaddexp, (X, X[::-1])),
    "jnp.logaddexp2": (jnp.logaddexp2, (X, X[::-1])),
    "jnp.sinc": (jnp.sinc, (X,)),
    "jnp.linalg.norm": (jnp.linalg.norm, (X,)),
    "jnp.linalg.det": (jnp.linalg.det, (SQUARE,)),
    "jnp.linalg.slogdet": (lambda a: jnp.linalg.slogdet(a)[1], (SQUARE,)),
    "jnp.linalg.inv": (jnp.linalg.inv, (SQUARE,)),
    "jnp.linalg.pinv": (jnp.linalg.pinv, (X,)),
    "scipy.special.xlogy": (jax.scipy.special.xlogy, (X, POSITIVE)),
    "scipy.special.xlog1py": (jax.scipy.special.xlog1py, (X, POSITIVE)),
    "scipy.special.entr": (jax.scipy.special.entr, (POSITIVE,)),
    "scipy.special.kl_div": (jax.scipy.special.kl_div, (POSITIVE, POSITIVE[::-1])),
    "scipy.special.logit": (jax.scipy.special.logit, (UNIT,)),
    "scipy.special.log_ndtr": (jax.scipy.special.log_ndtr, (X,)),
    "scipy.special.ndtri": (jax.scipy.special.ndtri, (UNIT,)),
    "scipy.special.gammaln": (jax.scipy.special.gammaln, (POSITIVE,)),
    "scipy.special.i0e": (jax.scipy.special.i0e, (X,)),
    "scipy.special.logsumexp": (lambda a, b: jax.scipy.special.logsumexp(a, b=b), (X, POSITIVE)),
    "optax.sigmoid_binary_cross_entropy": (optax.sigmoid_binary_cross_entropy, (X, SIGNS)),
    "optax.softmax_cross_entropy": (optax.softmax_cross_entropy, (X, ROWS)),
    "optax.integer labels": (optax.softmax_cross_entropy_with_integer_labels, (X, LABELS)),
    "optax.safe_softmax_cross_entropy": (optax.safe_softmax_cross_entropy, (X, ROWS)),
    "optax.poly_loss": (optax.losses.poly_loss_cross_entropy, (X, ROWS)),
    "optax.focal_loss": (optax.losses.sigmoid_focal_loss, (X, SIGNS)),
    "optax.huber_loss": (optax.huber_loss, (X, X[::-1])),
    "optax.log_cosh": (optax.log_cosh, (X, X[::-1])),
    "optax.cosine_similarity": (optax.cosine_similarity, (X, X[::-1])),
    "optax.kl_divergence": (optax.kl_divergence, (jnp.log(ROWS), ROWS[::-1])),
    "optax.hinge_loss": (optax.hinge_loss, (X, 2 * SIGNS - 1)),
    "optax.safe_norm": (lambda x: optax.safe_norm(x, 1e-3), (X,)),
    "optax.projection_simplex": (optax.projections.projection_simplex, (X[0],)),
    "optax.projection_l1_sphere": (optax.projections.projection_l1_sphere, (X[0],)),
    "optax.ctc_loss": (
        lambda logits: optax.ctc_loss(logits, jnp.zeros((2, 6)), jnp.array([[1, 2], [3, 1]]), jnp.zeros((2, 2))),
        (jnp.asarray(RNG.standard_normal((2, 6, 5)), jnp.float32),),
    ),
}


def layer(module, *more):
    """A flax module as a function of its parameters and its input."""
    variables = module.init(jax.random.key(0), X, *more)
    return (lambda variables, x: module.apply(variables, x, *more)), (variables, X)


FUNCTIONS |= {
    "flax LayerNorm": layer(nn.LayerNorm()),
    "flax RMSNorm": layer(nn.RMSNorm()),
    "flax GroupNorm": layer(nn.GroupNorm(num_groups=5)),
    "flax Dense": layer(nn.Dense(3)),
    "flax WeightNorm": layer(nn.WeightNorm(nn.Dense(3))),
    "flax attention": layer(nn.MultiHeadDotProductAttention(1)),
}
# What the oracle does not accept, with what it says.
FOUND = {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_library_ships(name):
    function, args = FUNCTIONS[name]
    report = check_vjp(function, None, *args)
    if name in FOUND:
        assert not report and FOUND[name] in str(report)
    else:
        assert report, f"\n{report}"
