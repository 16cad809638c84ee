"""Wrong backward passes, none of which an oracle may let through: the mistakes that people make, kind by kind."""

from . import (
    wrong_activations,
    wrong_algebra,
    wrong_arrays,
    wrong_attention,
    wrong_contract,
    wrong_costs,
    wrong_draws,
    wrong_dtype,
    wrong_linear,
    wrong_norms,
    wrong_regime,
    wrong_second,
    wrong_sequence,
    wrong_state,
    wrong_windows,
)
from .wrong_base import Wrong, custom

MODULES = [
    wrong_linear,
    wrong_windows,
    wrong_norms,
    wrong_costs,
    wrong_attention,
    wrong_activations,
    wrong_sequence,
    wrong_arrays,
    wrong_algebra,
    wrong_dtype,
    wrong_contract,
    wrong_regime,
    wrong_draws,
    wrong_state,
    wrong_second,
]


def presented(place: int, wrong: Wrong) -> Wrong:
    """Every fourth of the pairs with a wrong value comes as a jax.custom_vjp instead."""
    as_function = wrong.kind == "value" and isinstance(wrong.candidate, tuple) and place % 4 == 3
    return wrong._replace(candidate=custom(*wrong.candidate)) if as_function else wrong


WRONG: list[Wrong] = [presented(*each) for each in enumerate(wrong for module in MODULES for wrong in module.WRONG)]
