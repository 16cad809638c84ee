"""Eight CPU devices for every test, so that sharding is tested where there is no accelerator; `--family`."""

import itertools
import os
import signal
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several workers share one GPU, where there is one

import jax

jax.config.update("jax_num_cpu_devices", 8)
# What one test compiled, the next and the other workers need not.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, as CI may be; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

finished = itertools.count(1)


def pytest_runtest_teardown():
    """Thousands of compiled programs do not fit into memory; those that are needed again come back from the disk."""
    if next(finished) % 40 == 0:
        jax.clear_caches()


def pytest_addoption(parser):
    parser.addoption("--family", help="only the cases of this family of ops, such as linear")


def pytest_collection_modifyitems(config, items):
    family = config.getoption("--family")
    if not family:
        return
    from cases import FAMILIES

    module = next(module for module in FAMILIES if module.__name__ == f"cases.{family}")
    own = {case.name for case in (*module.OPS, *module.LAYERS, *module.EXTREMES, *module.EMPTY)} | set(module.MISTAKES)
    params = lambda item: getattr(getattr(item, "callspec", None), "params", {})
    chosen = [
        item
        for item in items
        if params(item).get("family") == family
        or getattr(params(item).get("case"), "name", None) in own
        or params(item).get("mistake") in module.MISTAKES
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
