"""Around optax: the loop, its guards, optimisers by name, devices, the run's folder, progress."""

import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import manual_backprop as mb
from manual_backprop.layers import Apply, Dense
from manual_backprop.training import folder, run
from manual_backprop.training.devices import device
from manual_backprop.training.flow import layer_norms
from manual_backprop.training.loop import Metrics, NonFinite, Step, train
from manual_backprop.training.optimizers import aliases, averages, averaging, optimizer
from manual_backprop.training.progress import Speed, progress

OBJECTIVE = mb.Objective(mb.models.mlp(7, 3, activation=mb.ops.relu()), Apply(mb.ops.softmax_cross_entropy()))


def data(examples=20):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((examples, 5)), jnp.float32), jnp.asarray(rng.integers(0, 3, examples))


def small_step(**options) -> Step:
    settings = {"objective": OBJECTIVE, "optimizer": optimizer("sgd", 0.1), "batch_size": 4, "seed": 0} | options
    return Step(**settings)


def last(step, arrays, steps, chunk):
    *_, (training, _) = train(step, step.start(arrays), arrays, steps, chunk)
    return training


def test_a_step_is_gradient_descent_on_its_batch():
    step, arrays = small_step(), data()
    training = step.start(arrays)
    batch, _ = step.batch(arrays, training)
    cost, gradient = jax.value_and_grad(lambda p: OBJECTIVE.apply(p, training.state, batch))(training.params)
    after, metrics = step(training, arrays)
    expected = jax.tree.map(lambda w, dw: w - 0.1 * dw, training.params, gradient)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics.cost, cost, rtol=1e-6)
    np.testing.assert_allclose(metrics.gradient_norm, optax.tree.norm(gradient), rtol=1e-5)
    assert int(after.step) == 1


def batch_of(step, arrays, n):
    """That of step n."""
    return step.batch(arrays, step.start(arrays)._replace(step=n))[0]


def test_batches_are_a_pure_function_of_seed_and_step():
    arrays = data()
    a, b, c, d = (batch_of(small_step(seed=seed), arrays, n) for seed, n in ((0, 3), (0, 3), (0, 4), (1, 3)))
    np.testing.assert_array_equal(a[0], b[0])
    assert not np.array_equal(a[0], c[0]) and not np.array_equal(a[0], d[0])
    np.testing.assert_array_equal(a[0][0], arrays[0][np.flatnonzero((arrays[0] == a[0][0]).all(1))[0]])


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    arrays = data()
    a, b, c = (jax.tree.leaves(last(small_step(seed=seed), arrays, 10, 5).params) for seed in (0, 0, 1))
    for one, same, other in zip(a, b, c, strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("chunk", [1, 3, 10, 100])
def test_the_chunk_changes_no_bit(chunk):
    arrays = data()
    ours, once = last(small_step(), arrays, 10, chunk), last(small_step(), arrays, 10, 10)
    assert int(ours.step) == 10
    jax.tree.map(np.testing.assert_array_equal, ours.params, once.params)


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (
            lambda x, t: (x.at[:, 2].set(jnp.nan), t),
            "step 0: the cost or the gradient is not finite, first in the input",
        ),
        (lambda x, t: (x.at[:].set(3e38), t), "first in forward, at model[0] Dense(7)"),
        (lambda x, t: (x, t.at[:].set(9)), "softmax_cross_entropy: label 9 is outside 0 … 2"),
    ],
    ids=["NaN in the data", "overflow", "label beyond the classes"],
)
def test_what_is_not_finite_stops_with_step_and_layer(spoil, place):
    with pytest.raises(NonFinite, match=re.escape(place)):
        last(small_step(), spoil(*data()), 10, 5)


def test_the_step_that_is_named_is_the_first_bad_one():
    """One example of many is NaN: the run goes on until the batch that holds it."""
    x, t = data(1000)
    x = x.at[17, 0].set(jnp.nan)
    step = small_step()
    first = next(i for i in range(2000) if np.isnan(batch_of(step, (x, t), i)[0]).any())
    assert first > 3  # else nothing is shown
    rows = []
    with pytest.raises(NonFinite, match=rf"^step {first}: .* first in the input"):
        for training, _ in train(step, step.start((x, t)), (x, t), 2000, 2):
            rows.append(int(training.step))
    assert rows == list(range(2, first + 1, 2))


def test_divergence_is_found_in_the_layer_where_it_shows():
    step = small_step(optimizer=optimizer("sgd", 1e30))
    with pytest.raises(NonFinite, match=r"^step [1-3]: .* first in .*(model|cost)"):
        last(step, data(), 10, 5)


@pytest.mark.parametrize("name", sorted(aliases()))
def test_every_alias_of_optax_takes_a_step(name):
    step, arrays = small_step(optimizer=optimizer(name, 0.01)), data()
    training = step.start(arrays)
    after = last(step, arrays, 3, 3)
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(training.params), strict=True)
    )


def test_the_aliases_are_those_that_optax_documents():
    assert {"sgd", "adam", "adamw", "lion", "lbfgs", "polyak_sgd", "adafactor", "rmsprop"} <= set(aliases())
    assert not any(name.startswith(("_", "scale_by")) for name in aliases())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizer("adm", 0.1), "optimizer 'adm' is unknown; did you mean 'adam'?"),
        (lambda: optimizer("sgd", 0.0), "learning rate 0.0 is out of range"),
        (lambda: optimizer("sgd", float("nan")), "learning rate nan is out of range"),
        (lambda: small_step(batch_size=0), "batch size 0 is out of range"),
        (lambda: device("quantum"), "device 'quantum': this machine, with this jax, has none; found: cpu"),
    ],
    ids=["name", "zero", "nan", "batch", "device"],
)
def test_bad_input(make, message):
    with pytest.raises(mb.InputError, match=re.escape(message)):
        make()


def test_a_missing_device_is_never_another():
    if jax.default_backend() != "cpu":
        pytest.skip("there is an accelerator")
    for platform in ("gpu", "tpu"):
        with pytest.raises(mb.InputError, match=f"device '{platform}'"):
            device(platform)
    assert device("cpu").platform == device(None).platform == "cpu"


# ── the run's folder ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_is_never_used_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [folder.new_folder("digits") for _ in range(4)]
    assert len(set(folders)) == 4 and all(path.parent.as_posix() == "runs/digits" for path in folders)
    with pytest.raises(mb.InputError, match="exists; nothing is overwritten: name another"):
        folder.new_folder("digits", folders[0])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(mb.InputError, match=r"cannot be made: Not a directory"):
        folder.new_folder("digits", tmp_path / "file" / "run")


def test_json_is_written_whole(tmp_path):
    folder.write_json(tmp_path / "config.json", {"path": tmp_path, "n": 3})
    assert json.loads((tmp_path / "config.json").read_text()) == {"path": str(tmp_path), "n": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (mb.InputError("x is wrong"), 2, "error: x is wrong\n"),
        (NonFinite("step 3"), 1, "stopped: step 3\n"),
        (None, 0, ""),
    ],
    ids=["mistake", "not finite", "well"],
)
def test_how_a_run_ends(error, code, line, capsys):
    def experiment(stop):
        if error:
            raise error

    with pytest.raises(SystemExit) as ended:
        run.main(experiment)
    assert (ended.value.code, capsys.readouterr().err) == (code, line)


def test_progress_without_a_terminal_prints_a_few_lines():
    out = io.StringIO()
    with progress(Console(file=out, width=200), 1000) as update:
        for step in range(10, 1001, 10):
            update(step, f"cost {1 / step:.3f}")
    lines = out.getvalue().splitlines()
    assert 10 <= len(lines) <= 11
    assert re.fullmatch(r"step 1000/1000  \d+ steps/s  0 s left  cost 0.001", lines[-1])


def test_progress_on_a_terminal_is_a_bar():
    out = io.StringIO()
    with progress(Console(file=out, width=120, force_terminal=True), 100) as update:
        update(50, "cost 0.5")
        update(100, "cost 0.1")
    assert "100/100" in out.getvalue() and "steps/s" in out.getvalue() and "━" in out.getvalue()


# ── what is told of a step, and what is kept beside the weights ──────────────────────────────────────────────────────


def test_the_average_of_the_weights_is_as_defined():
    step, arrays = small_step(optimizer=averaging(optimizer("sgd", 0.1), 0.9)), data()
    training = step.start(arrays)
    expected = training.params
    for _ in range(5):
        training, _ = step(training, arrays)
        expected = jax.tree.map(lambda a, w: 0.9 * a + 0.1 * w, expected, training.params)
    found = averages(training.optimizer_state, training.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    plain = small_step(optimizer=optimizer("sgd", 0.1)).start(arrays)
    assert averages(plain.optimizer_state, plain.params) is plain.params


def test_averages_are_found_where_steps_may_be_skipped():
    step, arrays = small_step(optimizer=averaging(optimizer("adam", 0.1), 0.5), skips=3), data()
    before = step.start(arrays)
    after, _ = step(before, arrays)
    found = averages(after.optimizer_state, after.params)
    half = jax.tree.map(lambda a, b: (a + b) / 2, before.params, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, half)


def test_the_lengths_of_the_layers_gradients():
    """Of plain layers a number each, of those that Repeat stacks a list; together they are the whole gradient's."""
    block = mb.Residual(mb.Serial(Dense(5), Apply(mb.ops.tanh())))
    objective = mb.Objective(mb.Serial(Dense(5), mb.Repeat(block, 3), Dense(3)), Apply(mb.ops.squared_error()))
    batch = data()[0], jnp.ones((20, 3))
    params, state = objective.init(jax.random.key(0), batch)
    _, gradient = mb.value_and_grad(objective)(params, state, batch)
    norms = layer_norms(objective)(gradient)
    assert list(norms) == ["model[0] Dense", "model[1][0] Dense", "model[2] Dense"]
    assert norms["model[1][0] Dense"].shape == (3,)
    whole = np.concatenate([np.ravel(norm) for norm in norms.values()])
    np.testing.assert_allclose(np.linalg.norm(whole), optax.tree.norm(gradient), rtol=1e-6)
    second = jax.tree.map(lambda leaf: leaf[1], gradient[0][1])
    np.testing.assert_allclose(norms["model[1][0] Dense"][1], optax.tree.norm(second), rtol=1e-6)


def test_speed_leaves_out_the_first_chunk_and_what_is_done_between(monkeypatch):
    # begin; after a chunk and before the next, three times
    readings = iter([0, 100, 150, 152, 200, 203, 300])
    monkeypatch.setattr("manual_backprop.training.progress.time.perf_counter", lambda: next(readings))
    speed, found = Speed("tokens", 10), []
    for _ in speed.timed([(None, Metrics(np.zeros(4), None))] * 3):
        if not found:
            next(readings)  # the first chunk is not timed
        found.append(speed.of_chunk().get("steps_per_second"))
    assert found == [None, 2.0, 4 / 3] and speed.results()["steps_per_second"] == 8 / 5


def test_rates():
    speed = Speed("tokens", 10, flops=7.0, limit=14.0, steps=8, seconds=4.0, last=(2, 1.0))
    assert speed.results() == {
        "steps_per_second": 2.0, "units_per_second": 20.0, "unit": "tokens",
        "flops_per_second": 14.0, "utilization": 1.0,
    }  # fmt: skip
    assert speed.of_chunk()["units_per_second"] == 20.0 and speed.in_words() == "20 tokens/s, 100 % MFU"
    assert Speed().results() == {} and Speed().in_words() == ""
