"""Models: combinators only."""

from manual_backprop.models import gpt
from manual_backprop.models.chain import chain
from manual_backprop.models.mlp import mlp

__all__ = ["chain", "gpt", "mlp"]
