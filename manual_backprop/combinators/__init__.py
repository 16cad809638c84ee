"""Combinators: layers made of layers. Each is one sentence of the calculus, whatever the layers are.

`params` and `state` of a combinator of several layers are tuples, one entry a layer. A PRNG key is split, one a layer.
"""

from manual_backprop.combinators.loss_scale import LossScale
from manual_backprop.combinators.micro_batches import MicroBatches
from manual_backprop.combinators.objective import Objective
from manual_backprop.combinators.penalised import Penalised
from manual_backprop.combinators.precision import Precision
from manual_backprop.combinators.recompute import Recompute
from manual_backprop.combinators.repeat import Repeat
from manual_backprop.combinators.residual import Residual
from manual_backprop.combinators.reversible import Reversible
from manual_backprop.combinators.several import Parallel, Serial
from manual_backprop.combinators.split import settled, split
from manual_backprop.combinators.tied import Tied
from manual_backprop.combinators.truncated import Truncated

__all__ = [
    "LossScale",
    "MicroBatches",
    "Objective",
    "Parallel",
    "Penalised",
    "Precision",
    "Recompute",
    "Repeat",
    "Residual",
    "Reversible",
    "Serial",
    "Tied",
    "Truncated",
    "settled",
    "split",
]
