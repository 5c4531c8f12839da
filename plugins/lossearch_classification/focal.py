"""Losses that reshape cross-entropy by powers of 1 - p, the probability that the target misses.

Powers are taken as exp(gamma * log(1 - p)): log(1 - p) is finite with a bounded slope, so neither
value nor gradient overflows at any gamma >= 0, where (1 - p) ** gamma has an infinite slope at
p = 1 for gamma < 1. With softmax, the target against all other classes is one logit s, so that
p = sigmoid(s) and both tails are exact as in sigmoid mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from lossearch import ByTask, Choices, Paper, Range, When, loss
from lossearch.components import raise_precision
from lossearch.errors import ParameterError
from lossearch_classification._shared import (
    LabelReduction,
    centred,
    check_binary,
    check_multiclass,
    check_soft,
    class_vector,
    dense_mean,
    drop,
    expect,
    pick,
    reduce_labels,
)
from lossearch_classification._slices import sliced


def _alpha(value: float | list[float] | None) -> float | list[float] | None:
    if isinstance(value, list):
        if not value or min(value) < 0:
            raise ValueError("class weights are one number >= 0 for each class")
    elif value is not None and not 0 <= value <= 1:
        raise ValueError("one number lies in [0, 1]; a list holds a weight >= 0 for each class")
    return value


def _epsilon(value: float | list[float]) -> float | list[float]:
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= 5:
        raise ValueError(f"a list holds 1 to 5 coefficients, not {len(values)}")
    for j, each in enumerate(values, start=1):
        if each < -1 / j:
            raise ValueError(f"coefficient {j} must be >= -1/{j} = {-1 / j:.4g}, not {each:g}")
    return value


# Searched in sigmoid mode only: with softmax one number scales the loss and nothing else.
Alpha = Annotated[float | list[float] | None, AfterValidator(_alpha)]
Mode = Annotated[
    Literal["softmax", "sigmoid"],
    ByTask(multiclass="softmax", binary="sigmoid", multilabel="sigmoid"),
]


def _weighted(
    name: str, values: Tensor, targets: Tensor, logits: Tensor, alpha: float | list[float] | None
) -> Tensor:
    """Softmax values weighted by the target's class; one number weighs every class alike."""
    if alpha is None:
        return values
    if isinstance(alpha, list):
        return class_vector(name, "alpha", alpha, logits)[targets] * values
    return alpha * values


def _others(z: Tensor, targets: Tensor) -> Tensor:
    """The logsumexp of the other classes: p_y is the sigmoid of z_y less this."""
    return drop(z, targets, -math.inf).logsumexp(1)


def _surprise(s: Tensor) -> tuple[Tensor, Tensor]:
    """-log p and log(1 - p) of p = sigmoid(s), by one logarithm."""
    log_p = F.logsigmoid(s)
    return -log_p, log_p - s


def _focal(s: Tensor, gamma: float) -> Tensor:
    surprise, log_miss = _surprise(s)
    return torch.exp(gamma * log_miss) * surprise


def _balanced(name: str, t: Tensor, alpha: float | list[float] | None, values: Tensor) -> Tensor:
    """Sigmoid values weighted: alpha for the positives, 1 - alpha for the negatives."""
    if isinstance(alpha, list):
        raise ParameterError(
            f"{name}: alpha is one number in [0, 1] with mode 'sigmoid' (the weight of the "
            "positives); a list of class weights goes with mode 'softmax'"
        )
    return values if alpha is None else (alpha * t + (1 - alpha) * (1 - t)) * values


@loss(
    task=("multiclass", "binary", "multilabel"),
    paper=Paper("Focal Loss for Dense Object Detection", 2017, "arXiv:1708.02002"),
)
@sliced("logits", "targets")
def focal(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: Annotated[float, Field(ge=0), Range(0.0, 5.0)] = 2.0,
    alpha: Annotated[Alpha, Range(0.05, 0.95), When(mode="sigmoid")] = None,
    mode: Mode = "softmax",
    label_reduction: LabelReduction = "mean",
) -> Tensor:
    r"""Focal loss, :math:`-\alpha_t (1 - p_t)^\gamma \log p_t`, p_t the target's probability.

    gamma = 0 is cross_entropy (sigmoid: binary_cross_entropy). In sigmoid mode it is asymmetric
    with gamma_neg = gamma_pos = gamma and clip = 0; in either it is poly_loss with base = focal
    and epsilon = 0, and with softmax the least that dual_focal can be. The weight is
    differentiated. Checked against kaidic/LDAM-DRW losses.py (softmax) and
    ``torchvision.ops.sigmoid_focal_loss`` (sigmoid).

    Args:
        logits: softmax ``[B, C]``; sigmoid ``[B]``, ``[B, 1]`` or ``[B, C]``; dense also
            ``[B, C, H, W]``.
        targets: softmax int64 ``[B]``; sigmoid 0, 1, or -1 for unknown, in the logits' shape.
        gamma: Focusing exponent >= 0.
        alpha: sigmoid: weight of the positives in [0, 1], the negatives having the rest. softmax:
            a list of C class weights >= 0, or one number that multiplies the whole.
        mode: ``softmax`` or ``sigmoid``; the task decides.
        label_reduction: sigmoid: ``mean`` over a sample's known labels, or their ``sum``.

    Returns:
        ``[B]``, in nats.

    Raises:
        FieldError: a shape or a target is not allowed.
        ParameterError: ``alpha`` does not fit the mode or the number of classes.
    """
    if mode == "sigmoid":
        z, t, known = check_binary("focal", logits, targets)
        values = _focal((2 * t - 1) * z, gamma)
        return reduce_labels(_balanced("focal", t, alpha, values), known, label_reduction)
    check_multiclass("focal", logits, targets)
    z = centred(logits)
    values = _focal(pick(z, targets) - _others(z, targets), gamma)
    return dense_mean(_weighted("focal", values, targets, z, alpha))


def _takes_soft(params: Any) -> bool:
    return params.mode == "softmax" and params.base == "cross_entropy"


@loss(
    task=("multiclass", "binary", "multilabel"),
    paper=Paper(
        "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
        2022,
        "arXiv:2204.12511",
    ),
    soft_targets=_takes_soft,
)
@sliced("logits", "targets")
def poly_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    epsilon: Annotated[float | list[float], AfterValidator(_epsilon), Range(-1.0, 6.0)] = 1.0,
    base: Annotated[Literal["cross_entropy", "focal"], Choices()] = "cross_entropy",
    gamma: Annotated[float, Field(ge=0), Range(0.0, 5.0), When(base="focal")] = 2.0,
    alpha: Alpha = None,
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=1),
        Range(0.0, 0.2),
        When(base="cross_entropy", mode="softmax"),
    ] = 0.0,
    mode: Mode = "softmax",
    label_reduction: LabelReduction = "mean",
) -> Tensor:
    r"""PolyLoss, :math:`-\log p_t + \sum_j \epsilon_j (1 - p_t)^j`.

    Cross-entropy is :math:`\sum_j \frac1j (1-p_t)^j`; the family perturbs the first
    coefficients. With the focal base:
    :math:`-\alpha(1-p_t)^\gamma\log p_t + \sum_j\epsilon_j(1-p_t)^{\gamma+j}`. With smoothed
    targets q: :math:`-\sum_c q_c\log p_c + \sum_j\epsilon_j(\sum_c q_c(1-p_c))^j`.
    All epsilon = 0 is the base: cross_entropy (sigmoid: binary_cross_entropy), or focal.
    The paper takes :math:`\epsilon_1 = 2` on ImageNet-1k and -1 for detection and segmentation
    heads. Checked against abhuse/polyloss-pytorch, optax's ``poly_loss_cross_entropy`` and the
    paper's Poly-1 listing, whose 1 - sum(labels * p) is the smoothed form here.

    Args:
        logits: As of :func:`focal`.
        targets: As of :func:`focal`; for ``cross_entropy`` with ``softmax`` also q, float in the
            shape of ``logits``, each class distribution summing to 1.
        epsilon: The first coefficient, or the first one to five; the j-th is >= -1/j.
        base: ``cross_entropy`` or ``focal``.
        gamma: Focusing exponent >= 0 (focal base).
        alpha: As of :func:`focal` (focal base).
        label_smoothing: Mass spread evenly over the classes, in [0, 1) (cross_entropy base with
            softmax).
        mode: ``softmax`` or ``sigmoid``; the task decides.
        label_reduction: sigmoid: ``mean`` over a sample's known labels, or their ``sum``.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.
        ParameterError: ``alpha`` does not fit the mode or the number of classes.
    """
    coefficients = epsilon if isinstance(epsilon, list) else [epsilon]
    if mode == "sigmoid":
        z, t, known = check_binary("poly_loss", logits, targets)
        surprise, log_miss = _surprise((2 * t - 1) * z)
        if base == "focal":
            focus = torch.exp(gamma * log_miss)
            values = _balanced("poly_loss", t, alpha, focus * surprise)
            values = values + focus * _polynomial(coefficients, log_miss.exp())
        else:
            values = surprise + _polynomial(coefficients, log_miss.exp())
        return reduce_labels(values, known, label_reduction)
    soft = targets.is_floating_point() and base == "cross_entropy"
    (check_soft if soft else check_multiclass)("poly_loss", logits, targets)
    if base == "focal":
        z = centred(logits)
        surprise, log_miss = _surprise(pick(z, targets) - _others(z, targets))
        focus = torch.exp(gamma * log_miss)
        values = _weighted("poly_loss", focus * surprise, targets, z, alpha)
        return dense_mean(values + focus * _polynomial(coefficients, log_miss.exp()))
    log_p = raise_precision(logits).log_softmax(1)
    surprise = -expect(log_p, targets)
    miss = -(expect(torch.expm1(log_p), targets) if soft else torch.expm1(-surprise))
    if isinstance(label_smoothing, Tensor) or label_smoothing > 0:
        classes = log_p.shape[1]
        surprise = (1 - label_smoothing) * surprise - label_smoothing * log_p.mean(1)
        # the mean over classes of 1 - p_c, whatever p is
        miss = (1 - label_smoothing) * miss + label_smoothing * (classes - 1) / classes
    return dense_mean(surprise + _polynomial(coefficients, miss))


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """The sum of coefficient j times x ** j, j from 1, by Horner's rule."""
    *lower, last = coefficients
    total = last * x
    for coefficient in reversed(lower):
        total = x * (total + coefficient)
    return total


@loss(
    task="multiclass",
    paper=Paper("Dual Focal Loss for Calibration", 2023, "arXiv:2305.13665"),
)
@sliced("logits", "targets")
def dual_focal(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: Annotated[float, Field(ge=0), Range(0.0, 10.0)] = 5.0,
) -> Tensor:
    r"""Dual focal loss, :math:`-(1 - p_y + p_j)^\gamma \log p_y`.

    :math:`p_j` is the largest probability strictly below :math:`p_y`, 0 where there is none; both
    are differentiated. gamma = 0 is cross_entropy; it is never below focal, and equal to it where
    the target has the lowest logit. gamma is to be chosen by calibration on validation data.
    Checked against Linwei94/DualFocalLoss dual_focal_loss.py, whose own default is gamma = 0.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``).
        gamma: Focusing exponent >= 0.

    Returns:
        ``[B]``, in nats.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_multiclass("dual_focal", logits, targets)
    z = centred(logits)
    # Which class is j is read off the logits, where no two distinct ones round to a tie.
    with torch.no_grad():
        lead = z.gather(1, targets.unsqueeze(1)) - z
        gap, j = F.threshold(lead, 0.0, math.inf, inplace=True).min(1)  # the least above 0
        del lead
    target, runner = z.gather(1, torch.stack([targets, j], 1)).unbind(1)
    s = target - _others(z, targets)
    surprise, log_miss = _surprise(s)
    log_runner = torch.where(gap == math.inf, -math.inf, runner - target - surprise)
    log_base = torch.logaddexp(log_miss, log_runner)
    return dense_mean(torch.exp(gamma * log_base) * surprise)
