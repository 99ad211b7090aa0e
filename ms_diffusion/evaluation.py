"""Independent judges of samples."""

from __future__ import annotations

import numpy as np


def judge_digits(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which digit each uint8 image (N, 1, 8, 8) shows, int (N,), and how surely, (N,) in [0, 1].

    The judge is scikit-learn's support vector machine, trained on all its real digits and on nothing of ours; the
    probability is Platt's, fitted by cross-validation.
    """
    from sklearn.datasets import load_digits

    real = load_digits()
    judge = _machine(probability=True).fit(real.data, real.target)
    probabilities = judge.predict_proba(images.reshape(len(images), 64) / 255 * 16)
    return judge.classes_[probabilities.argmax(axis=1)], probabilities.max(axis=1)


def judge_accuracy() -> float:
    """How often the judge is right about real digits that it has not seen: ten-fold, so mostly of other writers."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import KFold, cross_val_score

    real = load_digits()
    return float(cross_val_score(_machine(), real.data, real.target, cv=KFold(10)).mean())


def _machine(**options: bool):
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma=0.001, random_state=0, **options)
