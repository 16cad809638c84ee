"""The house stays in order: imports go one way, every op has its case, its derivation and its source."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import manual_backprop as mb
from cases import CASES, LAYERS, MODELS, OPS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "manual_backprop"
FLOORS = [
    "errors",
    "options",
    "contract",
    "ops",
    "layers",
    "combinators",
    "models",
    "testing",
    "inspection",
    "training",
    "kernels",
    "__main__",
]
CONSTRUCTORS = [name for name in mb.ops.__all__ if name.islower()]


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_floor_imports_only_those_above_it(path):
    floor = floor_of(path)
    if floor == "__init__":
        return
    below = FLOORS[FLOORS.index(floor) + 1 :]
    if floor == "testing":
        below = [name for name in FLOORS if name not in ("errors", "contract", "testing")]
    for module in imports_of(path):
        assert module.split(".")[:2] not in [["manual_backprop", name] for name in below], module


def test_autodiff_occurs_in_the_oracle_alone():
    autodiff = {"grad", "vjp", "value_and_grad", "linearize", "jacrev", "jacfwd", "jvp", "hessian", "linear_transpose"}
    for path in sources():
        if floor_of(path) == "testing":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax"
            assert not (called and node.attr in autodiff), f"{path}:{node.lineno}: jax.{node.attr}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax"):
                assert not autodiff & {alias.name for alias in node.names}, path


def test_importing_the_library_pulls_in_jax_and_numpy_alone():
    code = "import sys, manual_backprop; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split())
    assert "jax" in loaded
    assert not loaded & {
        "optax",
        "flax",
        "orbax",
        "matplotlib",
        "rich",
        "tyro",
        "pooch",
        "sklearn",
        "chex",
        "pytest",
        "hypothesis",
    }
    allowed = {"jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "manual_backprop"}
    code = "import sys, jax, numpy; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded_by_jax = set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split())
    assert loaded - loaded_by_jax - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_op_has_a_case(name):
    assert any(case.unit.name == name for case in OPS)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_op_is_measured(name):
    assert any(case.unit.name == name and case.large for case in OPS)
    assert re.search(rf"^\| {name} \| \d+ \|", (ROOT / "tests" / "ops.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_op_has_a_derivation_and_a_source(name):
    constructor = getattr(mb.ops, name)
    module = inspect.getmodule(constructor)
    alone = [getattr(mb.ops, other).__module__ for other in CONSTRUCTORS].count(module.__name__) == 1
    own = constructor.__doc__
    if alone or "Derivation: the module" in own:
        own = f"{module.__doc__}\n{own}"
    assert re.search(r"\bd\w+ = |\bd\w+ of ", own), "a derivation ends in a formula"
    assert "Saved" in own
    assert re.search(r"\b(19|20)\d\d\b", own), "a source has a year"


def layers() -> list[str]:
    values = {name: getattr(floor, name) for floor in (mb.layers, mb.combinators) for name in floor.__all__}
    return [name for name, value in values.items() if inspect.isclass(value) and issubclass(value, mb.Layer)]


@pytest.mark.parametrize("name", layers())
def test_every_layer_and_combinator_has_a_case(name):
    if name in ("OpLayer", "Precision"):
        return  # the base of the others; and one of a dtype of its own, which test_schedules.py tests
    assert any(name in repr(case.unit) for case in LAYERS)


@pytest.mark.parametrize("name", mb.models.__all__)
def test_every_model_has_a_case(name):
    assert any(case.name.startswith(name) for case in MODELS)


def test_case_names_are_distinct():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def test_everything_public_is_documented():
    for module in (mb, mb.ops, mb.layers, mb.models, mb.testing, mb.inspection):
        for name in getattr(module, "__all__", []):
            assert inspect.getdoc(getattr(module, name)), f"{module.__name__}.{name}"
    for path in sources():
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_the_top_level_is_what_it_should_be():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    agreed = {"pyproject.toml", "README.md", "LICENSE", "manual_backprop", "experiments", "tests", "scripts"}
    assert {name for name in top if not name.startswith(".")} <= agreed


def test_one_version():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == mb.__version__


def test_no_file_is_above_400_lines():
    for path in [*sources(), *(ROOT / "experiments").glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_ruff_finds_nothing():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
