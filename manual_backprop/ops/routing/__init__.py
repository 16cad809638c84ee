"""Routing: which numbers go where: chosen, dropped, drawn, gathered, scattered, rounded."""

from manual_backprop.ops.routing.dropout import dropout, stochastic_depth
from manual_backprop.ops.routing.gather import gather, gather_along
from manual_backprop.ops.routing.gaussian_sample import gaussian_sample
from manual_backprop.ops.routing.scatter import scatter, scatter_add
from manual_backprop.ops.routing.straight_through import reverse_gradient, stop_gradient, straight_through_round
from manual_backprop.ops.routing.top_k_gate import top_k_gate

__all__ = [
    "dropout",
    "gather",
    "gather_along",
    "gaussian_sample",
    "reverse_gradient",
    "scatter",
    "scatter_add",
    "stochastic_depth",
    "stop_gradient",
    "straight_through_round",
    "top_k_gate",
]
