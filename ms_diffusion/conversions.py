"""Four names for one prediction: the image x_0, the noise eps, the velocity v, the score of x_t.

x_t = signal x_0 + sigma eps with signal = sqrt(alpha-bar_t) and sigma = sqrt(1 - alpha-bar_t), so any of the four
gives, with x_t, the other three:
- v = signal eps - sigma x_0; Salimans and Ho 2022, appendix D. (x_t, v) is (x_0, eps) turned by the angle whose sine is
  sigma.
- score = -eps / sigma, the gradient of log q(x_t | x_0) by x_t; Song et al. 2021, section 3.3.

Each function takes the value called `kind` and gives another, shaped like x_t. It is linear in (value, x_t), and uses
+ - * / only, so Tensors, NumPy arrays and numbers will do. Where signal is 0, eps and score say nothing about x_0 and
v; where sigma is 0, x_0 says nothing about the others.
"""

from __future__ import annotations

from typing import Any

KINDS = ("eps", "x_start", "v", "score")


def to_x_start(value: Any, kind: str, x_t: Any, signal: Any, sigma: Any) -> Any:
    """x_0 of the `value` called `kind`."""
    if kind == "x_start":
        return value
    if kind == "v":
        return signal * x_t - sigma * value
    return (x_t - sigma * to_eps(value, kind, x_t, signal, sigma)) / signal


def to_eps(value: Any, kind: str, x_t: Any, signal: Any, sigma: Any) -> Any:
    """The noise of the `value` called `kind`. Raises ValueError for another kind than the four."""
    if kind == "eps":
        return value
    if kind == "x_start":
        return (x_t - signal * value) / sigma
    if kind == "v":
        return sigma * x_t + signal * value
    if kind == "score":
        return -sigma * value
    raise ValueError("the kind of a prediction is eps, x_start, v or score")


def to_v(value: Any, kind: str, x_t: Any, signal: Any, sigma: Any) -> Any:
    """The velocity of the `value` called `kind`."""
    if kind == "v":
        return value
    if kind == "x_start":
        return (signal * x_t - value) / sigma
    return (to_eps(value, kind, x_t, signal, sigma) - sigma * x_t) / signal


def to_score(value: Any, kind: str, x_t: Any, signal: Any, sigma: Any) -> Any:
    """The score of the `value` called `kind`."""
    if kind == "score":
        return value
    return -to_eps(value, kind, x_t, signal, sigma) / sigma
