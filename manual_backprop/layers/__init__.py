"""Layers: an op, the names of its parameters, and how they start. One file per family of ops."""

from manual_backprop.layers.base import Apply, Identity, Initializer, OpLayer, lecun_normal, ones, zeros
from manual_backprop.layers.linear import Dense
from manual_backprop.layers.norms import LayerNorm

__all__ = ["Apply", "Dense", "Identity", "Initializer", "LayerNorm", "OpLayer", "lecun_normal", "ones", "zeros"]
