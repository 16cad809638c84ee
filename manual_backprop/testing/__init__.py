"""The oracle: says whether a backward pass is right, leaf by leaf. Needs jax and numpy alone.

`jax.vjp` occurs here, as the judge; nowhere else in the library.
"""

from manual_backprop.testing.difference import gradient_difference
from manual_backprop.testing.examination import EFFORTS
from manual_backprop.testing.mutants import Mutation
from manual_backprop.testing.mutation import Score, mutation_score
from manual_backprop.testing.oracle import assert_vjp_matches, check_vjp
from manual_backprop.testing.pair import Pair, as_pair
from manual_backprop.testing.report import Finding, Report
from manual_backprop.testing.timing import Program, compare

__all__ = [
    "EFFORTS",
    "Finding",
    "Mutation",
    "Pair",
    "Program",
    "Report",
    "Score",
    "as_pair",
    "assert_vjp_matches",
    "check_vjp",
    "compare",
    "gradient_difference",
    "mutation_score",
]
