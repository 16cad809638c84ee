"""Convolutional networks for pictures, channels last: x [batch, height, width, channels] → logits [batch, classes].

    vgg        convolutions of 3×3 alone (Simonyan & Zisserman 2015, arXiv:1409.1556), here with batch norm
    resnet     branches that are added to what they start from (He 2016, arXiv:1512.03385)
    convnext   a perceptron at every place, after a depthwise convolution (Liu 2022, arXiv:2201.03545)

Out of combinators: the sum over paths is `Residual` where a block keeps its shape, and two paths side by side where its
shortcut is a convolution too. Equal blocks of a stage are one `Repeat`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.combinators import Parallel, Recompute, Repeat, Residual, Serial
from manual_backprop.contract import Layer
from manual_backprop.errors import InputError, choose, want_count
from manual_backprop.layers import Apply, BatchNorm, Conv, Dense, Identity, LayerNorm, LayerScale

Stem = Literal["large", "small"]
Keep = Literal["everything", "dear", "inputs"]

# Variance 2 / (taps · out), which keeps the size of what flows backward through a ReLU (He 2015, arXiv:1502.01852).
he_normal = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
truncated = jax.nn.initializers.truncated_normal(0.02)
small = jax.nn.initializers.constant(1e-6)


def vgg(classes: int, *, widths: tuple[int, ...] = (32, 64, 128), depth: int = 2) -> Serial:
    """For each width `depth` convolutions of 3×3 with batch norm and ReLU, then a max pool of 2×2.

    A dense layer reads the mean over all places. Each width halves height and width: pictures want at least two to the
    power of how many there are.
    """
    if not widths:
        raise InputError("vgg: got no widths; wants at least one")
    layers = []
    for width in widths:
        first = Serial(_conv(width, 3), _norm(), _relu())
        layers += [first] * want_count("vgg: depth", depth) + [Apply(ops.max_pool(window=2))]
    return _classifier("vgg", classes, *layers)


# ── ResNet ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ResNet:
    """depths: blocks of each stage, of which every one but the first halves height and width, and doubles the width."""

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    width: int = 64

    def __post_init__(self):
        choose("resnet: block", self.block, BLOCKS)
        want_count("resnet: width", self.width)
        for depth in self.depths or (0,):
            want_count("resnet: depths", depth)


def resnet(size: ResNet | str, classes: int, *, stem: Stem = "large", keep: Keep = "everything") -> Serial:
    """A stem, the stages, the mean over all places, and a dense layer.

    size: a `ResNet`, or a name of `RESNETS`.  stem: "large" for 224², a convolution of 7×7 and a max pool, which leave
    a quarter of height and width; "small" for 32², one of 3×3, as for CIFAR-10 (He 2016, 4.2).
    keep: of each block "everything" that a backward pass asks for; what is "dear" to compute again, without what norm
    and ReLU make; or its "inputs" alone. The gradients are the same.
    Raises InputError for another name, stem, keep, or number of classes.
    """
    size = choose("resnet: size", size, RESNETS) if isinstance(size, str) else size
    first = choose("resnet: stem", stem, {"large": _large_stem, "small": _small_stem})(size.width)
    choose("resnet: keep", keep, dict.fromkeys(get_args(Keep)))
    kept = Recompute if keep == "inputs" else lambda block: block
    stages = []
    for i, depth in enumerate(size.depths):
        width, stride = size.width * 2**i, 1 if i == 0 else 2
        block = BLOCKS[size.block]
        keeps = i == 0 and size.block == "basic"  # its input's shape: the whole stage is of equal blocks
        if not keeps:
            stages.append(kept(projected(block(width, stride, keep), width * WIDER[size.block], stride)))
        if depth > 1 or keeps:
            equal = Serial(Residual(block(width, 1, keep)), _relu())
            stages.append(_repeated(kept(equal), depth if keeps else depth - 1))
    return _classifier("resnet", classes, *first, *stages)


def basic(width: int, stride: int = 1, keep: Keep = "everything") -> Serial:
    """The branch of two convolutions of 3×3 (He 2016, fig. 5 left)."""
    return Serial(_conv(width, 3, stride), _then(_conv(width, 3), keep), _norm())


def bottleneck(width: int, stride: int = 1, keep: Keep = "everything") -> Serial:
    """The branch of 1×1, 3×3 with the stride, and 1×1 to four times the width (He 2016, fig. 5 right)."""
    return Serial(_conv(width, 1), _then(_conv(width, 3, stride), keep), _then(_conv(4 * width, 1), keep), _norm())


def projected(branch: Layer, width: int, stride: int) -> Serial:
    """relu(branch(x) + w x): the shortcut is a convolution of 1×1, for the branch changes the shape."""
    return Serial(Parallel(branch, Serial(_conv(width, 1, stride), _norm())), Apply(ops.add()), _relu())


BLOCKS = {"basic": basic, "bottleneck": bottleneck}
WIDER = {"basic": 1, "bottleneck": 4}  # the width of a block's output, in widths of the stage
RESNETS = {
    "resnet18": ResNet("basic", (2, 2, 2, 2)),
    "resnet34": ResNet("basic", (3, 4, 6, 3)),
    "resnet50": ResNet("bottleneck", (3, 4, 6, 3)),
    "resnet101": ResNet("bottleneck", (3, 4, 23, 3)),
    "resnet152": ResNet("bottleneck", (3, 8, 36, 3)),
}


def _large_stem(width: int) -> tuple[Layer, ...]:
    return _conv(width, 7, 2), _norm(), _relu(), Apply(ops.max_pool(window=3, strides=2, padding=((1, 1), (1, 1))))


def _small_stem(width: int) -> tuple[Layer, ...]:
    return _conv(width, 3), _norm(), _relu()


# ── ConvNeXt ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ConvNeXt:
    """depths: blocks of each stage; widths: their channels."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]

    def __post_init__(self):
        if len(self.depths) != len(self.widths) or not self.depths:
            raise InputError(f"convnext: {len(self.depths)} depths for {len(self.widths)} widths; wants one for each")
        for name in ("depths", "widths"):
            for count in getattr(self, name):
                want_count(f"convnext: {name}", count)


CONVNEXTS = {
    "convnext-atto": ConvNeXt((2, 2, 6, 2), (40, 80, 160, 320)),
    "convnext-tiny": ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext-small": ConvNeXt((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext-base": ConvNeXt((3, 3, 27, 3), (128, 256, 512, 1024)),
}


def convnext(size: ConvNeXt | str, classes: int, *, patch: int = 4) -> Serial:
    """Patches become vectors; in each stage equal blocks; between stages height and width are halved; the mean.

    size: a `ConvNeXt`, or a name of `CONVNEXTS`.  patch: pixels a side, 4 for 224², 1 or 2 for small pictures.
    """
    size = choose("convnext: size", size, CONVNEXTS) if isinstance(size, str) else size
    stages = []
    for i, (depth, width) in enumerate(zip(size.depths, size.widths, strict=True)):
        cut = want_count("convnext: patch", patch) if i == 0 else 2
        patches = Conv(width, (cut, cut), cut, "VALID", w_init=truncated)
        stages += [patches, _layer_norm()] if i == 0 else [_layer_norm(), patches]
        stages.append(_repeated(Residual(convnext_branch(width)), depth))
    head = Dense(want_count("convnext: classes", classes), w_init=truncated)
    return Serial(Pictures(), *stages, Apply(ops.global_average_pool()), _layer_norm(), head)


def convnext_branch(width: int) -> Serial:
    """A depthwise convolution of 7×7, layer norm, and at every place a perceptron of four times the width."""
    return Serial(
        Conv(width, (7, 7), padding=3, groups=width, w_init=truncated),
        _layer_norm(),
        Dense(4 * width, w_init=truncated),
        Apply(ops.gelu(approximate=False)),
        Dense(width, w_init=truncated),
        LayerScale(small),
    )


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, repr=False)
class Pictures(Identity):
    """y = x, which must be [batch, height, width, channels]: convolutions take pictures without a channel for one."""

    def run(self, params, x):
        if jnp.ndim(x) != 4:
            raise InputError(f"x has shape {jnp.shape(x)}; wants pictures [batch, height, width, channels]")
        return super().run(params, x)


def _classifier(who: str, classes: int, *layers: Layer) -> Serial:
    """The layers on pictures, the mean over all places, and a dense layer."""
    head = Dense(want_count(f"{who}: classes", classes))
    return Serial(Pictures(), *layers, Apply(ops.global_average_pool()), head)


def _conv(width: int, taps: int, stride: int = 1) -> Conv:
    """Without a bias, which the norm behind it would take off again."""
    return Conv(width, (taps, taps), stride, taps // 2, bias=False, w_init=he_normal)


def _then(conv: Conv, keep: Keep) -> Layer:
    """A convolution after norm and ReLU. To recompute all three takes no convolution: only what is asked for is."""
    all_three = Serial(_norm(), _relu(), conv)
    return Recompute(all_three) if keep == "dear" else all_three


def _norm() -> BatchNorm:
    return BatchNorm(momentum=0.9)


def _relu() -> Apply:
    return Apply(ops.relu())


def _layer_norm() -> LayerNorm:
    return LayerNorm(eps=1e-6)


def _repeated(block: Layer, n: int) -> Layer:
    return Repeat(block, n) if n > 1 else block
