"""What the devices of a mesh send each other in a compiled program, and how often."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

SENT = {  # by each of n devices in a ring, for a result of r bytes on each
    "all-reduce": lambda r, n: 2 * r * (n - 1) / n,
    "all-gather": lambda r, n: r * (n - 1) / n,
    "reduce-scatter": lambda r, n: r * (n - 1),
    "all-to-all": lambda r, n: r * (n - 1) / n,
    "collective-permute": lambda r, n: r,
}
CALLS = {  # where an instruction names the computations that it runs
    "while": ("body", "condition"),
    "call": ("to_apply",),
    "fusion": ("calls",),
    "async-start": ("calls",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
}


def sent(program: str) -> dict[str, float]:
    """Bytes that each device sends in one run of a compiled program, `jax.jit(f).lower(…).compile().as_text()`.

    By kind of collective, as a ring would send them: from the shape of what each leaves on a device, and the number of
    devices that take part. Loops count as often as they turn, where the compiler knows it, else once; of branches,
    all. What is copied within a device does not count. Compiled for the CPU, gradients that end up cut are summed by
    an all-reduce, twice the bytes of the reduce-scatter that a GPU takes, and sums are of float32.
    """
    found = re.search(r"num_partitions=(\d+)", program)
    everyone, total, groups = int(found[1]) if found else 1, {}, {}
    for line, name, shape, operation, times in instructions(program):
        kind = operation.removesuffix("-start").removesuffix("-done")
        if kind not in SENT:
            continue
        n = _group(line, everyone)
        if operation.endswith("-start"):  # its shape may hold the operands too: that of -done does not
            groups[name] = n
            continue
        if operation.endswith("-done"):
            n = groups[re.search(r"-done\([^%]*%?([\w.\-]+)\)", line)[1]]
        total[kind] = total.get(kind, 0.0) + times * SENT[kind](_bytes(shape), n)
    return total


def instructions(program: str) -> Iterator[tuple[str, str, str, str, int]]:
    """(line, name, shape, operation, times) for all that runs, from the program's entry on."""
    computations, entry = {}, None
    for line in program.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line):
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z\-]*)\(", line):
            lines.append((line, *found.groups()))

    def run(computation: str, times: int):
        for instruction in computations.get(computation, ()):
            yield *instruction, times
            line, operation = instruction[0], instruction[3]
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line) if operation == "while" else None
            for place in CALLS.get(operation, ()):
                for names in re.findall(rf"\b{place}=(\{{[^}}]*\}}|[^,\s]+)", line):
                    for inner in re.findall(r"[\w.\-]+", names):
                        yield from run(inner, times * int(turns[1]) if turns else times)

    yield from run(entry, 1)


def _bytes(shape: str) -> float:
    """Of 'f32[4,8]{1,0}', or of a tuple of such."""
    size = lambda dtype: int(re.search(r"\d+", dtype)[0]) / 8 if dtype != "pred" else 1
    found = re.findall(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]", shape)
    return sum(size(dtype) * math.prod(int(n) for n in sizes.split(",") if n) for dtype, sizes in found)


def _group(line: str, everyone: int) -> int:
    """How many devices take part together; the compiler writes it in three ways."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):  # mesh['a'=4,'b'=2] {'b'}
        of_axis = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])  # 'b':(1)2 is a part of an axis
        return math.prod(int(part or of_axis[axis]) for axis, part in named)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):  # [4,2]<=[8]: four groups of two
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    return everyone
