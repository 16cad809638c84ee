"""The chain rule of a network of dense layers and activations, with its numbers.

For layer L with z = w a⁽ᴸ⁻¹⁾ + b and a = f(z), neurons j of layer L and k of layer L - 1, and each example n:

    ∂C/∂w_jk = ∂C/∂a_j · ∂a_j/∂z_j · ∂z_j/∂w_jk      ∂z_j/∂w_jk = a⁽ᴸ⁻¹⁾_k
    ∂C/∂b_j  = ∂C/∂a_j · ∂a_j/∂z_j · 1
    ∂C/∂a⁽ᴸ⁻¹⁾_k = Σ_j ∂C/∂a_j · ∂a_j/∂z_j · w_jk       one path through each j

Each is averaged over the examples. Layers count from 1, the input is layer 0; neurons and examples count from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.combinators import Objective, Serial
from manual_backprop.contract import Layer, value_and_grad
from manual_backprop.errors import InputError
from manual_backprop.layers import Apply, Dense


class Factors(NamedTuple):
    """∂C/∂w or ∂C/∂b as a product, one entry an example: arrays [examples]."""

    name: str
    dC_da: np.ndarray
    da_dz: np.ndarray
    dz_dw: np.ndarray  # ones for a bias

    @property
    def product(self) -> np.ndarray:
        return self.dC_da * self.da_dz * self.dz_dw

    @property
    def average(self) -> float:
        return float(self.product.mean())


class Paths(NamedTuple):
    """∂C/∂a of one neuron as a sum over the neurons j of the next layer: arrays [examples, j]; w [j]."""

    name: str
    dC_da: np.ndarray
    da_dz: np.ndarray
    w: np.ndarray

    @property
    def paths(self) -> np.ndarray:
        return self.dC_da * self.da_dz * self.w

    @property
    def sum(self) -> np.ndarray:
        return self.paths.sum(-1)


class Terms(NamedTuple):
    """One layer, for every example n."""

    w: np.ndarray  # [k, j]
    has_bias: bool
    a_before: np.ndarray  # [n, k]
    z: np.ndarray  # [n, j]
    a: np.ndarray  # [n, j]
    dC_da: np.ndarray  # [n, j], of the example's own cost
    da_dz: np.ndarray  # [n, j]


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """The numbers of one network on one batch; prints as a report. `terms[L - 1]` holds layer L.

    gradient is ∇C as `value_and_grad` finds it, one flat vector: layer by layer, w_jk row by row of j, then b; `names`
    says which entry is which. cost_after is that of params_after, one step of descent on: w - learning_rate · ∂C/∂w.
    """

    terms: tuple[Terms, ...]
    costs: np.ndarray  # [examples]
    neurons: Mapping[int, Sequence[int]]
    names: tuple[str, ...]
    gradient: np.ndarray
    learning_rate: float
    cost: float
    cost_after: float
    params_after: Any

    def weight(self, layer: int, j: int, k: int) -> Factors:
        """∂C/∂w_jk of a layer. Raises InputError where there is none, as the other two do."""
        _want_neurons(self.terms, {layer: [j], layer - 1: [k]})
        t = self.terms[layer - 1]
        return Factors(_w(layer, j, k), t.dC_da[:, j], t.da_dz[:, j], t.a_before[:, k])

    def bias(self, layer: int, j: int) -> Factors:
        """∂C/∂b_j of a layer."""
        _want_neurons(self.terms, {layer: [j], layer - 1: []})
        t = self.terms[layer - 1]
        return Factors(_b(layer, j), t.dC_da[:, j], t.da_dz[:, j], np.ones_like(t.z[:, j]))

    def neuron(self, layer: int, k: int) -> Paths:
        """∂C/∂a_k of a layer before the last (0: the input), path by path."""
        _want_neurons(self.terms, {layer: [k], layer + 1: []})
        t = self.terms[layer]
        return Paths(f"a{_up(layer)}[{k}]", t.dC_da, t.da_dz, t.w[k])

    def factors(self) -> Iterator[Factors]:
        """Every weight and bias of the chosen neurons, in the order of the gradient."""
        for layer, t in enumerate(self.terms, 1):
            for j in self.neurons[layer]:
                for k in self.neurons[layer - 1]:
                    yield self.weight(layer, j, k)
            if t.has_bias:
                for j in self.neurons[layer]:
                    yield self.bias(layer, j)

    def paths(self) -> Iterator[Paths]:
        """Every chosen neuron before the last layer, from the input on."""
        for layer in range(len(self.terms)):
            for k in self.neurons[layer]:
                yield self.neuron(layer, k)

    def __repr__(self) -> str:
        return "\n\n".join([self._head(), self._factor_table(), self._path_table(), self._gradient_table()])

    def _head(self) -> str:
        each = ", ".join(f"C{_sub(n)} = {cost:.6g}" for n, cost in enumerate(self.costs))
        return f"C = {self.cost:.6g}, the average over {len(self.costs)} examples: {each}"

    def _factor_table(self) -> str:
        lines = [
            "Every weight and bias: ∂C/∂w = ∂C/∂a · ∂a/∂z · ∂z/∂w, for each example, and the average",
            f"{'':16}{'example':>8}{'∂C/∂a':>14}{'∂a/∂z':>14}{'∂z/∂w':>14}{'product':>14}",
        ]
        for f in self.factors():
            for n, row in enumerate(zip(f.dC_da, f.da_dz, f.dz_dw, f.product, strict=True)):
                lines.append(f"{f'∂C/∂{f.name}' if n == 0 else '':16}{n:8}" + "".join(f"{x:14.6g}" for x in row))
            lines.append(f"{'':16}{'average':>8}{'':42}{f.average:14.6g}")
        return "\n".join(lines)

    def _path_table(self) -> str:
        lines = [
            "Every neuron: ∂C/∂a⁽ᴸ⁻¹⁾[k] = Σⱼ ∂C/∂a⁽ᴸ⁾[j] · ∂a⁽ᴸ⁾[j]/∂z⁽ᴸ⁾[j] · w⁽ᴸ⁾[j,k], a path through each j",
            f"{'':16}{'example':>8}{'through':>10}{'∂C/∂a':>14}{'∂a/∂z':>14}{'w':>14}{'path':>14}",
        ]
        for p in self.paths():
            for n, (dC_da, da_dz, paths) in enumerate(zip(p.dC_da, p.da_dz, p.paths, strict=True)):
                for j, row in enumerate(zip(dC_da, da_dz, p.w, paths, strict=True)):
                    name = f"∂C/∂{p.name}" if n == j == 0 else ""
                    lines.append(f"{name:16}{n:8}{f'j = {j}':>10}" + "".join(f"{x:14.6g}" for x in row))
                lines.append(f"{'':16}{n:8}{'sum':>10}{'':42}{p.sum[n]:14.6g}")
        return "\n".join(lines)

    def _gradient_table(self) -> str:
        shown = [f"{name} {value:.6g}" for name, value in zip(self.names, self.gradient, strict=True)]
        if len(shown) > 24:
            shown = [*shown[:12], f"… {len(shown) - 24} more …", *shown[-12:]]
        rows = ["    " + ",  ".join(shown[i : i + 6]) for i in range(0, len(shown), 6)]
        return "\n".join(
            [
                f"∇C, {len(self.gradient)} entries:",
                *rows,
                f"Step w - {self.learning_rate:g} · ∂C/∂w: C = {self.cost:.9g} before, {self.cost_after:.9g} after",
            ]
        )


def explain(
    objective: Objective,
    params: Any,
    batch: tuple,
    *,
    neurons: Mapping[int, Sequence[int]] | None = None,
    learning_rate: float = 0.1,
) -> Explanation:
    """The chain rule of `objective` on `batch`, factor by factor and path by path.

    objective: `Objective(model, cost)`, the model a Serial of Dense layers and activations, such as `models.chain()` or
    `models.mlp(…)`; the cost an average over the examples. Layer 0 is the input, after any activations before the first
    Dense.  batch: (x [examples, in], target).
    neurons: which to show, {layer: indices}, the input being layer 0; layers left out show all of theirs.
    Raises InputError for another kind of model or batch, and for a neuron that is not there.
    """
    x, target = _checked(objective, params, batch)
    inputs, cells = _cells(objective.model, params[0])
    a = x
    for activation in inputs:
        a = activation.apply({}, (), a)
    per_example = jax.vmap(lambda a, t: _one_example(objective.cost, params[1], cells, a[None], t[None]))
    costs, columns = per_example(a, target)
    terms = tuple(
        Terms(np.asarray(p["w"]), "b" in p, *map(_squeezed, column))
        for (_, p, _), column in zip(cells, columns, strict=True)
    )

    state = jax.eval_shape(objective.init, jax.random.key(0), (x, target))[1]
    (cost, _), gradient = jax.jit(value_and_grad(objective))(params, state, (x, target))
    params_after = jax.tree.map(lambda w, dw: w - learning_rate * dw, params, gradient)
    names, vector = _flat(_cells(objective.model, gradient[0])[1])
    return Explanation(
        terms=terms,
        costs=np.asarray(costs),
        neurons=_chosen(neurons or {}, terms),
        names=names,
        gradient=vector,
        learning_rate=learning_rate,
        cost=float(cost),
        cost_after=float(objective.apply(params_after, state, (x, target))),
        params_after=params_after,
    )


def _checked(objective, params, batch) -> tuple[jax.Array, jax.Array]:
    """x and target as arrays, known to fit."""
    if not isinstance(objective, Objective):
        raise InputError(f"explain: got {objective!r}; wants an Objective(model, cost)")
    if not (isinstance(params, tuple) and len(params) == 2):
        raise InputError("explain: params are not those of the objective; wants what objective.init gave")
    if len(batch) != 2:
        raise InputError(f"explain: the batch holds {len(batch)}; wants a pair (x, target)")
    x, target = map(jnp.asarray, batch)
    if x.ndim != 2 or target.ndim == 0 or len(x) != len(target) or len(x) == 0:
        raise InputError(
            f"explain: x has shape {x.shape}, target {target.shape}; wants [examples, in], as many targets"
        )
    return x, target


def _cells(model: Layer, params) -> tuple[list[Apply], list[tuple[Dense, dict, list[Apply]]]]:
    """The activations before the first Dense; each Dense, its parameters (or gradient), and the activations after."""
    inputs: list[Apply] = []
    cells: list[tuple[Dense, dict, list[Apply]]] = []
    for layer, p in _walk(model, params):
        if isinstance(layer, Dense):
            cells.append((layer, p, []))
        elif _is_activation(layer, cells[-1][0].features if cells else 7):
            (cells[-1][2] if cells else inputs).append(layer)
        else:
            raise InputError(f"explain: {layer!r} is here; wants a Serial of Dense layers and activations")
    if not cells:
        raise InputError(f"explain: {model!r} has no weights; wants at least one Dense layer")
    return inputs, cells


def _walk(layer: Layer, params) -> Iterator[tuple[Layer, Any]]:
    if not isinstance(layer, Serial):
        yield layer, params
        return
    for inner, p in zip(layer.layers, params, strict=True):
        yield from _walk(inner, p)


def _is_activation(layer: Layer, width: int) -> bool:
    """Whether it acts on each number alone: then dx is dy times one derivative a number, whatever dy is."""
    if not isinstance(layer, Apply) or len(layer.op.arguments) != 1:
        return False
    z = jnp.linspace(-1.0, 1.0, width + 1)[:width]
    _, residuals = layer.run({}, z)
    (_, derivative), (_, dx) = (layer.backward({}, residuals, dy) for dy in (jnp.ones(width), z + 2))
    return jnp.shape(derivative) == z.shape and bool(jnp.allclose(dx, (z + 2) * derivative))


def _one_example(cost: Layer, cost_params, cells, a, target):
    """Forward and backward for a batch of one, keeping what the sentences of the module name."""
    kept = []
    for dense, p, activations in cells:
        a_before = a
        z, _ = dense.run(p, a_before)
        a, da_dz = z, jnp.ones_like(z)
        for activation in activations:
            a, residuals = activation.run({}, a)
            _, derivative = activation.backward({}, residuals, jnp.ones_like(a))
            da_dz = da_dz * derivative
        kept.append((a_before, z, a, da_dz))
    C, _, residuals = cost.forward(cost_params, (), (a, target))
    _, (dC_da, _) = cost.backward(cost_params, residuals, jnp.ones_like(C))
    columns = []
    for (_, p, _), (a_before, z, a, da_dz) in reversed(list(zip(cells, kept, strict=True))):
        columns.append((a_before, z, a, dC_da, da_dz))
        dC_da = jnp.sum(dC_da[:, None, :] * da_dz[:, None, :] * p["w"], -1)
    return C, columns[::-1]


def _chosen(neurons: Mapping[int, Sequence[int]], terms) -> dict[int, Sequence[int]]:
    _want_neurons(terms, neurons)
    return {layer: neurons.get(layer, range(width)) for layer, width in enumerate(_widths(terms))}


def _widths(terms) -> list[int]:
    return [terms[0].w.shape[0], *(t.w.shape[1] for t in terms)]


def _want_neurons(terms, neurons: Mapping[int, Sequence[int]]) -> None:
    widths = _widths(terms)
    for layer, chosen in neurons.items():
        if layer not in range(len(widths)):
            raise InputError(
                f"explain: there is no layer {layer} here; the input is 0, the layers are 1 … {len(terms)}"
            )
        if not isinstance(chosen, Sequence | np.ndarray):
            raise InputError(f"explain: neurons of layer {layer} are {chosen!r}; wants a list, such as [{chosen!r}]")
        for j in chosen:
            if j not in range(widths[layer]):
                raise InputError(f"explain: layer {layer} has no neuron {j}; it has 0 … {widths[layer] - 1}")


def _flat(cells) -> tuple[tuple[str, ...], np.ndarray]:
    """One flat order of all weights and biases: names and values."""
    names, values = [], []
    for layer, (_, p, _) in enumerate(cells, 1):
        w = np.asarray(p["w"]).T
        names += [_w(layer, j, k) for j, k in np.ndindex(w.shape)]
        values.append(w.ravel())
        if "b" in p:
            names += [_b(layer, j) for j in range(len(p["b"]))]
            values.append(np.asarray(p["b"]))
    return tuple(names), np.concatenate(values)


def _squeezed(x) -> np.ndarray:
    """[examples, 1, width] → [examples, width]."""
    return np.asarray(x)[:, 0]


def _w(layer: int, j: int, k: int) -> str:
    return f"w{_up(layer)}[{j},{k}]"


def _b(layer: int, j: int) -> str:
    return f"b{_up(layer)}[{j}]"


def _up(layer: int) -> str:
    return f"⁽{str(layer).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}⁾"


def _sub(n: int) -> str:
    return str(n).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
