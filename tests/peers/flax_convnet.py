"""The convolutional networks in flax, written from the papers, and our parameters in their trees."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from manual_backprop.models.convnet import ConvNeXt, ResNet

PADDED = ((1, 1), (1, 1))


def norm(train: bool, name: str, dtype=None, fast: bool = False) -> nn.BatchNorm:
    """fast: E[x²] - E[x]², which is flax's default, and has fewer digits than two passes."""
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name, use_fast_variance=fast)


class VGG(nn.Module):
    widths: tuple
    depth: int
    classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        for i, width in enumerate(self.widths):
            for j in range(self.depth):
                x = nn.Conv(width, (3, 3), padding=PADDED, use_bias=False, name=f"conv_{i}_{j}")(x)
                x = nn.relu(norm(train, f"norm_{i}_{j}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.classes, name="head")(jnp.mean(x, (1, 2)))


class Block(nn.Module):
    kind: str
    width: int
    stride: int
    projects: bool
    dtype: jnp.dtype | None = None
    fast: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        s, w = (self.stride, self.stride), self.width
        convs = (
            [(w, (3, 3), s), (w, (3, 3), (1, 1))]
            if self.kind == "basic"
            else [(w, (1, 1), (1, 1)), (w, (3, 3), s), (4 * w, (1, 1), (1, 1))]
        )
        y = x
        for i, (width, taps, stride) in enumerate(convs):
            around = ((taps[0] // 2,) * 2,) * 2
            y = nn.Conv(width, taps, stride, around, use_bias=False, dtype=self.dtype, name=f"conv_{i}")(y)
            y = norm(train, f"norm_{i}", self.dtype, self.fast)(y)
            if i < len(convs) - 1:
                y = nn.relu(y)
        if self.projects:
            shortcut = nn.Conv(convs[-1][0], (1, 1), s, "VALID", use_bias=False, dtype=self.dtype, name="conv_shortcut")
            x = shortcut(x)
            x = norm(train, "norm_shortcut", self.dtype, self.fast)(x)
        return nn.relu(x + y)


class FlaxResNet(nn.Module):
    size: ResNet
    classes: int
    stem: str
    dtype: jnp.dtype | None = None
    fast: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        large = self.stem == "large"
        taps, stride, around = ((7, 7), (2, 2), ((3, 3), (3, 3))) if large else ((3, 3), (1, 1), PADDED)
        stem = nn.Conv(self.size.width, taps, stride, around, use_bias=False, dtype=self.dtype, name="conv_stem")
        x = nn.relu(norm(train, "norm_stem", self.dtype, self.fast)(stem(x)))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), PADDED)
        for i, depth in enumerate(self.size.depths):
            for j in range(depth):
                stride = 2 if i and not j else 1
                projects = not j and (i > 0 or self.size.block == "bottleneck")
                width = self.size.width * 2**i
                block = Block(self.size.block, width, stride, projects, self.dtype, self.fast, name=f"block_{i}_{j}")
                x = block(x, train)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(jnp.mean(x, (1, 2)))


class FlaxConvNeXt(nn.Module):
    size: ConvNeXt
    classes: int
    patch: int

    @nn.compact
    def __call__(self, x, train: bool):
        def ln(name):
            return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)

        for i, (depth, width) in enumerate(zip(self.size.depths, self.size.widths, strict=True)):
            cut = (self.patch if i == 0 else 2,) * 2
            if i:
                x = ln(f"norm_{i}")(x)
            x = nn.Conv(width, cut, cut, "VALID", name=f"patches_{i}")(x)
            if not i:
                x = ln(f"norm_{i}")(x)
            for j in range(depth):
                name = f"block_{i}_{j}"
                y = nn.Conv(width, (7, 7), padding=((3, 3), (3, 3)), feature_group_count=width, name=f"{name}_conv")(x)
                y = nn.gelu(nn.Dense(4 * width, name=f"{name}_up")(ln(f"{name}_norm")(y)), approximate=False)
                y = nn.Dense(width, name=f"{name}_down")(y)
                x = x + y * self.param(f"{name}_scale", nn.initializers.ones, (width,))
        return nn.Dense(self.classes, name="head")(ln("norm_head")(jnp.mean(x, (1, 2))))


# ── our parameters and state as flax's ───────────────────────────────────────────────────────────────────────────────


def conv(p) -> dict:
    return {"kernel": p["w"]} | ({"bias": p["b"]} if "b" in p else {})


def running(s) -> dict:
    return {"mean": s["mean"], "var": s["variance"]}


def pairs(params, state) -> list[tuple]:
    """(Convolution, norm, the norm's statistics) one after another, of layers however nested."""
    each = lambda tree: [d for d in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, dict)) if d]
    found = each(params)
    statistics = [None] * (len(found) // 2) if state is None else each(state)
    return list(zip(found[::2], found[1::2], statistics, strict=True))


def of_stack(tree, n: int) -> list:
    """What `Repeat` stacks, one by one; of a single layer that layer alone."""
    return [tree] if n == 1 else [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(n)]


def vgg_to_flax(widths, depth: int, params, state=None) -> dict:
    """The variables; without a state those that have a gradient alone."""
    tree, statistics, places = {}, {}, iter(range(1, len(params)))
    for i in range(len(widths)):
        for j in range(depth):
            at = next(places)
            tree[f"conv_{i}_{j}"], tree[f"norm_{i}_{j}"] = conv(params[at][0]), params[at][1]
            if state is not None:
                statistics[f"norm_{i}_{j}"] = running(state[at][1])
        next(places)  # the pool
    tree["head"] = conv(params[-1])
    return {"params": tree} | ({"batch_stats": statistics} if state is not None else {})


def resnet_to_flax(size: ResNet, params, state=None) -> dict:
    """The variables; without a state those that have a gradient alone."""
    tree, statistics = {"head": conv(params[-1])}, {}

    def told(where, name, layers, of_state):
        for i, (p, norm, s) in enumerate(pairs(layers, of_state)):
            of = name.format(i)
            where[0][f"conv_{of}"], where[0][f"norm_{of}"] = conv(p), norm
            if s is not None:
                where[1][f"norm_{of}"] = running(s)

    told((tree, statistics), "stem", params[1:3], None if state is None else state[1:3])
    stages = [1 if i == 0 and size.block == "basic" else 1 + (depth > 1) for i, depth in enumerate(size.depths)]
    at = len(params) - 2 - sum(stages)  # behind them the mean and the head
    for i, depth in enumerate(size.depths):
        block = lambda j, i=i: (tree.setdefault(f"block_{i}_{j}", {}), statistics.setdefault(f"block_{i}_{j}", {}))
        projects = i > 0 or size.block == "bottleneck"
        if projects:
            (branch, shortcut), *_ = params[at]
            of_branch, of_shortcut = (None, None) if state is None else state[at][0]
            told(block(0), "{}", branch, of_branch)
            told(block(0), "shortcut", shortcut, of_shortcut)
            at += 1
        if equal := depth - projects:
            states = [None] * equal if state is None else of_stack(state[at], equal)
            for j, (p, s) in enumerate(zip(of_stack(params[at], equal), states, strict=True), projects):
                told(block(j), "{}", p, s)
            at += 1
    return {"params": tree} | ({"batch_stats": statistics} if state is not None else {})


def convnext_to_flax(size: ConvNeXt, params) -> dict:
    tree = {"head": conv(params[-1]), "norm_head": params[-2]}
    for i, depth in enumerate(size.depths):
        first, second, blocks = params[1 + 3 * i : 4 + 3 * i]
        patches, norm = (first, second) if i == 0 else (second, first)
        tree[f"patches_{i}"], tree[f"norm_{i}"] = conv(patches), norm
        for j, (depthwise, of_norm, up, _, down, scale) in enumerate(of_stack(blocks, depth)):
            name = f"block_{i}_{j}"
            tree |= {f"{name}_conv": conv(depthwise), f"{name}_norm": of_norm, f"{name}_up": conv(up)}
            tree |= {f"{name}_down": conv(down), f"{name}_scale": scale["scale"]}
    return {"params": tree}
