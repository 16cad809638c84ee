"""Models: combinators only."""

from manual_backprop.models import autoencoder, convnet, gpt
from manual_backprop.models.chain import chain
from manual_backprop.models.mlp import mlp
from manual_backprop.models.recurrent import recurrent

__all__ = ["autoencoder", "chain", "convnet", "gpt", "mlp", "recurrent"]
