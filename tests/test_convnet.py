"""Convolutional networks against flax: the same parameters, every gradient in float64, ten steps, and inference."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
from cases import random_like
from manual_backprop.layers import Apply
from manual_backprop.models import convnet
from manual_backprop.models.convnet import RESNETS, ConvNeXt, ResNet
from manual_backprop.ops.linear import convolution
from manual_backprop.ops.linear.windows import Window
from peers import flax_convnet as peers

CLASSES = 7
THIN18, THIN50 = ResNet("basic", (2, 2), 3), ResNet("bottleneck", (3, 1), 2)
SMALL = ConvNeXt((2, 1), (5, 6))


def resnet_row(size: ResNet, shape: tuple, stem: str = "small", keep: str = "everything"):
    return (
        convnet.resnet(size, CLASSES, stem=stem, keep=keep),
        peers.FlaxResNet(size, CLASSES, stem),
        partial(peers.resnet_to_flax, size),
        shape,
    )


ROWS = {
    "vgg": (
        convnet.vgg(CLASSES, widths=(5, 3), depth=2),
        peers.VGG((5, 3), 2, CLASSES),
        partial(peers.vgg_to_flax, (5, 3), 2),
        (3, 9, 8, 2),
    ),
    "basic": resnet_row(THIN18, (5, 9, 7, 3)),
    "bottleneck, large stem": resnet_row(THIN50, (5, 37, 41, 3), "large"),
    "convnext": (
        convnet.convnext(SMALL, CLASSES, patch=2),
        peers.FlaxConvNeXt(SMALL, CLASSES, 2),
        lambda params, state=None: peers.convnext_to_flax(SMALL, params),
        (3, 10, 9, 2),
    ),
}


def nudged(tree, seed: int):
    """No bias is zero then, and no two scales are alike."""
    return jax.tree.map(lambda leaf, r: leaf + 0.2 * jnp.abs(r).astype(leaf.dtype), tree, random_like(tree, seed))


class Both:
    """Our objective and flax's cost, at the same parameters and statistics."""

    def __init__(self, model, flax, to_flax, shape, dtype=jnp.float64):
        rng = np.random.default_rng(0)
        self.x = jnp.asarray(rng.standard_normal(shape), dtype)
        self.labels = jnp.asarray(rng.integers(0, CLASSES, shape[0]))
        self.batch = self.x, self.labels
        self.flax, self.to_flax = flax, to_flax
        self.objective = mb.Objective(model, Apply(mb.ops.softmax_cross_entropy()))
        params, state = self.objective.init(jax.random.key(0), self.batch)
        self.params, self.state = nudged(params, 1), nudged(state, 2)

    def variables(self, params=None, state=None):
        return self.to_flax((params or self.params)[0], (state or self.state)[0])

    def flax_cost(self, trained, statistics):
        logits, new = self.flax.apply({"params": trained, **statistics}, self.x, True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, self.labels).mean(), dict(new)


@pytest.fixture(params=ROWS)
def both(request):
    with jax.enable_x64(True):
        yield Both(*ROWS[request.param])


def split(variables):
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def difference(ours, theirs) -> float:
    """The largest, of every leaf beside its largest entry."""
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (ours, theirs)
    )
    assert ours.keys() == theirs.keys()
    return max(
        float(np.abs(ours[name] - theirs[name]).max() / max(np.abs(theirs[name]).max(), 1e-300)) for name in theirs
    )


def test_every_gradient_and_the_statistics_are_flaxs(both):
    (cost, state), (dparams, _) = jax.jit(mb.value_and_grad(both.objective))(both.params, both.state, both.batch)
    trained, statistics = split(both.variables())
    (expected, new), gradient = jax.jit(jax.value_and_grad(both.flax_cost, has_aux=True))(trained, statistics)
    assert abs(cost - expected) <= 1e-12 * abs(expected)
    assert difference(both.to_flax(dparams)["params"], gradient) <= 1e-11
    if statistics:
        assert difference(split(both.variables(both.params, state))[1], new) <= 1e-12


@pytest.mark.parametrize("keep", ["dear", "inputs"])
@pytest.mark.parametrize("size", [THIN18, THIN50], ids=["basic", "bottleneck"])
def test_keeping_less_changes_no_gradient(size, keep):
    results = []
    with jax.enable_x64(True):
        for kept in ("everything", keep):
            both = Both(*resnet_row(size, (5, 9, 7, 3), keep=kept))
            (cost, _), gradient = jax.jit(mb.value_and_grad(both.objective))(both.params, both.state, both.batch)
            results.append((cost, both.to_flax(gradient[0])["params"]))
    assert difference(*results) <= 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_gradient_of_the_named_size_is_flaxs(name):
    with jax.enable_x64(True):
        both = Both(*resnet_row(RESNETS[name], (3, 32, 32, 3)))
        test_every_gradient_and_the_statistics_are_flaxs(both)


def test_ten_steps_end_at_the_same_parameters_and_statistics(both):
    optimizer = optax.sgd(0.02, momentum=0.9, nesterov=True)
    ours, state = both.params, both.state
    theirs, statistics = split(both.variables())
    start = theirs

    @jax.jit
    def our_step(params, state, optimizer_state):
        (_, state), gradient = mb.value_and_grad(both.objective)(params, state, both.batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), state, optimizer_state

    @jax.jit
    def flax_step(params, statistics, optimizer_state):
        gradient, new = jax.grad(both.flax_cost, has_aux=True)(params, statistics)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), new if statistics else {}, optimizer_state

    our_optimizer, their_optimizer = optimizer.init(ours), optimizer.init(theirs)
    for _ in range(10):
        ours, state, our_optimizer = our_step(ours, state, our_optimizer)
        theirs, statistics, their_optimizer = flax_step(theirs, statistics, their_optimizer)
    trained, ours_statistics = split(both.variables(ours, state))
    assert difference(trained, theirs) <= 1e-9
    assert not statistics or difference(ours_statistics, statistics) <= 1e-9
    assert difference(start, theirs) > 1e-3  # it moved


def test_inference_is_flaxs(both):
    ours = both.objective.model.apply(both.params[0], both.state[0], both.x)
    theirs = both.flax.apply(both.variables(), both.x, False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["vgg", "basic", "bottleneck, large stem", "convnext"])
def test_in_bfloat16_the_error_is_no_larger_than_autodiffs(name):
    """Of the whole gradient, held against float64 on several batches; autodiff's is of the same forward pass.

    For in another one a maximum falls on another place, or a ReLU to its other side, and the errors say nothing.
    """
    model, _, _, (_, *shape) = ROWS[name]
    objective = mb.Objective(model, Apply(mb.ops.softmax_cross_entropy()))
    ours = jax.jit(lambda *args: mb.value_and_grad(objective)(*args)[1])
    theirs = jax.jit(jax.grad(lambda *args: objective.forward(*args)[0]))
    low = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)
    errors = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.standard_normal((8, *shape)), jnp.bfloat16)
        labels = jnp.asarray(rng.integers(0, CLASSES, 8), jnp.int32)
        params, state = objective.init(jax.random.key(seed), (x, labels))
        params, state = low(nudged(params, seed)), nudged(state, seed)
        found = [side(params, state, (x, labels)) for side in (ours, theirs)]
        with jax.enable_x64(True):
            truth = ours(wide(params), wide(state), (wide(x), labels))
        errors.append([squares(gradient, truth) for gradient in found])
    by_hand, by_autodiff = np.sqrt(np.mean(errors, 0))
    assert 0 < by_hand <= 1.2 * by_autodiff


def squares(a, b) -> float:
    """Σ (a - b)² over all leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.sum(np.square(np.float64(u) - np.float64(v)))) for u, v in pairs)


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("convnext-tiny", 28_589_128),
        ("convnext-base", 88_591_464),
    ],
)
def test_the_named_sizes_have_the_published_number_of_parameters(name, count):
    """That of torchvision's models, for 1000 classes."""
    make = convnet.resnet if name in RESNETS else convnet.convnext
    params, _ = jax.eval_shape(make(name, 1000).init, jax.random.key(0), jnp.zeros((2, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_keeping_less_takes_less_memory():
    """Compiled; of a stage of many blocks."""
    temporary = {}
    for keep in ("everything", "dear", "inputs"):
        model = convnet.resnet(ResNet("basic", (8,), 16), 3, stem="small", keep=keep)
        objective = mb.Objective(model, Apply(mb.ops.softmax_cross_entropy()))
        batch = jnp.zeros((16, 16, 16, 3)), jnp.zeros(16, int)
        args = (*objective.init(jax.random.key(0), batch), batch)
        compiled = jax.jit(mb.value_and_grad(objective)).lower(*args).compile()
        temporary[keep] = compiled.memory_analysis().temp_size_in_bytes
    assert temporary["dear"] < 0.9 * temporary["everything"]
    assert temporary["inputs"] < 0.7 * temporary["everything"]


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: convnet.resnet("resnet19", 10), "did you mean 'resnet18'?"),
        (lambda: convnet.resnet("resnet18", 0), "resnet: classes is 0"),
        (lambda: convnet.resnet("resnet18", 10, stem="tiny"), "resnet: stem"),
        (lambda: convnet.resnet("resnet18", 10, keep="little"), "resnet: keep"),
        (lambda: ResNet("basic", ()), "resnet: depths"),
        (lambda: ResNet("bottle", (2,)), "resnet: block"),
        (lambda: convnet.vgg(10, widths=()), "vgg: got no widths"),
        (lambda: convnet.vgg(10, depth=0), "vgg: depth is 0"),
        (lambda: convnet.convnext("convnext", 10), "convnext: size"),
        (lambda: ConvNeXt((2, 2), (8,)), "2 depths for 1 widths"),
    ],
)
def test_what_does_not_fit_is_told(make, message):
    with pytest.raises(mb.InputError, match=r"^[^\n]+$") as error:
        make()
    assert message in str(error.value)


LAST_OF_ONE_PLACE = convnet.resnet(ResNet("basic", (1, 1, 1), 4), 3, stem="small")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 3, 3, 2), "max_pool"),  # too small for the pools
        ((4, 8, 8), "wants pictures [batch, height, width, channels]"),  # no channels
        ((1, 4, 4, 2), "one value a channel"),  # a batch of one under batch norm, of one place
    ],
)
def test_pictures_that_do_not_fit_are_told(shape, message):
    model = convnet.vgg(3, widths=(4, 4), depth=1) if shape[0] > 1 else LAST_OF_ONE_PLACE
    with pytest.raises(mb.InputError, match=r"^[^\n]+$") as error:
        params, state = model.init(jax.random.key(0), jnp.zeros(shape))
        model.forward(params, state, jnp.zeros(shape))
    assert message in str(error.value)


def test_another_order_of_channels_is_told():
    """Channels first: the convolution sees as many inputs as a picture is wide."""
    model = convnet.vgg(3, widths=(4,), depth=1)
    params, state = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(mb.InputError, match=r"wants x \[\.\.\., h, w, 3\]"):
        model.apply(params, state, jnp.zeros((2, 3, 8, 8)))


# ── the weight gradient of a convolution by patches ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("few", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "window",
    [
        Window((1, 1), ((1, 1), (0, 2)), (1, 1), (1, 1), 1),
        Window((2, 3), ((1, 0), (1, 1)), (1, 1), (2, 1), 1),
        Window((1, 2), ((2, 1), (0, 1)), (2, 1), (1, 1), 1),
    ],
    ids=["same size", "strides and dilation", "input dilation"],
)
def test_patches_of_a_few_examples_add_up(few, window, monkeypatch):
    """Of six examples, so many at a time, or the next fewer that divide them."""
    rng, kernel = np.random.default_rng(0), (3, 2)
    size = window.output_size((7, 8), kernel)
    monkeypatch.setattr(convolution, "PATCHES", few * 4 * np.prod(size) * 6 * 5)
    with jax.enable_x64(True):
        x, dy = (jnp.asarray(rng.standard_normal(shape)) for shape in ((6, 7, 8, 5), (6, *size, 3)))
        found = convolution.by_patches(x, dy, kernel, window)
        expected = convolution.examples_as_channels(x, dy, kernel, window)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        program = jax.make_jaxpr(lambda x, dy: convolution.by_patches(x, dy, kernel, window))(x, dy)
        lengths = [eqn.params["length"] for eqn in program.eqns if eqn.primitive.name == "scan"]
    assert lengths == [{1: 6, 2: 3, 3: 2, 7: 1}[few]]
