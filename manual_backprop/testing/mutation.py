"""How good is a test of a gradient? Plants small mistakes in the backward pass, and counts those that it sees.

A mutant is the same op with one edit in the equations of its backward pass, of the kinds that people make. One that
answers as the original does, on many arguments and cotangents in float64, is no mistake and is left out.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.contract import Layer, Op
from manual_backprop.errors import InputError
from manual_backprop.testing.compiled import quickly
from manual_backprop.testing.leaves import as_cotangent, draw, is_inexact, largest, to_float64, to_numpy
from manual_backprop.testing.mutants import Mutation, mutated, mutations
from manual_backprop.testing.pair import Pair, as_pair
from manual_backprop.testing.trials import regimes


@dataclasses.dataclass(frozen=True)
class Score:
    """What a test sees. survivors: the mutants it let pass; equivalent: how many changed nothing and do not count."""

    candidate: str
    caught: tuple[Mutation, ...]
    survivors: tuple[Mutation, ...]
    equivalent: int

    @property
    def total(self) -> int:
        return len(self.caught) + len(self.survivors)

    @property
    def score(self) -> float:
        """The share that is caught; 1 where there is nothing to catch."""
        return len(self.caught) / self.total if self.total else 1.0

    def __float__(self) -> float:
        return self.score

    def __str__(self) -> str:
        head = f"{self.candidate}: your test catches {len(self.caught)} of {self.total} mutants"
        head += f" ({self.equivalent} more change nothing)" if self.equivalent else ""
        return "\n  ".join([head + ("; survivors:" if self.survivors else "")] + [str(m) for m in self.survivors])


def mutation_score(test: Callable, candidate: Any, *args: Any, most: int | None = None, seed: int = 0) -> Score:
    """Runs a test on mutants of a backward pass.

    test: takes the candidate, or a mutant of it; it catches a mutant by raising, or by returning what is false, such as
    a `Report` that is not ok.
    candidate: an Op, a Layer, a pair (forward, backward), or a function such as a `jax.custom_vjp`.
    args: arguments of the candidate; if none are given, those that the test uses first are taken.
    most: at most so many mutants, drawn with the seed; None: all of them.

    Raises InputError where the test fails for the candidate as it is, or never calls it.
    """
    if not callable(test):
        raise InputError(f"mutation_score: the test is {test!r}; wants a function of the candidate")
    pair, heard = as_pair(candidate), []
    listening = _with(candidate, pair, lambda *args: (heard.append(args), pair.forward(*args))[1], pair.backward)
    if not _passes(test, listening):
        raise InputError(f"mutation_score: the test fails for {pair.name} as it is; it must pass before it is scored")
    args = args or next((a for a in heard if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(a))), ())
    if not args:
        raise InputError(f"mutation_score: the test never calls {pair.name} on arrays; give some after the candidate")
    args = jax.tree.map(jnp.asarray, args)
    differs = _differs(pair, args, seed)
    planted = list(mutations(pair, args))
    if most is not None and len(planted) > most:
        chosen = np.random.default_rng(seed).choice(len(planted), most, replace=False)
        planted = [planted[i] for i in sorted(chosen)]
    caught, survivors, equivalent = [], [], 0
    for mutation in planted:
        backward = mutated(pair.backward, mutation)
        verdict = differs(backward)
        if verdict is None:
            continue  # it cannot run: no test is needed to see that
        if not verdict:
            equivalent += 1
        elif _passes(test, _with(candidate, pair, pair.forward, backward)):
            survivors.append(mutation)
        else:
            caught.append(mutation)
    return Score(pair.name, tuple(caught), tuple(survivors), equivalent)


def _passes(test: Callable, candidate) -> bool:
    try:
        verdict = test(candidate)
    except InputError:
        raise
    except Exception:
        return False
    return verdict is None or bool(verdict)


def _with(candidate, pair: Pair, forward: Callable, backward: Callable):
    """The candidate, in its own kind, with another pair. It equals no other, so that nothing cached answers for it."""
    if getattr(candidate, "makes_op", False):
        candidate = candidate()
    if isinstance(candidate, Op):
        rule = functools.wraps(candidate.rule)(lambda **options: (forward, backward))
        return dataclasses.replace(candidate, rule=rule, forward=forward, backward=backward)
    if isinstance(candidate, Layer):
        return _layer_with(candidate, backward, forward)
    if isinstance(candidate, tuple):
        return forward, backward
    function = jax.custom_vjp(functools.wraps(candidate)(lambda *args: forward(*args)[0]))
    function.defvjp(forward, lambda residuals, dy: tuple(backward(residuals, dy)))
    return function


def _layer_with(layer: Layer, backward: Callable, forward: Callable) -> Layer:
    class Mutant(type(layer)):
        def forward(self, params, state, x, key=None):
            y, (_, residuals, _) = forward(params, state, x, *(() if key is None else (key,)))
            return y, state, residuals

        def backward(self, params, residuals, dy):
            dparams, _, dx, *_ = backward((params, residuals, ()), dy)
            return dparams, dx

    Mutant.__name__ = Mutant.__qualname__ = type(layer).__name__
    mutant = copy.copy(layer)
    object.__setattr__(mutant, "__class__", Mutant)
    return mutant


def _differs(pair: Pair, args, seed: int) -> Callable[[Callable], bool | None]:
    """Whether a mutant answers otherwise than the original, on arguments of many kinds; None: it cannot run."""
    rng = np.random.default_rng(seed)
    names = [str(i) for i, _ in enumerate(jax.tree.leaves(args))]
    trials = [args, *(other for _, other in regimes(rng, args, [], names, "normal"))]

    def run(backward, args, dy):
        y, residuals = pair.forward(*args)
        return jax.tree.leaves(backward(residuals, as_cotangent(y, dy)))

    y = jax.eval_shape(lambda *args: pair.forward(*args)[0], *args)
    dys = [jax.tree.map(lambda leaf: draw(rng, leaf), y) for _ in trials]
    own = not _runs_in_float64(pair, args, dys[0])
    cast = (lambda tree: tree) if own else (lambda tree: jax.tree.map(to_float64, tree))
    context = (lambda: jax.enable_x64(bool(jax.config.jax_enable_x64))) if own else (lambda: jax.enable_x64(True))
    least = 1e-6 if own else 1e-12
    with context():
        original = quickly(functools.partial(run, pair.backward))
        truths = [[to_numpy(leaf) for leaf in original(cast(a), cast(d))] for a, d in zip(trials, dys, strict=True)]

    def differs(backward) -> bool | None:
        with context():
            mutant = quickly(functools.partial(run, backward))
            try:
                for trial, dy, truth in zip(trials, dys, truths, strict=True):
                    for got, E in zip(mutant(cast(trial), cast(dy)), truth, strict=True):
                        got = to_numpy(got)
                        if got.shape != E.shape:
                            return None
                        with np.errstate(invalid="ignore"):
                            finite = np.isfinite(E)
                            apart = np.where(finite, np.nan_to_num(np.abs(got - E), nan=np.inf, posinf=np.inf), 0)
                        if apart.max(initial=0) > least * (largest([E]) or 1.0):
                            return True
            except Exception:
                return None
        return False

    return differs


def _runs_in_float64(pair: Pair, args, dy) -> bool:
    try:
        with jax.enable_x64(True):
            args, dy = jax.tree.map(to_float64, (args, dy))
            y, residuals = pair.forward(*args)
            pair.backward(residuals, as_cotangent(y, dy))
            return all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(y) if is_inexact(leaf))
    except Exception:
        return False
