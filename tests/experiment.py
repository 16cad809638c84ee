"""An experiment run in this process, as a user would start it."""

import importlib
import sys
from typing import NamedTuple

import jax
import pytest

from manual_backprop.training import run


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def ran(capsys, name: str, *words) -> Ran:
    """The exit code and what was printed by experiments/NAME.py with these words."""
    jax.devices()  # those of conftest.py, before an option asks for more of them
    module = importlib.import_module(f"experiments.{name}")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        run.main(module.main)
    return Ran(ended.value.code, *capsys.readouterr())
