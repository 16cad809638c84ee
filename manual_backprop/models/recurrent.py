"""Models of sequences with a memory: gated ones, the vanilla one, and a diagonal state-space model.

    lstm, gru, rnn    cells one on top of another, each reads all states of the one below
    state_space       blocks x + w₂ h, h the states of a `LinearRecurrentUnit` that reads a · σ(b), [a b] = w₁ norm(x)

The recurrence of a state-space model is linear. So it is the gate before it that chooses what is remembered, and the
gate of the next block that makes something of it. (Orvieto 2023, arXiv:2303.06349, has its gate after.)
"""

from __future__ import annotations

from functools import partial

from manual_backprop import ops
from manual_backprop.combinators import Repeat, Residual, Serial, Truncated
from manual_backprop.contract import Layer
from manual_backprop.errors import choose, want_count
from manual_backprop.layers import (
    GRU,
    LSTM,
    RNN,
    Apply,
    Dense,
    Embedding,
    LastStep,
    LayerNorm,
    LinearRecurrentUnit,
)
from manual_backprop.layers.sequence import keeping

CELLS = {"lstm": partial(LSTM, b_init=keeping), "gru": GRU, "rnn": RNN}


def recurrent(
    cell: str,
    hidden: int,
    outputs: int,
    depth: int = 1,
    vocabulary: int | None = None,
    last: bool = False,
    truncate: int | None = None,
    carried: bool = False,
) -> Serial:
    """A model of sequences: x [..., time, in], or with a vocabulary ids [..., time] → [..., time, outputs].

    cell: "lstm", "gru", "rnn" or "state_space".  hidden: numbers in a state; of a state-space model the width, and as
    many complex numbers.  depth: how many, one on another.  last: only the last step's output, [..., outputs].
    truncate: the gradient goes back so many steps, within each part of so many.
    carried: a batch goes on where the one before ended, its states in the model's state.
    Raises InputError for another cell, and for numbers below 1.
    """
    known = choose("recurrent: cell", cell, {**CELLS, "state_space": None})
    want_count("recurrent: depth", depth)
    kept = carried or truncate is not None
    if known is None:
        reads = Dense(hidden) if vocabulary is None else Embedding(vocabulary, hidden)
        first, memory = [reads], [Repeat(_block(hidden, kept), depth)]
    else:
        layer = known(hidden, carried=kept)
        first = [] if vocabulary is None else [Embedding(vocabulary, hidden)]
        memory = [layer, Repeat(layer, depth - 1)] if depth > 1 else [layer]
    if truncate is not None:
        memory = [Truncated(Serial(*memory), truncate, carried)]
    return Serial(*first, *memory, *([LastStep()] if last else []), Dense(outputs))


def _block(width: int, carried: bool) -> Layer:
    return Residual(
        Serial(
            LayerNorm(),
            Dense(4 * width),
            Apply(ops.glu()),
            LinearRecurrentUnit(carried=carried),
            Dense(width),
        )
    )
