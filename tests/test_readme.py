"""Every command and every snippet of the READMEs is run."""

import importlib
import linecache
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cases import FAMILIES

ROOT = Path(__file__).parents[1]
TEXTS = {path: (ROOT / path).read_text() for path in ("README.md", "experiments/README.md")}


def blocks(language: str) -> list[str]:
    return [block for text in TEXTS.values() for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def commands() -> list[str]:
    """Every line of the sh blocks, and every command in the tables."""
    lines = [line for block in blocks("sh") if "runs/" not in block for line in lines_of(block)]
    return [*lines, *re.findall(r"^\| `(.+?)` \|", TEXTS["experiments/README.md"], re.MULTILINE)]


def lines_of(block: str) -> list[str]:
    return [line.split("  #")[0].strip() for line in block.splitlines()]


# The commands whose run here is shorter, or of a stand-in, than what the README says; each with the arguments it gets.
SHORTER = {
    "python3 scripts/run.py test": ["--collect-only", "-q"],  # it is what runs this
    "python3 scripts/run.py digits --hidden 256 128": ["--steps", "100"],
    "python3 scripts/run.py digits --data mnist --optimizer adam --learning-rate 0.003": ["--help"],  # no network
    "python3 scripts/run.py images --data cifar10 --model resnet18 --flip --precision bfloat16 --ema 0.999 --steps 20000 "
    "--batch-size 128": ["--help"],
    "python3 scripts/run.py images --data folder --data-dir pictures --size 64 --flip": ["--help"],  # no such folder
    "python3 scripts/run.py sequence --cell rnn --beside RUN RUN RUN": ["--help"],  # no such runs
    "python3 scripts/run.py sequence --task copy --cell state_space --hidden 64 --steps 4000": ["--steps", "50"],
    "python3 scripts/run.py sequence --task markov": ["--steps", "50"],
    "python3 scripts/run.py sequence": ["--steps", "50"],
    "python3 scripts/run.py images": ["--steps", "50"],
    "python3 scripts/run.py autoencoder": ["--steps", "500"],
    "pip install -e '.[train]'": None,  # a test of its own, below
}


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_command(command, tmp_path):
    more = SHORTER.get(command, [])
    if more is None:
        pytest.skip("run by test_pip_install, nightly")
    if command.startswith("python3") and Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("needs .venv: run by scripts/run.py test")
    run([*shlex.split(command), *more], tmp_path)


@pytest.mark.parametrize("block", [block for block in blocks("sh") if "runs/" in block], ids=lambda block: block[:40])
def test_commands_one_after_another(block, tmp_path):
    """Those that go on with a run."""
    for command in lines_of(block):
        run(shlex.split(command), tmp_path)
    assert (tmp_path / "compare.png").exists()


def run(words: list[str], folder: Path) -> None:
    program, *arguments = words
    paths = [
        str(ROOT / argument) if argument.startswith(("scripts/", "experiments/")) else argument
        for argument in arguments
    ]
    programs = {
        "python3": [os.path.realpath(sys._base_executable)],
        "python": [sys.executable],
        "manual-backprop": [sys.executable, "-m", "manual_backprop"],
    }
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*programs[program], *paths], cwd=folder, capture_output=True, text=True, timeout=300, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda snippet: snippet.splitlines()[-1][:40])
def test_snippet(snippet, capsys):
    linecache.cache["snippet"] = len(snippet), None, snippet.splitlines(keepends=True), "snippet"
    exec(compile(snippet, "snippet", "exec"), {})  # the README's own text, from this checkout
    shown = capsys.readouterr().out
    for comment in re.findall(r"^print\(.*\)  # ((?:FAIL|treated).*)$", snippet, re.MULTILINE):
        for part in re.split("[…:]", comment):
            assert part.strip(" ()") in shown, part


def test_links_lead_somewhere():
    for name, text in TEXTS.items():
        headings = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert target in headings or (ROOT / name).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("family", FAMILIES, ids=lambda module: module.__name__)
def test_the_ops_are_the_ops(family):
    name = family.__name__.removeprefix("cases.")
    row = re.search(
        rf"^\| \[{name}\]\(manual_backprop/ops/{name}/__init__.py\) \| (.*) \|$", TEXTS["README.md"], re.MULTILINE
    )
    module = importlib.import_module(f"manual_backprop.ops.{name}")
    assert re.findall(r"`(\w+)`", row[1]) == sorted(op for op in module.__all__ if op.islower())


def test_the_tree_is_the_tree():
    tree = re.search(r"## The tree\n\n```text\n(.*?)```", TEXTS["README.md"], re.DOTALL)[1]
    for line in tree.splitlines():
        name = line.strip().split()[0]
        assert (ROOT / "manual_backprop" / name).exists() if line.startswith("  ") else (ROOT / name).exists(), name


@pytest.mark.slow
def test_pip_install(tmp_path):
    """The usual way, in a fresh environment of a copy: the extras resolve, and the console command is there."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".uv", ".git", "runs", "__pycache__"))
    subprocess.run([sys._base_executable, "-m", "venv", tmp_path / "venv"], check=True)
    scripts = tmp_path / "venv" / "bin"
    subprocess.run([scripts / "pip", "install", "-q", "-e", ".[train]"], cwd=copy, check=True)
    shown = subprocess.check_output([scripts / "manual-backprop", "--version"], text=True, cwd=tmp_path)
    assert shown.startswith("manual_backprop 0.1.0, jax ")
    done = subprocess.run([scripts / "python", copy / "experiments" / "digits.py", "--steps", "100"], cwd=tmp_path)
    assert done.returncode == 0
