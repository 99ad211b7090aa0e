"""Guidance on a mixture of Gaussians, whose scores, told the component and untold, are closed forms."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from scipy.special import softmax

from ms_diffusion.diffusion import GaussianDiffusion
from ms_diffusion.errors import UserError
from ms_diffusion.guidance import ClassifierGuided, Guided, label_images, parse_labels

WEIGHTS, MEANS, STDS = np.array([0.5, 0.3, 0.2]), np.array([-0.6, 0.1, 0.8]), np.array([0.3, 0.2, 0.4])
NONE = 3
AB = GaussianDiffusion(timesteps=50, schedule="cosine").schedule.alphas_cumprod
T = np.array([5, 20, 30, 45], np.int32)
LABELS = [0, 1, 2, 1]
X = np.random.default_rng(0).standard_normal((4, 1, 2, 2))


def answers(x, ab):
    """In float64: the noise that each component expects in x (K, B, C, H, W), and p(component | x), (B, K)."""
    ab = ab.reshape(-1, 1, 1, 1)
    variances = [ab * s**2 + 1 - ab for s in STDS]
    away = [x - np.sqrt(ab) * m for m in MEANS]
    log = [np.log(w) - (d**2 / v + np.log(v)).sum((1, 2, 3)) / 2 for w, d, v in zip(WEIGHTS, away, variances)]
    return np.stack([np.sqrt(1 - ab) * d / v for d, v in zip(away, variances)]), softmax(np.stack(log, 1), axis=1)


def told_and_untold(x=X, ab=AB[T]):
    eps, p = answers(x, ab)
    told = eps[LABELS, range(len(LABELS))]
    return told, np.einsum("bk,kbchw->bchw", p, eps)


class Oracle:
    """The same in float32 Tensors: the logits of the components, and the noise, told a component or NONE."""

    def __init__(self):
        self.ab = Tensor(AB, ms.float32)
        self.batches = []

    def parts(self, x, t):
        ab = ops.gather(self.ab, t, 0).reshape((-1, 1, 1, 1, 1))
        mean, std = (Tensor(values.reshape(1, 3, 1, 1, 1), ms.float32) for values in (MEANS, STDS))
        variance, away = ab * std**2 + 1 - ab, x.expand_dims(1) - ops.sqrt(ab) * mean
        logits = Tensor(np.log(WEIGHTS), ms.float32) - 0.5 * (away**2 / variance + ops.log(variance)).sum((2, 3, 4))
        return logits, ops.sqrt(1 - ab) * away / variance

    def classify(self, x, t):
        return self.parts(x, t)[0]

    def untold(self, x, t):
        logits, eps = self.parts(x, t)
        return (ops.softmax(logits, -1).reshape((-1, 3, 1, 1, 1)) * eps).sum(1)

    def told(self, x, t, y):
        self.batches.append(len(x))
        _, eps = self.parts(x, t)
        chosen = (ops.one_hot(y, 4)[:, :3].reshape((-1, 3, 1, 1, 1)) * eps).sum(1)
        return ops.select(ops.broadcast_to((y == NONE).reshape((-1, 1, 1, 1)), x.shape), self.untold(x, t), chosen)


def inputs():
    return Tensor(X, ms.float32), Tensor(T)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_classifier_free_guidance(weight):
    """w = 0 is the unconditional noise, w = 1 the conditional one, and between and beyond them lies a line."""
    oracle = Oracle()
    out = Guided(oracle.told, LABELS, weight, null=NONE)(*inputs()).asnumpy()
    told, untold = told_and_untold()
    assert np.abs(told - untold).max() > 0.1, "the labels must matter here"
    assert np.abs(out - (untold + weight * (told - untold))).max() < 1e-5
    assert oracle.batches == [4 if weight == 1 else 8], "one call for both predictions"


@pytest.mark.parametrize("phi", [0.25, 1.0])
def test_rescaling_keeps_the_contrast_of_the_conditional_prediction(phi):
    out = Guided(Oracle().told, LABELS, 4.0, null=NONE, rescale=phi)(*inputs()).asnumpy()
    told, untold = told_and_untold()
    plain = untold + 4 * (told - untold)
    std = told.std((1, 2, 3)), plain.std((1, 2, 3))
    assert np.abs(out - plain * (phi * std[0] / std[1] + 1 - phi).reshape(-1, 1, 1, 1)).max() < 5e-5
    if phi == 1:
        assert np.abs(out.std((1, 2, 3)) - std[0]).max() < 1e-5 < np.abs(std[0] - std[1]).max()


def test_outside_of_the_interval_the_prediction_is_the_conditional_one():
    out = Guided(Oracle().told, LABELS, 3.0, null=NONE, interval=(20, 30))(*inputs()).asnumpy()
    told, untold = told_and_untold()
    weight = np.array([1, 3, 3, 1]).reshape(-1, 1, 1, 1)
    assert np.abs(out - (untold + weight * (told - untold))).max() < 1e-5


def test_a_learned_variance_is_that_of_the_conditional_prediction():
    def model(x, t, y):
        return ops.concat((Oracle().told(x, t, y), ops.ones_like(x) * y.reshape((-1, 1, 1, 1))), axis=1)

    out = Guided(model, LABELS, 3.0, null=NONE)(*inputs()).asnumpy()
    told, untold = told_and_untold()
    assert np.abs(out[:, :1] - (untold + 3 * (told - untold))).max() < 1e-5
    assert np.array_equal(out[:, 1:], np.broadcast_to(np.reshape(LABELS, (4, 1, 1, 1)), X.shape))


class Known:
    """A network that is its label: nothing but the labels can be seen in it."""

    def told(self, x, t, y):
        return ops.ones_like(x) * y.reshape((-1, 1, 1, 1))


def test_other_labels_reach_a_graph_that_is_compiled_already(jit):
    guided = Guided(Known().told, LABELS, 1.0, null=NONE)
    function = ms.jit(guided) if jit else guided
    assert function(*inputs()).asnumpy()[:, 0, 0, 0].tolist() == LABELS
    guided.tell([2, 2, 0, 0])
    assert function(*inputs()).asnumpy()[:, 0, 0, 0].tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("objective", ["eps", "x_start", "v"])
def test_classifier_guidance_is_bayes_rule(weight, objective):
    """The unconditional score and the gradient of the exact log p(y | x_t) make the conditional score, whatever is
    predicted."""
    oracle, ab = Oracle(), AB[T].reshape(-1, 1, 1, 1)

    def as_objective(eps, x, root, deviation):
        x_start = (x - deviation * eps) / root
        return {"eps": eps, "x_start": x_start, "v": root * eps - deviation * x_start}[objective]

    def model(x, t):
        root, deviation = (Tensor(np.sqrt(values), ms.float32) for values in (ab, 1 - ab))
        return as_objective(oracle.untold(x, t), x, root, deviation)

    out = ClassifierGuided(
        model, oracle.classify, LABELS, weight, alphas_cumprod=AB, objective=objective
    )(*inputs()).asnumpy()
    told, untold = told_and_untold()
    expected = as_objective(untold + weight * (told - untold), X, np.sqrt(ab), np.sqrt(1 - ab))
    assert np.abs(out - expected).max() < 1e-5 * max(1, np.abs(expected).max())


def test_between_two_noise_levels_the_log_of_the_signal_to_noise_ratio_is_interpolated():
    """A network that predicts nothing and a classifier so sure of class 0, by the sum of the pixels, that the gradient
    of log p(1 | x_t) is -1: together sqrt(1 - alpha-bar)."""
    def logits(x, t):
        total = x.sum((1, 2, 3))
        return ops.stack((total, ops.zeros_like(total) - 1e4), axis=1)

    def silent(x, t):
        return ops.zeros_like(x)

    guided = ClassifierGuided(silent, logits, [1, 1], 1.0, alphas_cumprod=AB)
    out = guided(Tensor(X[:2], ms.float32), Tensor([20.25, 49.0], ms.float32)).asnumpy()
    log_snr = np.log(AB / (1 - AB))
    between = 0.75 * log_snr[20] + 0.25 * log_snr[21]
    expected = [np.sqrt(1 / (1 + np.exp(between))), np.sqrt(1 - AB[49])]
    assert np.abs(out[:, 0, 0, 0] - expected).max() < 1e-5


def test_labels_in_words():
    assert parse_labels("3", 10) == [3] and parse_labels("2,0", 3) == [2, 0] and parse_labels("all", 3) == [0, 1, 2]
    for words, message in (("3", "3 is no label of this run, which has 0 to 2"), ("-1", "-1 is no label"),
                           ("cat", "give a label"), ("", "give a label"), ("1,,2", "give a label")):
        with pytest.raises(UserError, match=message):
            parse_labels(words, 3)
    assert label_images(range(3, 8), [5, 7]).tolist() == [7, 5, 7, 5, 7]
    with pytest.raises(UserError, match=r"rescaling of guidance is 2: it must be in \[0, 1\]"):
        Guided(Oracle().told, LABELS, null=NONE, rescale=2)
