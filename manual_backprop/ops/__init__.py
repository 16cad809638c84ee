"""Ops: arrays in, arrays out, one file per derivation, one folder per family.

Each name is a constructor that binds options and gives an `Op`:

    y = mb.ops.layer_norm(eps=1e-6)(x, scale, bias)
"""

from manual_backprop.ops.activations import *
from manual_backprop.ops.activations import __all__ as _activations
from manual_backprop.ops.algebra import *
from manual_backprop.ops.algebra import __all__ as _algebra
from manual_backprop.ops.attention import *
from manual_backprop.ops.attention import __all__ as _attention
from manual_backprop.ops.collectives import *
from manual_backprop.ops.collectives import __all__ as _collectives
from manual_backprop.ops.costs import *
from manual_backprop.ops.costs import __all__ as _costs
from manual_backprop.ops.linear import *
from manual_backprop.ops.linear import __all__ as _linear
from manual_backprop.ops.norms import *
from manual_backprop.ops.norms import __all__ as _norms
from manual_backprop.ops.pooling import *
from manual_backprop.ops.pooling import __all__ as _pooling
from manual_backprop.ops.routing import *
from manual_backprop.ops.routing import __all__ as _routing
from manual_backprop.ops.sequence import *
from manual_backprop.ops.sequence import __all__ as _sequence
from manual_backprop.ops.shape import *
from manual_backprop.ops.shape import __all__ as _shape
from manual_backprop.ops.softmax import *
from manual_backprop.ops.softmax import __all__ as _softmax

__all__ = [
    *_linear,
    *_activations,
    *_norms,
    *_softmax,
    *_costs,
    *_attention,
    *_pooling,
    *_sequence,
    *_routing,
    *_algebra,
    *_shape,
    *_collectives,
]
