"""What flows backward, made visible."""

from manual_backprop.inspection.explain import Explanation, Factors, Paths, explain
from manual_backprop.inspection.nonfinite import every_value, first_nonfinite
from manual_backprop.inspection.through_time import Sensitivities, hidden_sensitivities, through_time

__all__ = [
    "Explanation",
    "Factors",
    "Paths",
    "Sensitivities",
    "every_value",
    "explain",
    "first_nonfinite",
    "hidden_sensitivities",
    "through_time",
]
