"""Margin losses: what a score has to be ahead by, and how falling short is punished."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, loss
from lossearch.components import raise_precision
from lossearch_classification._shared import (
    LabelReduction,
    check_binary,
    check_multiclass,
    dense_mean,
    drop,
    pick,
    reduce_labels,
    softplus,
)
from lossearch_classification._slices import sliced

_CAP = 80.0  # where the exponential goes on as its tangent; exp(88) is past float32


@loss(
    task="multiclass",
    paper=Paper(
        "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines", 2001
    ),
)
@sliced("logits", "targets")
def multiclass_hinge(
    logits: Tensor,
    targets: Tensor,
    *,
    variant: Annotated[Literal["crammer_singer", "weston_watkins"], Choices()] = "crammer_singer",
    margin: Annotated[float, Field(gt=0), Range(0.1, 10.0, log=True)] = 1.0,
) -> Tensor:
    r"""Multiclass hinge: the largest or the sum of :math:`(m + z_c - z_y)_+` over c not y.

    ``crammer_singer`` is the limit of ldr_kl with normalize = none as lam goes to 0;
    ``weston_watkins`` is C times ``torch.nn.functional.multi_margin_loss``. Of two classes both
    are, at margin 1, binary_margin at phi = hinge of the difference of the logits. Shift
    invariant; 0 where the target leads by the margin. Checked against ``CSLoss`` and ``WWLoss`` of
    Optimization-AI/ICML2023_LDR loss.py, which average over the classes where this sums.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``).
        variant: ``crammer_singer`` for the largest, ``weston_watkins`` for the sum.
        margin: What the target has to lead by, > 0, in the scale of the logits.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_multiclass("multiclass_hinge", logits, targets)
    z = raise_precision(logits)
    others = drop(z, targets, -math.inf)
    ahead = pick(z, targets)
    if variant == "crammer_singer":
        return dense_mean((margin + others.amax(1) - ahead).relu())
    return dense_mean((others + (margin - ahead).unsqueeze(1)).relu().sum(1))


@loss(
    task=("binary", "multilabel"),
    paper=Paper(
        "EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in "
        "Classification",
        2025,
        "arXiv:2409.00908",
    ),
)
@sliced("logits", "targets")
def binary_margin(
    logits: Tensor,
    targets: Tensor,
    *,
    phi: Annotated[
        Literal["hinge", "squared_hinge", "exponential", "logistic", "inverse_hinge"], Choices()
    ] = "hinge",
    label_reduction: LabelReduction = "mean",
) -> Tensor:
    r"""A margin loss phi(s), :math:`s = (2t - 1)z`: the fixed losses that ensloss stands against.

    ``hinge`` :math:`(1-s)_+`; ``squared_hinge`` :math:`(1-s)_+^2`; ``exponential``
    :math:`e^{-s}`, from s = -80 downwards its tangent; ``logistic`` :math:`\log(1 + e^{-s})`,
    which is binary_cross_entropy; ``inverse_hinge`` :math:`1-s` up to 1 and :math:`1/s-1` above,
    which goes to -1. All have :math:`\varphi'(0) < 0`. Checked against the authors' code
    (statmlben/ensLoss losses.py), which has no ``squared_hinge`` and leaves the exponential
    unbounded.

    Args:
        logits: ``[B]``, ``[B, 1]``, ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: 0, 1, or -1 where unknown, in the logits' shape; such a label is left out.
        phi: Which loss of the margin.
        label_reduction: ``mean`` over a sample's known labels, or their ``sum``.

    Returns:
        ``[B]``; 0 where no label is known.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    z, t, known = check_binary("binary_margin", logits, targets)
    s = (2 * t - 1) * z
    if phi == "hinge":
        values = (1 - s).relu()
    elif phi == "squared_hinge":
        values = (1 - s).relu().square()
    elif phi == "exponential":
        past = (-s - _CAP).relu()
        values = (-s - past).exp() * (1 + past)
    elif phi == "logistic":
        values = softplus(-s)
    else:
        values = torch.where(s <= 1, 1 - s, 1 / s.clamp(min=1) - 1)
    return reduce_labels(values, known, label_reduction)
