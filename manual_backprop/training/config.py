"""What every experiment can be told, and how: on the command line, in a file, or by a run that goes on.

A configuration is a frozen dataclass; its fields are the options, its docstrings the help. Later ones win:

    the defaults  ·  config.json of the run that is resumed  ·  --config FILE (TOML or JSON)  ·  the command line
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import operator
import re
import sys
import tomllib
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from manual_backprop.errors import InputError, choose
from manual_backprop.options import fits, in_words, plain
from manual_backprop.training import history
from manual_backprop.training.timetable import SCHEDULES

CONFIG = "config.json"
# What may change in a run that goes on: the mesh and the device are its surroundings, of which a warning tells.
FREE = ("folder", "resume", "allow_change", "device", "mesh", "sequence", "stages", "save", "log", "hosts", "cache")
LEAST = {"steps": 1, "batch_size": 1, "skip_nonfinite": 0, "save.every": 0, "save.keep": 1, "log.every": 0}
LEAST |= {"stages.micro_batches": 0, "hosts.count": 1, "hosts.index": 0}
Kind = TypeVar("Kind", bound="Config")


@dataclass(frozen=True)
class Save:
    """Checkpoints of the whole training state."""

    every: int = 0
    """Steps between two, and at most of a row of metrics; 0: a tenth of all steps, and no step waits for the disk."""
    keep: int = 3
    """So many of the newest stay, and the best."""


@dataclass(frozen=True)
class Log:
    """What is written of the steps, besides metrics.jsonl."""

    every: int = 0
    """Steps of a row of metrics, which run as one program; 0: the experiment's own choice."""
    tensorboard: bool = False
    """TensorBoard's event files, into the folder."""
    wandb: str | None = None
    """A project of Weights & Biases; wants the extra wandb."""


@dataclass(frozen=True)
class Stages:
    """A mesh with an axis stage: each of its devices has some of the layers, in a row."""

    schedule: str = "1f1b"
    """Which micro-batch when: 1f1b (the least memory), pairs or zero-bubble (the least waiting), gpipe."""
    micro_batches: int = 0
    """Parts of a batch that follow one another; 0: two for each stage."""


@dataclass(frozen=True)
class Hosts:
    """Several processes that train together, each started with the same options but its index."""

    address: str | None = None
    """HOST:PORT of the first of them."""
    count: int = 1
    """How many there are."""
    index: int = 0
    """Which of them this one is."""
    cluster: bool = False
    """All three as the cluster says: SLURM, Open MPI, and others that JAX knows."""


@dataclass(frozen=True)
class Config:
    """What every experiment can be told."""

    batch_size: int = 64
    """Examples that a step averages over."""
    steps: int = 1000
    """Steps of gradient descent."""
    seed: int = 0
    """Of the first weights and of the batches."""
    skip_nonfinite: int = 0
    """Leave out a gradient that is not finite, at most so many in a row; 0: stop at the first."""
    ema: float = 0.0
    """Judge and save an average of the weights, in which the last one counts 1 - ema; 0: the weights themselves."""
    device: str | None = None
    """cpu, gpu or tpu; by default JAX chooses."""
    mesh: str | None = None
    """Devices to train on together, such as data=4,model=2; by default one."""
    sequence: bool = False
    """Between the products that the mesh's axis model cuts, cut activations along the sequence by it."""
    folder: Path | None = None
    """Folder for the results, which must not exist; by default runs/<experiment>/<time>."""
    resume: str = "never"
    """A run's folder, to go on with it; auto: --folder, or the newest run that was stopped or killed, or a new one."""
    allow_change: bool = False
    """Go on although the configuration differs from the run's own."""
    cache: Path | None = None
    """Folder of compiled programs; by default in the user's cache folder."""
    stages: Stages = Stages()
    save: Save = Save()
    log: Log = Log()
    hosts: Hosts = Hosts()

    def check(self) -> None:
        """Raises InputError for a value that no part of the program would catch in time."""
        for name, lowest in LEAST.items():
            value = operator.attrgetter(name)(self)
            if value < lowest:
                raise InputError(f"{option(name)} {value} is out of range; wants at least {lowest}")
        want_seed(self.seed)
        if not 0 <= self.ema < 1:
            raise InputError(f"--ema {self.ema} is out of range; wants 0, or a number below 1 such as 0.999")
        if self.hosts.index >= self.hosts.count:
            raise InputError(
                f"--hosts.index {self.hosts.index}: there are {self.hosts.count}; wants 0 … {self.hosts.count - 1}"
            )
        if (self.hosts.count > 1) != bool(self.hosts.address):
            raise InputError(
                f"--hosts.count {self.hosts.count} --hosts.address {self.hosts.address}: several processes want both: "
                "how many there are, and HOST:PORT of the first"
            )
        choose("--stages.schedule", self.stages.schedule, dict.fromkeys(SCHEDULES))
        if self.stages != Stages() and "stage" not in (self.mesh or ""):
            raise InputError(f"--stages: --mesh {self.mesh} has no axis stage; wants, say, --mesh stage=4")
        if self.steps >= 2**31:
            raise InputError(f"--steps {self.steps} is out of range; wants fewer than {2**31:,}")


def want_seed(seed: int) -> None:
    """Raises InputError for a seed that JAX's keys do not take."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} is out of range; wants 0 … {2**32 - 1}")


def option(name: str) -> str:
    """`--batch-size` of `batch_size`."""
    return f"--{name.replace('_', '-')}"


def parsed(kind: type[Kind], experiment: str, arguments: Sequence[str] | None = None) -> tuple[Kind, Path | None]:
    """The configuration, and the folder of the run to go on with: None for a new one.

    Raises InputError for what is not understood, and for a configuration that is not that of the run that goes on.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--config", "--resume", "--folder"):
        early.add_argument(option)
    try:
        chosen, rest = early.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name} {error.message}") from None
    of_file = read(Path(chosen.config)) if chosen.config else {}
    resume = of_file.get("resume", "never") if chosen.resume is None else chosen.resume
    folder = to_go_on_with(experiment, resume, of_file.get("folder") if chosen.folder is None else chosen.folder)
    default, own = kind(), None
    if folder:
        own = default = made(kind, read(folder / CONFIG), str(folder / CONFIG))
    default = made(kind, of_file, chosen.config, default)
    words = [word for pair in (("--resume", resume), ("--folder", chosen.folder)) if pair[1] for word in pair]
    config = from_words(kind, default, [*rest, *words])
    if own:
        want_same(own, config, folder)
    return config, folder


def to_go_on_with(experiment: str, resume: str, folder: str | None) -> Path | None:
    """The folder that `--resume` means. Raises InputError for one that is no run's."""
    for option, value in (("--resume", resume), ("--folder", folder)):
        if value is not None and (not isinstance(value, str) or not value):
            raise InputError(f"{option} is {value!r}; wants a folder{', auto or never' * (option == '--resume')}")
    if resume == "never":
        return None
    if resume != "auto":
        path = Path(resume)
        if not (path / CONFIG).is_file():
            raise InputError(f"--resume {resume}: there is no {CONFIG} in it; wants a run's folder, auto or never")
        if folder and Path(folder) != path:
            raise InputError(
                f"--resume {resume} --folder {folder}: a run goes on in its own folder; leave --folder out"
            )
        return path
    if folder:
        return Path(folder) if (Path(folder) / CONFIG).is_file() else None
    runs = sorted((path.parent for path in Path("runs", experiment).glob(f"*/{CONFIG}")), reverse=True)  # by their time
    return next((path for path in runs if history.read(path).state in ("stopped", "unfinished")), None)


def want_same(own: Config, config: Config, folder: Path) -> None:
    """Raises InputError with what differs, where it would change the numbers."""
    if config.allow_change:
        return
    if differences := changes(own, config):
        raise InputError(
            f"{folder} was started with another configuration: {'; '.join(differences)}; leave these out to go on with "
            "its own, or say --allow-change"
        )


def changes(own: Config, config: Config) -> list[str]:
    """`--steps 1500, now 3000` for every option that changes the numbers."""
    return [
        f"{option(field.name)} {_shown(getattr(own, field.name))}, now {_shown(getattr(config, field.name))}"
        for field in dataclasses.fields(own)
        if field.name not in FREE and absolute(getattr(own, field.name)) != absolute(getattr(config, field.name))
    ]


def absolute(value: Any) -> Any:
    """Paths, also in tuples and tables, as they are from any folder."""
    if isinstance(value, dict):
        return {name: absolute(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(absolute, value))
    return value.expanduser().absolute() if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "(none)" if isinstance(value, tuple) else str(value)


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def from_words(kind: type[Kind], default: Kind, words: Sequence[str]) -> Kind:
    """By tyro, whose frame around a mistake becomes one line. Raises InputError; exits for --help."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(kind, default=default, args=list(words), description=_help(kind))
    except SystemExit as ended:
        if not ended.code:
            raise
        raise InputError(one_line(caught.getvalue())) from None


def _help(kind: type) -> str:
    files = "--config FILE takes options from a TOML or JSON file, such as a run's config.json."
    return f"{kind.__doc__}\n\n{files}" if issubclass(kind, Config) else kind.__doc__


def one_line(frame: str) -> str:
    """`Unrecognized options: --stepz; perhaps you meant --steps` of tyro's frame."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │|") for line in frame.splitlines()]
    parts = re.split(r"\n(?:[╭╰+].*|[─-]{5,})(?:\n|$)", "\n".join(["", *lines, ""]))  # between rules
    framed = any(line.startswith(("╭", "+-")) for line in lines)
    first = " ".join([part for part in parts if part.strip()][0 if framed else 1].split())  # else the title is first
    meant = re.search(r"Perhaps you meant:\s+(--[\w.-]+)", "\n".join(lines))
    return f"{first.rstrip('.')}; {f'perhaps you meant {meant[1]}; ' if meant else ''}--help lists the options"


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(file: Path) -> dict[str, Any]:
    """The options in a file. Raises InputError for one that cannot be read or is neither TOML nor JSON."""
    try:
        text = file.read_text("utf-8")
        values = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{file} is damaged, or no {'TOML' if file.suffix == '.toml' else 'JSON'}: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} holds a {type(values).__name__}; wants options by their names")
    return values


def made(kind: type[Kind], values: dict[str, Any], where: str | None, default: Kind | None = None) -> Kind:
    """The dataclass with these values for its fields, tables for those that are dataclasses. Raises InputError."""
    types_of, default = get_type_hints(kind), default if default is not None else kind()
    new = {}
    for name, value in values.items():
        key = name.replace("-", "_")
        wanted = choose(f"{where}: option", key, types_of)
        if dataclasses.is_dataclass(wanted):
            if not isinstance(value, dict):
                raise InputError(f"{where}: {name} is {value!r}; wants a table of options")
            new[key] = made(wanted, value, f"{where}: {name}", getattr(default, key))
        else:
            new[key] = _typed(f"{where}: {name}", plain(value), wanted)
    return dataclasses.replace(default, **new)


def _typed(who: str, value: Any, wanted: Any) -> Any:
    """A value of a file as its field wants it: a path is written as text."""
    as_text = _replaced(wanted)
    if not fits(value, as_text):
        raise InputError(f"{who} is {value!r}; wants {in_words(as_text)}")
    return _as_path(value) if as_text is not wanted else value


def _replaced(wanted: Any) -> Any:
    """The type with str for Path."""
    if wanted is Path:
        return str
    parts = get_args(wanted)
    if Path not in parts:
        return wanted
    new = tuple(_replaced(part) for part in parts)
    return Union[new] if get_origin(wanted) in (Union, types.UnionType) else tuple[new]  # noqa: UP007


def _as_path(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(Path, value))
    return None if value is None else Path(value)
