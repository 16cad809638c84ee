"""Run a job of this project in its own environment.

    python3 scripts/run.py [--accelerator NAME] JOB [ARGUMENT ...]

The first start installs the locked packages into .venv; later starts use them as they are.
The arguments go to the job.  The accelerator is detected; NAME is cpu, cuda12, cuda13 or tpu.
"""

# Standard library only, and no syntax newer than Python 3.6, so that an old Python gets as far as the line below.
import difflib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "scripts" / "locks"
VENV = ROOT / ".venv"
UV = ROOT / ".uv"
STAMP = VENV / "manual-backprop.stamp"  # says what was installed; its presence says that this script made .venv
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
QUIET = ("install", "-qq", "--disable-pip-version-check")  # what pip is told: errors alone are shown
ACCELERATORS = ("cpu", "cuda12", "cuda13", "tpu")
DEVICE = Path("/dev/nvidiactl")
DRIVER = Path("/proc/driver/nvidia/version")
# Memory in pages of 2 MB: a step on a CPU that allocates 200 MB took 169 ms, in pages of 4 kB 234 ms.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# The PCI ids of the TPUs that jax knows (jax._src.hardware_utils).
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076", "0x007c", "0x0083")


def say(message):
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)


def fail(message):
    say(message)
    sys.exit(2)


if sys.version_info < (3, 11):  # noqa: UP036
    fail(f"this is Python {sys.version.split()[0]}, but 3.11 or newer is needed: start it with, say, python3.11")


# --- The jobs ---------------------------------------------------------------------------------------------------------


def jobs():
    """Each job's name, with what Python is given to run it."""
    experiments = {path.stem: [str(path)] for path in (ROOT / "experiments").glob("[!_]*.py")}
    pytest = ["-m", "pytest", "-n", "auto", "--dist", "worksteal"]
    return {
        **experiments,
        "benchmark": [str(ROOT / "scripts" / "benchmark.py")],
        "table": [str(ROOT / "scripts" / "table.py")],
        "judges": [str(ROOT / "scripts" / "judges.py")],
        "mutants": [str(ROOT / "scripts" / "mutants.py")],
        "bubble": [str(ROOT / "scripts" / "bubble.py")],
        "overhead": [str(ROOT / "scripts" / "overhead.py")],
        "storm": [str(ROOT / "scripts" / "storm.py")],
        "test": pytest,
        "nightly": [*pytest, "-m", ""],  # the slow tests too
    }


def parse(arguments):
    """The accelerator (None: detect it), the job's name and the job's arguments."""
    accelerator = None
    names = ", ".join(sorted(jobs()))
    while arguments and arguments[0].startswith("-"):
        option, equals, value = arguments.pop(0).partition("=")
        if option in ("-h", "--help"):
            print(f"{__doc__}\nThe jobs are: {names}.")
            sys.exit(0)
        if option != "--accelerator":
            fail(f"unknown option {option!r}: before the job, only --accelerator and --help are known")
        accelerator = value if equals else arguments.pop(0) if arguments else ""
        if accelerator not in ACCELERATORS:
            fail(f"--accelerator got {accelerator!r}: give one of {', '.join(ACCELERATORS)}")
    if not arguments:
        fail(f"no job is named: give one of {names}")
    job = arguments[0]
    if job not in jobs():
        near = difflib.get_close_matches(job, jobs(), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        fail(f"there is no job {job!r}: {hint}the jobs are {names}")
    return accelerator, job, arguments[1:]


def start(job, arguments):
    """Become the job, so that its exit code is ours and every signal reaches it."""
    command = [str(PYTHON), *jobs()[job], *arguments]
    if "pytest" in command:
        os.chdir(ROOT)  # its settings and the tests' paths are found from there
    if (ROOT / "experiments" / f"{job}.py").is_file():
        os.environ.setdefault("GLIBC_TUNABLES", HUGE_PAGES)
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    sys.exit(subprocess.call(command))


# --- The accelerator --------------------------------------------------------------------------------------------------


def answer(*command, seconds=10):
    """What the command prints; None if it is missing, fails or hangs."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)  # not for ever: a driver that hangs can hold even a killed process
        return None
    return output if process.returncode == 0 else None


def nvidia():
    """The NVIDIA driver's major version (0: none) and the lowest compute capability of the GPUs, if known."""
    rows = answer("nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader")
    try:
        drivers, capabilities = zip(*(row.split(",") for row in rows.strip().splitlines()), strict=True)
        return int(drivers[0].split(".")[0]), min(map(float, capabilities))
    except (AttributeError, ValueError):  # no answer, or not such rows
        pass
    if DEVICE.exists() and DRIVER.exists():  # a container that was given no GPU has the file alone
        found = re.search(r" (\d+)\.\d", DRIVER.read_text())
        return int(found[1]) if found else 0, None
    return 0, None


def has_tpu(devices="/sys/bus/pci/devices"):
    """Whether one of the PCI devices is a TPU."""
    ids = [[(device / name).read_text().strip() for name in ("vendor", "device")] for device in Path(devices).glob("*")]
    return any(vendor == "0x1ae0" and device in TPUS for vendor, device in ids)


def detect():
    """The accelerator of this machine."""
    if sys.platform != "linux":
        return "cpu"  # jax has GPU and TPU packages for Linux only
    driver, capability = nvidia()
    if driver >= 580 and (capability is None or capability >= 7.5):
        return "cuda13"
    if driver >= 525:  # also a newer driver with a GPU that CUDA 13 has dropped
        return "cuda12"
    if driver:
        say(f"NVIDIA driver {driver} is too old for jax, which wants 525 or newer: using the CPU")
    return "tpu" if has_tpu() else "cpu"


# --- The environment --------------------------------------------------------------------------------------------------


def stamp(accelerator):
    """A digest of all that .venv depends on, its own path included, for a copied or moved one does not work."""
    parts = [
        (LOCKS / f"{accelerator}.txt").read_bytes(),
        (ROOT / "pyproject.toml").read_bytes(),
        EXTENSION_SUFFIXES[0].encode(),  # the Python version and the platform
        os.fsencode(VENV),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_ready(wanted):
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == wanted


@contextmanager
def alone():
    """Let one start at a time change .venv."""
    with open(ROOT / "pyproject.toml", "r+b") as held:
        if fcntl:
            # The installer inherits the lock, so that it stays held if we are killed and the installer is not.
            os.set_inheritable(held.fileno(), True)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another start is installing: waiting for it")
                fcntl.flock(held, fcntl.LOCK_EX)
        yield


def call(*command):
    """Whether the installer's command succeeds; its output goes to stderr, for stdout is the job's."""
    return subprocess.call(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr, close_fds=False) == 0


def find_uv():
    """A uv that works: the one on PATH, or the locked one, which pip can put into .uv even where it may not
    install into the system's Python; None if it cannot be had."""

    def working():
        found = [shutil.which("uv"), shutil.which("uv", path=str(UV / "bin"))]
        return next((uv for uv in found if uv and answer(uv, "--version")), None)

    def fetch():
        lock = ["--only-binary", ":all:", "--require-hashes", "-r", str(LOCKS / "uv.txt")]
        return call(sys.executable, "-m", "pip", *QUIET, "--upgrade", "--target", str(UV), *lock)

    return working() or (fetch() and working()) or None


def install(accelerator):
    """Fill .venv from the lock, then add this project as it lies here."""
    lock = str(LOCKS / f"{accelerator}.txt")
    base = getattr(sys, "_base_executable", None) or sys.executable  # .venv itself may be what runs us
    project = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]  # the lock has the build backend
    uv = find_uv()
    clear()
    if uv:
        pip, python = [uv, "-q", "pip"], ["--python", str(PYTHON)]
        done = (
            call(uv, "-q", "venv", "--allow-existing", "--python", base, str(VENV))
            and call(*pip, "sync", *python, "--compile-bytecode", "--require-hashes", "--only-binary", ":all:", lock)
            and call(*pip, "install", *python, *project)
        )
    else:
        say("uv cannot be had: trying venv and pip")
        pip = [str(PYTHON), "-m", "pip", *QUIET]
        done = (
            call(base, "-m", "venv", str(VENV))
            and call(*pip, "--require-hashes", "--only-binary", ":all:", "-r", lock)
            and call(*pip, *project)
        )
    if not done:
        hint = (
            "uv takes a mirror from UV_DEFAULT_INDEX, not from pip's settings"
            if uv
            else "if pip or venv is missing, install uv, or the system's python3-pip and python3-venv"
        )
        fail(f"installing failed (see above): check the network and the disk, then start again; {hint}")


def clear():
    """Empty .venv but for the stamp, which marks it as ours from its first moment to its last."""
    VENV.mkdir(exist_ok=True)
    STAMP.write_text("unfinished")
    for path in VENV.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != STAMP:
            path.unlink()


def prepare(accelerator):
    """Make .venv what the lock says, unless it is."""
    wanted = stamp(accelerator)
    if is_ready(wanted):
        return
    with alone():
        if is_ready(wanted):  # by now, thanks to another start
            return
        empty = VENV.is_dir() and not any(VENV.iterdir())
        if os.path.lexists(VENV) and not STAMP.is_file() and not empty:
            fail(f"{VENV} was not made by this script, so it stays as it is: move it away, then start again")
        begin = time.monotonic()
        say(f"installing into .venv ({accelerator}) ...")
        install(accelerator)
        STAMP.write_text(wanted)  # last, so that an install cut short is done again
        say(f"installed in {time.monotonic() - begin:.0f} s")


def main():
    accelerator, job, arguments = parse(sys.argv[1:])
    try:
        prepare(accelerator or detect())
    except OSError as error:
        fail(f"cannot set up .venv: {error}: check that this checkout is whole and can be written to")
    start(job, arguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
