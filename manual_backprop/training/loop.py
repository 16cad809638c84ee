"""The training step, and the loop around it.

Batches and keys are pure functions of (seed, step), so a step can be run again, alone and alike.
Steps run in chunks, one compiled `lax.scan` each: the device is asked for numbers once a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from manual_backprop.contract import Layer, value_and_grad
from manual_backprop.errors import InputError
from manual_backprop.inspection import first_nonfinite
from manual_backprop.training.stream import Stream


class NonFinite(ArithmeticError):
    """A cost or a gradient that is NaN or infinite. The message says at which step, and in which layer it arose."""


class Training(NamedTuple):
    """All that a step changes, and the key of the seed: with the data, all that the steps to come depend on."""

    params: Any
    state: Any
    optimizer_state: Any
    step: jax.Array
    key: jax.Array


class Metrics(NamedTuple):
    cost: jax.Array
    gradient_norm: jax.Array | None  # None where the gradient is never there as a whole
    more: Any = ()  # what `Step.measure` makes of the gradient
    skipped: Any = False  # whether the gradient was not finite and was left out


def examples(key, data, n: int):
    """n examples, drawn with replacement; data are arrays (x, target) with the examples along their first axis."""
    index = jax.random.randint(key, (n,), 0, len(jax.tree.leaves(data)[0]))
    return jax.tree.map(lambda leaf: leaf[index], data)


def given(key, data, n: int):
    """The batch of a step that comes from outside."""
    return data


@dataclass(frozen=True)
class Step:
    """One step of gradient descent: `training, metrics = step(training, data)`.

    draw: (key, data, batch size) -> the batch of a step.  measure: of a gradient, what is to be told of it.
    skips: so many gradients in a row may be not finite; such a step changes neither parameters, nor what the optimiser
    remembers, nor what would become not finite in the layers' state.
    plain: the objective with its layers as a diagnosis names them, where `objective` is arranged for a mesh.
    """

    objective: Layer
    optimizer: optax.GradientTransformationExtraArgs
    batch_size: int
    seed: int
    draw: Callable = examples
    measure: Callable = lambda gradient: ()
    skips: int = 0
    plain: Layer | None = None

    def __post_init__(self):
        if self.skips:
            object.__setattr__(self, "optimizer", optax.apply_if_finite(self.optimizer, self.skips))
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size} is out of range; wants at least one example")

    def start(self, data) -> Training:
        batch = jax.eval_shape(lambda data: self.draw(jax.random.key(0), data, self.batch_size), data)
        return self.started(*self.objective.init(jax.random.key(self.seed), batch))

    def started(self, params, state) -> Training:
        """From parameters that there are already."""
        return Training(params, state, self.optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key(self.seed))

    def batch(self, data, training: Training) -> tuple[Any, jax.Array]:
        """The batch of the next step, and the key for its layers."""
        batch_key, layer_key = jax.random.split(jax.random.fold_in(training.key, training.step))
        return self.draw(batch_key, data, self.batch_size), layer_key

    def params(self, training: Training):
        """The parameters alone."""
        return training.params

    def __call__(self, training: Training, data) -> tuple[Training, Metrics]:
        params, state, optimizer_state, step, key = training
        batch, layer_key = self.batch(data, training)
        (cost, new_state), gradient = value_and_grad(self.objective)(params, state, batch, layer_key)
        updates, optimizer_state = self.optimizer.update(
            gradient,
            optimizer_state,
            params,
            value=cost,
            grad=gradient,
            value_fn=lambda params: self.objective.apply(params, state, batch),
        )
        params = optax.apply_updates(params, updates)
        skipped = False
        if self.skips:
            in_a_row = optimizer_state.notfinite_count
            skipped = (in_a_row > 0) & (in_a_row <= self.skips)
            new_state = jax.tree.map(_unless_nonfinite, new_state, state)
        metrics = Metrics(cost, optax.tree.norm(gradient), self.measure(gradient), jnp.asarray(skipped))
        return Training(params, new_state, optimizer_state, step + 1, key), metrics


def _unless_nonfinite(new, old):
    return jnp.where(jnp.isfinite(new).all(), new, old)


def train(step: Step, training: Training, data, steps: int, chunk: int) -> Iterator[tuple[Training, Metrics]]:
    """Runs to `steps`, and yields after every chunk: where training is, and the metrics of each step in the chunk.

    data: what `step.draw` takes; or a `Stream`, whose batches are put on the device while the steps before them run.
    Chunks end at multiples of `chunk`, wherever training starts, so that one that goes on compiles the same programs.
    Every array stays on the devices where it is.
    Raises NonFinite, before the chunk is yielded, when a cost or a gradient is not finite and is not skipped.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, training)

    @partial(jax.jit, static_argnums=3, out_shardings=(places, None))
    def run(training, data, batches, n):
        one = lambda training, batch: step(training, data if batches is None else batch)
        return lax.scan(one, training, batches, length=n)

    first = int(training.step)
    ends = [*range(first - first % chunk + chunk, steps, chunk), steps] if first < steps else []
    fed, data = (data.chunks(first, ends), None) if isinstance(data, Stream) else (repeat(None, len(ends)), data)
    with closing(fed) if data is None else nullcontext():
        for end, batches in zip(ends, fed, strict=True):
            before = training
            training, metrics = run(before, data, batches, end - first)
            first = end
            metrics = jax.tree.map(np.asarray, metrics)
            finite = np.isfinite(metrics.cost)
            if metrics.gradient_norm is not None:
                finite &= np.isfinite(metrics.gradient_norm)
            finite |= metrics.skipped
            if not finite.all():
                raise NonFinite(diagnosis(step, before, data, batches, int(np.argmin(finite))))
            yield training, metrics


def next_batch(step: Step, data, training: Training):
    """The batch of the next step, wherever it comes from."""
    return data.batch(int(training.step)) if isinstance(data, Stream) else step.batch(data, training)[0]


def diagnosis(step: Step, training: Training, data, batches, ahead: int) -> str:
    """Runs the steps of a chunk again up to the bad one, and that one layer by layer."""
    once = jax.jit(step)
    of_step = lambda i: data if batches is None else jax.tree.map(lambda leaf: leaf[i], batches)
    for i in range(ahead):
        training, _ = once(training, of_step(i))
    what = f"step {int(training.step)}: the cost or the gradient is not finite"
    if jax.process_count() > 1:
        return f"{what}; one process alone would find the layer: run it again from the newest checkpoint"
    batch, key = step.batch(of_step(ahead), training)
    try:
        place = first_nonfinite(step.plain or step.objective, step.params(training), training.state, batch, key)
        where = f"first in {place}" if place else "in the gradient's norm alone: its squares overflow"
    except InputError as error:  # values are known here, as they were not under jit
        where = str(error)
    return f"{what}, {where}"
