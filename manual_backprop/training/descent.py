"""Gradient descent inside the backward pass: a layer is updated as soon as its gradient is known.

The chain rule reaches the layers from the last to the first, and asks for the parameters of a layer for the last time
when it passes that layer. So they can be replaced there, and the gradient dropped (LOMO, Lv 2023, arXiv:2306.09782):

    (p, s) ← optimizer(p, s, ∂C/∂p)

Under `Repeat` the gradient of one layer exists at a time, and new parameters are written over the old ones in the scan.
It ends where an ordinary step ends, as long as the optimiser treats every entry of every parameter by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from manual_backprop.combinators import Precision, Repeat, Reversible, Tied
from manual_backprop.combinators.ahead import GradientAhead
from manual_backprop.combinators.deferred import Deferred
from manual_backprop.combinators.tied import get, put
from manual_backprop.combinators.walk import children, is_several, with_children
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError
from manual_backprop.training.loop import Metrics, Step, Training


class Weights(NamedTuple):
    """Parameters, and what the optimiser remembers of them."""

    params: Any
    optimizer_state: Any


@dataclass(frozen=True)
class Descent:
    """A step of gradient descent in the backward pass of an objective.

        weights = descent.start(params)
        (cost, state), weights = descent(weights, state, batch, key)        jit it, and donate the weights
        params = descent.params(weights)

    Raises InputError for an optimiser that mixes entries, as clipping by the global norm does: that norm is known only
    when the backward pass has ended. And for `MicroBatches` and `LossScale`, which know the gradient only as a whole.
    """

    objective: Layer
    optimizer: optax.GradientTransformation

    def __post_init__(self):
        want_layer("Descent's objective", self.objective)
        want_elementwise(self.optimizer)
        object.__setattr__(self, "_descending", descending(self.objective, self.optimizer))

    def start(self, params):
        """The parameters with the optimiser's first state beside those of each layer."""
        return _started(self._descending, params)

    def params(self, weights):
        """The parameters alone."""
        return _params(weights)

    def __call__(self, weights, state, batch, key=None):
        cost, state, residuals = self._descending.forward(weights, state, batch, key)
        weights, _ = self._descending.backward(weights, residuals, jnp.ones_like(cost))
        return (cost, state), weights


@dataclass(frozen=True)
class StepInBackward(Step):
    """A `Step` that updates in the backward pass. Of a gradient that is dropped nothing can be told, nor its norm."""

    def __post_init__(self):
        super().__post_init__()
        if self.skips:
            raise InputError("StepInBackward: a step cannot be skipped, for its first layers are updated by then")
        object.__setattr__(self, "descent", Descent(self.objective, self.optimizer))

    def started(self, params, state) -> Training:
        return Training(self.descent.start(params), state, (), jnp.zeros((), jnp.int32), jax.random.key(self.seed))

    def params(self, training: Training):
        return self.descent.params(training.params)

    def __call__(self, training: Training, data) -> tuple[Training, Metrics]:
        weights, state, _, step, key = training
        batch, layer_key = self.batch(data, training)
        (cost, state), weights = self.descent(weights, state, batch, layer_key)
        metrics = Metrics(cost, None, (), jnp.bool(False))
        return Training(weights, state, (), step + 1, key), metrics


# ── Layers whose backward pass gives new weights where others give the gradient ──────────────────────────────────────


@dataclass(frozen=True, repr=False)
class _Leaf(Layer):
    layer: Layer
    optimizer: optax.GradientTransformation

    def forward(self, params, state, x, key=None):
        return self.layer.forward(params.params, state, x, key)

    def backward(self, params, residuals, dy):
        dparams, dx = self.layer.backward(params.params, residuals, dy)
        return _updated(self.optimizer, params, dparams), dx

    def start(self, params):
        return Weights(params, self.optimizer.init(params))


class _Repeat(Repeat):
    def backward(self, params, residuals, dy):
        return _in_place(self.layer.backward, self.n, params, residuals, dy)

    def start(self, params):
        return jax.vmap(lambda p: _started(self.layer, p))(params)


class _Reversible(Reversible):
    def backward(self, params, residuals, dy):
        def step(weights, layer, carry):
            weights, *carry = self.back(like, weights, *layer, *carry)
            return weights, tuple(carry)

        y, state, keys, like = residuals
        ends = y, jax.tree.map(lambda d, end: d.astype(end.dtype), dy, y)
        weights, (_, dx) = _in_place(step, self.n, params, (state, keys), ends)
        return weights, jax.tree.map(lambda d, s: s.astype(d.dtype), dy, dx)

    def start(self, params):
        return jax.vmap(lambda p: tuple(_started(layer, q) for layer, q in zip((self.f, self.g), p, strict=True)))(
            params
        )


@dataclass(frozen=True, repr=False)
class _Tied(Layer):
    """The layers that share a parameter give their gradients: the sum is known when the first of them is reached."""

    layer: Tied
    optimizer: optax.GradientTransformation
    held: tuple[tuple, ...]  # where they are in params

    def forward(self, params, state, x, key=None):
        return self.layer.forward(params.params, state, x, key)

    def backward(self, params, residuals, dy):
        (old, states), new_states = params, []
        new, dx = self.layer.backward(old, residuals, dy)
        for at, state in zip(self.held, states, strict=True):
            weights = _updated(self.optimizer, Weights(get(old, at), state), get(new, at))
            new = put(new, at, weights.params)
            new_states.append(weights.optimizer_state)
        return Weights(new, tuple(new_states)), dx

    def start(self, params):
        return Weights(_started(self.layer, params), tuple(self.optimizer.init(get(params, at)) for at in self.held))


def descending(layer: Layer, optimizer, held: tuple[tuple, ...] = (), at: tuple = ()) -> Layer:
    """The layer with such layers in it. held: the places in params that stay as they are, at: that of this layer."""
    if isinstance(layer, GradientAhead):
        raise InputError(
            f"Descent: {type(layer).__name__} knows the gradient only when all of it is there, and a layer would be "
            "updated before; take ordinary steps"
        )
    if isinstance(layer, Deferred):
        raise InputError("Descent: the objective is split, and owes its gradients; wants one that is not")
    if not children(layer) or isinstance(layer, Precision):  # which rounds all that it is given
        return layer if at in held else _Leaf(layer, optimizer)
    if isinstance(layer, Tied):
        mine = tuple(place for place in places(layer.layer, at) if layer.ties(place[len(at) :]))
        if set(mine) & set(held):
            raise InputError("Descent: a parameter is tied twice; wants one Tied with all its places")
        inner = with_children(layer, lambda child, _: descending(child, optimizer, (*held, *mine), at))
        return _Tied(inner, optimizer, tuple(place[len(at) :] for place in mine))
    several = is_several(layer)
    new = with_children(layer, lambda child, i: descending(child, optimizer, held, (*at, i) if several else at))
    if isinstance(layer, Repeat):
        return _Repeat(new.layer, new.n)
    return _Reversible(new.f, new.g, new.n) if isinstance(layer, Reversible) else new


def places(layer: Layer, at: tuple = ()) -> list[tuple]:
    """Where in params the layers are that are no combinators."""
    if not children(layer) or isinstance(layer, Precision):
        return [at]
    several = is_several(layer)
    return [place for i, child in enumerate(children(layer)) for place in places(child, (*at, i) if several else at)]


def _started(layer: Layer, params):
    if hasattr(layer, "start"):
        return layer.start(params)
    if is_several(layer):
        return tuple(_started(child, p) for child, p in zip(children(layer), params, strict=True))
    return _started(children(layer)[0], params) if children(layer) else params


def _params(weights):
    is_weights = lambda node: isinstance(node, Weights)
    return jax.tree.map(lambda node: _params(node.params) if is_weights(node) else node, weights, is_leaf=is_weights)


def _updated(optimizer, weights: Weights, gradient) -> Weights:
    updates, state = optimizer.update(gradient, weights.optimizer_state, weights.params)
    return Weights(optax.apply_updates(weights.params, updates), state)


def _in_place(step, n: int, stack, residuals, carry):
    """From the last layer to the first: weights, carry = step(weights, residuals, carry), written over the stack."""

    def run(of_all, residuals):
        i, stack, carry = of_all
        weights = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), stack)
        weights, carry = step(weights, residuals, carry)
        return (i - 1, _written(stack, weights, i, carry), carry), None

    (_, stack, carry), _ = lax.scan(run, (jnp.int32(n - 1), stack, carry), residuals, length=n, reverse=True)
    return stack, carry


def _written(stack, weights, i, carry):
    """The stack with these weights at i. Written in place, which asks that nobody reads the old ones any more.

    The compiler sees to that by a copy of the whole stack, where it is not clear. So parameters are written at an index
    that is known when dx is; and what the optimiser remembers, of which they are made, at one known after that.
    """
    stacks, tree = jax.tree_util.tree_flatten_with_path(stack)
    news = jax.tree.leaves(weights)
    remembered = [any(getattr(key, "name", "") == "optimizer_state" for key in path) for path, _ in stacks]
    after, written = carry, {}
    for phase in (False, True):
        index = _index_after(i, after)
        for n, ((_, old), new) in enumerate(zip(stacks, news, strict=True)):
            if remembered[n] == phase:
                written[n] = lax.dynamic_update_index_in_dim(old, new, index, 0)
        after = list(written.values())
    return tree.unflatten([written[n] for n in range(len(stacks))])


def _index_after(i, values):
    """i, as something that is not known before the values are. No number is larger than infinity."""
    first = (leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.floating))
    return i + sum((number > jnp.inf).astype(jnp.int32) for number in first)


def want_elementwise(optimizer) -> None:
    """Raises InputError for an optimiser whose update of an entry depends on another entry."""
    rng = np.random.default_rng(0)
    whole = {"w": rng.normal(size=(2, 3)).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}

    def moved(part):
        params = part(whole)
        state = optimizer.init(params)
        for size in (1e3, 1.0, 1e-3):
            gradient = part(
                {name: size * np.sin(np.arange(1, x.size + 1)).reshape(x.shape) for name, x in whole.items()}
            )
            gradient = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradient)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    together = moved(lambda tree: jax.tree.map(jnp.asarray, tree))
    for part in (lambda tree: {"w": tree["w"]}, lambda tree: {"w": tree["w"][:1]}, lambda tree: {"b": tree["b"][:2]}):
        expected = part(together)
        alone = moved(lambda tree, part=part: jax.tree.map(jnp.asarray, part(tree)))
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(expected), strict=True):
            if not np.allclose(a, b, rtol=1e-5, atol=1e-7):
                raise InputError(
                    "Descent: this optimiser's update of an entry depends on other entries, as clipping by the global "
                    "norm does, or a trust ratio: they are not known yet when a layer is updated in the backward pass; "
                    "take ordinary steps, or an element-wise optimiser such as sgd, adamw or optax.clip"
                )
