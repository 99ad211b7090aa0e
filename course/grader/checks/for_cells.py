"""The layers that the checks compute by hand, in float64."""

from __future__ import annotations

import numpy as np
from scipy.special import erf

EPS = 1e-5


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A convolution that keeps height and width; depthwise where each filter has one channel."""
    reach = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    if weight.shape[1] == 1 and x.shape[1] > 1:
        out = np.einsum("bchwij,cij->bchw", windows, weight[:, 0], optimize=True)
    else:
        out = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
    return out + channels(bias)


def channels(values: np.ndarray) -> np.ndarray:
    """One number a channel, (C,) or (B, C), ready to meet images."""
    return values.reshape((*values.shape[:-1], -1, 1, 1))


def norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Group normalisation with one group."""
    axes = (1, 2, 3)
    scaled = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    return scaled * channels(gamma) + channels(beta)


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact one; Hendrycks and Gimpel 2016."""
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Their approximation."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """exp(x), divided by its sum over the axis."""
    exp = np.exp(x - x.max(axis, keepdims=True))
    return exp / exp.sum(axis, keepdims=True)


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32, so that the student's process gets exactly these values; the grader goes on in float64."""
    return rng.normal(size=shape).astype(np.float32)
