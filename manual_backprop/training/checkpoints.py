"""Checkpoints that are whole or not there: written by orbax beside the training, sealed by a manifest of sha256.

    checkpoints/1200/state/          orbax's files, each process its part
    checkpoints/1200/manifest.json   run, step, score; each array's name, dtype and shape; each file's size and sha256

All of it is written to `1200.partial`, the manifest last, and renamed when it is on the disk: a kill at any moment
leaves a step or none. A step is used again only if every file is as the manifest says, and every array is one of the
training that goes on; else the newest one that is takes its place, and what was refused is kept as `1200.refused`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.errors import InputError
from manual_backprop.training import hosts
from manual_backprop.training.loop import NonFinite, Training

FORMAT = 1
SPARE = 1 << 20  # bytes of a checkpoint besides its arrays, at most
MANIFEST = "manifest.json"
DAMAGE = (OSError, ValueError, KeyError, TypeError)  # what reading a file raises that is not what it should be


class Checkpoints:
    """Those of one run.

    keep: so many of the newest stay, and the one with the lowest score.  say: takes what a person should read.
    saved: is told the step, the seconds and the score of each one that is on the disk, in the thread that wrote it.
    run: which run they are of; those of another are not used.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 3,
        say: Callable[[str], None] = print,
        saved: Callable[[int, float, float | None], None] = lambda step, seconds, score: None,
        run: str = "",
    ):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong in orbax is told here, in one line
        self.folder, self.keep, self.say, self.saved, self.run = folder.absolute(), keep, say, saved, run
        self.args = ocp.args
        self.checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), timeout_secs=300)
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future | None = None
        self.newest: int | None = None  # the step that was written or restored last
        self.failure: str | None = None  # why the last one could not be written

    def save(self, training: Training, score: float | None = None) -> None:
        """Returns when the state is copied from the device; files are written meanwhile. The lowest score is the best.

        A state that is not finite is not saved: raises NonFinite. A disk that is full is said, and the next save tries
        again.
        """
        self.wait()
        step = int(training.step)
        if step == self.newest:
            return
        if bad := _nonfinite(training):
            raise NonFinite(f"step {step}: {', '.join(bad)} is not finite after the update; nothing is saved of it")
        score = score if score is not None and math.isfinite(score) else None
        partial, begin = self.folder / f"{step}.partial", time.perf_counter()
        for part in (self._make_room, self._copy):
            if self._failed(step, hosts.exchanged("checkpoint", _problem(part, partial, training))):
                return
        self.pending = self.thread.submit(self._finish, step, score, _leaves(training), partial, begin)

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self.pending is not None and not self.pending.done()

    def wait(self) -> None:
        """Until what is being written is on the disk."""
        if self.pending:
            step, problems = self.pending.result()
            self.pending = None
            if not self._failed(step, problems):
                self.newest = step

    def close(self) -> None:
        self.wait()
        self.thread.shutdown()
        self.checkpointer.close()

    def restore(self, like: Training, saved: Iterable[int] = ()) -> Training | None:
        """The newest whole step, on the devices where `like` is; None if nothing was saved yet.

        saved: the steps that the run says it has saved; of one that is missing, it is told.
        Raises InputError where there were checkpoints and none of them can be used.
        """
        refused: dict[int, str] = {}
        found, restored = hosts.from_first(self.steps), None
        for step in found:
            problem = hosts.from_first(lambda step=step: self.problem(step, like))
            if not problem:
                try:
                    restored = self._read(step, like)
                except Exception as error:
                    problem = f"orbax cannot read it: {_reason(error)}"
                problem = next(filter(None, hosts.exchanged("restored", problem)), None)
            if not problem:
                break
            restored, refused[step] = None, problem
        newest = found[len(refused)] if restored is not None else -1
        last = max(saved, default=-1)
        if last > newest and last not in refused:
            refused[last] = "it was saved, and is not there"
        for step, problem in refused.items():
            self.say(f"checkpoint of step {step} is not used: {problem}")
        if restored is None:
            if refused:
                raise InputError(
                    f"{self.folder}: none of its checkpoints can be used, see above; nothing was changed: put one "
                    "back, or start another run"
                )
            return None
        if refused:
            self.say(f"checkpoint of step {newest} is whole: training goes on from there")
        if hosts.is_first():
            for step in refused:
                self._set_aside(step)
            for path in self.folder.glob("*.partial"):
                shutil.rmtree(path, ignore_errors=True)
        self.newest = newest
        return restored

    def steps(self) -> list[int]:
        """Those that have a folder, whole or not, the newest first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted((int(name) for name in names if name.isascii() and name.isdecimal()), reverse=True)

    def problem(self, step: int, like: Training | None = None) -> str | None:
        """Why a step cannot be used; None if it can."""
        path = self.folder / str(step)
        try:
            manifest = read_manifest(path)
        except DAMAGE as error:
            return f"its manifest cannot be read: {_reason(error)}"
        if manifest.get("format") != FORMAT:
            return f"its format is {manifest.get('format')!r}; this version reads {FORMAT}"
        if manifest["step"] != step:
            return f"it is of step {manifest['step']}"
        if manifest["run"] != self.run:
            return f"it is of another run, {manifest['run']!r}; this one is {self.run!r}"
        for name, (size, sha256) in manifest["files"].items():
            try:
                if (path / name).stat().st_size != size:
                    return f"{name} has {(path / name).stat().st_size} bytes; the manifest says {size}"
                if _sha256(path / name) != sha256:
                    return f"{name} is damaged: its sha256 is another than the manifest's"
            except OSError as error:
                return f"{name} cannot be read: {_reason(error)}"
        if like is not None and (wants := _leaves(like)) != manifest["leaves"]:
            pairs = zip(manifest["leaves"], wants, strict=False)
            a, b = next(((a, b) for a, b in pairs if a != b), (f"{len(manifest['leaves'])} arrays", len(wants)))
            return f"it is of another training: it has {_in_words(a)}; wants {_in_words(b)}"
        return None

    def _read(self, step: int, like: Training) -> Training:
        flat, tree = jax.tree.flatten(like)
        shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        wanted = jax.tree.map(shape, _arrays(like))
        read = self.checkpointer.restore(self.folder / str(step) / "state", args=self.args.StandardRestore(wanted))
        for i, leaf in enumerate(flat):
            if _is_key(leaf):
                flat[i] = jax.device_put(
                    jax.random.wrap_key_data(read[str(i)], impl=jax.random.key_impl(leaf)), leaf.sharding
                )
            elif leaf.size:
                flat[i] = read[str(i)]
        return tree.unflatten(flat)

    def _make_room(self, partial: Path, training: Training) -> None:
        if hosts.is_first():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            wanted = SPARE + sum(leaf.nbytes for leaf in _arrays(training).values())
            if (free := shutil.disk_usage(partial).free) < wanted:  # asked before, for orbax leaves loose ends
                raise OSError(errno.ENOSPC, f"no space is left: {free:,} bytes are free, up to {wanted:,} are wanted")

    def _copy(self, partial: Path, training: Training) -> None:
        self.checkpointer.save(partial / "state", args=self.args.StandardSave(_arrays(training)))

    def _finish(self, step: int, score: float | None, leaves: list, partial: Path, begin: float) -> tuple[int, list]:
        """In the thread: the manifest, the name, and room for the next ones. Gives each process's problem, or None."""

        def seal():
            self.checkpointer.wait_until_finished()
            if hosts.is_first():
                self._seal(step, score, leaves, partial)

        problems = hosts.exchanged("sealed", _problem(seal))
        if not any(problems):
            self.saved(step, time.perf_counter() - begin, score)
        return step, problems

    def _seal(self, step: int, score: float | None, leaves: list, partial: Path) -> None:
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        for path in files:
            _flush(path)
        of_files = {path.relative_to(partial).as_posix(): [path.stat().st_size, _sha256(path)] for path in files}
        manifest = {
            "format": FORMAT,
            "run": self.run,
            "step": step,
            "score": score,
            "leaves": leaves,
            "files": of_files,
        }
        with open(partial / MANIFEST, "x") as file:
            json.dump(manifest | {"sha256": _digest(manifest)}, file, indent=1)
        _flush(partial / MANIFEST)
        self._set_aside(step)
        partial.rename(self.folder / str(step))
        _flush(self.folder)
        self._prune()

    def _prune(self) -> None:
        scores = {}
        for step in self.steps():
            with suppress(*DAMAGE):
                scores[step] = read_manifest(self.folder / str(step))["score"]
        judged = {step: score for step, score in scores.items() if score is not None}
        best = min(judged, key=lambda step: (judged[step], step)) if judged else None
        for step in [step for step in scores if step != best or step in list(scores)[: self.keep]][self.keep :]:
            gone = self.folder / f"{step}.partial"
            (self.folder / str(step)).rename(gone)  # at once; to delete its files takes a while
            shutil.rmtree(gone, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        """What has a step's name, and is not used, is kept under another."""
        path, number = self.folder / str(step), 1
        if not path.exists():
            return
        while (aside := self.folder / f"{step}.refused{'' if number == 1 else f'-{number}'}").exists():
            number += 1
        try:
            path.rename(aside)
        except OSError as error:
            raise InputError(f"{path} cannot be renamed: {_reason(error)}") from None

    def _failed(self, step: int, problems: list[str | None]) -> bool:
        """Whether a process could not write its part; then it is told, and the rest of it is taken away."""
        self.failure = next(filter(None, problems), None)
        if not self.failure:
            return False
        kept = f"that of step {self.newest} is whole" if self.newest is not None else "there is none yet"
        self.say(f"the checkpoint of step {step} could not be written: {self.failure}; {kept}; training goes on")
        if hosts.is_first():
            shutil.rmtree(self.folder / f"{step}.partial", ignore_errors=True)
        return True


def read_manifest(path: Path) -> dict[str, Any]:
    """Of the folder of a step. Raises OSError, ValueError, KeyError or TypeError for one that is missing or damaged."""
    manifest = json.loads((path / MANIFEST).read_text())
    if not isinstance(manifest, dict):
        raise ValueError("it holds no manifest")
    digest = manifest.pop("sha256")
    if digest != _digest(manifest):
        raise ValueError("it is damaged: its own sha256 does not fit")
    return manifest


def digest(training: Training) -> str:
    """The sha256 of a whole training state: of every array's name, dtype, shape and bytes."""
    whole = hashlib.sha256(json.dumps(_leaves(training)).encode())
    for leaf in jax.tree.leaves(training):
        host = hosts.gathered(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        whole.update(np.ascontiguousarray(host).view(np.uint8) if host.size else b"")
    return whole.hexdigest()


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _arrays(training: Training) -> dict[str, jax.Array]:
    """The leaves by number, as orbax takes them: keys as their data, and no empty ones."""
    leaves = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(training)]
    return {str(i): leaf for i, leaf in enumerate(leaves) if leaf.size}


def _leaves(training: Training) -> list[list]:
    """Of every array: name, dtype, shape."""
    with_path = jax.tree_util.tree_flatten_with_path(training)[0]
    return [[jax.tree_util.keystr(path), str(leaf.dtype), list(leaf.shape)] for path, leaf in with_path]


def _in_words(leaf) -> str:
    return f"{leaf[0]}, {leaf[1]}{leaf[2]}" if isinstance(leaf, list) else str(leaf)


@jax.jit
def _finite(leaves):
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _nonfinite(training: Training) -> list[str]:
    """The arrays with a value that is not finite. Numbers of optimisers may be infinite: of those only arrays count."""
    named = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(training)[0]
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and (leaf.ndim or path[0].name != "optimizer_state")
    ]
    finite = _finite([leaf for _, leaf in named])
    return [name for (name, _), good in zip(named, finite, strict=True) if not good]


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _problem(do: Callable, *args: Any) -> str | None:
    """What goes wrong when it is done."""
    try:
        do(*args)
    except Exception as error:  # orbax and tensorstore raise all kinds where a disk is full
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    text = getattr(error, "strerror", None) or str(error).strip().split("\n")[0] or type(error).__name__
    of_system = re.search(r"No space left on device|Disk quota exceeded|Read-only file system|Permission denied", text)
    return of_system[0] if of_system else text  # tensorstore's own words are long
