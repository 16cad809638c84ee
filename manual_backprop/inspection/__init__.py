"""What flows backward, made visible."""

from manual_backprop.inspection.explain import Explanation, Factors, Paths, explain
from manual_backprop.inspection.nonfinite import every_value, first_nonfinite

__all__ = ["Explanation", "Factors", "Paths", "every_value", "explain", "first_nonfinite"]
