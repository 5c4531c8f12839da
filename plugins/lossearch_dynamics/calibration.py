"""Metrics of calibration: whether what the model calls 80 % is right 80 % of the time.

Of the top class's probability and whether it is right; binary: of the probability of class 1 and
the label.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import scipy.fft
import torch
from pydantic import Field
from torch import Tensor

from lossearch import Paper, metric
from lossearch.errors import FieldError
from lossearch_dynamics._outputs import read_outputs


@metric(
    task=("multiclass", "binary"),
    maximize=False,
    paper=Paper("On Calibration of Modern Neural Networks", 2017, "arXiv:1706.04599"),
)
def ece(
    logits: Tensor,
    targets: Tensor,
    *,
    bins: Annotated[int, Field(ge=1)] | Literal["adaptive"] = 15,
    norm: Literal["l1", "max", "l2"] = "l1",
) -> float:
    r"""Expected calibration error, :math:`\sum_b \frac{n_b}{N} |acc_b - conf_b|`.

    Of the top class's probability and whether it is right; binary: of the probability of class 1
    and the label. Bins are closed on the right, 0 is in the first, and empty ones do not count.

    Args:
        logits: ``[N, C]``, or binary ``[N]``.
        targets: Labels.
        bins: Number of bins of one width; or ``adaptive``, 15 bins of as many samples (equal
            confidences stay in one bin).
        norm: Mean gap over the samples (``l1``), root mean square (``l2``), or largest (``max``).

    Returns:
        In [0, 1], less is better.

    Raises:
        FieldError: the fields do not match, are empty, or hold logits that are not finite.
    """
    confidence, outcome = _confidence("ece", logits, targets)
    edges = torch.linspace(0, 1, (15 if bins == "adaptive" else bins) + 1, dtype=torch.float64)
    if bins == "adaptive":
        edges = torch.from_numpy(np.quantile(confidence.numpy(), edges.numpy()))
    place = torch.bucketize(confidence, edges[1:-1])
    counts = place.bincount(minlength=len(edges) - 1).double()
    held = counts > 0
    share = counts[held] / len(place)
    sums = place.bincount(weights=outcome - confidence, minlength=len(edges) - 1)
    gap = sums[held].abs() / counts[held]
    if norm == "max":
        return float(gap.max())
    return float((share * gap).sum() if norm == "l1" else (share * gap**2).sum().sqrt())


@metric(
    task=("multiclass", "binary"),
    maximize=False,
    paper=Paper(
        "Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing",
        2023,
        "arXiv:2309.12236",
    ),
)
def smooth_ece(logits: Tensor, targets: Tensor) -> float:
    r"""Calibration error without bins, :math:`\int_0^1 |\frac1N \sum_i K(t, f_i)(f_i - y_i)|\,dt`.

    :math:`K` is the Gaussian kernel reflected at 0 and 1, of the one width at which the value is
    the width itself. Confidences and outcomes are those of ``ece``. The authors' relplot, which
    reflects once and cuts the kernel off at half a unit, differs by less than 0.001 where the
    error is below 0.15.

    Args:
        logits: ``[N, C]``, or binary ``[N]``.
        targets: Labels.

    Returns:
        In [0, 1], less is better.

    Raises:
        FieldError: the fields do not match, are empty, or hold logits that are not finite.
    """
    confidence, outcome = _confidence("smooth_ece", logits, targets)
    cells = 2**14
    place = (confidence * cells).long().clamp(max=cells - 1)
    residuals = place.bincount(weights=confidence - outcome, minlength=cells) / len(place)
    # A reflected Gaussian is the heat kernel of [0, 1]: it damps each cosine by itself.
    waves = np.asarray(scipy.fft.dct(residuals.numpy()))
    exponent = -0.5 * (math.pi * np.arange(cells)) ** 2

    def error(sigma: float) -> float:
        smoothed = np.asarray(scipy.fft.idct(waves * np.exp(exponent * sigma**2)))
        return float(np.abs(smoothed).sum())

    low, high = 1e-3, 1.0  # error falls in sigma, so it meets sigma once
    for _ in range(20):
        sigma = (low + high) / 2
        low, high = (sigma, high) if error(sigma) > sigma else (low, sigma)
    return error(low)


def _confidence(name: str, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary: the probability of class 1 and the label; else the top one's and whether right."""
    task, z, t = read_outputs(name, logits, targets)
    if task == "multilabel":
        raise FieldError(f"{name} is not defined for multilabel targets {list(targets.shape)}")
    if task == "binary":
        return z.sigmoid(), t.double()
    confidence, top = z.softmax(1).max(1)
    return confidence, (top == t).double()
