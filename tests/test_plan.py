"""The plan of a training step: counted products, the compiler's memory, and what fits."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

import manual_backprop as mb
from manual_backprop.__main__ import main
from manual_backprop.inspection.products import products
from manual_backprop.models.gpt import SIZES, Schedule, gpt, training_flops
from manual_backprop.training.plan import IN_BACKWARD, advice, bytes_of, plan
from manual_backprop.training.sharding import axes, mesh_of

MACHINE = ["--rate", "1e12", "--bandwidth", "1e11"]

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
        main(["plan", "tiny", "--memory", "100MB", "--schedule", "dear", *MACHINE])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "120,576 parameters" in text and "the least work: dear" in text


def test_plan_says_when_nothing_fits(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "tiny", "--memory", "1kB", "--schedule", "dear", *MACHINE])
    assert stop.value.code == 1 and "none fits into 1.0 kB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], "plan: size 'tinny' is unknown; did you mean 'tiny'?"),
        (["tiny", "--batch", "0"], "plan: batch is 0; wants 1 or more"),
        (["tiny", "--length", "65"], "plan: length is 65; wants 1 to 64"),
        (["tiny", "--memory", "lots"], "plan: memory 'lots' is not understood; wants, say, 24GB"),
        (["tiny", "--schedule", "all"], "plan: schedule 'all' is unknown"),
        (["tiny", "--memory", "0GB"], "plan: memory '0GB' is out of range; wants, say, 24GB"),
        (["tiny", "--rate", "0"], "plan: rate is 0; wants a number above 0, such as 1e12"),
        (["tiny", "--bandwidth", "nan"], "plan: bandwidth is nan; wants a number above 0"),
        (["tiny", "--link", "-1"], "plan: link is -1; wants a number above 0"),
        (["tiny", "--json", "no/such/plan.json"], "no/such/plan.json cannot be written: there is no folder no/such"),
        (["tiny", "--mesh", "4"], "mesh '4' is not understood; wants, say, data=4,model=2"),
        (["tiny", "--mesh", "modle=2"], "mesh: axis 'modle' is unknown; did you mean 'model'?"),
        (["tiny", "--mesh", "data=16", "--batch", "16"], "16 devices are wanted, there are 8; to simulate them"),
        (["tiny", "--batch", "3", "--mesh", "data=2"], "data=2 does not divide a batch of 3; 4 would be"),
        (
            ["tiny", "--batch", "7", "--mesh", "data=2,fsdp=2"],
            "data=2 and fsdp=2 do not divide a batch of 7; 8 would be",
        ),
        (["tiny", "--mesh", "model=3"], "model=3 does not divide 4 heads, 4 key heads and 256 hidden neurons"),
        (["modern-tiny", "--mesh", "model=4"], "4 heads, 2 key heads and 192 hidden neurons; wants one of 1, 2"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_bytes_are_read_with_their_unit():
    assert bytes_of("24GB") == 24e9 and bytes_of("1.5 MB") == 1.5e6 and bytes_of("2GiB") == 2**31


def test_a_mesh_cuts_what_a_device_holds_and_says_what_it_sends():
    one, fsdp, both = (
        plan(SIZES["tiny"], 8, "dear", mesh=mesh_of(axes(text))) for text in ("data=1", "fsdp=8", "data=4,model=2")
    )
    held = lambda p: p.peak - p.temporary
    assert held(fsdp) < 1.1 / 8 * held(one) and held(both) < 1.1 / 2 * held(one)
    assert fsdp.temporary < one.temporary / 2 and fsdp.products.flops == one.products.flops / 8
    assert not one.sent and sum(fsdp.sent.values()) > 3 * 7 / 8 * 4 * one.parameters  # two gathers and a sum, or more
    assert both.sent["all-reduce"] > 0


def test_plan_of_a_mesh_in_words_and_as_json(capsys, tmp_path):
    file = tmp_path / "plan.json"
    arguments = [
        "plan",
        "tiny",
        "--mesh",
        "data=4,model=2",
        "--schedule",
        "dear",
        "--link",
        "1e6",
        *MACHINE,
        "--json",
        str(file),
    ]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    text, found = capsys.readouterr().out, json.loads(file.read_text())
    assert (
        stop.value.code == 0 and "of each of 8 devices (data=4, model=2), compiled for cpu" in text and " sent " in text
    )
    (only,) = found["schedules"]
    assert found["mesh"] == {"data": 4, "model": 2} and found["machine"]["memory"] is None and found["best"] == "dear"
    assert only["seconds"] == sum(only["sent"].values()) / 1e6 and only["fits"]
    before = file.read_text()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and f"{file} exists; nothing is overwritten" in capsys.readouterr().err
    assert file.read_text() == before


def test_advice_names_a_schedule_and_parts_that_fit():
    size, failed = SIZES["tiny"], plan(SIZES["tiny"], 8, "everything")
    text = advice(size, 8, None, "everything", failed.peak - 1)
    first, second = text.split("\n")
    assert "'everything' wants" in first and "; 'dear' would want" in first
    assert second.startswith("the batch in 2 parts, one after another, would want")
    assert plan(size, 8, "dear").peak < failed.peak and plan(size, 8, "everything", accumulate=2).peak < failed.peak


def test_advice_believes_that_there_was_no_room():
    assert "'inputs' would want" in advice(SIZES["tiny"], 8, None, "dear", 1e12)


def test_advice_names_nothing_that_takes_more_than_what_failed():
    short = replace(SIZES["modern-tiny"], length=4)
    assert plan(short, 2, "dear", accumulate=2).peak > plan(short, 2, "dear").peak
    assert "parts" not in advice(short, 2, None, "dear", 1e12)


def test_advice_takes_a_smaller_batch_where_no_schedule_fits():
    size, leanest = SIZES["tiny"], f"last{IN_BACKWARD}"
    memory = plan(size, 4, leanest).peak
    text = advice(size, 16, None, leanest, memory)
    assert text.endswith(f"\na batch of 4 would want {memory / 1e6:.2f} MB with it")
    assert advice(size, 2, None, leanest, 1e5).endswith("take a smaller size, or a smaller length")
