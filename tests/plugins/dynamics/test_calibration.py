from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_dynamics.calibration import ece, smooth_ece


def _logit(p: np.ndarray) -> Tensor:
    return torch.from_numpy(np.log(p) - np.log1p(-p))


def _outcomes(seed: int, n: int, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities p, and outcomes that are 1 with probability p^power."""
    generator = np.random.default_rng(seed)
    p = generator.uniform(0.01, 0.99, n)
    return p, (generator.random(n) < p**power).astype(float)


def _ece(f: np.ndarray, y: np.ndarray, bins: int, norm: str) -> float:
    shares, gaps = [], []
    for b in range(bins):
        inside = (f > b / bins) & (f <= (b + 1) / bins) | ((b == 0) & (f == 0))
        if inside.any():
            shares.append(inside.mean())
            gaps.append(abs(f[inside].mean() - y[inside].mean()))
    share, gap = np.array(shares), np.array(gaps)
    if norm == "max":
        return float(gap.max())
    return float((share * gap).sum() if norm == "l1" else np.sqrt((share * gap**2).sum()))


@pytest.mark.parametrize("norm", ["l1", "max", "l2"])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_against_a_loop(bins: int, norm: str) -> None:
    p, y = _outcomes(0, 200, 1.5)
    got = ece(_logit(p), torch.from_numpy(y), bins=bins, norm=norm)
    assert got == pytest.approx(_ece(p, y, bins, norm), abs=1e-12)


def test_ece_of_several_classes_against_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (300,), generator=generator)
    for norm in ("l1", "max", "l2"):
        theirs = multiclass_calibration_error(logits.softmax(1), targets, 5, norm=norm)
        assert ece(logits, targets, norm=norm) == pytest.approx(float(theirs), abs=1e-6)


def test_ece_bins_by_hand() -> None:
    # closed on the right: 0.5 is in the first of two bins, beside 0.3
    p = np.array([0.3, 0.5, 0.9])
    y = torch.tensor([0.0, 1.0, 1.0])
    assert ece(_logit(p), y, bins=2) == pytest.approx((0.2 + 0.1) / 3)
    # p of exactly 0 and 1 are in the first and in the last
    sure = torch.tensor([-1e4, 1e4])
    assert ece(sure, torch.tensor([0.0, 1.0])) == 0
    assert ece(sure, torch.tensor([1.0, 0.0])) == 1


def test_adaptive_bins_hold_as_many_samples_each() -> None:
    p, y = _outcomes(1, 150, 2.0)
    order = p.argsort()
    gaps = [abs(p[i].mean() - y[i].mean()) for i in order.reshape(15, 10)]
    assert ece(_logit(p), torch.from_numpy(y), bins="adaptive") == pytest.approx(np.mean(gaps))
    tied = torch.zeros(30), torch.tensor([0.0, 1.0] * 15)  # one bin, whatever the order
    assert ece(*tied, bins="adaptive") == pytest.approx(0)


def _smooth_ece_at(f: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """The integral over a grid, with the kernel as a sum of many mirror images."""
    t = (np.arange(2000) + 0.5)[:, None] / 2000
    images = [f[None] + 2 * k for k in range(-8, 9)] + [2 * k - f[None] for k in range(-8, 9)]
    kernel = sum(np.exp(-0.5 * ((t - x) / sigma) ** 2) for x in images)
    kernel = kernel / (sigma * math.sqrt(2 * math.pi))
    return float(np.abs((kernel * (f - y)).mean(1)).mean())


@pytest.mark.parametrize(("seed", "n", "power"), [(0, 300, 1.3), (1, 200, 0.5), (2, 100, 4.0)])
def test_smooth_ece_is_the_width_at_which_the_error_is_the_width(
    seed: int, n: int, power: float
) -> None:
    p, y = _outcomes(seed, n, power)
    value = smooth_ece(_logit(p), torch.from_numpy(y))
    assert _smooth_ece_at(p, y, value) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    ("seed", "n", "power", "relplot"),  # relplot.smECE of the authors, at the same outcomes
    [
        (0, 1000, 1.3, 0.059132),
        (1, 300, 0.5, 0.14913),
        (2, 50, 1.0, 0.058091),
        (3, 5000, 1.0, 0.016305),
    ],
)
def test_smooth_ece_is_relplots(seed: int, n: int, power: float, relplot: float) -> None:
    p, y = _outcomes(seed, n, power)
    assert smooth_ece(_logit(p), torch.from_numpy(y)) == pytest.approx(relplot, abs=1e-3)


def test_smooth_ece_by_hand() -> None:
    half = torch.tensor([0.0, 1.0] * 5)
    assert smooth_ece(torch.zeros(10), half) == pytest.approx(0, abs=1e-12)
    assert smooth_ece(_logit(np.full(10, 0.9)), half) == pytest.approx(0.4, abs=1e-5)
    assert smooth_ece(torch.full((4,), 1e4), torch.zeros(4)) == pytest.approx(1, abs=1e-5)
    assert smooth_ece(torch.full((4,), 1e4), torch.ones(4)) == 0
    # of several classes: the top probability, and whether it is right
    logits = torch.tensor([[math.log(9.0), 0.0]] * 10)
    assert smooth_ece(logits, half.long()) == pytest.approx(0.4, abs=1e-5)


def test_calibration_does_not_depend_on_the_order() -> None:
    p, y = _outcomes(3, 80, 2.0)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    z, t = _logit(p), torch.from_numpy(y)
    for metric in (ece, smooth_ece):
        assert metric(z[order], t[order]) == pytest.approx(metric(z, t), rel=1e-9)


@pytest.mark.parametrize("metric", [ece, smooth_ece])
def test_calibration_errors(metric) -> None:
    assert not component_of(metric).maximize
    with pytest.raises(FieldError, match="logits are not finite"):
        metric(torch.tensor([0.0, math.nan]), torch.tensor([0.0, 1.0]))
    with pytest.raises(FieldError, match="not defined for multilabel"):
        metric(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ParameterError, match="bins = 0"):
        component_of(ece).build(bins=0)
