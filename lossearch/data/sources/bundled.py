"""The small sets that ship with scikit-learn: they need neither a file nor a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lossearch.components import dataset
from lossearch.data.dataset import Dataset


@dataset(task="multiclass")
def digits() -> Dataset:
    """Handwritten digits: 1,797 images of 8 x 8, flat, scaled to [0, 1]; ten classes.

    Returns:
        Inputs float32 ``(1797, 64)``, targets 0 to 9. Source: scikit-learn ``load_digits``.
    """
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    names = tuple(str(digit) for digit in range(10))
    return Dataset((bunch.data / 16).astype(np.float32), bunch.target, "multiclass", names)


@dataset(task="binary")
def breast_cancer() -> Dataset:
    """Breast cancer, Wisconsin: 569 tumours, 30 measurements; benign (positive) or malignant.

    Returns:
        A table, standardised on the training split. Source: scikit-learn ``load_breast_cancer``,
        whose label 1, benign, stays the positive class.
    """
    from sklearn.datasets import load_breast_cancer

    return _table(load_breast_cancer)


@dataset(task="multiclass")
def wine() -> Dataset:
    """Wine: 178 wines of three growers by 13 chemical measurements.

    Returns:
        A table, standardised on the training split. Source: scikit-learn ``load_wine``.
    """
    from sklearn.datasets import load_wine

    return _table(load_wine)


@dataset(task="multiclass")
def iris() -> Dataset:
    """Iris: 150 flowers of three species by four measurements.

    Returns:
        A table, standardised on the training split. Source: scikit-learn ``load_iris``.
    """
    from sklearn.datasets import load_iris

    return _table(load_iris)


def _table(load: Callable[..., Any]) -> Dataset:
    bunch = load(as_frame=True)
    return Dataset(bunch.data, bunch.target, class_names=tuple(map(str, bunch.target_names)))
