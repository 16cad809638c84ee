"""What a training step of a transformer will take, without running it: memory by the compiler, time by the limits.

Nothing is allocated: the step is compiled for shapes. A mesh larger than the machine is one of simulated CPU devices;
what the compiler plans for each of them is then a guess for another kind of device, as its fusions differ.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from manual_backprop import ops
from manual_backprop.contract import value_and_grad
from manual_backprop.errors import InputError
from manual_backprop.inspection.products import Products, products
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.training.descent import Descent

CHUNKED = ops.chunked_attention(causal=True, chunk=128)
SCHEDULES = {  # the fastest first, as a rule
    "everything": (Schedule("everything"), False),
    "dear": (Schedule("dear", CHUNKED), False),
    "dear, update in backward": (Schedule("dear", CHUNKED), True),
    "inputs": (Schedule("inputs", CHUNKED, "backward", 4096), False),
    "inputs, update in backward": (Schedule("inputs", CHUNKED, "backward", 4096), True),
    "last, update in backward": (Schedule("last", CHUNKED, "backward", 4096), True),
}


class Plan(NamedTuple):
    """Of one device: bytes of memory, flops and bytes of the matrix products of one step."""

    schedule: str
    parameters: int
    temporary: int
    peak: int  # parameters, what the optimiser remembers, the batch, and the temporary memory
    products: Products

    def seconds(self, rate: float, bandwidth: float) -> float:
        """At least so long takes a step: at so many flops and bytes a second, whichever is the limit."""
        return max(self.products.flops / rate, self.products.bytes / bandwidth)


def plan(size: Size, batch: int, schedule: str, compute: str | None = None, devices: int = 1) -> Plan:
    """AdamW on `batch` examples of the size's length, over so many devices, each with all parameters.

    Raises InputError when the devices do not divide the batch, and when there are fewer.
    """
    keep, in_backward = SCHEDULES[schedule]
    if batch % devices:
        raise InputError(f"plan: {devices} devices do not divide a batch of {batch}")
    if len(jax.devices()) < devices:
        raise InputError(f"plan: there are {len(jax.devices())} devices, {devices} are wanted")
    objective = gpt(size, replace(keep, compute=compute))
    optimizer = optax.adamw(1e-3)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    over = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    ids = jax.ShapeDtypeStruct((batch, size.length), jnp.int32, sharding=over("data"))
    params, state = jax.eval_shape(objective.init, jax.random.key(0), (ids, ids))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if in_backward:
        descent = Descent(objective, optimizer)
        training = jax.eval_shape(descent.start, params)

        def step(weights, ids, labels):
            (cost, _), weights = descent(weights, state, (ids, labels))
            return weights, cost
    else:
        training = params, jax.eval_shape(optimizer.init, params)

        def step(training, ids, labels):
            params, optimizer_state = training
            (cost, _), gradient = value_and_grad(objective)(params, state, (ids, labels))
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
            return (optax.apply_updates(params, updates), optimizer_state), cost

    everywhere = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=over())
    training = jax.tree.map(everywhere, training)
    memory = jax.jit(step, donate_argnums=0).lower(training, ids, ids).compile().memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    of_all = products(step, training, ids, ids)
    return Plan(
        schedule, count, memory.temp_size_in_bytes, peak, Products(of_all.flops / devices, of_all.bytes / devices)
    )


def in_words(plans: list[Plan], memory: float | None, rate: float, bandwidth: float) -> str:
    """A table for people, and which schedule fits."""
    head = f"{'schedule':28} {'temporary':>10} {'peak':>10} {'TFLOP':>9} {'moved':>10} {'at least':>10}"
    lines = [f"{plans[0].parameters:,} parameters; for each device:", head + ("  fits" if memory else "")]
    for p in plans:
        line = f"{p.schedule:28} {size_of(p.temporary):>10} {size_of(p.peak):>10} {p.products.flops / 1e12:9.3f} "
        line += f"{size_of(p.products.bytes):>10} {1e3 * p.seconds(rate, bandwidth):8.1f} ms"
        lines.append(line + (f"  {'yes' if p.peak <= memory else 'no'}" if memory else ""))
    if memory:
        fits = [p for p in plans if p.peak <= memory]
        leanest = min(plans, key=lambda p: p.peak)
        best = min(fits, key=lambda p: p.seconds(rate, bandwidth)) if fits else None
        if best:
            lines.append(f"of those that fit into {size_of(memory)}, the least work: {best.schedule}")
        else:
            wants = f"{leanest.schedule} wants {size_of(leanest.peak)}"
            lines.append(f"none fits into {size_of(memory)}: {wants}; take a smaller batch")
    return "\n".join(lines)


def size_of(n: float) -> str:
    """1.25 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n / 1e3:.1f} kB"


def bytes_of(text: str) -> float:
    """'24GB' as a number. Raises InputError."""
    units = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
    number, unit = text[:-2].strip(), text[-2:].lower()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        raise InputError(f"plan: memory {text!r} is not understood; wants, say, 24GB") from None
    if not 0 < value < 1e18:
        raise InputError(f"plan: memory {text!r} is out of range; wants, say, 24GB")
    return value


def limits() -> tuple[float, float]:
    """This machine's: flops a second of a large matrix product, bytes a second of a large copy."""

    def best(function, x) -> float:
        compiled = jax.jit(function)
        jax.block_until_ready(compiled(x))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(compiled(x))
            times.append(time.perf_counter() - start)
        return min(times)

    n, large = 3072, jnp.ones(1 << 25)
    return 2 * n**3 / best(lambda a: a @ a, jnp.ones((n, n))), 2 * large.nbytes / best(lambda x: x + 1, large)
