"""The set-up: scripts/run.py, scripts/lock.py and the locks, tried in small stand-in checkouts."""

import ast
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")

BASE = getattr(sys, "_base_executable", sys.executable)

# It makes a .venv that can run a job, and notes what it was asked for.
FAKE_UV = f"""#!/bin/sh
[ "$1" = --version ] && echo uv && exit
echo "$@" >> "$UV_NOTES"
[ "$2 $3" = "$UV_FAIL" ] && echo uv is unhappy >&2 && exit 1
[ "$2 $3" = "$UV_WAIT" ] && touch "$UV_NOTES.waits" && sleep 0.5
[ "$2" = venv ] || exit 0
for venv; do :; done
mkdir -p "$venv/bin" && ln -sf {BASE} "$venv/bin/python"
"""

# A job that tells what it got, then ends as it is told.
SHOW = """
import os, signal, sys, time
print(sys.argv[1:], flush=True)
if sys.argv[1:] == ["wait"]:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(100 + number))
    print("ready", flush=True)
    time.sleep(30)
sys.exit(7 if sys.argv[1:] == ["fail"] else 0)
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Checkout:
    """A stand-in checkout: the real set-up files, one small job and a uv that installs nothing."""

    def __init__(self, folder):
        self.root = folder / "checkout"
        self.bin = folder / "bin"
        self.notes = folder / "notes"
        self.env = {"PATH": f"{self.bin}:{os.defpath}", "UV_NOTES": str(self.notes), "HOME": str(folder)}
        program(self.bin / "uv", FAKE_UV)
        (self.root / "experiments").mkdir(parents=True)
        (self.root / "experiments" / "show.py").write_text(SHOW)
        shutil.copytree(run.ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(run.ROOT / "pyproject.toml", self.root)

    def start(self, *arguments, script="run.py", python=BASE, **env):
        command = [python, self.root / "scripts" / script, *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env={**self.env, **env}, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments, **keywords):
        process = self.start(*arguments, **keywords)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def show(self, *arguments, **keywords):
        return self.run("--accelerator", "cpu", "show", *arguments, **keywords)

    def asked(self):
        """What uv was asked for since the last time."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def is_one_line(code, out, err, *parts):
    assert code == 2 and out == "" and err.count("\n") == 1, (code, out, err)
    assert all(part in err for part in parts), err


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["no job is named", "benchmark, bubble, judges, mutants, nightly, overhead, show, storm, table, test"]),
        (
            ["shwo"],
            [
                "no job 'shwo'",
                "did you mean 'show'?",
                "benchmark, bubble, judges, mutants, nightly, overhead, show, storm, table, test",
            ],
        ),
        (["qqq"], ["no job 'qqq': the jobs are"]),
        (["--gpu", "show"], ["unknown option '--gpu'"]),
        (["--accelerator", "gpu", "show"], ["got 'gpu'", "cpu, cuda12, cuda13, tpu"]),
        (["--accelerator"], ["got ''"]),
        (["--accelerator=cpu"], ["no job is named"]),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(checkout, arguments, parts):
    is_one_line(*checkout.run(*arguments), *parts)
    assert not checkout.asked() and not (checkout.root / ".venv").exists()


def test_help_names_the_jobs(checkout):
    code, out, err = checkout.run("--help")
    assert (code, err) == (
        0,
        "",
    ) and "The jobs are: benchmark, bubble, judges, mutants, nightly, overhead, show, storm, table, test." in out


@pytest.mark.parametrize("script", ["run.py", "lock.py"])
def test_an_old_python_gets_one_clear_line(checkout, script):
    found = [shutil.which("python3.10"), *Path.home().glob(".pyenv/versions/3.10.*/bin/python3.10")]
    old = next((path for path in found if path and run.answer(path, "--version")), None)
    if not old:
        pytest.skip("there is no Python 3.10 here")
    is_one_line(*checkout.run("show", python=old, script=script), "3.11 or newer is needed", "this is Python 3.10")


@pytest.mark.parametrize("script", ["run.py", "lock.py"])
def test_an_old_python_can_parse_the_script(script):
    ast.parse((run.ROOT / "scripts" / script).read_text(), feature_version=(3, 7))


def test_the_job_gets_its_arguments_as_they_are(checkout):
    arguments = ["--accelerator", "x", "-h", "two words", "", "*"]
    assert checkout.show(*arguments)[:2] == (0, f"{arguments}\n")


def test_the_exit_code_passes_through(checkout):
    assert checkout.show("fail")[0] == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_job(checkout, number):
    process = checkout.start("--accelerator", "cpu", "show", "wait")
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 100 + number


@pytest.mark.parametrize("job", ["test", "nightly"])
def test_only_the_nightly_job_runs_the_slow_tests(job):
    command = [sys.executable, *run.jobs()[job], "-n", "0", "--collect-only", "-q", "tests/test_setup.py"]
    listed = subprocess.run(command, cwd=run.ROOT, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    assert "test_an_old_python" in listed
    assert ("test_a_fresh_checkout" in listed) == (job == "nightly")


# --- The environment --------------------------------------------------------------------------------------------------


def test_the_first_start_installs_and_the_second_does_not(checkout):
    code, out, err = checkout.show()
    assert code == 0 and out == "[]\n"
    assert "installing into .venv (cpu)" in err and "installed in" in err
    venv, sync, project = checkout.asked()
    assert f"--python {BASE}" in venv
    assert "--require-hashes" in sync and sync.endswith("scripts/locks/cpu.txt")
    assert "--no-deps" in project and f"--editable {checkout.root}" in project
    assert checkout.show() == (0, "[]\n", "") and not checkout.asked()


def test_what_the_environment_depends_on_is_installed_anew(checkout):
    def is_new():
        (checkout.root / ".venv" / "left over").mkdir(exist_ok=True)
        assert checkout.show()[0] == 0
        installed = bool(checkout.asked())
        assert (checkout.root / ".venv" / "left over").exists() != installed
        return installed

    checkout.show()
    checkout.asked()
    assert not is_new()
    for name in ("pyproject.toml", "scripts/locks/cpu.txt"):
        with open(checkout.root / name, "a") as file:
            file.write("\n")
        assert is_new() and not is_new()
    with open(checkout.root / "scripts/locks/tpu.txt", "a") as file:
        file.write("\n")
    assert not is_new()  # another accelerator's lock
    python = checkout.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")  # the interpreter it was made from is gone
    assert is_new() and not is_new()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert is_new() and not is_new()
    assert checkout.run("--accelerator", "tpu", "show")[0] == 0
    assert checkout.asked()[1].endswith("tpu.txt")


def test_another_python_is_installed_anew(monkeypatch):
    here = run.stamp("cpu")
    assert here == run.stamp("cpu") != run.stamp("tpu")
    monkeypatch.setattr(run, "EXTENSION_SUFFIXES", [".cpython-399.so"])
    assert run.stamp("cpu") != here


@pytest.mark.parametrize("step", ["venv --allow-existing", "pip sync", "pip install"])
def test_an_install_that_failed_is_told_and_done_again(checkout, step):
    code, out, err = checkout.show(UV_FAIL=step)
    assert code == 2 and out == "" and "uv is unhappy\n" in err and "installing failed" in err.splitlines()[-1]
    checkout.asked()
    assert checkout.show()[0] == 0 and len(checkout.asked()) == 3


def test_an_install_cut_short_is_done_again_after_its_installer_has_ended(checkout):
    first = checkout.start("--accelerator", "cpu", "show", UV_WAIT="pip sync")
    wait_for(checkout.notes.with_name("notes.waits"))
    first.kill()
    first.wait()
    code, _, err = checkout.show()
    first.communicate()
    assert code == 0 and "another start is installing" in err
    assert [" sync " in line for line in checkout.asked()] == [False, True, False, True, False]


def test_two_starts_at_once_install_once(checkout):
    first = checkout.start("--accelerator", "cpu", "show", UV_WAIT="pip sync")
    wait_for(checkout.notes.with_name("notes.waits"))
    code, out, err = checkout.show()
    assert (code, out) == (0, "[]\n") and "another start is installing" in err
    first.communicate(timeout=10)
    assert first.returncode == 0 and len(checkout.asked()) == 3


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def test_a_foreign_environment_is_left_alone(checkout):
    precious = checkout.root / ".venv" / "precious"
    program(precious, "mine")
    is_one_line(*checkout.show(), ".venv was not made by this script", "move it away")
    assert precious.read_text() == "mine" and not checkout.asked()


def test_an_incomplete_checkout_is_one_clear_line(checkout):
    (checkout.root / "scripts" / "locks" / "cpu.txt").unlink()
    is_one_line(*checkout.show(), "cannot set up .venv", "cpu.txt")


def test_a_uv_that_does_not_work_is_passed_over(checkout, monkeypatch):
    program(checkout.root / ".uv" / "bin" / "uv", FAKE_UV)
    monkeypatch.setattr(run, "UV", checkout.root / ".uv")
    monkeypatch.setenv("PATH", str(checkout.bin))
    assert run.find_uv() == str(checkout.bin / "uv")
    program(checkout.bin / "uv", "#!/bin/sh\nexit 127\n")
    assert run.find_uv() == str(checkout.root / ".uv" / "bin" / "uv")


def test_uv_is_fetched_by_its_hashes(checkout, monkeypatch):
    commands = []
    monkeypatch.setattr(run, "UV", checkout.root / ".uv")
    monkeypatch.setattr(run, "call", lambda *command: commands.append(command))
    monkeypatch.setenv("PATH", str(checkout.root))
    assert run.find_uv() is None
    assert {"--require-hashes", str(run.LOCKS / "uv.txt"), "--target", str(checkout.root / ".uv")} <= {*commands[0]}


def test_without_uv_pip_installs_the_same_lock(checkout, monkeypatch):
    commands = []
    monkeypatch.setattr(run, "find_uv", lambda: None)
    monkeypatch.setattr(run, "clear", lambda: None)
    monkeypatch.setattr(run, "call", lambda *command: not commands.append(command))
    run.install("cpu")
    venv, packages, project = commands
    assert venv == (BASE, "-m", "venv", str(run.VENV))
    assert {"--require-hashes", str(run.LOCKS / "cpu.txt")} <= {*packages}
    assert {"--no-deps", "--no-build-isolation", "--editable"} <= {*project}


def test_without_uv_pip_and_venv_one_line_says_what_to_install(checkout, tmp_path):
    (checkout.bin / "uv").unlink()
    for name in ("pip", "venv"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)")
    code, _, err = checkout.show(PYTHONPATH=str(tmp_path), PATH=str(checkout.bin))
    assert code == 2 and "Traceback" not in err
    assert "install uv, or the system's python3-pip and python3-venv" in err.splitlines()[-1]


# --- The accelerator --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="there are accelerators on Linux only")
@pytest.mark.parametrize(
    ("answer", "accelerator", "warning"),
    [
        ("echo 580.65.06, 9.0", "cuda13", ""),
        ("echo 610.1, 8.0; echo 610.1, 7.5", "cuda13", ""),
        ("echo 580.65.06, 9.0; echo 580.65.06, 7.0", "cuda12", ""),
        ("echo 579.99, 9.0", "cuda12", ""),
        ("echo 525.60.13, 8.0", "cuda12", ""),
        ("echo 470.42.01, 8.0", "cpu", "NVIDIA driver 470 is too old"),
        ("echo No devices were found; exit 6", "cpu", ""),
        ("echo garbage", "cpu", ""),
        ("exit 0", "cpu", ""),
    ],
)
def test_the_nvidia_driver_decides(tmp_path, monkeypatch, capsys, answer, accelerator, warning):
    program(tmp_path / "nvidia-smi", f"#!/bin/sh\n{answer}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(run, "has_tpu", lambda: False)
    monkeypatch.setattr(run, "DRIVER", tmp_path / "no such file")
    assert run.detect() == accelerator
    err = capsys.readouterr().err
    assert warning in err and err.count("\n") == bool(warning)


def test_the_driver_file_serves_where_nvidia_smi_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(run, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(run, "DEVICE", tmp_path)
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (a@b)  1.2.3\n"
    run.DRIVER.write_text(line)
    assert run.nvidia() == (570, None)
    monkeypatch.setattr(run, "DEVICE", tmp_path / "nvidiactl")  # a container without the GPU
    assert run.nvidia() == (0, None)


def test_a_command_that_hangs_is_given_up():
    begin = time.monotonic()
    assert run.answer("sleep", "30", seconds=0.1) is None
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("vendor", "device", "expected"),
    [("0x1ae0", "0x0063", True), ("0x1ae0", "0x0042", False), ("0x10de", "0x0063", False)],
)
def test_a_tpu_is_known_by_its_pci_ids(tmp_path, vendor, device, expected):
    for address, name, value in [
        ("1", "vendor", vendor),
        ("1", "device", device),
        ("2", "vendor", "x"),
        ("2", "device", "y"),
    ]:
        (tmp_path / address).mkdir(exist_ok=True)
        (tmp_path / address / name).write_text(f"{value}\n")
    assert run.has_tpu(tmp_path) is expected


def test_every_tpu_that_jax_knows_is_known():
    from jax._src import hardware_utils

    assert {*hardware_utils._TPU_PCI_DEVICE_IDS} <= {*run.TPUS}


def test_a_changed_requirement_makes_the_locks_stale(checkout):
    path = checkout.root / "pyproject.toml"
    old = path.read_text()
    assert checkout.run("--check", script="lock.py") == (0, "", "")
    path.write_text(old + "\n[tool.other]\nkey = 1\n")
    assert checkout.run("--check", script="lock.py") == (0, "", "")
    path.write_text(old.replace('"numpy>=', '"numpy>'))
    is_one_line(*checkout.run("--check", script="lock.py"), "cpu.txt", "tpu.txt", "uv.txt", "scripts/lock.py")


# --- For real ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("uv", ["uv", "pip"])
def test_a_fresh_checkout_installs(checkout, uv):
    """Over the network: everything that CI does before the first test."""
    (checkout.bin / "uv").unlink()
    for name in ("README.md", "LICENSE", "manual_backprop"):
        source = run.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, checkout.root / name)
    if uv == "pip":  # no uv has such hashes
        path = checkout.root / "scripts" / "locks" / "uv.txt"
        path.write_text(re.sub("sha256:.{8}", "sha256:00000000", path.read_text()))
    (checkout.root / "experiments" / "show.py").write_text(
        "import flax, jax, manual_backprop, optax; print('imported')"
    )
    before = sorted(path.name for path in checkout.root.iterdir())
    env = {**os.environ, "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    for expected in ("installed in", ""):
        command = [BASE, checkout.root / "scripts" / "run.py", "--accelerator", "cpu", "show"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr
        assert expected in done.stderr if expected else not done.stderr
    assert os.access(checkout.root / ".venv" / "bin" / "manual-backprop", os.X_OK)
    after = {path.name for path in checkout.root.iterdir()}
    assert after - {*before} <= {".venv", ".uv"}
