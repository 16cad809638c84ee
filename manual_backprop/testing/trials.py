"""What a backward pass is tried on: the arguments as given, others made from them, and cotangents of several kinds.

A gradient that is right at ordinary numbers may be wrong at large ones, at zeros, ties or constant rows. Others
stay in the domain that the given ones show: symmetric and triangular matrices, rows that sum to one or have length one,
sorted values, whole numbers and masks keep that, indices stay in their range; where the reference is not finite,
nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from manual_backprop.errors import InputError
from manual_backprop.testing.leaves import array, is_inexact, largest


class Trial(NamedTuple):
    """Arguments and a cotangent.

    derived: the oracle made the arguments, so where the truth is not finite is not asked.
    gains: for each leaf of the arguments, how large its gradient is for a cotangent of ones' size, where that is known:
    rounding is of that size, even in entries that a one-hot cotangent does not reach.
    """

    where: str
    args: tuple
    dy: Any
    derived: bool = False
    gains: tuple[float, ...] = ()


# ── cotangents ───────────────────────────────────────────────────────────────────────────────────────────────────────


def cotangents(rng, dy, nonlinear: bool) -> Iterator[tuple[str, Any]]:
    """Other cotangents for the same arguments, by name."""
    for factor in (1e-4, 1e4):
        yield f"dy × {factor:g}", jax.tree.map(lambda d, factor=factor: d * jnp.asarray(factor, d.dtype), dy)
    if not nonlinear:
        yield "dy of zeros", jax.tree.map(jnp.zeros_like, dy)
    yield "dy of ones", jax.tree.map(jnp.ones_like, dy)
    leaves, tree = jax.tree.flatten(dy)
    sizes = [leaf.size for leaf in leaves]
    total = sum(sizes)
    for at in dict.fromkeys((0, total - 1, *(int(i) for i in rng.integers(0, max(total, 1), 2)))):
        if 0 <= at < total:
            starts = np.cumsum([0, *sizes[:-1]])
            hot = [_one_hot(leaf, at - start) for leaf, start in zip(leaves, starts, strict=True)]
            yield f"dy one-hot at {at}", tree.unflatten(hot)
    if any(leaf.ndim and leaf.shape[0] > 1 for leaf in leaves):
        first = [jnp.zeros_like(leaf).at[:1].set(leaf[:1]) if leaf.ndim else leaf for leaf in leaves]
        yield "dy of the first example alone", tree.unflatten(first)


def _one_hot(leaf, at: int):
    flat = np.zeros(leaf.size)
    if 0 <= at < leaf.size:
        flat[at] = 1
    return jnp.asarray(flat.reshape(leaf.shape), leaf.dtype)


LAST_INDEX = "with the last index at places"


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────


def regimes(rng, args: tuple, samples: list[tuple], names: list[str], effort: str) -> Iterator[tuple[str, tuple]]:
    """Other arguments of the same shapes, by name. samples: valid ones, which show the domain better."""
    flat, tree = jax.tree.flatten(args)
    others = [leaves for leaves in map(jax.tree.leaves, samples) if len(leaves) == len(flat)]
    seen = [
        [np.asarray(x) for x in (leaf, *more)] if _plain(leaf) else []
        for leaf, *more in zip(flat, *others, strict=True)
    ]
    kinds = [_kind(leaf, values) for leaf, values in zip(flat, seen, strict=True)]

    def each(change: Callable, *of: str, only: int | None = None):
        return tree.unflatten(
            [
                jnp.asarray(change(np.array(leaf, _wide(leaf))), leaf.dtype)
                if kind in of and (only is None or i == only)
                else leaf
                for i, (leaf, kind) in enumerate(zip(flat, kinds, strict=True))
            ]
        )

    real = ("mixed", "positive")
    if any(kind in real for kind in kinds):
        if effort != "quick":
            yield "permuted", each(lambda x: rng.permutation(x.ravel()).reshape(x.shape), *real)
            yield "drawn anew", each(lambda x: _drawn_like(rng, x), *real)
        yield "with signs flipped", each(lambda x: -x, "mixed")
        for factor in (100.0, 1e-4) if effort == "quick" else (1e-4, 1e-2, 30.0, 1e4):
            yield f"× {factor:g}", each(lambda x, factor=factor: x * factor, *real, "scalable")
        yield "with constant rows", each(lambda x: x[..., :1] + 0 * x if x.ndim else x, *real)
        yield "with ties", each(lambda x: _rounded(x), *real)
        if pair := _alike(flat, kinds, real):
            i, j = pair
            half = np.where(rng.random(flat[i].shape) < 0.5, np.array(flat[i]), np.array(flat[j]))
            leaves = [jnp.asarray(half, leaf.dtype) if k == j else leaf for k, leaf in enumerate(flat)]
            yield f"with {names[j]} = {names[i]} in half the entries", tree.unflatten(leaves)
        yield "with some zeros", each(lambda x: np.where(rng.random(x.shape) < 0.4, 0, x), "mixed")
        if effort != "quick":
            yield "over a wide range", each(lambda x: x * 10.0 ** rng.uniform(-4, 4, x.shape), *real)
            for i in [i for i, kind in enumerate(kinds) if kind == "mixed"][:4]:
                yield f"with {names[i]} of zeros", each(lambda x: 0 * x, "mixed", only=i)
        if effort == "thorough":
            for factor in (1e-12, 1e-8, 1e8, 1e12):
                yield f"× {factor:g}", each(lambda x, factor=factor: x * factor, *real)
    for i in [i for i, kind in enumerate(kinds) if kind == "positive" and flat[i].size >= 4][:4]:
        yield f"with the signs of {names[i]} flipped", each(lambda x: -x, "positive", only=i)
        yield (
            f"with some zeros in {names[i]}",
            each(lambda x: np.where(rng.random(x.shape) < 0.4, 0, x), "positive", only=i),
        )
    if "index" in kinds:
        yield "with other indices", each(lambda x: rng.integers(x.min(), x.max() + 1, x.shape), "index")
        yield "with the largest index alone", each(lambda x: np.full_like(x, x.max()), "index")
        yield "with the smallest index alone", each(lambda x: np.full_like(x, x.min()), "index")
        sizes = sorted({n for leaf in flat if is_inexact(leaf) for n in leaf.shape})
        top = max(int(np.max(leaf)) for leaf, kind in zip(flat, kinds, strict=True) if kind == "index")
        if last := next((n - 1 for n in sizes if n - 1 > top), None):  # no axis that is indexed is shorter
            yield LAST_INDEX, each(lambda x: np.where((x >= 0) & (rng.random(x.shape) < 0.5), last, x), "index")
    if "mask" in kinds:
        yield "with other masks", each(lambda x: rng.permutation(x.ravel()).reshape(x.shape), "mask")
        yield "with masks of ones", each(lambda x: np.ones_like(x), "mask")
    if any(kind == "key" for kind in kinds):
        moved = [jax.random.fold_in(leaf, 1) if kind == "key" else leaf for leaf, kind in zip(flat, kinds, strict=True)]
        yield "with another key", tree.unflatten(moved)


def _alike(flat, kinds, real) -> tuple[int, int] | None:
    """The first two leaves of numbers that have the same shape and dtype."""
    leaves = [(i, leaf) for i, (leaf, kind) in enumerate(zip(flat, kinds, strict=True)) if kind in real and leaf.ndim]
    for n, (i, a) in enumerate(leaves):
        for j, b in leaves[n + 1 :]:
            if a.shape == b.shape and a.dtype == b.dtype:
                return i, j
    return None


def in_bounds(reference: Callable, args: tuple) -> bool:
    """Whether the largest index, in these arguments, is the last of what the reference indexes, and not beyond it.

    Beyond it, the reference raises, gives nan, or gives what it gives for the index before.
    """
    check = checkify.checkify(reference, errors=checkify.index_checks)
    is_index = lambda leaf: _plain(leaf) and not is_inexact(leaf) and leaf.dtype != bool and leaf.size

    def values(step: int) -> list | None:
        moved = jax.tree.map(lambda x: jnp.where(x == x.max(), x + step, x) if is_index(x) else x, args)
        error, y = check(*moved)
        y = [np.asarray(leaf) for leaf in jax.tree.leaves(y)]
        return None if error.get() is not None or not all(np.isfinite(leaf).all() for leaf in y) else y

    try:
        here, before = values(0), values(-1)
    except Exception:  # what it does not know
        return False
    return here is not None and before is not None and any(map(np.any, map(np.not_equal, here, before)))


def of_one(args: tuple, y) -> tuple | None:
    """The first example alone, where the leading axis of y is one of examples; None where there is none."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(y) if leaf.ndim}
    if not sizes:  # a cost: its arguments say what the examples are, such as predictions and targets
        leading = [leaf.shape[0] for leaf in jax.tree.leaves(args) if leaf.ndim]
        sizes = set(leading) if len(leading) > 1 else set()
    if len(sizes) != 1 or (n := sizes.pop()) < 2:
        return None
    cut = lambda leaf: leaf.ndim > 0 and leaf.shape[0] == n
    if any(leaf.ndim and not is_inexact(leaf) and not cut(leaf) for leaf in jax.tree.leaves(args)):
        return None  # indices of what is no longer there
    return jax.tree.map(lambda leaf: leaf[:1] if cut(leaf) else leaf, args)


def _plain(leaf) -> bool:
    """Whether numpy can hold it: no key."""
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _wide(leaf):
    return np.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else (
        np.float64 if is_inexact(leaf) else leaf.dtype
    )  # fmt: skip


def _kind(leaf, values: list[np.ndarray]) -> str:
    """What may become of a leaf: "mixed" and "positive" numbers, "scalable" ones that are structured, an "index", a
    "mask", a "key"; "fixed" is left as it is."""
    if not _plain(leaf):
        return "key" if leaf.ndim == 0 else "fixed"
    if leaf.size == 0:
        return "fixed"
    if not is_inexact(leaf):
        if leaf.dtype == bool:
            return "mask" if leaf.ndim else "fixed"
        steady = all(v.ndim and v.size > 1 and (np.diff(v.ravel()) >= 0).all() for v in values)
        return "fixed" if leaf.ndim == 0 or steady or leaf.dtype == jnp.uint32 else "index"
    values = [np.asarray(v, _wide(leaf)) for v in values]
    if not all(np.isfinite(v).all() for v in values):
        return "fixed"
    if np.iscomplexobj(values[0]):
        return "mixed"
    eps = 64 * float(jnp.finfo(leaf.dtype).eps)
    if all(_is_square(v) and np.abs(v - np.swapaxes(v, -1, -2)).max() <= eps * np.abs(v).max() for v in values):
        return "scalable"
    if all(_is_square(v) and (not np.triu(v, 1).any() or not np.tril(v, -1).any()) for v in values):
        return "scalable"
    if leaf.size >= 4 and all(np.isin(v, (0, 1)).all() for v in values):
        return "fixed"
    if leaf.ndim and leaf.shape[-1] > 1 and all(_on_a_sphere(v, eps) for v in values):
        return "fixed"
    if leaf.ndim and leaf.shape[-1] >= 8 and all((np.diff(v) > 0).all() or (np.diff(v) < 0).all() for v in values):
        return "fixed"
    return "positive" if all((v > 0).all() for v in values) else "mixed"


def _is_square(v) -> bool:
    return v.ndim >= 2 and v.shape[-1] == v.shape[-2] > 1


def _on_a_sphere(v, eps) -> bool:
    """Rows that sum to one, and are no less than zero; or of length one."""
    sums, lengths = v.sum(-1), (v * v).sum(-1)
    return bool(((v >= 0).all() and np.abs(sums - 1).max() <= eps) or np.abs(lengths - 1).max() <= eps)


def _drawn_like(rng, x):
    """Numbers of the same spread and signs."""
    if np.iscomplexobj(x):
        return largest([x]) / 2 * (rng.standard_normal(x.shape) + 1j * rng.standard_normal(x.shape))
    if (x > 0).all():
        return np.median(x) * np.exp(0.5 * rng.standard_normal(x.shape))
    return x.mean() + (x.std() or largest([x])) * rng.standard_normal(x.shape)


def _rounded(x):
    """On few levels, so that many are equal; positive numbers stay so."""
    step = (np.abs(x).mean() or 1.0) / 2
    rounded = np.round(x / step)
    if not np.iscomplexobj(x) and (x > 0).all():
        rounded = np.maximum(rounded, 1)
    return rounded * step


# ── what the caller draws ────────────────────────────────────────────────────────────────────────────────────────────


def drawn(sample, count: int, seed: int) -> list[tuple]:
    """`count` draws of the caller's: of `seed -> args`, or of a Hypothesis strategy.

    Raises InputError for what is neither, or draws what is no array.
    """
    if sample is None:
        return []
    if hasattr(sample, "example") and hasattr(sample, "map"):
        found = _from_strategy(sample, count, seed)
    elif callable(sample):
        found = [sample(seed + 1 + i) for i in range(count)]
    else:
        raise InputError(f"check_vjp: sample is {sample!r}; wants a function seed -> args, or a Hypothesis strategy")
    return [jax.tree.map(array, args if isinstance(args, tuple) else (args,)) for args in found]


def _from_strategy(strategy, count: int, seed: int) -> list:
    import hypothesis

    found = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(args):
        found.append(args)

    collect()
    return found[-count:]
