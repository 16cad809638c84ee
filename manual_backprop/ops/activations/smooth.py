"""Smooth activations: a = f(z) for each number alone, so ∂C/∂z = ∂C/∂a · f′(z).

The formulas are calculus; each rule says what it saves, and why. `jax.nn` has the same functions.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.activations.rules import from_input, from_output
from manual_backprop.options import want_positive


@op
def sigmoid():
    """y = 1 / (1 + e⁻ˣ);  dx = dy · y (1 - y).  Saved: y.  (Rumelhart, Hinton & Williams 1986.)"""
    return from_output("sigmoid", lax.logistic, lambda y: y * (1 - y))


@op
def log_sigmoid():
    """y = ln σ(x) = -softplus(-x);  dx = dy · σ(-x).  Saved: x, as for softplus.

    (Mikolov, Sutskever, Chen, Corrado & Dean 2013, arXiv:1310.4546, eq. 4.)
    """
    return from_input("log_sigmoid", lambda x: -log_1p_exp(-x), lambda x: log_1p_exp_derivative(-x))


@op
def tanh():
    """y = tanh x;  dx = dy · (1 - y²), as (1 - y)(1 + y): 1 - y is exact where y is near 1.  Saved: y.

    (LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp".)
    """
    return from_output("tanh", lax.tanh, lambda y: (1 - y) * (1 + y))


@op
def tanhshrink():
    """y = x - tanh x;  dx = dy · tanh² x.  Saved: x, since tanh x = x - y would lose the digits that y lost.

    (Kavukcuoglu, Ranzato & LeCun 2008, "Fast inference in sparse coding algorithms".)
    """
    return from_input("tanhshrink", lambda x: x - jnp.tanh(x), lambda x: jnp.square(jnp.tanh(x)))


@op
def softsign():
    """y = x / (1 + |x|);  dx = dy / (1 + |x|)².  Saved: x, since 1 - |y| would cancel.

    (Bergstra, Desjardins, Lamblin & Bengio 2009.)
    """
    return from_input("softsign", lambda x: x / (1 + jnp.abs(x)), lambda x: jnp.square(1 / (1 + jnp.abs(x))))


@op
def softplus(*, beta: float = 1.0, threshold: float | None = None):
    """y = ln(1 + e^(βx)) / β;  dx = dy · σ(βx).  With a threshold, y = x and dx = dy where βx is above it.

    β is at e^(-β|x|) alone: βx can overflow where y does not.
    Saved: x. (1 - e^(-βy) needs y alone, but costs another e; that of e^(-β|x|) is one with the forward pass's.)
    (Dugas, Bengio, Bélisle, Nadeau & Garcia 2001.)
    """
    want_positive("softplus", beta=beta)

    def f(x):
        y = log_1p_exp(x, beta)
        return y if threshold is None else jnp.where(beta * x > threshold, x, y)

    def derivative(x):
        s = log_1p_exp_derivative(beta * x)
        return s if threshold is None else jnp.where(beta * x > threshold, 1, s)

    return from_input("softplus", f, derivative)


def log_1p_exp(x, beta: float = 1.0):
    """ln(1 + e^(βx)) / β = max(x, 0) + ln(1 + u) / β, where u = e^(-β|x|) cannot overflow."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(beta * x))) / beta


def log_1p_exp_derivative(x):
    """σ(x) = 1 / (1 + u) where x ≥ 0, else u / (1 + u)."""
    u = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1, u) / (1 + u)


@op
def silu():
    """y = x σ(x);  dx = dy · σ (1 + x (1 - σ)).  Saved: x, since y takes values twice.

    (Elfwing, Uchibe & Doya 2017, arXiv:1702.03118.)
    """

    def derivative(x):
        s = lax.logistic(x)
        return s * (1 + x * (1 - s))

    return from_input("silu", lambda x: x * lax.logistic(x), derivative)


@op
def mish():
    """y = x tanh(softplus x).  With e = eˣ and n = e (e + 2): tanh ln(1 + e) = n / (n + 2), its derivative by x is

    4 e (e + 1) / (n + 2)², so

        dx = dy · (n / (n + 2) + x · 4 e (e + 1) / (n + 2)²)

    x in e is cut at 40, where n / (n + 2) is 1 to the last bit, so that n does not overflow.
    Saved: x, since y takes values twice.  (Misra 2019, arXiv:1908.08681.)
    """

    def f(x):
        e = jnp.exp(jnp.minimum(x, 40))
        n = e * (e + 2)
        return x * (n / (n + 2))

    def derivative(x):
        x = jnp.minimum(x, 40)
        e = jnp.exp(x)
        n, r = e * (e + 2), 1 / (e * (e + 2) + 2)
        return n * r + x * (4 * e * r) * ((e + 1) * r)

    return from_input("mish", f, derivative)


@op
def elu(*, alpha: float = 1.0):
    """y = x where x > 0, else α (eˣ - 1);  dx = dy where x > 0, else dy · α eˣ.  Saved: x, since y + α would cancel.

    (Clevert, Unterthiner & Hochreiter 2015, arXiv:1511.07289.)
    """
    return exponential_unit("elu", alpha)


@op
def selu():
    """y = λ elu(x) with the α and λ for which zero mean and unit variance are a fixed point.

    dx = λ dy where x > 0, else λ dy · α eˣ.  Saved: x.
    (Klambauer, Unterthiner, Mayr & Hochreiter 2017, arXiv:1706.02515.)
    """
    return exponential_unit("selu", alpha=1.6732632423543772848170429916717, scale=1.0507009873554804934193349852946)


@op
def celu(*, alpha: float = 1.0):
    """y = x where x > 0, else α (e^(x/α) - 1);  dx = dy where x > 0, else dy · e^(x/α).  Saved: x.

    (Barron 2017, arXiv:1704.07483.)
    """
    want_positive("celu", alpha=alpha)
    return exponential_unit("celu", alpha, stretch=alpha)


def exponential_unit(name: str, alpha: float, stretch: float = 1.0, scale: float = 1.0):
    """y = scale · x where x > 0, else scale · α (e^(x/stretch) - 1). e is of no positive number, lest it overflow."""

    def f(x):
        below = jnp.where(x > 0, 0, x)
        return scale * jnp.where(x > 0, x, alpha * jnp.expm1(below / stretch))

    def derivative(x):
        below = jnp.where(x > 0, 0, x)
        return scale * jnp.where(x > 0, 1, (alpha / stretch) * jnp.exp(below / stretch))

    return from_input(name, f, derivative)
