"""The plan of a training step: counted products, the compiler's memory, and what fits."""

import jax
import jax.numpy as jnp
import pytest

import manual_backprop as mb
from manual_backprop.__main__ import main
from manual_backprop.inspection.products import products
from manual_backprop.models.gpt import SIZES, Schedule, gpt, training_flops
from manual_backprop.training.plan import bytes_of, plan

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))


def test_products_count_multiplications_and_additions():
    assert products(jnp.matmul, A, B) == (2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7))
    assert products(lambda a: jnp.tanh(a), A) == (0, 0)


def test_loops_count_as_often_as_they_run():
    square = jnp.ones((5, 5))
    step = lambda x, _: (x @ square, None)
    assert products(lambda x: jax.lax.scan(step, x, length=11)[0], A).flops == 11 * 2 * 3 * 5 * 5


def test_what_nobody_asks_for_does_not_count():
    assert products(lambda a, b: (a @ b, a)[1], A, B).flops == 0


def test_a_convolution_counts_its_taps():
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert products(conv, jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 4))).flops == 2 * (2 * 7 * 7 * 4) * (3 * 3 * 3)


@pytest.mark.parametrize("name", ["tiny", "modern-tiny"])
def test_the_formula_counts_what_the_program_has(name):
    size = SIZES[name]
    ids = jnp.zeros((2, size.length), jnp.int32)
    objective = gpt(size, Schedule())
    params, state = objective.init(jax.random.key(0), (ids, ids))
    counted = products(lambda p: mb.value_and_grad(objective)(p, state, (ids, ids)), params).flops
    sums = 2 if size.architecture == "gpt2" else 1  # of a norm's backward pass, products with a vector
    vectors = sums * 2 * 2 * size.length * size.width * (2 * size.depth + 1)
    assert counted == training_flops(size, 2 * size.length) + vectors


def test_keeping_less_takes_less_memory_and_more_work():
    everything, inputs = (plan(SIZES["tiny"], 8, name) for name in ("everything", "inputs"))
    assert everything.temporary > inputs.temporary
    assert everything.products.flops < inputs.products.flops


def test_plan_tells_what_fits(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "tiny", "--memory", "100MB", "--schedule", "dear", "--rate", "1e12", "--bandwidth", "1e11"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "120,576 parameters" in text and "the least work: dear" in text


def test_plan_says_when_nothing_fits(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "tiny", "--memory", "1kB", "--schedule", "dear", "--rate", "1e12", "--bandwidth", "1e11"])
    assert stop.value.code == 1 and "none fits into 1.0 kB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], "plan: size 'tinny' is unknown; did you mean 'tiny'?"),
        (["tiny", "--batch", "0"], "plan: batch is 0; wants 1 or more"),
        (["tiny", "--length", "65"], "plan: length is 65; wants 1 to 64"),
        (["tiny", "--memory", "lots"], "plan: memory 'lots' is not understood; wants, say, 24GB"),
        (["tiny", "--schedule", "all"], "plan: schedule 'all' is unknown"),
        (
            ["tiny", "--batch", "3", "--devices", "2", "--rate", "1", "--bandwidth", "1"],
            "2 devices do not divide a batch of 3",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_bytes_are_read_with_their_unit():
    assert bytes_of("24GB") == 24e9 and bytes_of("1.5 MB") == 1.5e6
