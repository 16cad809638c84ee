"""Layers: an op, the names of its parameters, and how they start. One file per family of ops."""

from manual_backprop.layers.activations import PReLU
from manual_backprop.layers.attention import Rotary
from manual_backprop.layers.base import Apply, Identity, OpLayer
from manual_backprop.layers.costs import LinearCrossEntropy
from manual_backprop.layers.linear import (
    Bilinear,
    Conv,
    ConvTranspose,
    Dense,
    Embedding,
    LowRankDense,
    PositionalEmbedding,
)
from manual_backprop.layers.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LayerScale, RMSNorm
from manual_backprop.layers.routing import Dropout, GaussianSample, StochasticDepth
from manual_backprop.layers.sequence import GRU, LSTM, RNN, LastStep, LinearRecurrentUnit

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Apply",
    "BatchNorm",
    "Bilinear",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Dropout",
    "Embedding",
    "GaussianSample",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "LastStep",
    "LayerNorm",
    "LayerScale",
    "LinearCrossEntropy",
    "LinearRecurrentUnit",
    "LowRankDense",
    "OpLayer",
    "PReLU",
    "PositionalEmbedding",
    "RMSNorm",
    "Rotary",
    "StochasticDepth",
]
