"""What a user gets wrong on the command line and in files: one line that says what to do, exit code 2, nothing lost."""

import json
import os
import shutil
from pathlib import Path

import pytest

from experiment import ran
from manual_backprop.training.config import one_line

LINES = {
    "digits --stepz 3": "Unrecognized options: --stepz, 3; perhaps you meant --steps; --help lists the options",
    "digits --save.evry 3": "perhaps you meant --save.every",
    "digits --steps many": "Error parsing --steps: invalid literal for int() with base 10: 'many'",
    "digits --steps": "Missing value for argument '--steps'",
    "digits extra": "Unrecognized options: extra; --help lists the options",
    "digits --steps 0": "--steps 0 is out of range; wants at least 1",
    "digits --steps 1.5": "invalid literal for int() with base 10: '1.5'",
    "digits --steps 99999999999": "--steps 99999999999 is out of range; wants fewer than 2,147,483,648",
    "digits --batch-size 0": "--batch-size 0 is out of range; wants at least 1",
    "digits --seed -1": "--seed -1 is out of range; wants 0 … 4294967295",
    "digits --skip-nonfinite -1": "--skip-nonfinite -1 is out of range; wants at least 0",
    "digits --ema 1": "--ema 1.0 is out of range; wants 0, or a number below 1 such as 0.999",
    "digits --ema nan": "--ema nan is out of range",
    "digits --save.every -1": "--save.every -1 is out of range",
    "digits --save.keep 0": "--save.keep 0 is out of range; wants at least 1",
    "digits --log.every -1": "--log.every -1 is out of range",
    "digits --learning-rate nan": "learning rate nan is out of range; wants a positive number",
    "digits --optimizer sgdd": "optimizer 'sgdd' is unknown; did you mean 'sgd'?",
    "digits --mesh date=2": "mesh: axis 'date' is unknown; did you mean 'data'?",
    "digits --mesh data": "mesh 'data' is not understood; wants, say, data=4,model=2",
    "digits --mesh data=2,data=2": "has the axis data twice",
    "digits --mesh data=0": "mesh 'data=0' has 0 devices; wants 1 to",
    "digits --mesh data=512": "mesh: 512 devices are wanted, there are 8",
    "digits --mesh data=3": "--batch-size 64: the mesh cuts it in 3 parts; wants a multiple of that",
    "digits --device quantum": "device 'quantum'",
    "digits --hosts.count 2": "--hosts.count 2 --hosts.address None: several processes want both",
    "digits --hosts.address 127.0.0.1:1": "--hosts.count 1 --hosts.address 127.0.0.1:1: several processes want both",
    "digits --hosts.count 2 --hosts.address 127.0.0.1:1": "--hosts.count 2: so many processes do not divide the 1 devices",
    "digits --stages.schedule gpip": "--stages.schedule 'gpip' is unknown; did you mean 'gpipe'?",
    "digits --stages.micro-batches 4": "--stages: --mesh None has no axis stage; wants, say, --mesh stage=4",
    "digits --mesh data=2 --sequence": "--sequence cuts positions along model",
    "digits --resume=": "--resume is ''; wants a folder, auto or never",
    "gpt --mesh data=4 --accumulate 4 --batch-size 8": "--batch-size 8: the mesh and --accumulate 4 cut it in 16 parts",
    "gpt --mesh stage=2 --accumulate 2": "--accumulate: --mesh stage=2 has stages; wants 1, and --stages.micro-batches",
    "gpt --mesh stage=2 --precision float16": "--precision: --mesh stage=2 has stages; wants float32 or bfloat16",
    "digits --hosts.index 1": "--hosts.index 1: there are 1; wants 0 … 0",
    "digits --hosts.count 0": "--hosts.count 0 is out of range",
    "digits --hosts.address nowhere --hosts.count 2 --mesh data=2": "nowhere",
    "digits --resume nowhere": "--resume nowhere: there is no config.json in it; wants a run's folder, auto or never",
    "digits --resume": "--resume expected one argument",
    "digits --config": "--config expected one argument",
    "digits --config nowhere.toml": "nowhere.toml cannot be read: No such file or directory",
    "digits --folder .": "run folder . exists; nothing is overwritten: name another, or go on with it by --resume",
    "digits --folder /dev/null/run": "run folder /dev/null/run cannot be made: Not a directory",
    "digits --folder /proc/run": "run folder /proc/run cannot be made: No such file or directory",
    "digits --cache /dev/null/cache": "--cache /dev/null/cache cannot be used: Not a directory",
    "gpt --size tinny": "--size 'tinny' is unknown; did you mean 'tiny'?",
    "gpt --data arrayrecord:": "--data arrayrecord:: wants arrayrecord:PATTERN",
    "gpt --data arrayrecord:nowhere*": "nowhere*",
    "gpt --data tokens:nowhere.npy": "nowhere.npy",
    "gpt --data files": "files go with --data files",
    "gpt --weights nowhere.safetensors": "nowhere.safetensors cannot be read: No such file or directory",
    "gpt --accumulate 3": "--accumulate 3 does not divide --batch-size 16",
    "gpt --update-in-backward": "wants --clip 0",
    "gpt --update-in-backward --clip 0 --ema 0.9": "wants --ema 0 --skip-nonfinite 0",
}


@pytest.mark.parametrize("words", LINES)
def test_a_command_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = ran(capsys, *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert LINES[words] in err
    assert not any(tmp_path.iterdir())


FILES = {
    "c.toml": {
        'stepz = 3\n': "c.toml: option 'stepz' is unknown; did you mean 'steps'?",
        'steps = "many"\n': "c.toml: steps is 'many'; wants a whole number",
        "steps = 3.5\n": "c.toml: steps is 3.5; wants a whole number",
        "steps = true\n": "c.toml: steps is True; wants a whole number",
        "save = 3\n": "c.toml: save is 3; wants a table of options",
        "[save]\nevry = 3\n": "c.toml: save: option 'evry' is unknown; did you mean 'every'?",
        "hidden = 3\n": "c.toml: hidden is 3; wants a tuple (each a whole number)",
        "steps = \n": "c.toml is damaged, or no TOML",
        "data_dir = 3\n": "c.toml: data_dir is 3; wants a string or None",
        "resume = true\n": "--resume is True; wants a folder, auto or never",
        "folder = 3\n": "--folder is 3; wants a folder",
        "steps = 0\n": "--steps 0 is out of range",
    },
    "c.json": {
        '{"steps": 3': "c.json is damaged, or no JSON",
        "[1]": "c.json holds a list; wants options by their names",
        "\x00\x01": "c.json is damaged, or no JSON",
        "": "c.json is damaged, or no JSON",
    },
}  # fmt: skip


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in FILES.items() for text in texts])
def test_a_file_of_options(file, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(text)
    code, out, err = ran(capsys, "digits", "--config", file)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert FILES[file][text] in err


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of 40 steps, checkpoints every 10."""
    from _pytest.capture import CaptureFixture, SysCapture

    place = tmp_path_factory.mktemp("ended") / "run"
    capture = CaptureFixture(SysCapture, None, _ispytest=True)
    capture._start()
    try:
        done = ran(capture, "digits", "--steps", 40, "--save.every", 10, "--log.every", 5, "--folder", place)
    finally:
        capture.close()
    assert done.code == 0, done
    return place


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("events.jsonl", ".lock")
    }


def all_checkpoints(folder, change):
    for path in (folder / "checkpoints").iterdir():
        change(path)


DAMAGED = {
    "config.json, cut short": (lambda run: (run / "config.json").write_text('{"steps": 4'), (), "config.json is damaged"),
    "config.json, of nothing": (lambda run: (run / "config.json").write_text(""), (), "config.json is damaged"),
    "config.json, another's": (
        lambda run: (run / "config.json").write_text('{"size": "tiny"}'), (), "option 'size' is unknown",
    ),
    "environment.json, cut short": (
        lambda run: (run / "environment.json").write_text("{"), (), "environment.json is damaged",
    ),
    "environment.json, gone": (lambda run: (run / "environment.json").unlink(), (), "environment.json cannot be read"),
    "all checkpoints without manifests": (
        lambda run: all_checkpoints(run, lambda path: (path / "manifest.json").unlink()), (),
        "none of its checkpoints can be used",
    ),
    "all checkpoints gone": (
        lambda run: shutil.rmtree(run / "checkpoints"), (), "none of its checkpoints can be used",
    ),
    "all checkpoints empty": (
        lambda run: all_checkpoints(run, lambda path: (shutil.rmtree(path), path.mkdir())), (),
        "none of its checkpoints can be used",
    ),
    "other sizes": (lambda run: None, ("--hidden", 8), "was started with another configuration: --hidden 16 16, now 8"),
    "other sizes, on purpose": (
        lambda run: None, ("--hidden", 8, "--allow-change"), "none of its checkpoints can be used",
    ),
    "another seed and rate": (
        lambda run: None, ("--seed", 1, "--learning-rate", 2), "--seed 0, now 1; --learning-rate 1.0, now 2.0",
    ),
    "fewer steps": (lambda run: None, ("--steps", 20, "--allow-change"), "--steps 20: the run is at step 40"),
    "another folder": (lambda run: None, ("--folder", "other"), "a run goes on in its own folder; leave --folder out"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_run_that_cannot_go_on(name, ended, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    damage, words, line = DAMAGED[name]
    shutil.copytree(ended, run := tmp_path / "run")
    damage(run)
    before = everything(run)
    code, _, err = ran(capsys, "digits", "--resume", run, *words)
    assert code == 2 and err.count("\n") == 1 and line in err, err
    after = everything(run)
    assert {name: after.get(name) for name in before} == before


def test_a_folder_that_cannot_be_written(ended, tmp_path, capsys):
    shutil.copytree(ended, run := tmp_path / "run")
    (run / "events.jsonl").unlink()
    (run / "events.jsonl").mkdir()
    code, _, err = ran(capsys, "digits", "--resume", run)
    assert code == 2 and "events.jsonl cannot be" in err and err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        code, _, err = ran(capsys, "digits", "--folder", tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)
    assert code == 2 and "cannot be made: Permission denied" in err


def test_a_run_can_be_run_again_from_its_own_configuration(ended, tmp_path, capsys):
    code, _, err = ran(capsys, "digits", "--config", ended / "config.json", "--folder", tmp_path / "again")
    assert code == 0, err
    first, second = (json.loads((run / "result.json").read_text()) for run in (ended, tmp_path / "again"))
    assert first["sha256"] == second["sha256"]
    assert (ended / "metrics.jsonl").read_bytes() == (tmp_path / "again" / "metrics.jsonl").read_bytes()
    assert (ended / "config.json").read_bytes() == (tmp_path / "again" / "config.json").read_bytes()


def test_options_of_a_file_and_of_the_line(ended, tmp_path, capsys):
    (tmp_path / "c.toml").write_text("steps = 20\nhidden = [8]\nlearning-rate = 1\n[save]\nkeep = 1\n")
    words = "--config", tmp_path / "c.toml", "--steps", 10, "--folder", tmp_path / "run"
    assert ran(capsys, "digits", *words).code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["steps"], config["hidden"], config["save"]) == (10, [8], {"every": 0, "keep": 1})


def test_help_explains(capsys):
    code, out, _ = ran(capsys, "digits", "--help")
    assert code == 0
    for word in ("--save.every", "Steps between two", "--mesh", "--resume", "--config FILE"):
        assert word in out


@pytest.mark.parametrize("corners", ["╭╮╰╯─│", "++++-|", ""])
def test_a_frame_becomes_one_line(corners):
    """With the signs of a terminal, and with none."""
    rule = "-" * 20 if not corners else corners[4] * 20
    inside = ["Unrecognized options: --a", rule, "Perhaps you meant:", "    --all INT", "        All.", rule, "more"]
    frame = ["Title", rule, *inside]
    if corners:
        a, b, c, d, line, side = corners
        frame = [f"{a}{line} Title {line * 9}{b}", *(f"{side} {each} {side}" for each in inside), f"{c}{line * 17}{d}"]
    assert one_line("\n".join(frame)) == "Unrecognized options: --a; perhaps you meant --all; --help lists the options"
