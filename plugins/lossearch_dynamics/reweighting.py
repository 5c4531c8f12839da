"""Weights of samples: one number for each, by which its loss counts.

Weights are detached and not negative. They have mean 1, over the batch or over the classes, unless
an entry says otherwise, so that a scheme changes where the gradient goes and not how large it is.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from lossearch import Choices, Paper, Range, When, reweighting
from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError, ParameterError
from lossearch_dynamics._shared import (
    BY_TARGET,
    check_classes,
    is_labels,
    mean_of_known,
    mismatch,
)


@reweighting()
def none(losses: Tensor) -> Tensor:
    """Weight 1 for every sample: training with it is training without a reweighting, bit by bit.

    Args:
        losses: Loss of each sample, ``[B]``.

    Returns:
        Ones, ``[B]``, at least float32.
    """
    return torch.ones_like(raise_precision(losses))


@reweighting(
    task=BY_TARGET,
    paper=Paper("Focal Loss for Dense Object Detection", 2017, "arXiv:1708.02002"),
    skips={"mean one": "the weights fall as the model learns, as in the focal loss"},
)
def focal_weight(
    logits: Tensor | None = None,
    targets: Tensor | None = None,
    losses: Tensor | None = None,
    *,
    gamma: Annotated[float, Field(ge=0), Range(0.0, 5.0)] = 2.0,
    alpha: Annotated[float, Field(ge=0, le=1)]
    | list[Annotated[float, Field(ge=0, le=1)]]
    | None = None,
    normalize: bool = False,
) -> Tensor:
    r"""Weight of the hard samples, :math:`w = \alpha (1-p_y)^\gamma`, without a gradient.

    Not the focal loss, whose gradient also goes through the weight. Without logits,
    :math:`p_y = e^{-l}` of the loss l: exact where that is a cross-entropy.

    Args:
        logits: ``[B, C]`` with integer targets; ``[B]``, ``[B, 1]`` or multilabel ``[B, C]`` with
            targets alike, where :math:`p_y` is the probability of the true side and a sample's
            weight is the mean over its known labels.
        targets: ``[B]`` integer; or of the logits' shape, 0 or 1, and -1 for unknown. A sample
            without a known label has weight 1, as without a reweighting.
        losses: Loss of each sample, ``[B]``, >= 0; only read where there are no logits.
        gamma: Focusing exponent; 0 weighs all samples alike.
        alpha: Binary and multilabel: the factor of positives, negatives getting ``1 - alpha``.
            Multiclass: one factor for each class. It needs logits and targets.
        normalize: Scale to mean 1 over the batch's samples that have a known label. Without it,
            as in the focal loss, the weights fall as the model learns.

    Returns:
        Weights, ``[B]``, at least float32.

    Raises:
        ParameterError: ``alpha`` is a list for a binary task, or not of length C.
        FieldError: logits and targets do not match in shape, there are neither these nor losses,
            or a loss without logits is negative: then it is no cross-entropy.
    """
    known = None
    if logits is None:
        weights = _miss_of(losses, alpha) ** gamma
    elif targets is None:
        raise FieldError("focal_weight with 'logits' reads 'targets' too, which the batch lacks")
    elif is_labels(logits, targets):
        weights, known = _of_labels(logits, targets, gamma, alpha)
    else:
        weights = _of_classes(logits, targets, gamma, alpha)
    if normalize:
        if known is None:
            mean = weights.mean()
        else:
            mean = torch.where(known, weights, 0.0).sum() / known.sum().clamp(min=1)
        scaled = torch.where(mean > 0, weights / mean, 1.0)
        weights = scaled if known is None else torch.where(known, scaled, 1.0)
    return weights


def _miss_of(losses: Tensor | None, alpha: float | list[float] | None) -> Tensor:
    """1 - p, by losses -log p."""
    if losses is None:
        raise FieldError(
            "focal_weight reads 'logits' and 'targets', or 'losses' where there are none; the "
            "batch has neither"
        )
    if alpha is not None:
        raise ParameterError(
            f"focal_weight: alpha = {alpha} is not allowed without 'logits' and 'targets': a loss "
            "does not tell its class"
        )
    l = raise_precision(losses.detach())  # noqa: E741
    if readable(l) and bool((l < 0).any()):
        raise FieldError(
            f"focal_weight: a loss is {float(l.min()):g}, and exp(-loss) is no probability where "
            "a loss is negative; give 'logits' and 'targets', or take a loss that never is"
        )
    return torch.where(l < 0, math.nan, -torch.expm1(-l))


def _of_classes(
    logits: Tensor, targets: Tensor, gamma: float, alpha: float | list[float] | None
) -> Tensor:
    z = raise_precision(logits.detach())
    if z.ndim != 2 or targets.shape != z.shape[:1]:
        raise mismatch("focal_weight", "logits", z, targets)
    check_classes("focal_weight", targets, z.shape[1], "the logits")
    index = targets.unsqueeze(1)
    rest = z.log_softmax(1).scatter(1, index, -math.inf).logsumexp(1).exp()  # 1 - p_y
    weights = rest**gamma
    if alpha is None:
        return weights
    if not isinstance(alpha, list) or len(alpha) != z.shape[1]:
        raise ParameterError(
            f"focal_weight: alpha = {alpha} is not allowed: {z.shape[1]} classes need a "
            f"list of {z.shape[1]} factors"
        )
    return weights * z.new_tensor(alpha)[targets]


def _of_labels(
    logits: Tensor, targets: Tensor, gamma: float, alpha: float | list[float] | None
) -> tuple[Tensor, Tensor]:
    """The weights, and which samples have a known label."""
    z = raise_precision(logits.detach()).unsqueeze(1).flatten(1)
    t = targets.unsqueeze(1).flatten(1)
    if t.shape != z.shape:
        raise mismatch("focal_weight", "logits", logits, targets)
    weights = torch.where(t > 0.5, -z, z).sigmoid() ** gamma
    if isinstance(alpha, list):
        raise ParameterError(
            f"focal_weight: alpha = {alpha} is not allowed: a binary or multilabel task needs "
            "one number, the factor of positives"
        )
    if alpha is not None:
        weights = weights * torch.where(t > 0.5, alpha, 1 - alpha)
    return mean_of_known(weights, t), (t >= 0).any(1)


def _dynamic_loss_reads(params: BaseModel) -> tuple[str, ...]:
    anneals = getattr(params, "anneal", "none") != "none"
    return ("losses", "step", "total_steps") if anneals else ("losses",)


@reweighting(
    paper=Paper(
        "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining",
        2025,
        "arXiv:2502.06733",
    ),
    reads=_dynamic_loss_reads,
)
def dynamic_loss(
    losses: Tensor,
    step: int | None = None,
    total_steps: int | None = None,
    *,
    strategy: Annotated[
        Literal["linupper", "quadratic", "extremes", "uniform"], Choices()
    ] = "linupper",
    temperature: Annotated[float, Field(gt=0), Range(0.1, 10.0, log=True)] = 1.0,
    delta: Annotated[float, Field(gt=0)] = 1.0,
    anneal: Annotated[Literal["none", "linear", "cosine"], Choices()] = "none",
    temperature_start: Annotated[float, Field(gt=0)] = 10.0,
    anneal_fraction: Annotated[
        float, Field(ge=0, le=1), Range(0.0, 0.5), When(anneal=("linear", "cosine"))
    ] = 0.1,
) -> Tensor:
    r"""Weight by where a loss lies in its batch, :math:`w_i = B\,\mathrm{softmax}_i(f(h_i)/r)`.

    :math:`h_i = \delta(2 l_i - l_{max} - l_{min})/(l_{max} - l_{min})` lies in
    :math:`[-\delta, \delta]`. The formula was read from DataFlex, which follows the authors' code
    at temperature 1; how ``anneal`` moves the temperature is not checked against either.

    Args:
        losses: Loss of each sample, ``[B]``; only their order and spacing matter.
        step: The optimizer step, from 0; only read to anneal.
        total_steps: The number of steps of the training; only read to anneal.
        strategy: :math:`f`. ``linupper`` :math:`\min(h + \delta, \delta)`, the lower half of the
            losses less; ``quadratic`` :math:`1 - h^2/\delta^2`, both ends less; ``extremes``
            :math:`|h|`, both ends more; ``uniform`` 0, all alike.
        temperature: :math:`r`; large values level the weights, small ones sharpen them.
        delta: Half the width to which losses are scaled.
        anneal: How the temperature goes from ``temperature_start`` to ``temperature``.
        temperature_start: The temperature at step 0.
        anneal_fraction: The share of the training at which ``temperature`` is reached.

    Returns:
        Weights of sum B, ``[B]``, at least float32.

    Raises:
        FieldError: ``anneal`` is on, and the batch holds no step or total_steps.
    """
    l = raise_precision(losses.detach())  # noqa: E741
    if not len(l):
        return l
    low, high = l.aminmax()
    h = delta * (2 * l - (high + low)) / (high - low).clamp(min=1e-6)
    if strategy == "linupper":
        f = (h + delta).clamp(max=delta)
    elif strategy == "quadratic":
        f = 1 - (h / delta) ** 2
    elif strategy == "extremes":
        f = h.abs()
    else:
        f = torch.zeros_like(h)
    if anneal != "none":
        if step is None or total_steps is None:
            raise FieldError(
                f"dynamic_loss with anneal='{anneal}' reads 'step' and 'total_steps', which the "
                "batch lacks; pass them, or take anneal='none'"
            )
        span = l.new_zeros(()) + anneal_fraction * total_steps
        done = torch.where(span > 0, step / span.clamp(min=1e-6), 1.0).clamp(max=1)
        if anneal == "cosine":
            done = (1 - torch.cos(math.pi * done)) / 2
        f = f / (temperature_start + (temperature - temperature_start) * done)
    else:
        f = f / temperature
    e = (f - f.amax()).exp()
    return e / e.mean()  # equal losses give exactly 1, which B * softmax does not
