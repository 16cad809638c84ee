"""The contract: an op is a local derivative, a layer an op with parameters, an objective a layer that ends in the cost.

Everything in this library is one of the three sentences of the calculus:

    the chain rule          ∂C/∂w = ∂C/∂a · ∂a/∂z · ∂z/∂w
    the sum over paths      ∂C/∂a⁽ᴸ⁻¹⁾ₖ = Σⱼ ∂C/∂a⁽ᴸ⁾ⱼ · ∂a⁽ᴸ⁾ⱼ/∂z⁽ᴸ⁾ⱼ · ∂z⁽ᴸ⁾ⱼ/∂a⁽ᴸ⁻¹⁾ₖ
    the average             ∂C/∂w = 1/N Σₙ ∂Cₙ/∂w

Cotangents bear the name of what they belong to: `dx` is ∂C/∂x, and has the shape and the dtype of x.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class InputError(ValueError):
    """An input that does not fit. Its message is one line: who, what it got, what it wants."""


@contextmanager
def inside(place: object) -> Iterator[None]:
    """Names the place in every InputError that comes out of it: `Serial[1] Dense(16): dense: x has …`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def choose(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """The value that `known` has for a name. Raises InputError with the closest known name, and all of them."""
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"{what} {name!r} is unknown; {hint}known: {', '.join(sorted(known)) or 'none'}")


# ── Op: arrays in, arrays out ────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, repr=False)
class Op:
    """A function on arrays with its backward pass, options already bound.

        forward(*args)           -> y, residuals         the (fwd, bwd) convention of jax.custom_vjp
        backward(residuals, dy)  -> one cotangent per argument, in order; None for an integer argument

    Calling the op applies it to arrays as a `jax.custom_vjp` of the pair: usable in any JAX code, under `jax.grad` too.
    `residuals` is a NamedTuple; a field that holds an argument bears that argument's name.
    Two ops of the same rule with equal options are equal, and hash alike.
    """

    rule: Callable  # the function that @op decorates
    options: tuple[tuple[str, Any], ...]
    forward: Callable = dataclasses.field(compare=False)
    backward: Callable = dataclasses.field(compare=False)
    given: tuple[str, ...] = dataclasses.field(default=(), compare=False)  # the options to print

    def __call__(self, *args):
        return self._custom_vjp(*args)

    @property
    def name(self) -> str:
        return self.rule.__name__

    @functools.cached_property
    def _custom_vjp(self):
        function = jax.custom_vjp(lambda *args: self.forward(*args)[0])
        function.defvjp(self.forward, self.backward)
        return function

    @functools.cached_property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments, in order; `*xs` stands for any number of them."""
        return tuple(
            f"*{name}" if parameter.kind is parameter.VAR_POSITIONAL else name
            for name, parameter in inspect.signature(self.forward).parameters.items()
        )

    def __repr__(self) -> str:
        """`layer_norm(eps=1e-05)`: the options that were given."""
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.options if name in self.given)})"


def op(rule: Callable[..., tuple[Callable, Callable]]) -> Callable[..., Op]:
    """Makes of `rule(*, options…) -> (forward, backward)` a constructor of Ops, which binds options by keyword."""
    signature = inspect.signature(rule)

    @functools.wraps(rule)
    def constructor(*args, **options) -> Op:
        if args:
            raise InputError(f"{rule.__name__}: binds options, by keyword; apply it to arrays as {rule.__name__}()(…)")
        for name in options:
            choose(f"{rule.__name__}: option", name, signature.parameters)
        bound = signature.bind(**{name: _plain(rule.__name__, name, value) for name, value in options.items()})
        bound.apply_defaults()
        forward, backward = rule(**bound.arguments)
        return Op(rule, tuple(bound.arguments.items()), _on_arrays(forward), backward, tuple(options))

    constructor.makes_op = True
    return constructor


def _plain(who: str, name: str, value):
    """A number of numpy's or JAX's as Python's: it hashes, and its dtype does not spread."""
    if not isinstance(value, np.generic | np.ndarray | jax.Array):
        return value
    if np.ndim(value) or isinstance(value, jax.core.Tracer):
        raise InputError(f"{who}: option {name!r} is an array {np.shape(value)}; wants a plain number")
    return value.item()


def _on_arrays(forward: Callable) -> Callable:
    """Lets numpy arrays and numbers in, with JAX's dtypes."""

    @functools.wraps(forward)
    def run(*args, **named):
        return forward(*map(_array, args), **{name: _array(value) for name, value in named.items()})

    return run


def _array(value):
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


# ── Layer: an op, or several, with parameters ────────────────────────────────────────────────────────────────────────


class Layer:
    """A map with parameters, its state, and its backward pass. Subclasses are frozen dataclasses: structure is data.

        init(key, x)                 -> params, state            x: an example or a jax.ShapeDtypeStruct
        apply(params, state, x)      -> y                        inference: no randomness, no residuals
        forward(params, state, x, key)  -> y, state, residuals   key: for a layer that draws random numbers, else None
        backward(params, residuals, dy) -> dparams, dx

    `params` comes back in `backward`, so no layer saves a weight among its residuals.
    The cost is a layer too: the last one, from (prediction, target) to a scalar.
    """

    def init(self, key, x):
        raise NotImplementedError

    def apply(self, params, state, x):
        raise NotImplementedError

    def forward(self, params, state, x, key=None):
        raise NotImplementedError

    def backward(self, params, residuals, dy):
        raise NotImplementedError

    def __repr__(self) -> str:
        """`Dense(16, bias=False)`: the required fields, then the options that differ from their defaults."""
        parts = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            shown = getattr(value, "__name__", None) or repr(value)
            if field.default is dataclasses.MISSING:
                parts.append(shown)
            elif value != field.default:
                parts.append(f"{field.name}={shown}")
        return f"{type(self).__name__}({', '.join(parts)})"


def want_layer(who: str, layer: Any) -> None:
    """Raises InputError for what is no layer."""
    if isinstance(layer, Layer):
        return
    hint = "an op becomes one by layers.Apply(op)"
    if getattr(layer, "makes_op", False):
        hint = f"{layer.__name__} makes ops: layers.Apply({layer.__name__}())"
    elif inspect.isclass(layer) and issubclass(layer, Layer):
        hint = "a class is none before it is called"
    elif isinstance(layer, list | tuple):
        hint = "unpack a list with *"
    shown = getattr(layer, "__name__", None) or repr(layer)
    raise InputError(f"{who}: got {shown}; wants a layer: {hint}")


def want_count(who: str, n: Any) -> int:
    """n as Python's int. Raises InputError unless it is a whole number, at least 1."""
    if isinstance(n, bool) or not hasattr(n, "__index__") or operator.index(n) < 1:
        raise InputError(f"{who} is {n!r}; wants a whole number, at least 1")
    return operator.index(n)


class Stateless(Layer):
    """A layer without state and randomness, in the short form:

    parameters(key, x)  -> params
    run(params, x)      -> y, residuals
    backward(params, residuals, dy) -> dparams, dx
    """

    def parameters(self, key, x):
        return {}

    def run(self, params, x):
        raise NotImplementedError

    def init(self, key, x):
        return self.parameters(key, x), ()

    def apply(self, params, state, x):
        return self.run(params, x)[0]

    def forward(self, params, state, x, key=None):
        y, residuals = self.run(params, x)
        return y, state, residuals


def value_and_grad(objective: Layer) -> Callable:
    """The cost and its gradient ∇C: `((cost, state), dparams) = value_and_grad(objective)(params, state, batch, key)`.

    objective: a layer from a batch to a scalar, such as `Objective(model, cost)`. The result is shaped as that of
    `jax.value_and_grad(…, has_aux=True)`; dparams is a pytree shaped like params, to be handed to optax.
    The backward pass starts with ∂C/∂C = 1.  Raises InputError when the cost is no scalar.
    """

    want_layer("value_and_grad", objective)
    try:
        return _value_and_grad(objective)
    except TypeError:  # a layer that does not hash
        return _value_and_grad.__wrapped__(objective)


@functools.lru_cache(maxsize=128)  # equal objectives give one function, so jitting it again compiles nothing
def _value_and_grad(objective: Layer) -> Callable:
    def run(params, state, batch, key=None):
        cost, state, residuals = objective.forward(params, state, batch, key)
        if jnp.shape(cost) != ():
            raise InputError(f"value_and_grad: the cost has shape {jnp.shape(cost)}; wants a scalar: end with a cost")
        dparams, _ = objective.backward(params, residuals, jnp.ones_like(cost))
        return (cost, state), dparams

    return run
