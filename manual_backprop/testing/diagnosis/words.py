"""What a finding says of the cause by itself, before any formula is tried."""

from __future__ import annotations

from collections.abc import Iterator

from manual_backprop.testing.report import Finding

LAWS = (
    "deterministic",
    "pure",
    "leaked tracer",
    "vmap",
    "scan",
    "sharded",
    "linear in the cotangent",
    "adjoint identity",
)


def words(finding: Finding) -> Iterator[str]:
    """What a finding says of the cause by itself."""
    leaf, what, detail = finding.leaf, finding.property, finding.detail
    if what == "shape and dtype":
        yield _of_shape_and_dtype(leaf, *detail.removeprefix("got ").split(", expected "))
    elif what in ("arity", "structure"):
        yield f"{what}: {leaf}: {detail}"
    elif what == "runs":
        yield f"{leaf} {detail}"
    elif what == "jit = eager":
        yield f"{leaf} under jit is not as outside: values are looked at in Python, or state is kept between calls"
    elif what in LAWS:
        yield f"{what}: {leaf}: {detail or 'breaks this law'}"
    elif what.startswith("derivative of order"):
        yield (
            f"{what} is wrong: the first derivative is right, but backward, or a residual of it, holds something "
            "constant that depends on the arguments (stop_gradient, a cast to integers, a rule of its own)"
        )
    elif what.startswith("primal"):
        yield f"primal: {leaf} itself differs from the reference's" + (f", {detail}" if detail else "")


def _of_shape_and_dtype(leaf: str, got: str, wanted: str) -> str:
    wanted = wanted.removesuffix(", as its argument")
    if got == "None":
        return f"{leaf} is missing: None stands for an integer argument, this one is {wanted}"
    if "[" in got and got.partition("[")[2] == wanted.partition("[")[2]:
        return f"dtype: {leaf} is {got}; a cotangent has its argument's dtype: cast it to {wanted.partition('[')[0]}"
    return f"shape: {leaf} is {got}; a cotangent has its argument's shape, {wanted}"
