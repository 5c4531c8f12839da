"""Losses that bound or blunt what a wrong label can do, by a function of the target's probability.

1 - p_y is always -expm1(log p_y), so that nothing is lost where p_y is close to 1. Most of them
are one family, comp_sum: cross_entropy at tau = 1, generalized_cross_entropy(q) at tau = 1 + q
and half of probability_mae at tau = 2.
"""

from __future__ import annotations

import math
import warnings
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, loss
from lossearch.components import raise_precision
from lossearch_classification._shared import (
    check_classes,
    check_multiclass,
    dense_mean,
    expect,
    pick,
)


@loss(
    task="multiclass",
    paper=Paper(
        "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
        2018,
        "arXiv:1805.07836",
    ),
)
def generalized_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    epoch: int | None = None,
    *,
    q: Annotated[float, Field(ge=0, le=1), Range(0.0, 1.0)] = 0.7,
    k: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.5)] = 0.0,
) -> Tensor:
    r"""Generalized cross-entropy, :math:`(1 - p_y^q)/q`.

    q = 0 is its limit, cross_entropy; q = 1 is :math:`1 - p_y`, half of probability_mae; it is
    comp_sum at tau = 1 + q. With k > 0 it is truncated: where :math:`p_y \le k` the value is
    :math:`(1 - k^q)/q` and there is no gradient. A truncation above 1/C may drop every sample of
    an untrained model, which is warned of in epoch 0. Checked against ``GCELoss`` of
    Optimization-AI/ICML2023_LDR loss.py.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``).
        epoch: From 0; only for the warning.
        q: From 0 (cross-entropy) to 1 (mean absolute error).
        k: Truncation probability in [0, 1); 0 is none.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_multiclass("generalized_cross_entropy", logits, targets)
    classes = logits.shape[1]
    if not isinstance(k, Tensor) and k > 1 / classes and epoch == 0:
        warnings.warn(
            f"generalized_cross_entropy: k = {k:g} is above 1/C = {1 / classes:.3g}, so an "
            "untrained model may get no gradient at all; begin with k = 0",
            stacklevel=2,
        )
    log_p = pick(raise_precision(logits).log_softmax(1), targets)
    return dense_mean(_box_cox(_truncated(log_p, k), q))


def _truncated(log_p: Tensor, k: float | Tensor) -> Tensor:
    """log k, without a gradient, where p <= k."""
    if not isinstance(k, Tensor):
        return log_p if k == 0 else torch.where(log_p <= math.log(k), math.log(k), log_p)
    return torch.where(log_p <= k.log(), k.log(), log_p)


def _box_cox(log_p: Tensor, q: float | Tensor) -> Tensor:
    """(1 - p^q) / q, and its limit -log p at q = 0; exact however close to 0 q is."""
    if not isinstance(q, Tensor):
        return -log_p if q == 0 else -torch.expm1(q * log_p) / q
    safe = torch.where(q == 0, 1.0, q)
    return torch.where(q == 0, -log_p, -torch.expm1(safe * log_p) / safe)


@loss(
    task="multiclass",
    paper=Paper(
        "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019, "arXiv:1908.06112"
    ),
    soft_targets=True,
)
def symmetric_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0), Range(0.01, 10.0, log=True)] = 0.1,
    beta: Annotated[float, Field(ge=0), Range(0.1, 10.0, log=True)] = 1.0,
    A: Annotated[float, Field(lt=0), Choices(-2.0, -4.0, -6.0, -8.0, math.log(1e-4))] = -4.0,
) -> Tensor:
    r"""Cross-entropy and its reverse, :math:`-\alpha \log p_y - \beta A (1 - p_y)`.

    The second part is :math:`-\sum_c p_c \log \mathrm{onehot}_c` with A standing in for log 0.
    alpha = 1, beta = 0 is cross_entropy; alpha = 0, beta = 1 is -A/2 probability_mae.
    Of soft targets q it is :math:`-\sum_c (\alpha q_c \log p_c + \beta p_c \max(\log q_c, A))`.
    The authors' (alpha, beta) are (0.1, 1) on CIFAR-10 and (6, 0.1) on CIFAR-100. Checked against
    HanxunH/SCELoss-Reproduce loss.py, which clamps the one-hot at 1e-4: A = log 1e-4.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``), or float in the shape of ``logits``, each class
            distribution summing to 1.
        alpha: Weight >= 0 of the cross-entropy.
        beta: Weight >= 0 of the reverse cross-entropy.
        A: Stand-in for log 0, < 0.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_classes("symmetric_cross_entropy", logits, targets)
    scores = raise_precision(logits).log_softmax(1)
    log_p = expect(scores, targets)
    if targets.is_floating_point():
        log_q = targets.to(scores.dtype).log().clamp(min=A)
        return dense_mean(-beta * (scores.exp() * log_q).sum(1) - alpha * log_p)
    return dense_mean(beta * A * torch.expm1(log_p) - alpha * log_p)


@loss(
    task="multiclass",
    paper=Paper(
        "Robust Loss Functions under Label Noise for Deep Neural Networks",
        2017,
        "arXiv:1712.09482",
    ),
    soft_targets=True,
)
def probability_mae(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Mean absolute error of the probabilities, :math:`\|\mathrm{onehot} - p\|_1 = 2(1 - p_y)`.

    Bounded by 2, and the sum over all labels is the same whatever p, which makes it robust to
    symmetric label noise. It is 2 comp_sum at tau = 2, 2 generalized_cross_entropy at q = 1, and
    symmetric_cross_entropy at alpha = 0, beta = 1, A = -2. From the definition; ``MAELoss`` of
    Optimization-AI/ICML2023_LDR lacks the absolute value and is 0 for all logits. Of soft targets
    it is their distance from p, without the last form.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``), or float in the shape of ``logits``, each class
            distribution summing to 1.

    Returns:
        ``[B]``, in [0, 2].

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_classes("probability_mae", logits, targets)
    if targets.is_floating_point():
        p = raise_precision(logits).softmax(1)
        return dense_mean((targets.to(p.dtype) - p).abs().sum(1))
    log_p = pick(raise_precision(logits).log_softmax(1), targets)
    return dense_mean(-2 * torch.expm1(log_p))


@loss(
    task="multiclass",
    paper=Paper(
        "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
        2023,
        "arXiv:2304.07288",
    ),
    skips={
        "extremes at range ends": "for tau < 1 it grows as exp((1 - tau) * -log p_y) by "
        "definition: past float32 where -log p_y > 88 / (1 - tau)"
    },
)
def comp_sum(
    logits: Tensor,
    targets: Tensor,
    *,
    tau: Annotated[float, Field(ge=0), Range(0.0, 2.0)] = 1.0,
) -> Tensor:
    r"""Comp-sum loss, :math:`((1+u)^{1-\tau} - 1)/(1-\tau)`, with 1 + u the inverse of p_y.

    :math:`u = \sum_{c\ne y}e^{z_c-z_y}`, so it is :math:`(p_y^{\tau-1} - 1)/(1-\tau)`. tau = 0 is
    the sum-exponential loss u (of two classes, binary_margin at phi = exponential), tau = 1 the
    limit, cross_entropy, 1 < tau <= 2 is generalized_cross_entropy at q = tau - 1, and tau = 2
    half of probability_mae. The higher tau, the lower the value. For tau < 1 nothing bounds it: it
    overflows float32 where -log p_y passes 88 / (1 - tau). Written from the catalogue's formula;
    of the paper only the abstract could be read.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``).
        tau: Which member, >= 0.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_multiclass("comp_sum", logits, targets)
    log_p = pick(raise_precision(logits).log_softmax(1), targets)
    return dense_mean(_box_cox(log_p, tau - 1))
