"""An experiment that scripts/run.py starts gets its memory in large pages."""

import os
import subprocess

import pytest

import run


@pytest.mark.parametrize(
    ("job", "given", "expected"),
    [
        ("digits", {}, run.HUGE_PAGES),
        ("digits", {"GLIBC_TUNABLES": "glibc.malloc.check=1"}, "glibc.malloc.check=1"),
        ("benchmark", {}, None),
    ],
)
def test_what_the_allocator_is_told(monkeypatch, job, given, expected):
    told = []
    monkeypatch.setattr(os, "environ", given)
    for module, name in ((os, "execv"), (subprocess, "call")):
        monkeypatch.setattr(module, name, lambda *command: told.append(given.get("GLIBC_TUNABLES")) or 0)
    with pytest.raises(SystemExit):
        run.start(job, [])
    assert told[0] == expected
