"""What a training step of a transformer will take, without running it: memory by the compiler, time by the limits.

Nothing is allocated: the step is compiled for shapes. A mesh larger than the machine is one of simulated CPU devices;
what the compiler plans for each of them is then a guess for another kind of device, as its fusions differ.

The time is a lower bound: products count as if they were cut evenly and each operand were read once, and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from manual_backprop import ops
from manual_backprop.combinators import MicroBatches
from manual_backprop.contract import value_and_grad
from manual_backprop.errors import InputError, choose, want_count
from manual_backprop.inspection.collectives import sent
from manual_backprop.inspection.products import Products, products
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.training import sharding
from manual_backprop.training.descent import Descent
from manual_backprop.training.devices import copy_rate, matmul_rate

CHUNKED = ops.chunked_attention(causal=True, chunk=128)
IN_BACKWARD = ", update in backward"
_KEEPS = {
    "everything": Schedule("everything"),
    "dear": Schedule("dear", CHUNKED),
    "inputs": Schedule("inputs", CHUNKED, "backward", 4096),
    "last": Schedule("last", CHUNKED, "backward", 4096),
}
SCHEDULES = {  # the fastest first, as a rule: (schedule, whether each layer is updated in the backward pass)
    f"{name}{IN_BACKWARD * late}": (keep, late) for name, keep in _KEEPS.items() for late in (False, True)
}


class Plan(NamedTuple):
    """What one step asks of one device."""

    schedule: str
    mesh: dict[str, int]
    platform: str  # for which it was compiled
    parameters: int  # of the model, all devices together
    temporary: int  # bytes
    peak: int  # its part of parameters, optimiser's state and batch, and the temporary memory
    products: Products  # its part of the matrix products of all devices, as if they were cut evenly
    sent: dict[str, float]  # bytes to other devices, by kind of collective; see `sent`

    def seconds(self, machine: Machine) -> float:
        """At least so long takes a step: whatever is the limit, if all the rest happens meanwhile."""
        sending = sum(self.sent.values()) / machine.link
        return max(self.products.flops / machine.rate, self.products.bytes / machine.bandwidth, sending)


class Machine(NamedTuple):
    """One device."""

    rate: float  # flops a second
    bandwidth: float  # bytes a second of its memory
    link: float = math.inf  # bytes a second that it sends to others
    memory: float = math.inf  # bytes


def plan(
    size: Size,
    batch: int,
    schedule: str,
    compute: str | None = None,
    mesh: Mesh | None = None,
    accumulate: int = 1,
) -> Plan:
    """AdamW on `batch` examples of the size's length, on a mesh (see `sharding`), in so many parts one after another.

    Raises InputError for what does not divide: the batch by its parts and the mesh's data and fsdp, the heads and the
    hidden neurons by its model.
    """
    keep, in_backward = choose("plan: schedule", schedule, SCHEDULES)
    batch, accumulate = want_count("plan: batch", batch), want_count("plan: accumulate", accumulate)
    mesh = mesh or sharding.mesh_of({"data": 1})
    want_divided(size, batch, mesh, accumulate)
    objective = sharding.on_mesh(gpt(size, replace(keep, compute=compute)), mesh)
    objective = objective if accumulate == 1 else MicroBatches(objective, accumulate)
    optimizer = optax.adamw(1e-3)
    of_ids = sharding.placed(sharding.of_batch(mesh), mesh)
    ids = jax.ShapeDtypeStruct((batch, size.length), jnp.int32, sharding=of_ids)
    params, state = jax.eval_shape(objective.init, jax.random.key(0), (ids, ids))
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

    specs = sharding.of_mirrors(training, params, sharding.of_params(objective, params, mesh))
    there = sharding.placed(specs, mesh)
    shape = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    training = jax.tree.map(shape, training, there)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(there, None)).lower(training, ids, ids).compile()
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    of_all = products(step, training, ids, ids)
    return Plan(
        schedule,
        dict(mesh.shape),
        mesh.devices.flat[0].platform,
        sum(leaf.size for leaf in jax.tree.leaves(params)),
        memory.temp_size_in_bytes,
        peak,
        Products(of_all.flops / mesh.size, of_all.bytes / mesh.size),
        sent(compiled.as_text()) if mesh.size > 1 else {},
    )


def want_divided(size: Size, batch: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises InputError where the mesh, or the parts, do not divide what they cut."""
    n = sharding.parts(mesh)
    if batch % accumulate or batch // accumulate % n:
        by = [f"{name}={mesh.shape[name]}" for name in sharding.CUT_BATCH if mesh.shape.get(name, 1) > 1]
        by += [f"{accumulate} parts"] * (accumulate > 1)
        up = -(-batch // (n * accumulate)) * n * accumulate
        does = "does" if len(by) == 1 and accumulate == 1 else "do"
        raise InputError(f"plan: {' and '.join(by)} {does} not divide a batch of {batch}; {up} would be")
    m, whole = mesh.shape.get("model", 1), math.gcd(size.heads, size.key_heads, size.hidden)
    if whole % m:
        heads = f"{size.heads} heads, {size.key_heads} key heads and {size.hidden} hidden neurons"
        fits = ", ".join(str(k) for k in range(1, whole + 1) if whole % k == 0)
        raise InputError(f"plan: model={m} does not divide {heads}; wants one of {fits}")


def advice(size: Size, batch: int, compute: str | None, schedule: str, memory: float, accumulate: int = 1) -> str:
    """For a run that has no room in `memory` bytes of one device: what would have, in one line or two.

    The first of the leaner schedules that fits, those that update where this one does before the others; and in how
    many parts the batch would fit. If neither does, the largest batch that does, halved from this one. What fits must
    be smaller than what failed, too: then something else takes memory that the plan does not know of.
    A program is compiled for each that is tried, some seconds each: 2 to 4 as a rule.
    """
    failed = plan(size, batch, schedule, compute, accumulate=accumulate)
    room = min(memory, failed.peak - 1)
    names, late = list(SCHEDULES), SCHEDULES[schedule][1]
    leaner = sorted(names[names.index(schedule) + 1 :], key=lambda name: SCHEDULES[name][1] != late)
    leaner = [name for name in leaner if accumulate == 1 or not SCHEDULES[name][1]]  # which knows no parts
    tried, best = [failed], None
    for name in leaner:
        tried.append(plan(size, batch, name, compute, accumulate=accumulate))
        if tried[-1].peak <= room:
            best = tried[-1]
            break
    lines = [f"of {size_of(memory)}, {schedule!r} wants {size_of(failed.peak)}"]
    if best:
        lines[0] += f"; {best.schedule!r} would want {size_of(best.peak)}"
        lines[0] += ", and is another model, of two streams" * best.schedule.startswith("last")
    if not late:
        parts = lambda n: n * accumulate
        in_parts = lambda n: None if batch % parts(n) else plan(size, batch, schedule, compute, accumulate=parts(n))
        if found := _smaller(failed, batch, room, in_parts):
            lines.append(
                f"the batch in {parts(found[0])} parts, one after another, would want {size_of(found[1].peak)}"
            )
    if not best and len(lines) == 1:
        leanest = min(tried, key=lambda p: p.peak)
        lines[0] += f", and the leanest, {leanest.schedule!r}, {size_of(leanest.peak)}"
        part = lambda n: plan(size, batch // n, leanest.schedule, compute, accumulate=accumulate)
        found = _smaller(leanest, batch, room, lambda n: None if batch % (n * accumulate) else part(n))
        if found:
            lines.append(f"a batch of {batch // found[0]} would want {size_of(found[1].peak)} with it")
        else:
            lines.append("no smaller batch would fit: take a smaller size, or a smaller length")
    return "\n".join(lines)


def _smaller(whole: Plan, batch: int, room: float, of: Callable[[int], Plan | None]) -> tuple[int, Plan] | None:
    """The first n of 2, 4, 8 … for which of(n) fits. At best, the temporary memory shrinks to 1/n: then it is tried."""
    n = 2
    while n <= batch:
        hope = whole.peak - whole.temporary * (1 - 1 / n)
        if hope <= room and (found := of(n)) and found.peak <= room:
            return n, found
        n *= 2
    return None


def best_of(plans: list[Plan], machine: Machine) -> Plan | None:
    """Of those that fit, the one with the least work."""
    fits = [p for p in plans if p.peak <= machine.memory]
    return min(fits, key=lambda p: p.seconds(machine)) if fits else None


def in_words(plans: list[Plan], machine: Machine) -> str:
    """A table for people, and which schedule fits."""
    limited, cut = machine.memory < math.inf, math.prod(plans[0].mesh.values()) > 1
    axes = ", ".join(f"{name}={n}" for name, n in plans[0].mesh.items())
    of_mesh = f"{math.prod(plans[0].mesh.values())} devices ({axes})" if cut else "one device"
    lines = [f"{plans[0].parameters:,} parameters; of each of {of_mesh}, compiled for {plans[0].platform}:"]
    head = f"{'schedule':30} {'temporary':>10} {'peak':>10} {'flops':>9} {'moved':>10}"
    lines.append(head + f" {'sent':>10}" * cut + f" {'at least':>11}" + "  fits" * limited)
    for p in plans:
        line = f"{p.schedule:30} {size_of(p.temporary):>10} {size_of(p.peak):>10} {size_of(p.products.flops, ''):>9} "
        line += f"{size_of(p.products.bytes):>10}" + f" {size_of(sum(p.sent.values())):>10}" * cut
        line += f" {1e3 * p.seconds(machine):8.1f} ms"
        lines.append(line + ("  yes" if p.peak <= machine.memory else "  no") * limited)
    if limited:
        leanest, best = min(plans, key=lambda p: p.peak), best_of(plans, machine)
        if best:
            lines.append(f"of those that fit into {size_of(machine.memory)}, the least work: {best.schedule}")
        else:
            wants = f"{leanest.schedule} wants {size_of(leanest.peak)}"
            lines.append(f"none fits into {size_of(machine.memory)}: {wants}; take a smaller batch")
    return "\n".join(lines)


def as_json(size: Size, batch: int, compute: str | None, plans: list[Plan], machine: Machine) -> dict:
    """The same for programs: bytes, flops and seconds of each device."""
    best = best_of(plans, machine)
    return {
        "size": asdict(size),
        "batch": batch,
        "compute": compute or "float32",
        "mesh": plans[0].mesh,
        "platform": plans[0].platform,
        "parameters": plans[0].parameters,
        "machine": {name: n if n < math.inf else None for name, n in machine._asdict().items()},
        "schedules": [
            {
                "schedule": p.schedule,
                "temporary": p.temporary,
                "peak": p.peak,
                "flops": p.products.flops,
                "moved": p.products.bytes,
                "sent": p.sent,
                "seconds": p.seconds(machine),
                "fits": p.peak <= machine.memory,
            }
            for p in plans
        ],
        "best": best.schedule if best else None,
    }


def size_of(n: float, unit: str = "B") -> str:
    """1.25 GB."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if n >= scale:
            return f"{n / scale:.2f} {prefix}{unit}"
    return f"{n / 1e3:.1f} k{unit}"


def bytes_of(text: str) -> float:
    """'24GB' as a number; 'GiB' is 2³⁰. Raises InputError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt])(i?)b\s*", text.lower())
    if not found:
        raise InputError(f"plan: memory {text!r} is not understood; wants, say, 24GB")
    number, unit, binary = found.groups()
    value = float(number) * (1024 if binary else 1000) ** ("kmgt".index(unit) + 1)
    if not 0 < value < 1e18:
        raise InputError(f"plan: memory {text!r} is out of range; wants, say, 24GB")
    return value


def limits() -> tuple[float, float]:
    """This machine's: flops a second of a large matrix product, bytes a second of a large copy."""
    used = jax.devices()[0]
    return matmul_rate(used), copy_rate(used)
