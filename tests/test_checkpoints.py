"""Checkpoints are whole or are not used: every file damaged in every way, and what is kept."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
from manual_backprop.layers import Apply
from manual_backprop.training.checkpoints import MANIFEST, Checkpoints, digest, read_manifest
from manual_backprop.training.loop import NonFinite, Step, Training

X, TARGET = jnp.asarray(np.random.default_rng(0).normal(size=(31, 5)), jnp.float32), jnp.ones((31, 3))


def a_step(*hidden: int) -> Step:
    objective = mb.Objective(mb.models.mlp(*hidden, 3), Apply(mb.ops.squared_error()))
    return Step(objective, optax.with_extra_args_support(optax.adam(1e-2)), 7, 0)


def trained(n: int, *hidden: int) -> Training:
    step = a_step(*(hidden or (11,)))
    once, training = jax.jit(step), step.start((X, TARGET))
    for _ in range(n):
        training, _ = once(training, (X, TARGET))
    return training


FIRST, SECOND = trained(2), trained(4)


class Told(list):
    """What the checkpoints say."""

    def __call__(self, text):
        self.append(text)


def saved(folder, *trainings, keep=3, scores=()):
    """The checkpoints in a folder, these saved."""
    checkpoints = Checkpoints(folder, keep, told := Told())
    for i, training in enumerate(trainings):
        checkpoints.save(training, scores[i] if scores else None)
        checkpoints.wait()
    checkpoints.close()
    assert not told
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Steps 2 and 4."""
    return saved(tmp_path_factory.mktemp("two") / "checkpoints", FIRST, SECOND)


def restored(folder, like=FIRST, **more):
    """(what was restored, what was said)."""
    checkpoints = Checkpoints(folder, 3, told := Told())
    try:
        return checkpoints.restore(like, **more), told
    finally:
        checkpoints.close()


def test_what_is_restored_is_what_was_saved(two):
    training, told = restored(two)
    assert digest(training) == digest(SECOND) != digest(FIRST) and not told
    assert jax.tree.structure(training) == jax.tree.structure(SECOND)
    for a, b in zip(jax.tree.leaves(training), jax.tree.leaves(SECOND), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding
    again, _ = jax.jit(a_step(11))(training, (X, TARGET))
    onward, _ = jax.jit(a_step(11))(SECOND, (X, TARGET))
    assert digest(again) == digest(onward)


def test_nothing_was_saved_yet(tmp_path):
    assert restored(tmp_path / "checkpoints") == (None, [])


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [truncate, flip, empty, delete, longer], ids=lambda damage: damage.__name__)
def test_a_damaged_file_leads_to_the_step_before(two, tmp_path, damage):
    names = sorted(path.relative_to(two / "4").as_posix() for path in (two / "4").rglob("*") if path.is_file())
    assert len(names) > 8 and MANIFEST in names
    for i, name in enumerate(names):
        folder = tmp_path / str(i) / "checkpoints"
        shutil.copytree(two, folder)
        damage(folder / "4" / name)
        training, told = restored(folder)
        assert digest(training) == digest(FIRST), name
        named = "its manifest" if name == MANIFEST else name
        assert told[0].startswith(f"checkpoint of step 4 is not used: {named}"), told
        assert told[1:] == ["checkpoint of step 2 is whole: training goes on from there"]
        assert sorted(path.name for path in folder.iterdir()) == ["2", "4.refused"]


def rewritten(folder, **changes):
    """A manifest that fits itself, and says something else."""
    from manual_backprop.training.checkpoints import _digest

    manifest = read_manifest(folder) | changes
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": _digest(manifest)}))


FOREIGN = {
    "an empty folder": (lambda step: (shutil.rmtree(step), step.mkdir()), "manifest cannot be read: No such file"),
    "somebody else's files": (
        lambda step: (shutil.rmtree(step), step.mkdir(), (step / "model.bin").write_text("weights")),
        "manifest cannot be read",
    ),
    "a file in its place": (lambda step: (shutil.rmtree(step), step.write_text("")), "Not a directory"),
    "another step's folder": (lambda step: (shutil.rmtree(step), shutil.copytree(step.parent / "2", step)), "it is of step 2"),
    "another format": (lambda step: rewritten(step, format=7), "its format is 7; this version reads 1"),
    "no format": (lambda step: rewritten(step, format=None), "its format is None"),
    "a manifest that is a list": (lambda step: (step / MANIFEST).write_text("[]"), "its manifest cannot be read"),
    "a manifest that is no JSON": (lambda step: (step / MANIFEST).write_text("{"), "its manifest cannot be read"),
    "a manifest of null": (lambda step: (step / MANIFEST).write_text("null"), "its manifest cannot be read"),
    "another run's": (lambda step: rewritten(step, run="another"), "it is of another run, 'another'; this one is ''"),
    "a manifest of nothing": (lambda step: (step / MANIFEST).write_text("{}"), "its manifest cannot be read"),
    "gone": (lambda step: shutil.rmtree(step), "it was saved, and is not there"),
    "without its data": (lambda step: shutil.rmtree(step / "state"), "cannot be read: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_folder_leads_to_the_step_before(two, tmp_path, name):
    shutil.copytree(two, folder := tmp_path / "checkpoints")
    damage, line = FOREIGN[name]
    damage(folder / "4")
    training, told = restored(folder, saved=[2, 4])
    assert digest(training) == digest(FIRST)
    assert line in told[0], told


def test_another_schema_is_refused_and_everything_stays(tmp_path):
    folder = saved(tmp_path / "checkpoints", FIRST)
    checkpoints = Checkpoints(folder, 3, told := Told())
    with pytest.raises(mb.InputError, match="none of its checkpoints can be used"):
        checkpoints.restore(trained(0, 13))
    assert (
        "it is of another training: it has .params[0][0]['b'], float32[11]; wants .params[0][0]['b'], float32[13]"
        in told[0]
    )
    assert [path.name for path in folder.iterdir()] == ["2"]
    with pytest.raises(mb.InputError, match="none of its checkpoints can be used"):
        checkpoints.restore(FIRST._replace(optimizer_state=()))
    assert "arrays" in told[1] or "wants" in told[1]
    checkpoints.close()


def test_where_all_are_gone_nothing_begins_anew(tmp_path):
    with pytest.raises(mb.InputError, match="none of its checkpoints can be used"):
        restored(tmp_path / "checkpoints", saved=[2])


def test_a_save_that_was_killed_leaves_no_step(two, tmp_path):
    shutil.copytree(two, folder := tmp_path / "checkpoints")
    (folder / "4").rename(folder / "4.partial")
    training, told = restored(folder, saved=[2])
    assert digest(training) == digest(FIRST) and not told
    assert [path.name for path in folder.iterdir()] == ["2"]


def test_the_newest_and_the_best_are_kept(tmp_path):
    steps = [FIRST._replace(step=jnp.int32(n)) for n in (10, 20, 30, 40, 50)]
    folder = saved(tmp_path / "checkpoints", *steps, keep=2, scores=[3.0, 1.0, 2.0, float("nan"), 4.0])
    assert sorted(path.name for path in folder.iterdir()) == ["20", "40", "50"]
    assert [read_manifest(folder / name)["score"] for name in ("20", "40", "50")] == [1.0, None, 4.0]


def test_a_refused_step_is_not_overwritten_by_the_next_one_of_its_number(two, tmp_path):
    shutil.copytree(two, folder := tmp_path / "checkpoints")
    flip(folder / "4" / "state" / "_METADATA")
    before = (folder / "4" / "state" / "_METADATA").read_bytes()
    restored(folder)
    saved(folder, SECOND)
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "4.refused"]
    assert (folder / "4.refused" / "state" / "_METADATA").read_bytes() == before


@pytest.mark.parametrize("place", ["params", "optimizer_state", "state"])
def test_a_poisoned_state_is_not_saved(tmp_path, place):
    poison = lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan) if leaf.ndim else leaf
    bad = jax.tree.map(poison, getattr(FIRST, place)) if place != "state" else {"mean": jnp.full(3, jnp.inf)}
    if place == "optimizer_state":
        bad = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), bad)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3, Told())
    with pytest.raises(NonFinite, match=rf"step 2: \.{place}.* is not finite after the update; nothing is saved of it"):
        checkpoints.save(FIRST._replace(**{place: bad}))
    checkpoints.close()
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_that_cannot_be_written_is_told_and_training_goes_on(tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in its place")
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3, told := Told())
    checkpoints.save(FIRST)
    checkpoints.close()
    assert "the checkpoint of step 2 could not be written" in told[0] and "there is none yet" in told[0]
    assert checkpoints.failure
    (tmp_path / "checkpoints").unlink()
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3, told)
    checkpoints.save(SECOND)
    checkpoints.close()
    assert checkpoints.newest == 4 and len(told) == 1


def test_orbax_cannot_save_what_is_empty_so_it_is_left_out(tmp_path):
    training = FIRST._replace(
        state={"empty": jnp.zeros((0, 3)), "key": jax.random.key(7), "half": jnp.ones(3, jnp.bfloat16)}
    )
    folder = saved(tmp_path / "checkpoints", training)
    found, _ = restored(folder, training)
    assert digest(found) == digest(training) and found.state["empty"].shape == (0, 3)
    assert (jax.random.key_data(found.state["key"]) == jax.random.key_data(jax.random.key(7))).all()
