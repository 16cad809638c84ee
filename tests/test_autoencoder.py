"""Autoencoders against flax, the bound against what is known of it, and the experiment as a user runs it.

The oracle judges the whole objective in every precision among the cases: `cases/models.py`.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

import manual_backprop as mb
from cases import random_like
from experiment import ran
from manual_backprop.layers import Apply, Dense, GaussianSample
from manual_backprop.models.autoencoder import (
    autoencoder,
    cross_entropy,
    decode,
    encode,
    negative_bound,
    variational,
    variational_autoencoder,
)
from peers import flax_autoencoder as peer

PIXELS, HIDDEN, LATENT, BETA = 23, (13, 7), 3, 0.7
KEY = jax.random.key(5)


def batch_of(seed: int = 0, n: int = 11):
    x = jnp.asarray(np.random.default_rng(seed).uniform(size=(n, PIXELS)), jnp.zeros(()).dtype)
    return x, x


def variational_row():
    """Our objective; flax's model, and its cost of (variables, x, key of the objective)."""
    objective = mb.Objective(variational_autoencoder(PIXELS, HIDDEN, LATENT), negative_bound(BETA))
    model = peer.VariationalAutoencoder(PIXELS, HIDDEN, LATENT)
    cost = peer.negative_bound(model, BETA)
    return objective, model, lambda variables, x, key: cost(variables, x, peer.noise_key(key))


def plain_row():
    model = peer.Autoencoder(PIXELS, HIDDEN, LATENT)
    return (
        mb.Objective(autoencoder(PIXELS, HIDDEN, LATENT), cross_entropy()),
        model,
        lambda variables, x, key: peer.cross_entropy(model.apply(variables, x), x),
    )


BOTH = {"variational": variational_row, "plain": plain_row}


@pytest.fixture(params=BOTH)
def both(request):
    return BOTH[request.param]()


def drawn(objective, seed: int = 1):
    """Parameters of numbers that hide nothing."""
    params, state = objective.init(jax.random.key(0), batch_of())
    return jax.tree.map(lambda leaf: 0.5 * leaf, random_like(params, seed)), state


def largest_difference(ours, theirs) -> float:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


# ── against flax ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_gradient_is_flaxs(both):
    objective, _, flax_cost = both
    with jax.enable_x64(True):
        batch = batch_of()
        params, state = drawn(objective)
        (cost, _), (dparams, _) = jax.jit(mb.value_and_grad(objective))(params, state, batch, KEY)
        variables = peer.to_flax(objective.model, params[0])
        expected, theirs = jax.jit(jax.value_and_grad(flax_cost))(variables, batch[0], KEY)
        assert abs(cost - expected) <= 1e-12 * expected
        assert largest_difference(peer.to_flax(objective.model, dparams), theirs) <= 1e-11


@pytest.mark.parametrize("optimizer", [optax.adam(1e-2), optax.sgd(1e-2, momentum=0.9)], ids=["adam", "sgd"])
def test_ten_steps_end_where_flaxs_do(both, optimizer):
    objective, _, flax_cost = both
    with jax.enable_x64(True):
        x, target = batch_of()
        ours, state = drawn(objective)
        theirs = start = peer.to_flax(objective.model, ours[0])

        def step(gradient):
            def run(params, optimizer_state, key):
                updates, optimizer_state = optimizer.update(gradient(params, key), optimizer_state, params)
                return optax.apply_updates(params, updates), optimizer_state

            return jax.jit(run)

        our_step = step(lambda p, key: mb.value_and_grad(objective)(p, state, (x, target), key)[1])
        their_step = step(lambda p, key: jax.grad(flax_cost)(p, x, key))
        our_state, their_state = optimizer.init(ours), optimizer.init(theirs)
        for key in jax.random.split(KEY, 10):
            ours, our_state = our_step(ours, our_state, key)
            theirs, their_state = their_step(theirs, their_state, key)
        assert largest_difference(peer.to_flax(objective.model, ours[0]), theirs) <= 1e-11
        assert largest_difference(start, theirs) > 1e-2  # it moved


def test_inference_is_flaxs_without_noise(both):
    objective, flax_model, _ = both
    model, x = objective.model, batch_of()[0]
    params, state = drawn(objective)
    ours = model.apply(params[0], state[0], x)
    theirs = flax_model.apply(peer.to_flax(model, params[0]), x)
    encoded = encode(model, params[0], state[0], x)
    if isinstance(theirs, tuple):
        logits, *gaussian = theirs
        theirs, ours = (logits, tuple(gaussian)), (ours[0], tuple(ours[1]))
        jax.tree.map(np.testing.assert_array_equal, encoded, ours[1])
        encoded = encoded[0]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    again = decode(model, params[0], state[0], encoded)
    np.testing.assert_allclose(again, jax.tree.leaves(ours)[0], rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_error_is_no_larger_than_autodiffs():
    """Root of the mean square over all entries and sixteen batches: of one batch it is a matter of luck."""
    plain, model, _ = variational_row()
    objective = mb.Objective(mb.Precision(plain.model), plain.cost)
    params, state = drawn(plain)
    variables = peer.to_flax(plain.model, params[0])
    by_hand = jax.jit(mb.value_and_grad(objective))
    costs = (peer.negative_bound(model.clone(dtype=dtype), BETA) for dtype in (jnp.bfloat16, None))
    theirs, truth = (jax.jit(jax.grad(cost)) for cost in costs)
    squares = np.zeros(2)
    for seed in range(16):
        batch, key = batch_of(seed), jax.random.key(seed)
        dparams = by_hand(params, state, batch, key)[1]
        assert {leaf.dtype for leaf in jax.tree.leaves(dparams)} == {jnp.dtype("float32")}
        expected = jax.tree.leaves(truth(variables, batch[0], peer.noise_key(key)))
        others = theirs(variables, batch[0], peer.noise_key(key))
        for i, gradient in enumerate((peer.to_flax(plain.model, dparams[0]), others)):
            pairs = zip(jax.tree.leaves(gradient), expected, strict=True)
            squares[i] += sum(float(jnp.sum((a - b) ** 2)) for a, b in pairs)
    assert np.sqrt(squares[0] / squares[1]) <= 1.2


# ── the sample and the divergence ────────────────────────────────────────────────────────────────────────────────────


def test_a_sample_has_its_mean_and_its_variance():
    n = 40_000
    z = mb.ops.gaussian_sample()(jnp.full(n, 3.0), jnp.full(n, np.log(4.0)), KEY)
    np.testing.assert_allclose(np.mean(z), 3, atol=4 * 2 / np.sqrt(n))
    np.testing.assert_allclose(np.var(z), 4, atol=4 * 4 * np.sqrt(2 / n))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_noise_depends_on_the_key_alone(dtype):
    sample = mb.ops.gaussian_sample()
    with jax.enable_x64(True):
        zeros = jnp.zeros((7, 5), dtype)
        z = sample(zeros, zeros, KEY)
        np.testing.assert_array_equal(z, sample(zeros.astype("float32"), zeros.astype("float32"), KEY).astype(dtype))
        assert not np.array_equal(z, sample(zeros, zeros, jax.random.key(6)))


def test_the_gradient_keeps_its_digits_where_the_deviation_is_small():
    """z - mean of the rounded z is 0 there, and dlog_variance would be."""
    mean, log_variance = jnp.full(3, 1e4), jnp.full(3, -20.0)
    dlog_variance = jax.grad(lambda v: mb.ops.gaussian_sample()(mean, v, KEY).sum())(log_variance)
    noise = jax.random.normal(KEY, (3,))
    np.testing.assert_allclose(dlog_variance, 0.5 * np.exp(-10.0) * noise, rtol=1e-5)


def test_in_inference_it_is_the_mean():
    x = jnp.ones((7, 5)), jnp.zeros((7, 5))
    assert GaussianSample().init(KEY, x) == ({}, ())
    assert GaussianSample().apply({}, (), x) is x[0]


def test_the_divergence_from_itself_is_zero_and_so_is_its_gradient():
    kl = mb.ops.gaussian_kl()
    zeros = jnp.zeros((7, 5))
    assert kl(zeros, zeros) == 0
    for leaf in jax.grad(kl, (0, 1))(zeros, zeros):
        np.testing.assert_array_equal(leaf, 0)


def test_known_divergences():
    kl = mb.ops.gaussian_kl(reduction="none")
    mean, variance = jnp.array([[2.0, 0], [0, 0], [1, -1]]), jnp.array([[1.0, 1], [4, 1], [1, 0.25]])
    by_hand = [2.0, 1.5 - np.log(2), 0.5 + 0.5 + 0.5 * (0.25 - 1) + np.log(2)]
    np.testing.assert_allclose(kl(mean, jnp.log(variance)), by_hand, rtol=1e-6)


def test_the_divergence_is_the_mean_of_the_logarithm_of_the_ratio():
    """Monte Carlo: E_q[ln q(z) - ln p(z)] over samples of q."""
    n = 40_000
    mean, log_variance = jnp.array([0.5, -1.0, 2.0]), jnp.array([-1.0, 0.5, 0.2])
    m, v = (jnp.broadcast_to(x, (n, 3)) for x in (mean, log_variance))
    z = mb.ops.gaussian_sample()(m, v, KEY)
    normal = jax.scipy.stats.norm.logpdf
    ratios = np.sum(normal(z, m, jnp.exp(v / 2)) - normal(z), -1)
    np.testing.assert_allclose(mb.ops.gaussian_kl()(m, v), ratios.mean(), atol=4 * ratios.std() / np.sqrt(n))


# ── the bound ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bound_is_above_by_the_divergence_from_the_posterior():
    """-log p(x) + KL(q ‖ p(z|x)), both by a sum over a fine grid of one latent variable."""
    objective = mb.Objective(variational_autoencoder(PIXELS, (7,), 1), negative_bound())
    params, state = drawn(objective)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, PIXELS), jnp.float32)
    mean, log_variance = (leaf[0] for leaf in encode(objective.model, params[0], state[0], x))
    grid = jnp.linspace(-12, 12, 4801)
    logits = decode(objective.model, params[0], state[0], grid[:, None])
    likelihood = jnp.sum(jnp.where(x == 1, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)), -1)
    joint = likelihood + jax.scipy.stats.norm.logpdf(grid)
    log_p = jax.nn.logsumexp(joint) + jnp.log(grid[1] - grid[0])
    log_q = jax.scipy.stats.norm.logpdf(grid, mean, jnp.exp(log_variance / 2))
    gap = jnp.sum(jnp.exp(log_q) * (log_q - (joint - log_p))) * (grid[1] - grid[0])
    n = 40_000
    costs = jax.jit(jax.vmap(lambda key: objective.forward(params, state, (x[None], x[None]), key)[0]))
    found = costs(jax.random.split(KEY, n))
    np.testing.assert_allclose(jnp.mean(found), gap - log_p, atol=4 * jnp.std(found) / np.sqrt(n))
    assert gap > 20 * jnp.std(found) / np.sqrt(n)  # it is a bound, and not by chance


def test_a_sum_over_pixels_and_a_mean_over_examples():
    cost = cross_entropy()
    logits, x = jnp.zeros((7, PIXELS)), batch_of(n=7)[0]
    params, state = cost.init(KEY, (logits, x))
    np.testing.assert_allclose(cost.apply(params, state, (logits, x)), PIXELS * np.log(2), rtol=1e-6)


def test_beta_weighs_the_divergence():
    x = batch_of()[0]
    model = variational_autoencoder(PIXELS, HIDDEN, LATENT)
    objectives = [mb.Objective(model, negative_bound(beta)) for beta in (0, 1, 3)]
    params, state = drawn(objectives[0])
    none, once, thrice = (objective.forward(params, state, (x, x), KEY)[0] for objective in objectives)
    made, _, _ = model.forward(params[0], state[0], x, jax.random.split(KEY)[0])
    reconstruction, divergence = objectives[2].cost.parts(params[1], state[1], (made, x))
    np.testing.assert_allclose((none, once, thrice), reconstruction + divergence * np.array([0, 1, 3]), rtol=1e-6)


def test_layers_of_any_kind_become_one():
    """Convolutions: the encoder ends in the means and the logarithms, the decoder begins with z."""
    encoder = mb.Serial(
        Apply(mb.ops.reshape(shape=(4, 4, 1), from_axis=-1)),
        mb.layers.Conv(3, (3, 3), strides=2),
        Apply(mb.ops.flatten(from_axis=-3)),
        Dense(4),
    )
    decoder = mb.Serial(
        Dense(12),
        Apply(mb.ops.reshape(shape=(2, 2, 3), from_axis=-1)),
        mb.layers.ConvTranspose(1, (3, 3), strides=2),
        Apply(mb.ops.flatten(from_axis=-3)),
    )
    objective = mb.Objective(variational(encoder, decoder), negative_bound())
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 16)), jnp.float32)
    params, state = objective.init(KEY, (x, x))
    _, ours = jax.jit(mb.value_and_grad(objective))(params, state, (x, x), KEY)
    theirs = jax.jit(jax.grad(lambda p: objective.forward(p, state, (x, x), KEY)[0]))(params)
    assert decode(objective.model, params[0], state[0], jnp.ones((5, 2))).shape == x.shape
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


X = jnp.ones((2, 5))
MISTAKES = {
    "no latent variables": (
        lambda: variational_autoencoder(5, (3,), 0),
        "autoencoder: latent is 0; wants a whole number, at least 1",
    ),
    "a hidden layer of none": (lambda: autoencoder(5, (3, 0), 2), "autoencoder: hidden is 0; wants a whole number"),
    "no key in training": (
        lambda: value(variational_autoencoder(5, (3,), 2), negative_bound(), X),
        "GaussianSample: got no key; wants one",
    ),
    "an odd encoder": (
        lambda: variational(Dense(3), Dense(5)).init(KEY, X),
        "split: x has shape (2, 3), 3 along axis -1; sections 2 do not fit it",
    ),
    "pictures of another size": (
        lambda: value(variational_autoencoder(7, (3,), 2), negative_bound(), X),
        "binary_cross_entropy: target has shape (2, 5); wants (2, 7), as logits",
    ),
    "grey levels up to 255": (
        lambda: value(autoencoder(5, (3,), 2), cross_entropy(), 255 * X),
        "binary_cross_entropy: target holds 255.0; wants numbers from 0 to 1",
    ),
    "a bound of a model that is not variational": (
        lambda: value(autoencoder(5, (3,), 2), negative_bound(), X),
        "Penalised: got another structure; wants ((prediction, other), target)",
    ),
    "a word for a weight": (lambda: negative_bound("much"), "Penalised: weight is 'much'; wants a number"),
    "an op for a penalty": (
        lambda: mb.Penalised(cross_entropy(), mb.ops.gaussian_kl()),
        "Penalised's penalty: got gaussian_kl(); wants a layer: an op becomes one by layers.Apply(op)",
    ),
}


def value(model, cost, x):
    objective = mb.Objective(model, cost)
    return mb.value_and_grad(objective)(*objective.init(KEY, (x, x)), (x, x))


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(mistake):
    run, message = mistake
    with pytest.raises(mb.InputError) as error:
        run()
    assert message in str(error.value) and "\n" not in str(error.value)


# ── the experiment ───────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = "autoencoder", "--steps", 300, "--hidden", 32


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_experiment(tmp_path, capsys):
    run = tmp_path / "run"
    code, out, err = ran(capsys, *SMALL, "--folder", run)
    assert (code, err) == (0, "")
    assert "GaussianSample()" in out and "64 pixels" in out
    files = {"config.json", "environment.json", "events.jsonl", "metrics.jsonl", "result.json", "report.html", ".lock"}
    files |= {"checkpoints", "weights.safetensors", "curves.png", "latent.png", "reconstructions.png"}
    assert {path.name for path in run.iterdir()} == files
    rows, result = rows_of(run), json.loads((run / "result.json").read_text())
    assert rows[-1]["step"] == 300
    assert rows[-1]["held_out_cost"] < 0.8 * rows[0]["held_out_cost"]
    for row in rows:
        np.testing.assert_allclose(row["held_out_cost"], row["reconstruction"] + row["divergence"], rtol=1e-5)
    assert result["least"] < result["reconstruction"] < result["held_out_cost"] < 30
    assert result["gradient_difference_first"] <= 1e-11 and result["gradient_difference_last"] <= 1e-11
    table = out.split("by hand")[1]
    for number in (f"{result['held_out_cost']:.3f}", f"{result['divergence']:.3f}", "temporary memory"):
        assert number in table
    for name in ("curves", "latent", "reconstructions"):
        pixels = matplotlib.image.imread(run / f"{name}.png")
        assert pixels.shape[0] > 200 and pixels.shape[1] > 600
        assert pixels[..., :3].std() > 0.02  # not blank


OTHERS = ("--no-variational", "--latent", 1), ("--latent", 5, "--beta", 4, "--ema", 0.9)


@pytest.mark.parametrize("words", [OTHERS[0], pytest.param(OTHERS[1], marks=pytest.mark.slow)])
def test_other_choices(words, tmp_path, capsys):
    run = tmp_path / "run"
    assert ran(capsys, *SMALL, *words, "--folder", run).code == 0
    result = json.loads((run / "result.json").read_text())
    assert result["gradient_difference_last"] <= 1e-11
    if "--no-variational" in words:
        assert "divergence" not in rows_of(run)[-1]
    else:
        expected = result["reconstruction"] + 4 * result["divergence"]
        np.testing.assert_allclose(result["held_out_cost"], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = "autoencoder", "--hidden", 16, "--log.every", 10
    assert ran(capsys, *words, "--steps", 40, "--folder", whole).code == 0
    assert ran(capsys, *words, "--steps", 20, "--folder", parts).code == 0
    code, out, _ = ran(capsys, "autoencoder", "--resume", parts, "--steps", 40, "--allow-change")
    assert code == 0 and "resumed at step 20 of 40" in out
    ends = [json.loads((folder / "result.json").read_text())["sha256"] for folder in (whole, parts)]
    assert ends[0] == ends[1]


LINES = {
    "--latent 0": "--latent 0 is out of range; wants at least 1",
    "--hidden 32 0": "--hidden 32 0: every layer wants at least one neuron",
    "--beta -1": "--beta -1.0 is out of range; wants 0, or a positive number",
    "--beta inf": "--beta inf is out of range",
    "--no-variational --beta 2": "--beta 2.0: --no-variational has no divergence to weigh",
    "--data mnits": "data 'mnits' is unknown; did you mean 'mnist'?",
    "--data-dir nowhere": "--data digits needs no files",
    "--optimizer adm": "optimizer 'adm' is unknown; did you mean 'adam'?",
    "--learning-rate 0": "learning rate 0.0 is out of range",
    "--variational maybe": "maybe",
    "--mesh stage=2": "there are no Repeats",
    "--mesh data=3": "--batch-size 64: the mesh cuts it in 3 parts",
}


@pytest.mark.parametrize("words", LINES)
def test_a_command_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = ran(capsys, "autoencoder", *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert LINES[words] in err
    assert not any(tmp_path.iterdir())
