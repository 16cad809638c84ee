"""PyTorch's functions, with its signatures, written in our ops: one file per family.

PyTorch publishes sample inputs for them; `tests/test_torch_samples.py` runs each forward and backward against PyTorch.
A function bears the name of its OpInfo, with underscores for dots, and takes arrays for tensors.
"""


class Skip(Exception):
    """A sample that is no use of the op; the message says why."""
