"""The sample inputs that PyTorch publishes for its functions, options included: values and gradients as PyTorch's.

PyTorch is no dependency: without it these tests are skipped. They are slow: `pytest tests/test_torch_samples.py -m slow`.
"""

import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from torch_samples import Skip

torch = pytest.importorskip("torch")
methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")

pytestmark = [
    pytest.mark.slow,  # thousands of shapes, each compiled
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*is deprecated"),  # PyTorch's own, about its samples
]

FUNCTIONS = {
    (path.stem, name): function
    for path in sorted(Path(__file__).with_name("torch_samples").glob("[a-z]*.py"))
    for name, function in vars(importlib.import_module(f"torch_samples.{path.stem}")).items()
    if inspect.isfunction(function) and function.__module__ == f"torch_samples.{path.stem}" and name[0] != "_"
}


def infos(name: str) -> list:
    found = [info for info in methods.op_db if info.name.replace(".", "_") == name]
    assert found, f"PyTorch has no OpInfo {name}"
    return found


@pytest.mark.parametrize(("family", "name"), FUNCTIONS, ids=lambda part: part)
def test_samples(family, name):
    function = FUNCTIONS[family, name]
    ran, skipped = 0, []
    for info in infos(name):
        for sample in info.sample_inputs("cpu", torch.float64, requires_grad=True):
            try:
                with jax.enable_x64(True):
                    compare(info, sample, function)
                ran += 1
            except Skip as reason:
                skipped.append(str(reason))
            except Exception as error:
                raise AssertionError(
                    f"{info.name}{info.variant_test_name and ':' + info.variant_test_name}: {sample.summary()}: {error}"
                ) from error
    print(f"{name}: {ran} samples, {len(skipped)} skipped: {sorted(set(skipped))}")
    assert ran


def compare(info, sample, function) -> None:
    call = (sample.input, sample.args, sample.kwargs)
    flat, tree = jax.tree.flatten(call, is_leaf=lambda leaf: isinstance(leaf, torch.Tensor))
    moving = [i for i, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]

    def ours(*values):
        leaves = [to_numpy(leaf) for leaf in flat]
        for i, value in zip(moving, values, strict=True):
            leaves[i] = value
        first, rest, named = tree.unflatten(leaves)
        return function(first, *rest, **named)

    y, pull = jax.vjp(ours, *(jnp.asarray(to_numpy(flat[i])) for i in moving))
    theirs = info.op(sample.input, *sample.args, **sample.kwargs)
    theirs = tuple(theirs) if isinstance(theirs, tuple) else theirs  # PyTorch's named tuples are none of Python's
    wanted = [leaf for leaf in jax.tree.leaves(theirs) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    got = jax.tree.leaves(y)
    assert len(got) == len(wanted), f"{len(got)} outputs, PyTorch has {len(wanted)}"
    rng = np.random.default_rng(0)
    dys = [rng.standard_normal(tuple(leaf.shape)) for leaf in wanted]
    gradients = torch.autograd.grad(
        wanted, [flat[i] for i in moving], [torch.tensor(dy) for dy in dys], allow_unused=True
    )
    cotangents = pull(
        jax.tree.unflatten(
            jax.tree.structure(y), [jnp.asarray(dy, leaf.dtype) for dy, leaf in zip(dys, got, strict=True)]
        )
    )
    for what, mine, true in [
        *(("y", a, b) for a, b in zip(got, wanted, strict=True)),
        *(("gradient", a, b) for a, b in zip(cotangents, gradients, strict=True)),
    ]:
        true = np.zeros(mine.shape) if true is None else to_numpy(true)
        assert mine.shape == true.shape, f"{what} has shape {mine.shape}, PyTorch's {true.shape}"
        np.testing.assert_allclose(
            mine, true, rtol=1e-9, atol=1e-10 * (np.abs(true[np.isfinite(true)]).max(initial=0) + 1e-3), err_msg=what
        )


def to_numpy(leaf):
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.detach().resolve_neg().resolve_conj().numpy()
