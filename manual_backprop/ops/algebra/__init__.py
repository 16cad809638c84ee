"""Matrix calculus: functions of a whole matrix."""

from manual_backprop.ops.algebra.cholesky import cholesky
from manual_backprop.ops.algebra.inverse import inverse
from manual_backprop.ops.algebra.log_determinant import log_determinant
from manual_backprop.ops.algebra.solve import solve
from manual_backprop.ops.algebra.symmetric_eigenvalues import symmetric_eigenvalues
from manual_backprop.ops.algebra.triangular_solve import triangular_solve

__all__ = ["cholesky", "inverse", "log_determinant", "solve", "symmetric_eigenvalues", "triangular_solve"]
