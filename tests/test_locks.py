"""The locks: pins with hashes, one jax for every Python, up to date with pyproject.toml."""

import pytest
from packaging.markers import Marker

import lock
import run


def pins(name):
    """The lock's entries: package, version, marker and the rest."""
    text = (run.LOCKS / f"{name}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines()[1:]:
        requirement, *hashes = line.split("--hash=")
        pin, _, marker = requirement.partition(";")
        package, _, version = pin.strip().partition("==")
        yield package, version, marker.strip(), hashes


@pytest.mark.parametrize("name", [*run.ACCELERATORS, "uv"])
def test_a_lock_is_pins_with_hashes_and_nothing_else(name):
    text = (run.LOCKS / f"{name}.txt").read_text()
    assert not any(word in text for word in ("://", " @ ", "-index", "--find", "file:", "manual"))
    assert "/" not in text
    for package, version, _, hashes in pins(name):
        assert package and version and hashes, (package, version, hashes)
        assert all(len(value.strip()) == len("sha256:") + 64 for value in hashes), package


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("name", run.ACCELERATORS)
def test_a_lock_has_one_jax_for_every_python(name, python):
    here = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    found = {"jax": [], "jaxlib": []}
    for package, version, marker, _ in pins(name):
        if package in found and (not marker or Marker(marker).evaluate(here)):
            found[package].append(version)
    assert len(found["jax"]) == 1 and found["jax"] == found["jaxlib"]


@pytest.mark.parametrize("name", run.ACCELERATORS)
def test_the_locks_agree(name):
    shared = {package for package, *_ in pins("cpu")}
    versions = {(package, version) for package, version, *_ in pins(name) if package in shared}
    assert versions == {(package, version) for package, version, *_ in pins("cpu")}


def test_the_locks_are_up_to_date():
    lock.check()
