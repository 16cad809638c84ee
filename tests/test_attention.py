"""Attention beyond the table: the meaning of its options is that of jax.nn, and chunks keep the memory linear.

`jax.nn.dot_product_attention` computes its softmax in float32 even of float64, so it cannot be a row's reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from cases.attention import qkv
from cases.case import arrays, normal, random_like
from manual_backprop.ops.attention import fused
from manual_backprop.ops.attention.alibi import alibi_bias
from manual_backprop.testing import check_vjp

OPTIONS = [
    ({}, {}),
    ({"causal": True}, {"is_causal": True}),
    ({"window": (2, 1)}, {"local_window_size": (2, 1)}),
    ({"window": 3, "causal": True, "scale": 0.3}, {"local_window_size": 3, "is_causal": True, "scale": 0.3}),
]
MAKES = [mb.ops.attention, lambda **options: mb.ops.chunked_attention(chunk=2, **options)]


def draw(*shapes):
    return arrays(normal(*shapes)(np.random.default_rng(0)), "float32")


@pytest.mark.parametrize("make", MAKES, ids=["attention", "chunked_attention"])
@pytest.mark.parametrize(("ours", "theirs"), OPTIONS, ids=lambda options: str(options))
def test_options_mean_what_they_mean_in_jax(make, ours, theirs):
    q, k, v, bias = draw(*qkv(7, 5, 6, 2, 3, (2,)), (1, 6, 7, 5))
    # A query always has a key: where it has none, jax.nn averages all values, we give 0.
    mask = (jnp.abs(bias) < 1.5) | (jnp.arange(5) == jnp.minimum(jnp.arange(7), 4)[:, None])
    results = []
    for function in (
        lambda q, k, v, bias: make(**ours, mask=True, bias=True)(q, k, v, mask, bias),
        lambda q, k, v, bias: jax.nn.dot_product_attention(q, k, v, bias, mask, **theirs),
    ):
        y, pull = jax.vjp(function, q, k, v, bias)
        results.append((y, *pull(random_like(y, 1))))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def library(monkeypatch):
    """jax.nn's own implementation in the place of cuDNN's, which is there on NVIDIA GPUs only; what it gave."""
    seen = []
    monkeypatch.setattr(fused, "LIBRARY", "xla")
    monkeypatch.setattr(
        fused.lax, "platform_dependent", lambda *args, cuda, default: seen.append(cuda(*args)) or seen[-1]
    )
    return seen


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 3, "scale": 0.3}], ids=str)
def test_a_librarys_forward_pass_with_our_backward_pass(library, options):
    q, k, v = draw(*qkv(7, 7 if "window" in options else 5, 6, 2, 3, (2, 3)))
    one, other = (mb.ops.chunked_attention(chunk=2, **options, implementation=name) for name in ("cudnn", "xla"))
    y, residuals = one.forward(q, k, v)
    expected, kept = other.forward(q, k, v)
    assert len(library) == 1 and residuals.m is None and kept.m is not None
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    dy = random_like(y, 1)
    for a, b in zip(one.backward(residuals, dy), other.backward(kept, dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert check_vjp(one, lambda *args: other(*args), q, k, v, order=1, effort="quick")


@pytest.mark.parametrize(
    "options", [{"mask": True}, {"bias": True}, {"causal": True, "window": 1}, {"window": (2, 0)}], ids=str
)
def test_where_a_query_may_attend_to_nothing_the_library_is_not_asked(library, options):
    q, k, v, bias = draw(*qkv(8, 4, 6, 2, 3), (8, 4))
    further = {"mask": [bias > 9], "bias": [jnp.full_like(bias, -jnp.inf)]}
    args = q, k, v, *(x for name in options for x in further.get(name, []))
    ours = mb.ops.chunked_attention(chunk=2, **options, implementation="cudnn")
    np.testing.assert_array_equal(ours(*args), mb.ops.chunked_attention(chunk=2, **options)(*args))
    assert not library


def test_cudnns_forward_pass_falls_back_where_there_is_none():
    q, k, v = draw(*qkv(7, 5, 6, 2, 3))
    ours = mb.ops.chunked_attention(causal=True, implementation="cudnn")
    np.testing.assert_array_equal(ours(q, k, v), mb.ops.chunked_attention(causal=True)(q, k, v))
    if jax.default_backend() == "cpu":
        assert ours.forward(q, k, v)[1].m is not None


def planned_bytes(op: mb.Op, T: int) -> int:
    """The memory that the compiler plans for one forward and backward pass."""

    def run(q, k, v, dy):
        y, residuals = op.forward(q, k, v)
        return y, op.backward(residuals, dy)

    x = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32)
    return jax.jit(run).lower(x, x, x, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 100}], ids=str)
def test_chunks_keep_the_memory_linear_in_the_length(options):
    short, long = (planned_bytes(mb.ops.chunked_attention(chunk=64, **options), T) for T in (512, 2048))
    assert long < 4.5 * short
    assert long < 0.2 * planned_bytes(mb.ops.attention(**options), 2048)


def test_a_row_of_alibi_gives_the_same_attention():
    """A softmax takes no notice of what a row has in common."""
    q, k, v = draw(*qkv(7, 5, 6, 2, 3))
    op = mb.ops.attention(causal=True, bias=True)
    whole, row = (op(q, k, v, alibi_bias(6, T, 5)) for T in (7, 1))
    np.testing.assert_allclose(whole, row, rtol=1e-5, atol=1e-6)
    scores = draw((6, 7, 5))[0]
    np.testing.assert_allclose(mb.ops.alibi()(scores), scores + alibi_bias(6, 7, 5), rtol=1e-6)
