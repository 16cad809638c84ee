"""Linear layers."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.contract import Op
from manual_backprop.errors import InputError, want_count
from manual_backprop.layers.base import Initializer, OpLayer, lecun_normal, vectors, zeros
from manual_backprop.ops.arrays import wide
from manual_backprop.ops.linear.embedding import rows_added
from manual_backprop.ops.linear.windows import Padding, PerAxis

# Variance 1/features for a table [rows, features]; 1/(in1 · in2) for w [out, in1, in2].
table_normal = jax.nn.initializers.variance_scaling(1.0, "fan_out", "normal")
bilinear_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(1, 2), out_axis=0)


@dataclass(frozen=True, repr=False)
class Dense(OpLayer):
    """z = x w + b: x [..., in] → [..., features]; w [in, features], b [features] in x's dtype. The op: `ops.dense`."""

    features: int
    bias: bool = True
    w_init: Initializer = lecun_normal
    b_init: Initializer = zeros

    def __post_init__(self):
        object.__setattr__(self, "features", want_count("Dense: features", self.features))
        super().__post_init__()

    @property
    def op(self) -> Op:
        return ops.dense(bias=self.bias)

    def parameters(self, key, x):
        shape, dtype = vectors("Dense", x)
        w_key, b_key = jax.random.split(key)
        params = {"w": self.w_init(w_key, (shape[-1], self.features), dtype)}
        return params | {"b": self.b_init(b_key, (self.features,), dtype)} if self.bias else params


@dataclass(frozen=True, repr=False)
class LowRankDense(OpLayer):
    """z = x w + scale · (x a) b: x [..., in] → [..., features]; w [in, features], a [in, rank], b [rank, features].

    w is the trained weight to be adapted, by default frozen: put it in `params` after `init`. b starts at zero, so that
    z starts as x w. The op: `ops.low_rank_dense`.
    """

    features: int
    rank: int
    scale: float = 1.0
    frozen: bool = True
    w_init: Initializer = lecun_normal
    a_init: Initializer = lecun_normal
    b_init: Initializer = zeros

    def __post_init__(self):
        for name in ("features", "rank"):
            object.__setattr__(self, name, want_count(f"LowRankDense: {name}", getattr(self, name)))
        super().__post_init__()

    @property
    def op(self) -> Op:
        return ops.low_rank_dense(scale=self.scale, frozen=self.frozen)

    def parameters(self, key, x):
        shape, dtype = vectors("LowRankDense", x)
        w_key, a_key, b_key = jax.random.split(key, 3)
        return {
            "w": self.w_init(w_key, (shape[-1], self.features), dtype),
            "a": self.a_init(a_key, (shape[-1], self.rank), dtype),
            "b": self.b_init(b_key, (self.rank, self.features), dtype),
        }


@dataclass(frozen=True, repr=False)
class Bilinear(OpLayer):
    """z_o = x1 w_o x2 + b_o: a pair (x1 [..., in1], x2 [..., in2]) → [..., features]. The op: `ops.bilinear`.

    w [features, in1, in2], b [features] in x1's dtype.
    """

    features: int
    bias: bool = True
    w_init: Initializer = bilinear_normal
    b_init: Initializer = zeros

    def __post_init__(self):
        object.__setattr__(self, "features", want_count("Bilinear: features", self.features))
        super().__post_init__()

    @property
    def op(self) -> Op:
        return ops.bilinear(bias=self.bias)

    def parameters(self, key, x):
        if not isinstance(x, tuple) or len(x) != 2:
            raise InputError(
                f"Bilinear: x is {'a tuple' if isinstance(x, tuple) else 'one array'}; wants a pair (x1, x2)"
            )
        (shape1, dtype), (shape2, _) = (vectors("Bilinear", each) for each in x)
        w_key, b_key = jax.random.split(key)
        params = {"w": self.w_init(w_key, (self.features, shape1[-1], shape2[-1]), dtype)}
        return params | {"b": self.b_init(b_key, (self.features,), dtype)} if self.bias else params


@dataclass(frozen=True, repr=False)
class Embedding(OpLayer):
    """z = table[ids]: ids [...] of integers → [..., features]; table [rows, features]. The op: `ops.embedding`."""

    rows: int
    features: int
    padding_id: int | None = None
    dtype: jnp.dtype = jnp.float32
    table_init: Initializer = table_normal

    def __post_init__(self):
        for name in ("rows", "features"):
            object.__setattr__(self, name, want_count(f"Embedding: {name}", getattr(self, name)))
        super().__post_init__()

    @property
    def op(self) -> Op:
        return ops.embedding(padding_id=self.padding_id)

    def parameters(self, key, x):
        return {"table": self.table_init(key, (self.rows, self.features), self.dtype)}

    def added(self, dparams, residuals, dy):
        """dparams with this layer's gradient added: in place, where nobody else reads them."""
        dtable = dparams["table"]
        return {"table": rows_added(wide(dtable), residuals.ids, dy, self.padding_id).astype(dtable.dtype)}


@dataclass(frozen=True, repr=False)
class PositionalEmbedding(OpLayer):
    """z = x + table[: T]: x [..., T, features], T ≤ length; table [length, features]. `ops.positional_embedding`."""

    length: int
    table_init: Initializer = table_normal

    def __post_init__(self):
        object.__setattr__(self, "length", want_count("PositionalEmbedding: length", self.length))
        super().__post_init__()

    @property
    def op(self) -> Op:
        return ops.positional_embedding()

    def parameters(self, key, x):
        shape, dtype = vectors("PositionalEmbedding", x)
        return {"table": self.table_init(key, (self.length, shape[-1]), dtype)}


@dataclass(frozen=True, repr=False)
class Conv(OpLayer):
    """A convolution: x [..., *spatial, in] → [..., *spatial, features]; w [*kernel, in/groups, features], b [features].

    kernel_size: a number for each spatial axis, such as (3, 3) for images. The other options are those of the op,
    `ops.conv`, which has an input dilation too.
    """

    features: int
    kernel_size: tuple[int, ...]
    strides: PerAxis = 1
    padding: Padding = "SAME"
    kernel_dilation: PerAxis = 1
    groups: int = 1
    bias: bool = True
    w_init: Initializer = lecun_normal
    b_init: Initializer = zeros

    makes = staticmethod(ops.conv)

    def __post_init__(self):
        who = type(self).__name__
        object.__setattr__(self, "features", want_count(f"{who}: features", self.features))
        object.__setattr__(self, "kernel_size", want_kernel(who, self.kernel_size))
        super().__post_init__()

    @property
    def op(self) -> Op:
        options = ("strides", "padding", "kernel_dilation", "groups", "bias")
        return self.makes(**{name: getattr(self, name) for name in options})

    def parameters(self, key, x):
        who = type(self).__name__
        shape, dtype = vectors(who, x)
        if shape[-1] % self.groups:
            raise InputError(f"{who}: x has shape {shape}, groups is {self.groups}; wants a multiple as x's last axis")
        w_key, b_key = jax.random.split(key)
        w_shape = (*self.kernel_size, shape[-1] // self.groups, self.features)
        params = {"w": self.w_init(w_key, w_shape, dtype)}
        return params | {"b": self.b_init(b_key, (self.features,), dtype)} if self.bias else params


@dataclass(frozen=True, repr=False)
class ConvTranspose(Conv):
    """A transposed convolution, which enlarges: fields and parameters as of `Conv`. The op: `ops.conv_transpose`."""

    makes = staticmethod(ops.conv_transpose)


def want_kernel(who: str, kernel_size) -> tuple[int, ...]:
    """The kernel's sizes as a tuple. Raises InputError for one number: it does not say how many axes there are."""
    if not isinstance(kernel_size, tuple | list) or not 1 <= len(kernel_size) <= 3:
        raise InputError(f"{who}: kernel_size is {kernel_size!r}; wants 1 to 3 numbers, one for each axis, as (3, 3)")
    return tuple(want_count(f"{who}: kernel_size", size) for size in kernel_size)
