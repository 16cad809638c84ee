"""explain: the factors multiply, the paths add up, the examples average, and a nudge agrees. And its experiment."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.chain
import manual_backprop as mb
from cases import random_like
from manual_backprop import training
from manual_backprop.inspection import explain, first_nonfinite
from manual_backprop.layers import Apply, Dense, LayerNorm
from manual_backprop.models.gpt import Schedule, Size, gpt

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "chain.py"

NETWORKS = {
    "chain": (mb.models.chain(), mb.ops.squared_error(), 1, 1),
    "general": (mb.models.mlp(3, 2, activation=mb.ops.tanh(), last=mb.ops.tanh()), mb.ops.squared_error(), 5, 2),
    "classifier": (mb.models.mlp(7, 3, activation=mb.ops.gelu()), mb.ops.softmax_cross_entropy(), 5, None),
    "activation first": (mb.Serial(Apply(mb.ops.tanh()), Dense(3), Apply(mb.ops.relu())), mb.ops.squared_error(), 5, 3),
    "nested, no bias": (
        mb.Serial(mb.Serial(Dense(3, bias=False), Apply(mb.ops.relu())), mb.models.mlp(2)),
        mb.ops.squared_error(),
        5,
        2,
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """(objective, params, batch), four examples, in float64."""
    model, cost, inputs, outputs = NETWORKS[request.param]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((4, inputs)))
        target = jnp.asarray(rng.uniform(size=(4, outputs)) if outputs else rng.integers(0, 3, 4))
        objective = mb.Objective(model, Apply(cost))
        params, _ = objective.init(jax.random.key(0), (x, target))
        yield objective, random_like(params, 1), (x, target)


def test_products_averaged_over_the_examples_are_the_gradient(network):
    """The factors come from one example at a time; ∇C from one backward pass over the batch."""
    explanation = explain(*network)
    averages = {factors.name: factors.average for factors in explanation.factors()}
    assert tuple(averages) == explanation.names
    largest = np.abs(explanation.gradient).max()
    np.testing.assert_allclose(list(averages.values()), explanation.gradient, rtol=0, atol=1e-12 * largest)


def test_the_gradient_is_autodiffs(network):
    objective, params, batch = network
    gradient = jax.grad(
        lambda p: objective.cost.op.forward(objective.model.apply(p[0], state(objective, batch), batch[0]), batch[1])[0]
    )(params)
    flat = []
    for layer in jax.tree.leaves(gradient[0], is_leaf=lambda node: isinstance(node, dict)):
        flat += [layer["w"].T.ravel()] if layer else []
        flat += [layer["b"]] if "b" in layer else []
    expected = np.concatenate(flat)
    np.testing.assert_allclose(explain(*network).gradient, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def state(objective, batch):
    return jax.eval_shape(objective.init, jax.random.key(0), batch)[1][0]


def test_each_factor_is_what_its_name_says(network):
    """∂C/∂a, ∂a/∂z and ∂z/∂w by central differences of the pieces, at one neuron of the last layer."""
    objective, _, batch = network
    t = explain(*network).terms[-1]
    n, j, k, step = 1, t.z.shape[1] - 1, 0, 1e-6
    cost = objective.cost.op
    moved = [jnp.asarray(t.a[n : n + 1]).at[0, j].add(sign * step) for sign in (1, -1)]
    slope = (cost(moved[0], batch[1][n : n + 1]) - cost(moved[1], batch[1][n : n + 1])) / (2 * step)
    np.testing.assert_allclose(t.dC_da[n, j], slope, rtol=1e-6)
    f = explain(*network).weight(len(explain(*network).terms), j, k)
    np.testing.assert_allclose(f.dz_dw[n], t.a_before[n, k])
    np.testing.assert_allclose(f.product[n], t.dC_da[n, j] * t.da_dz[n, j] * t.a_before[n, k])


def test_paths_add_up_to_the_derivative_of_the_layer_before(network):
    explanation = explain(*network)
    for layer, (before, after) in enumerate(zip(explanation.terms[:-1], explanation.terms[1:], strict=True), 1):
        for k in range(before.a.shape[1]):
            paths = explanation.neuron(layer, k)
            assert paths.paths.shape == (4, after.w.shape[1])
            np.testing.assert_allclose(paths.sum, before.dC_da[:, k], rtol=1e-12)


def test_a_path_is_what_a_neuron_sends_through_one_other_alone(network):
    """Nudge a_k, let one z_j alone feel it: the cost of the example moves by that path."""
    objective, _, (_, target) = network
    explanation = explain(*network)
    t = explanation.terms[-1]
    step, n, k = 1e-6, 2, 0
    paths = explanation.neuron(len(explanation.terms) - 1, k)
    activations = [layer for layer in objective.model.layers if isinstance(layer, Apply)]
    last = activations[-1] if isinstance(objective.model.layers[-1], Apply) else None
    for j in range(t.w.shape[1]):
        costs = []
        for sign in (1, -1):
            z = jnp.asarray(t.z[n : n + 1]).at[0, j].add(sign * step * t.w[k, j])
            costs.append(objective.cost.op(last.op(z) if last else z, target[n : n + 1]))
        np.testing.assert_allclose(paths.paths[n, j], (costs[0] - costs[1]) / (2 * step), rtol=1e-5, atol=1e-9)


def test_one_step_of_gradient_descent(network):
    explanation = explain(*network, learning_rate=1e-3)
    assert explanation.cost_after < explanation.cost
    np.testing.assert_allclose(explanation.cost, explanation.costs.mean())
    expected = explanation.cost - 1e-3 * np.sum(explanation.gradient**2)  # to first order
    np.testing.assert_allclose(explanation.cost_after, expected, rtol=1e-2 * 1e-3 + 1e-4)


def test_chosen_neurons_alone_are_shown():
    objective = mb.Objective(mb.models.mlp(16, 16, 10, last=mb.ops.sigmoid()), Apply(mb.ops.squared_error()))
    batch = jnp.ones((2, 64)), jnp.zeros((2, 10))
    params, _ = objective.init(jax.random.key(0), batch)
    explanation = explain(objective, params, batch, neurons={0: [20], 1: [3], 2: [5, 7], 3: [9]})
    assert [f.name for f in explanation.factors()] == [
        "w⁽¹⁾[3,20]", "b⁽¹⁾[3]", "w⁽²⁾[5,3]", "w⁽²⁾[7,3]", "b⁽²⁾[5]", "b⁽²⁾[7]", "w⁽³⁾[9,5]", "w⁽³⁾[9,7]", "b⁽³⁾[9]",
    ]  # fmt: skip
    assert len(explanation.gradient) == len(explanation.names) == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    assert len(str(explanation).splitlines()) < 200


def test_it_prints_every_number():
    model, cost, _, _ = NETWORKS["chain"]
    objective = mb.Objective(model, Apply(cost))
    batch = jnp.array([[0.3], [0.8]]), jnp.array([[1.0], [0.0]])
    params, _ = objective.init(jax.random.key(0), batch)
    explanation = explain(objective, params, batch)
    text = str(explanation)
    for factors in explanation.factors():
        assert f"∂C/∂{factors.name}" in text
        for column in (factors.dC_da, factors.da_dz, factors.dz_dw, factors.product, [factors.average]):
            for number in column:
                assert f"{number:.6g}" in text
    assert "∇C, 6 entries" in text and "before" in text and "after" in text


@pytest.mark.parametrize(
    ("model", "neurons", "message"),
    [
        (mb.Serial(Dense(3), LayerNorm(), Dense(2)), None, "LayerNorm() is here"),
        (mb.Serial(Apply(mb.ops.tanh())), None, "has no weights; wants at least one Dense layer"),
        (mb.models.mlp(3, 2), {1: 0}, "neurons of layer 1 are 0; wants a list, such as [0]"),
        (mb.Residual(Dense(5)), None, "Residual(Dense(5)) is here"),
        (mb.models.mlp(3, 2), {4: [0]}, "there is no layer 4 here; the input is 0, the layers are 1 … 2"),
        (mb.models.mlp(3, 2), {1: [3]}, "layer 1 has no neuron 3; it has 0 … 2"),
    ],
    ids=lambda value: str(value),
)
def test_bad_input(model, neurons, message):
    objective = mb.Objective(model, Apply(mb.ops.squared_error()))
    x = jnp.ones((4, 5))
    outputs = jax.eval_shape(lambda x: model.apply(*model.init(jax.random.key(0), x), x), x)
    batch = x, jnp.zeros(outputs.shape)
    params, _ = objective.init(jax.random.key(0), batch)
    with pytest.raises(mb.InputError, match=re.escape(message)):
        explain(objective, params, batch, neurons=neurons)


def test_layers_count_from_one_and_another_is_one_line():
    objective = mb.Objective(mb.models.mlp(3, 2), Apply(mb.ops.squared_error()))
    batch = jnp.ones((4, 5)), jnp.zeros((4, 2))
    explanation = explain(objective, objective.init(jax.random.key(0), batch)[0], batch)
    for ask in (
        lambda: explanation.weight(0, 0, 0),
        lambda: explanation.weight(3, 0, 0),
        lambda: explanation.weight(1, 3, 0),
        lambda: explanation.weight(1, 0, -1),
        lambda: explanation.bias(0, 0),
        lambda: explanation.neuron(-1, 0),
        lambda: explanation.neuron(2, 0),
    ):
        with pytest.raises(mb.InputError, match="explain: "):
            ask()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, p, b: (o, p, (b[0][:3], b[1])), "x has shape (3, 5), target (4, 2)"),
        (lambda o, p, b: (o, p, (b[0][0], b[1])), "x has shape (5,)"),
        (lambda o, p, b: (o, p, (b[0][None], b[1])), "x has shape (1, 4, 5)"),
        (lambda o, p, b: (o, p, (b[0][:0], b[1][:0])), "x has shape (0, 5)"),
        (lambda o, p, b: (o.model, p, b), "wants an Objective(model, cost)"),
        (lambda o, p, b: (o, p[0], b), "params are not those of the objective"),
    ],
    ids=["batch sizes", "one vector", "three axes", "empty", "a model", "the model's params"],
)
def test_what_does_not_fit_is_one_line(change, message):
    objective = mb.Objective(mb.models.mlp(3, 2), Apply(mb.ops.squared_error()))
    batch = jnp.ones((4, 5)), jnp.zeros((4, 2))
    params, _ = objective.init(jax.random.key(0), batch)
    with pytest.raises(mb.InputError, match=re.escape(message)):
        explain(*change(objective, params, batch))


def test_the_first_value_that_is_not_finite_is_found():
    objective = mb.Objective(mb.models.mlp(3, 2, activation=mb.ops.relu()), Apply(mb.ops.squared_error()))
    x, t = jnp.ones((4, 5)), jnp.ones((4, 2))
    params, state = objective.init(jax.random.key(0), (x, t))
    assert first_nonfinite(objective, params, state, (x, t)) is None
    assert first_nonfinite(objective, params, state, (x.at[1, 2].set(jnp.nan), t)) == "the input"
    assert first_nonfinite(objective, params, state, (x, t.at[0, 0].set(jnp.inf))) == "the target"
    bad = ((params[0][0], {}, {**params[0][2], "b": jnp.array([jnp.nan, 0.0])}), {})
    assert first_nonfinite(objective, bad, state, (x, t)) == "the parameters of model[2] Dense(2)"
    large = (
        (
            jax.tree.map(lambda w: jnp.full_like(w, 1e30), params[0][0]),
            {},
            jax.tree.map(lambda w: jnp.full_like(w, 1e30), params[0][2]),
        ),
        {},
    )
    assert first_nonfinite(objective, large, state, (x, t)) == "forward, at model[2] Dense(2)"
    steep = ((params[0][0], {}, jax.tree.map(lambda w: jnp.full_like(w, 1e15), params[0][2])), {})
    assert (
        first_nonfinite(objective, steep, state, (x, t.at[0, 0].set(-1e25)))
        == "forward, at the cost Apply(squared_error())"
    )


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
@pytest.mark.parametrize(
    "around", [lambda o: o, lambda o: mb.MicroBatches(o, 2), mb.LossScale], ids=["plain", "parts", "scaled"]
)
def test_the_block_of_a_transformer_is_named(around, architecture):
    objective = around(gpt(Size(11, 5, 3, 8, 2, architecture=architecture), Schedule("inputs")))
    ids = jnp.zeros((2, 5), jnp.int32)
    params, state = objective.init(jax.random.key(0), (ids, ids))
    (embedding, positions, blocks, norm), head = params
    assert first_nonfinite(objective, params, state, (ids, ids)) is None
    poisoned = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), blocks)
    place = first_nonfinite(objective, ((embedding, positions, poisoned, norm), head), state, (ids, ids))
    part = "part 1 of 2 of the batch: " if isinstance(objective, mb.MicroBatches) else ""
    assert place.startswith(f"{part}the parameters of model[2][1][0] Residual(")


def test_an_objective_that_is_none_is_taken_whole():
    inner = mb.Objective(mb.models.mlp(1), Apply(mb.ops.squared_error()))
    objective = mb.Precision(inner, "float32")
    batch = jnp.ones((2, 1)), jnp.ones((2, 1))
    params, state = objective.init(jax.random.key(0), batch)
    assert first_nonfinite(objective, params, state, batch) is None
    assert first_nonfinite(objective, params, state, (batch[0], jnp.inf * batch[1])) == "the batch"
    large = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e30), params)
    assert first_nonfinite(objective, large, state, batch) == f"forward, at {objective!r}"


def test_a_gradient_that_overflows_alone_is_found():
    objective = mb.Objective(mb.models.mlp(1), Apply(mb.ops.squared_error()))
    x, t = jnp.full((1, 1), 1e38), jnp.full((1, 1), 1e5)
    assert (
        first_nonfinite(objective, (({"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)},), {}), (((),), ()), (x, t))
        == "backward, at model[0] Dense(1)"
    )


# ── experiments/chain.py ─────────────────────────────────────────────────────────────────────────────────────────────


def chain(*arguments):
    return subprocess.run([sys.executable, EXPERIMENT, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("sizes", [(), ("--sizes", "2", "3", "2")], ids=["chain", "general"])
def test_the_experiment_shows_that_a_nudge_agrees(sizes):
    done = chain(*sizes)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^∂C/∂\S+ +(-?\d\.\d{9}) +(-?\d\.\d{9}) +\S+$", done.stdout, re.MULTILINE)
    assert len(rows) == (17 if sizes else 6)
    slopes, products = np.array(rows, float).T
    np.testing.assert_allclose(slopes, products, atol=2e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--activation", "sigmiod"), "did you mean 'sigmoid'?"),
        (("--sizes", "3"), "--sizes 3: wants the input and at least one layer"),
        (("--sizes", "3", "0"), "--sizes 3 0"),
        (("--examples", "0"), "--examples 0 is out of range"),
        (("--epsilon", "0"), "--epsilon 0.0 is no nudge"),
        (("--size", "3"), "--sizes"),
        (("--seed", "99999999999999999999"), "--seed 99999999999999999999 is out of range"),
        (("--learning-rate", "nan"), "--learning-rate nan is out of range"),
    ],
    ids=str,
)
def test_the_experiments_mistakes_are_answered(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENT), *arguments])
    with pytest.raises(SystemExit) as ended:
        training.run.main(experiments.chain.main)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
