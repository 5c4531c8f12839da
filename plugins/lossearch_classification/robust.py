"""Losses that bound or blunt what a wrong label can do, by a function of the target's probability.

1 - p_y is always -expm1(log p_y), so that nothing is lost where p_y is close to 1.
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
from lossearch_classification._shared import check_multiclass, pick


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

    q = 0 is its limit, cross-entropy; q = 1 is :math:`1 - p_y`. With k > 0 it is truncated: where
    :math:`p_y \le k` the value is :math:`(1 - k^q)/q` and there is no gradient. A truncation above
    1/C may drop every sample of an untrained model, which is warned of in epoch 0. Checked against
    ``GCELoss`` of Optimization-AI/ICML2023_LDR loss.py.

    Args:
        logits: ``[B, C]``.
        targets: int64 ``[B]``.
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
    if epoch == 0 and not isinstance(k, Tensor) and k > 1 / classes:
        warnings.warn(
            f"generalized_cross_entropy: k = {k:g} is above 1/C = {1 / classes:.3g}, so an "
            "untrained model may get no gradient at all; begin with k = 0",
            stacklevel=2,
        )
    log_p = pick(raise_precision(logits).log_softmax(1), targets)
    return _box_cox(_truncated(log_p, k), q)


def _truncated(log_p: Tensor, k: float | Tensor) -> Tensor:
    """log k, without a gradient, where p <= k."""
    if not isinstance(k, Tensor):
        return log_p if k == 0 else torch.where(log_p <= math.log(k), math.log(k), log_p)
    return torch.where(log_p <= k.log(), k.log(), log_p)


def _box_cox(log_p: Tensor, q: float | Tensor) -> Tensor:
    """(1 - p^q) / q, and its limit -log p at q = 0."""
    if not isinstance(q, Tensor):
        return -log_p if q == 0 else -torch.expm1(q * log_p) / q
    safe = torch.where(q == 0, 1.0, q)
    return torch.where(q == 0, -log_p, -torch.expm1(safe * log_p) / safe)


@loss(
    task="multiclass",
    paper=Paper(
        "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019, "arXiv:1908.06112"
    ),
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
    The authors' (alpha, beta) are (0.1, 1) on CIFAR-10 and (6, 0.1) on CIFAR-100. Checked against
    HanxunH/SCELoss-Reproduce loss.py, which clamps the one-hot at 1e-4: A = log 1e-4.

    Args:
        logits: ``[B, C]``.
        targets: int64 ``[B]``.
        alpha: Weight >= 0 of the cross-entropy.
        beta: Weight >= 0 of the reverse cross-entropy.
        A: Stand-in for log 0, < 0.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_multiclass("symmetric_cross_entropy", logits, targets)
    log_p = pick(raise_precision(logits).log_softmax(1), targets)
    return beta * A * torch.expm1(log_p) - alpha * log_p
