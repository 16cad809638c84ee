"""The table of ops is read back as it was written, and one table is of one machine."""

import runpy
from pathlib import Path

import pytest

import manual_backprop as mb

ROOT = Path(__file__).parents[1]


@pytest.fixture
def table():
    return runpy.run_path(str(ROOT / "scripts" / "table.py"))


def test_a_line_is_read_back_as_it_was_written(table):
    lines = [line for line in (ROOT / "tests" / "ops.md").read_text().splitlines() if line.startswith("| ")]
    head, *rows, _ = lines
    assert head == f"| {' | '.join(table['COLUMNS'])} |"
    assert [table["Row"].of(line).line() for line in rows] == rows and len(rows) > 100


def test_lines_of_another_machine_are_not_mixed_in(table):
    with pytest.raises(mb.InputError, match=r"ops\.md is of another machine or version; leave out --ops"):
        table["written"](["# Every op, measured", "", "jax 0.0"])
