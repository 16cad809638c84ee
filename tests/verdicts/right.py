"""Backward passes that are right and hard to judge: an oracle that rejects one of them gives a false alarm."""

from .right_algorithms import ALGORITHMS
from .right_arguments import ARGUMENTS
from .right_callbacks import CALLBACKS
from .right_case import Right
from .right_complex import COMPLEX
from .right_conditioning import CONDITIONING
from .right_domains import DOMAINS
from .right_functions import FUNCTIONS
from .right_kernels import KERNELS
from .right_kinks import KINKS
from .right_layers import LAYERS
from .right_nan import NAN
from .right_outputs import OUTPUTS
from .right_precision import PRECISION
from .right_sequences import SEQUENCES
from .right_surrogates import NONLINEAR, SURROGATES
from .right_transforms import TRANSFORMS

THEMES: dict[str, list[Right]] = {
    "precision": PRECISION,
    "kernels": KERNELS,
    "algorithms": ALGORITHMS,
    "transforms": TRANSFORMS,
    "conditioning": CONDITIONING,
    "kinks": KINKS,
    "nan": NAN,
    "arguments": ARGUMENTS,
    "complex": COMPLEX,
    "domains": DOMAINS,
    "functions": FUNCTIONS,
    "outputs": OUTPUTS,
    "surrogates": SURROGATES,
    "nonlinear": NONLINEAR,
    "callbacks": CALLBACKS,
    "layers": LAYERS,
    "sequences": SEQUENCES,
}
RIGHT: list[Right] = [case for cases in THEMES.values() for case in cases]
