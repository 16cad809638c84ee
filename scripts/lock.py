"""Write the locks that scripts/run.py installs from: scripts/locks/*.txt.

    python3 scripts/lock.py             lock what pyproject.toml wants, at the newest versions
    python3 scripts/lock.py --check     say whether the locks were made for this pyproject.toml

One lock serves every platform and every Python from 3.11 on.
"""

import hashlib
import json
import subprocess
import sys

import run


def pyproject():
    import tomllib  # not at the top: first, run.py has a line for a Python without it

    return tomllib.loads((run.ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def first_line():
    """The line that ties a lock to the requirements it was made for."""
    project = pyproject()["project"]
    tables = [project["requires-python"], project["dependencies"], project["optional-dependencies"], build()]
    return f"# requirements sha256:{hashlib.sha256(json.dumps(tables).encode()).hexdigest()}\n"


def build():
    return pyproject()["build-system"]["requires"]


def compile_lock(uv, name, sources, requirements):
    """Write one lock.  A line of requirements comes through stdin, so that no file name gets into the lock."""
    lock = run.LOCKS / f"{name}.txt"
    command = [uv, "pip", "compile", "-q", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", *sources, "-"]
    done = subprocess.run(command, cwd=run.ROOT, input="\n".join(requirements), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        run.fail(f"cannot lock {name}.txt (see above): correct pyproject.toml or check the network")
    run.LOCKS.mkdir(exist_ok=True)
    lock.write_text(first_line() + done.stdout, encoding="utf-8")


def check():
    """Name the locks that are missing or were made for other requirements."""
    names = [f"{name}.txt" for name in (*run.ACCELERATORS, "uv")]
    paths = [run.LOCKS / name for name in names]
    stale = [path.name for path in paths if not path.is_file() or not path.read_text("utf-8").startswith(first_line())]
    if stale:
        run.fail(f"out of date with pyproject.toml: {', '.join(stale)}: run python3 scripts/lock.py")


def main():
    if sys.argv[1:] == ["--check"]:
        return check()
    if sys.argv[1:]:
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    uv = run.find_uv()
    if not uv:
        run.fail("uv is needed and cannot be had: install it, then run this again")
    compile_lock(uv, "uv", [], ["uv"])
    for name in run.ACCELERATORS:
        extras = ["--extra", "test"] + ([] if name == "cpu" else ["--extra", name])
        compile_lock(uv, name, ["pyproject.toml", *extras], build())
    for path in sorted(run.LOCKS.glob("*.txt")):
        print(f"wrote {path.relative_to(run.ROOT)}")


if __name__ == "__main__":
    main()
