"""Transformers that predict the next token: GPT-2 (Radford 2019) and what is usual today, out of combinators.

    gpt2      learned positions, layer norm before each branch, GELU, biases, the head tied to the embedding
    modern    rotary positions, RMS norm, SwiGLU, grouped-query heads, no biases, a head of its own (LLaMA 2,
              Touvron 2023, arXiv:2307.09288)

The whole objective is one layer: token ids and the ids that follow them, to the average cost of a token. A `Schedule`
says what the backward pass keeps, and in which pieces it computes; the gradients are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, get_args

import jax
from jax import lax

from manual_backprop import ops
from manual_backprop.combinators import (
    Objective,
    Parallel,
    Precision,
    Recompute,
    Repeat,
    Residual,
    Reversible,
    Serial,
    Tied,
)
from manual_backprop.contract import Layer, Op
from manual_backprop.errors import InputError, choose, want_count
from manual_backprop.layers import (
    Apply,
    Dense,
    Embedding,
    Identity,
    LayerNorm,
    LinearCrossEntropy,
    PositionalEmbedding,
    RMSNorm,
    Rotary,
)
from manual_backprop.layers.base import Initializer
from manual_backprop.ops.arrays import wide_dtype

Keep = Literal["everything", "dear", "inputs", "last"]


@dataclass(frozen=True)
class Size:
    """How large, and which of the two.

    hidden: neurons of a block's perceptron; None: 4 · width, or for "modern" 8/3 · width up to a multiple of 64.
    key_heads: how many heads of keys and values the heads share; None: as many as there are.
    """

    vocabulary: int
    length: int
    depth: int
    width: int
    heads: int
    key_heads: int | None = None
    hidden: int | None = None
    architecture: Literal["gpt2", "modern"] = "gpt2"

    def __post_init__(self):
        for name in ("vocabulary", "length", "depth", "width", "heads"):
            want_count(f"gpt: {name}", getattr(self, name))
        if self.architecture not in ("gpt2", "modern"):
            raise InputError(f"gpt: architecture is {self.architecture!r}; wants 'gpt2' or 'modern'")
        if self.key_heads is None:
            object.__setattr__(self, "key_heads", self.heads)
        if self.hidden is None:
            up = math.ceil(8 * self.width / 3 / 64) * 64
            object.__setattr__(self, "hidden", up if self.architecture == "modern" else 4 * self.width)
        if self.width % self.heads:
            raise InputError(f"gpt: {self.heads} heads do not divide the width {self.width}")
        if self.heads % want_count("gpt: key_heads", self.key_heads):
            raise InputError(f"gpt: {self.key_heads} key heads do not divide the {self.heads} heads")
        want_count("gpt: hidden", self.hidden)


SIZES = {
    "tiny": Size(256, 64, 2, 64, 4),
    "small": Size(512, 256, 12, 256, 4),
    "gpt2-124m": Size(50257, 1024, 12, 768, 12),
    "gpt2-355m": Size(50257, 1024, 24, 1024, 16),
    "gpt2-774m": Size(50257, 1024, 36, 1280, 20),
    "gpt2-1.5b": Size(50257, 1024, 48, 1600, 25),
    "modern-tiny": Size(256, 64, 2, 64, 4, 2, architecture="modern"),
    "modern-124m": Size(50304, 1024, 12, 768, 12, 4, architecture="modern"),
    "modern-1b": Size(32000, 2048, 22, 2048, 32, 4, 5632, architecture="modern"),
    "modern-7b": Size(32000, 4096, 32, 4096, 32, 32, 11008, architecture="modern"),
}


@dataclass(frozen=True)
class Schedule:
    """What the backward pass keeps of the forward pass, and in which pieces it computes.

    keep: of each block "everything" that a backward pass asks for; what is "dear" to compute again, without norms and
    activations; its "inputs" alone; or of all blocks the "last" one's output, which makes the blocks reversible, of two
    streams: another model with the same parameters.
    attention: the op, `ops.attention(causal=True)` or a chunked one.
    head: options of `LinearCrossEntropy`: gradients, chunk.
    compute: the dtype of matrix products, see `Precision`; None: that of the parameters, float32.
    """

    keep: Keep = "everything"
    attention: Op = field(default_factory=lambda: ops.attention(causal=True))
    gradients: Literal["forward", "backward"] = "forward"
    chunk: int = 1024
    compute: str | None = None

    def __post_init__(self):
        if self.keep not in get_args(Keep):
            raise InputError(f"gpt: keep is {self.keep!r}; wants one of {', '.join(get_args(Keep))}")


def gpt(size: Size | str, schedule: Schedule = Schedule(), **head) -> Layer:
    """The objective: (ids [batch, length], labels [batch, length]) → the average cost of a token, in nats.

    size: a `Size`, or a name of `SIZES`.  head: further options of `LinearCrossEntropy`, as ignored=-1.
    Weights start normal with deviation 0.02, those that end a branch with 0.02 / √(2 depth) (Radford 2019, 2.3).
    """
    size = choose("gpt: size", size, SIZES) if isinstance(size, str) else size
    normal = _normal(0.02)
    rounded = lambda layer: layer if schedule.compute is None else Precision(layer, schedule.compute)
    norm = rounded(_norm(size))
    positions = (
        [rounded(PositionalEmbedding(size.length, normal))] if size.architecture == "gpt2" else [rounded(Identity())]
    )
    model = Serial(Embedding(size.vocabulary, size.width, table_init=normal), *positions, _blocks(size, schedule), norm)
    cost = LinearCrossEntropy(
        size.vocabulary, gradients=schedule.gradients, chunk=schedule.chunk, weight_init=normal, **head
    )
    objective = Objective(model, rounded(cost))
    return Tied(objective, (0, 0, "table"), (1, "weight")) if size.architecture == "gpt2" else objective


def _blocks(size: Size, schedule: Schedule) -> Layer:
    rounded = lambda layer: layer if schedule.compute is None else Precision(layer, schedule.compute)
    attention, perceptron = _attention(size, schedule), _perceptron(size, schedule)
    if schedule.keep == "last":
        fork, join = Parallel(Identity(), Identity()), Apply(ops.add())
        return Serial(fork, Reversible(rounded(attention), rounded(perceptron), size.depth), join)
    block = rounded(Serial(Residual(attention), Residual(perceptron)))
    return Repeat(Recompute(block) if schedule.keep == "inputs" else block, size.depth)


def _attention(size: Size, schedule: Schedule) -> Serial:
    """Norm, queries with keys and values in one product, attention, and a product back to the width."""
    H, K = size.width // size.heads, size.key_heads
    return Serial(
        _after(schedule, _norm(size), _dense(size, (size.heads + 2 * K) * H)),
        Apply(ops.reshape(shape=(-1, H), from_axis=-1)),
        Apply(ops.split(sections=(size.heads, K, K), axis=-2)),
        *([Rotary()] if size.architecture == "modern" else []),
        Apply(schedule.attention),
        Apply(ops.flatten(from_axis=-2)),
        _dense(size, size.width, ends=True),
    )


def _perceptron(size: Size, schedule: Schedule) -> Serial:
    norm, last = _norm(size), _dense(size, size.width, ends=True)
    if size.architecture == "gpt2":
        return Serial(_after(schedule, norm, _dense(size, size.hidden)), _after(schedule, Apply(ops.gelu()), last))
    gate_and_value = Apply(ops.split(sections=2))
    return Serial(
        _after(schedule, norm, _dense(size, 2 * size.hidden)),
        gate_and_value,
        _after(schedule, Apply(ops.swiglu()), last),
    )


def _after(schedule: Schedule, cheap: Layer, dense: Dense) -> Layer:
    """A dense layer after a cheap one. To recompute both takes no product: only what is asked for is computed."""
    both = Serial(cheap, dense)
    return Recompute(both) if schedule.keep == "dear" else both


def _norm(size: Size) -> Layer:
    return LayerNorm() if size.architecture == "gpt2" else RMSNorm(eps=1e-5)


def _dense(size: Size, features: int, ends: bool = False) -> Dense:
    """ends: this product ends a branch, and is added to what the 2 · depth others have made."""
    deviation = 0.02 / math.sqrt(2 * size.depth) if ends else 0.02
    return Dense(features, bias=size.architecture == "gpt2", w_init=_normal(deviation))


@cache
def _normal(deviation: float) -> Initializer:
    """One initialiser a deviation: layers compare theirs by identity, and equal models are to be equal."""
    return jax.nn.initializers.normal(deviation)


def training_flops(size: Size, tokens: int) -> float:
    """Multiplications and additions of the matrix products of a training step, all pairs of positions counted."""
    dense = size.width * (size.width // size.heads * (size.heads + 2 * size.key_heads) + size.width)
    dense += size.width * size.hidden * (2 if size.architecture == "gpt2" else 3)
    pairs = 2 * size.length * size.width
    return 3 * 2 * tokens * (size.depth * (dense + pairs) + size.width * size.vocabulary)


def logits(objective: Layer, params, state, ids) -> jax.Array:
    """What the model predicts: ids [..., T] → logits [..., T, vocabulary], in at least float32."""
    if isinstance(objective, Tied):
        params, objective = objective.spread(params), objective.layer
    hidden = objective.model.apply(params[0], state[0], ids)
    weight = params[1]["weight"].astype(hidden.dtype)
    return lax.dot_general(
        hidden, weight, (((hidden.ndim - 1,), (1,)), ((), ())), preferred_element_type=wide_dtype(hidden.dtype)
    )
