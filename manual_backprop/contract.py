"""The contract: an op is a local derivative, a layer an op with parameters, an objective a layer that ends in the cost.

Everything in this library is one of the three sentences of the calculus:

    the chain rule          ∂C/∂w = ∂C/∂a · ∂a/∂z · ∂z/∂w
    the sum over paths      ∂C/∂a⁽ᴸ⁻¹⁾ₖ = Σⱼ ∂C/∂a⁽ᴸ⁾ⱼ · ∂a⁽ᴸ⁾ⱼ/∂z⁽ᴸ⁾ⱼ · ∂z⁽ᴸ⁾ⱼ/∂a⁽ᴸ⁻¹⁾ₖ
    the average             ∂C/∂w = 1/N Σₙ ∂Cₙ/∂w

Cotangents bear the name of what they belong to: `dx` is ∂C/∂x, and has the shape and the dtype of x.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp

from manual_backprop.errors import InputError, choose, want_key
from manual_backprop.options import in_words, plain, want_type

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

    def __call__(self, *args, **named):
        return self._custom_vjp(*in_order(self.name, self._signature, args, named))

    @property
    def name(self) -> str:
        return self.rule.__name__

    @functools.cached_property
    def _custom_vjp(self):
        function = jax.custom_vjp(lambda *args: self.forward(*args)[0])
        function.defvjp(self.forward, self.backward)
        return function

    @functools.cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.forward)

    @functools.cached_property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments, in order; `*xs` stands for any number of them."""
        return tuple(
            f"*{name}" if parameter.kind is parameter.VAR_POSITIONAL else name
            for name, parameter in self._signature.parameters.items()
        )

    def __repr__(self) -> str:
        """`layer_norm(eps=1e-05)`: the options that were given."""
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.options if name in self.given)})"


def op(rule: Callable[..., tuple[Callable, Callable]]) -> Callable[..., Op]:
    """Makes of `rule(*, options…) -> (forward, backward)` a constructor of Ops, which binds options by keyword."""
    signature, types = inspect.signature(rule), get_type_hints(rule)
    name = rule.__name__

    @functools.wraps(rule)
    def constructor(*args, **options) -> Op:
        if args:
            first = f"{next(iter(signature.parameters))}=…" if signature.parameters else ""
            raise InputError(f"{name}: binds options, by keyword; apply it to arrays as {name}({first})(…)")
        options = {option: plain(value) for option, value in options.items()}
        for option, value in options.items():
            choose(f"{name}: option", option, signature.parameters)
            want_type(f"{name}: {option}", value, types[option])
        for option, parameter in signature.parameters.items():
            if parameter.default is parameter.empty and option not in options:
                raise InputError(f"{name}: got no {option}; wants {in_words(types[option])}")
        bound = signature.bind(**options)
        bound.apply_defaults()
        forward, backward = rule(**bound.arguments)
        return Op(rule, tuple(bound.arguments.items()), _on_arrays(name, forward), backward, tuple(options))

    constructor.makes_op = True
    return constructor


def _on_arrays(who: str, forward: Callable) -> Callable:
    """Lets numpy arrays and numbers in, with JAX's dtypes, and names; says what does not fit the names."""
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def run(*args, **named):
        return forward(*(_array(who, x) for x in in_order(who, signature, args, named)))

    return run


def in_order(who: str, signature: inspect.Signature, args: tuple, named: dict) -> tuple:
    """The arguments in the order of the signature. Raises InputError for one too many, missing or unknown."""
    try:
        return signature.bind(*args, **named).args
    except TypeError as error:
        wants = ", ".join(signature.parameters)
        raise InputError(f"{who}: got {len(args) + len(named)} arguments, {error}; wants {wants}") from None


def _array(who: str, x) -> jax.Array:
    if isinstance(x, list | tuple | dict):
        raise InputError(
            f"{who}: got a {type(x).__name__} of {len(x)}; wants arrays: unpack them with *, or stack them"
        )
    if x is None:
        raise InputError(f"{who}: got None; wants an array")
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


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
        if key is not None:
            want_key("value_and_grad", key)
        cost, state, residuals = objective.forward(params, state, batch, key)
        if jnp.shape(cost) != ():
            raise InputError(f"value_and_grad: the cost has shape {jnp.shape(cost)}; wants a scalar: end with a cost")
        dparams, _ = objective.backward(params, residuals, jnp.ones_like(cost))
        return (cost, state), dparams

    return run
