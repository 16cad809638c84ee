"""What the wrong passes share: the record, an op with its correct pair, makers of arguments, words for a cause."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# ── Words: each stands for a regular expression that any truthful account of the cause matches ──────────────────────

WORDS = {
    "factor": r"factor|too (large|small)|multiple of",
    "sign": r"\bsign|negat|factor (of )?[-−]",
    "transposed": r"transpos|ax(is|es) (are )?(swap|exchang|interchang)",
    "sum": r"\bsum|summed|not added",
    "row": r"\b(row|column|token|class|index|indices|entry|entries|element|position|slice|channel|step)",
    "mask": r"mask|support",
    "ignored": r"ignore|unused|does not depend on|independent of",
    "accumulated": r"accumul|instead of add|overwr|repeat|duplicat|overlap|collision|last write",
    "swapped": r"swap|exchang|interchang|permut|another argument|other argument",
    "residual": r"residual|operand|in place of|instead of",
    "constant": r"constant(?! factor)|stop.?gradient",
    "term": r"\bterms?\b|\bpath|part of|no simple",
    "shift": r"shift|off by one|displac|roll",
    "reversed": r"revers|flip|backwards",
    "nonlinear": r"non-?linear|not linear|clip|linearity|affine",
    "rounded": r"round|precision|dtype|bfloat16|float16",
    "minute": r"no simple|unexplained|factor|too (large|small)|small|slight|constant",  # an error in the last digits
    "?": r"no simple|unexplained",
}


def causes(words: str) -> tuple[str, ...]:
    """The expressions that the words stand for; what is no word stands for itself."""
    return tuple(WORDS.get(word, word) for word in words.split())


class Wrong(NamedTuple):
    """A backward pass with one mistake, and the function that it should be the gradient of."""

    name: str
    kind: str
    candidate: Any
    reference: Callable
    args: Callable[[], tuple]
    cause: tuple[str, ...] = ()
    options: dict = {}  # noqa: RUF012 (never written to)


def custom(forward: Callable, backward: Callable) -> Callable:
    """The pair as a function with jax.custom_vjp."""
    function = jax.custom_vjp(lambda *args: forward(*args)[0])
    function.defvjp(forward, backward)
    return function


class Op(NamedTuple):
    """An op by its correct pair; each of its methods makes one mistake of it."""

    name: str
    reference: Callable
    forward: Callable
    backward: Callable
    args: Callable[[], tuple]

    def wrong(self, mistake, backward, cause="", kind="value", forward=None, args=None, function=False, **options):
        """The pair with another backward pass (and, where residuals differ, another forward)."""
        pair = (forward or self.forward, backward)
        candidate = custom(*pair) if function else pair
        return Wrong(
            f"{self.name}: {mistake}", kind, candidate, self.reference, args or self.args, causes(cause), options
        )

    def edit(self, mistake, at, change, cause="", **named):
        """The correct pass, but for the cotangent of argument `at`, which `change` spoils."""

        def backward(r, dy):
            grads = list(self.backward(r, dy))
            grads[at] = change(grads[at])
            return tuple(grads)

        return self.wrong(mistake, backward, cause, **named)

    def plain(self, mistake, function, cause="", kind="value", args=None, **options):
        """A differentiable function in place of the pair: the mistake lies in what autodiff is shown."""
        return Wrong(
            f"{self.name}: {mistake}", kind, function, self.reference, args or self.args, causes(cause), options
        )


# ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────


def normal(seed, *shape, dtype=jnp.float32, scale=1.0, shift=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale + shift, dtype)


def positive(seed, *shape, dtype=jnp.float32, low=0.5, high=2.0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, size=shape), dtype)


def integers(seed, high, *shape, low=0):
    return jnp.asarray(np.random.default_rng(seed).integers(low, high, size=shape), jnp.int32)


def normals(*shapes, seed=0, **named):
    """A maker of normal arrays of these shapes."""
    return lambda: tuple(normal(1000 * seed + i, *shape, **named) for i, shape in enumerate(shapes))


def positives(*shapes, seed=0, **named):
    return lambda: tuple(positive(1000 * seed + i, *shape, **named) for i, shape in enumerate(shapes))


def without(array, axis, index):
    """The array with one index of an axis set to zero: what a loop that ends too early leaves out."""
    axis %= array.ndim
    return array.at[(slice(None),) * axis + (index,)].set(0)
