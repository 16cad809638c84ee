"""Autoencoders: x through a few numbers and back, out of combinators. Pixels are from 0 to 1, the outputs logits.

    autoencoder                x → z → logits                                  (Rumelhart, Hinton & Williams 1986)
    variational_autoencoder    x → N(μ, σ²) of z, a sample of which → logits   (Kingma & Welling 2014, arXiv:1312.6114)

The variational one is a model of the pictures: z is drawn from p = N(0, 1), each pixel from a Bernoulli distribution
that the decoder says, and q(z|x) = N(μ, σ²) is what the encoder says of the z behind an x. No log p(x) is above its
evidence lower bound, of which C is the negative, an average over the examples in nats:

    -log p(x)  ≤  C  =  E_q[-log p(x|z)] + KL(q(z|x) ‖ p(z))            (eq. 3; the mean by one sample of q, eq. 7)

    model = variational_autoencoder(64, hidden=(128,), latent=2)
    objective = mb.Objective(model, negative_bound())                   a batch is (x, x); needs a key
    encode(model, params[0], state[0], x), decode(model, params[0], state[0], z)
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from manual_backprop import ops
from manual_backprop.combinators import Parallel, Penalised, Serial
from manual_backprop.contract import Layer, Op
from manual_backprop.errors import want_count
from manual_backprop.layers import Apply, GaussianSample, Identity
from manual_backprop.models.mlp import mlp


def autoencoder(pixels: int, hidden: Sequence[int], latent: int, activation: Op | None = None) -> Serial:
    """x [..., pixels] → logits [..., pixels], by dense layers; those of the decoder are the encoder's in reverse.

    hidden: neurons in each hidden layer of the encoder.  activation: by default ReLU.
    Its cost: `cross_entropy()`.  Raises InputError for a size below 1.
    """
    f = ops.relu() if activation is None else activation
    want_sizes(pixels, hidden, latent)
    return Serial(mlp(*hidden, latent, activation=f), mlp(*reversed(hidden), pixels, activation=f))


def variational_autoencoder(pixels: int, hidden: Sequence[int], latent: int, activation: Op | None = None) -> Serial:
    """x [..., pixels] → (logits [..., pixels], (μ, log σ²) [..., latent] each); `apply` decodes μ itself.

    The arguments are those of `autoencoder`.  Its cost: `negative_bound()`.
    """
    f = ops.relu() if activation is None else activation
    want_sizes(pixels, hidden, latent)
    return variational(mlp(*hidden, 2 * latent, activation=f), mlp(*reversed(hidden), pixels, activation=f))


def variational(encoder: Layer, decoder: Layer) -> Serial:
    """The same of any encoder, x → the means and the logarithms as [..., 2 · latent], and decoder, z → logits."""
    q = Serial(encoder, Apply(ops.split(sections=2)))
    return Serial(q, Parallel(Serial(GaussianSample(), decoder), Identity()))


def cross_entropy() -> Serial:
    """-log p(x|z): (logits [..., pixels], x) → the sum over the pixels, averaged over the examples, in nats.

    A grey pixel counts as a black one and a white one in that proportion, so the least is not 0 but their entropy.
    """
    each = Apply(ops.binary_cross_entropy(reduction="none"))
    return Serial(each, Apply(ops.sum(axis=-1)), Apply(ops.mean()))


def negative_bound(beta: float = 1.0) -> Penalised:
    """C of `variational_autoencoder`, in nats an example: a cost for `Objective`.

    beta: what the divergence counts; C is a bound of -log p(x) for 1 or more (Higgins 2017, "beta-VAE").
    """
    return Penalised(cross_entropy(), Apply(ops.gaussian_kl()), beta)


def encode(model: Serial, params, state, x) -> jax.Array | tuple[jax.Array, jax.Array]:
    """z [..., latent], or of a variational one (μ, log σ²)."""
    return model.layers[0].apply(params[0], state[0], x)


def decode(model: Serial, params, state, z) -> jax.Array:
    """z [..., latent] → logits [..., pixels]."""
    decoder, params, state = (tree[1] for tree in (model.layers, params, state))
    if isinstance(decoder, Parallel):
        decoder, params, state = decoder.layers[0].layers[1], params[0][1], state[0][1]
    return decoder.apply(params, state, z)


def want_sizes(pixels: int, hidden: Sequence[int], latent: int) -> None:
    want_count("autoencoder: pixels", pixels)
    want_count("autoencoder: latent", latent)
    for size in hidden:
        want_count("autoencoder: hidden", size)
