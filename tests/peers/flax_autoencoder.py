"""Autoencoders as a flax user writes them, and our parameters in their structure."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from manual_backprop.combinators import Parallel
from manual_backprop.layers import Dense


class Perceptron(nn.Module):
    sizes: tuple[int, ...]
    activation: Callable = nn.relu
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = self.activation(nn.Dense(size, dtype=self.dtype)(x))
        return nn.Dense(self.sizes[-1], dtype=self.dtype)(x)


class Autoencoder(nn.Module):
    pixels: int
    hidden: tuple[int, ...]
    latent: int
    activation: Callable = nn.relu

    def setup(self):
        self.encoder = Perceptron((*self.hidden, self.latent), self.activation)
        self.decoder = Perceptron((*self.hidden[::-1], self.pixels), self.activation)

    def __call__(self, x):
        return self.decoder(self.encoder(x))


class VariationalAutoencoder(nn.Module):
    """With a key a sample of the latent variables is decoded, else their mean. → logits, mean, log variance.

    dtype: of the products.
    """

    pixels: int
    hidden: tuple[int, ...]
    latent: int
    activation: Callable = nn.relu
    dtype: jnp.dtype | None = None

    def setup(self):
        self.encoder = Perceptron((*self.hidden, 2 * self.latent), self.activation, self.dtype)
        self.decoder = Perceptron((*self.hidden[::-1], self.pixels), self.activation, self.dtype)

    def __call__(self, x, key=None):
        encoded = self.encoder(x)
        encoded = encoded.astype(jnp.promote_types(encoded.dtype, jnp.float32))
        mean, log_variance = encoded[..., : self.latent], encoded[..., self.latent :]
        z = mean
        if key is not None:
            z = mean + jnp.sqrt(jnp.exp(log_variance)) * jax.random.normal(key, mean.shape, jnp.float32)
        return self.decoder(z), mean, log_variance


def cross_entropy(logits, x):
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.mean(jnp.sum(optax.sigmoid_binary_cross_entropy(logits, x), -1))


def negative_bound(model: VariationalAutoencoder, beta: float = 1.0) -> Callable:
    """(variables, x, key) → C; the target is x where none is given."""

    def cost(variables, x, key, target=None):
        logits, mean, log_variance = model.apply(variables, x, key)
        variance = jnp.exp(log_variance)
        divergence = 0.5 * jnp.sum(mean**2 + variance - jnp.log(variance) - 1, -1)
        return cross_entropy(logits, x if target is None else target) + beta * jnp.mean(divergence)

    return cost


def noise_key(key) -> jax.Array:
    """The key that our sample draws from, where the objective is given this one.

    Of the objective's two the model's, of the model's two that of what follows the encoder, of its two the path of the
    sample, and there the first.
    """
    for place in (0, 1, 0, 0):
        key = jax.random.split(key)[place]
    return key


def to_flax(model, params) -> dict:
    """Parameters, or gradients, of `models.autoencoder` in flax's structure."""
    (encoder, decoder), (of_encoder, of_decoder) = model.layers, params
    if isinstance(decoder, Parallel):
        encoder, of_encoder = encoder.layers[0], of_encoder[0]
        decoder, of_decoder = decoder.layers[0].layers[1], of_decoder[0][1]
    pairs = {"encoder": (encoder, of_encoder), "decoder": (decoder, of_decoder)}
    return {"params": {name: _dense(layer, p) for name, (layer, p) in pairs.items()}}


def _dense(perceptron, params) -> dict:
    dense = [p for layer, p in zip(perceptron.layers, params, strict=True) if isinstance(layer, Dense)]
    return {f"Dense_{i}": {"kernel": p["w"], "bias": p["b"]} for i, p in enumerate(dense)}
