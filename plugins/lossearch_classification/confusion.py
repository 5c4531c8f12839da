"""Losses that are one minus a confusion-matrix metric, made smooth."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, When, loss
from lossearch_classification._exact import complement, log_complement, sides
from lossearch_classification._shared import check_binary, of_known, softplus


@loss(
    task=("binary", "multilabel"),
    returns="batch",
    paper=Paper(
        "AnyLoss: Transforming Classification Metrics into Loss Functions",
        2024,
        "arXiv:2405.14745",
    ),
)
def any_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    metric: Annotated[
        Literal["accuracy", "f_beta", "g_mean", "balanced_accuracy"], Choices()
    ] = "f_beta",
    L: Annotated[float, Field(gt=0), Range(5.0, 100.0, log=True)] = 73.0,
    beta: Annotated[
        float, Field(gt=0), Range(0.25, 4.0, log=True), When(metric="f_beta")
    ] = 1.0,
) -> Tensor:
    r"""AnyLoss: one minus a metric of the confusion matrix of amplified probabilities.

    Each probability counts as :math:`\hat y = \sigma(L(\sigma(z) - \tfrac12))`, nearly 0 or 1. A
    rate whose class is absent from the batch is left out of the (geometric) mean; f_beta without
    positives is 0, and its loss 1. Over several labels the mean of their metrics is taken, leaving
    out labels that nobody in the batch knows.

    The gradient vanishes where the probability is far from one half, so large ``L`` wants large
    batches.

    Args:
        logits: ``[B]``, ``[B, 1]`` or ``[B, C]``.
        targets: Of the same shape, in {0, 1}, -1 for unknown.
        metric: What to maximise: ``accuracy``, ``f_beta``, ``g_mean`` (of the two rates) or
            ``balanced_accuracy``.
        L: Amplification, > 0.
        beta: Weight of recall against precision in f_beta, > 0.

    Returns:
        One number, in [0, 1].

    Raises:
        FieldError: shapes that do not match, or a target outside {-1, 0, 1}.

    Checked against the authors' code, doheonhan/anyloss (AnyLoss - Code.ipynb).
    """
    z, t, known = check_binary("any_loss", logits, targets)
    amplified = L * (sides(z)[0] - 0.5)
    negative = of_known(1 - t, known)
    n_pos, n_neg = t.sum(0), negative.sum(0)
    # by what is missed: one minus a metric next to 1 would be nothing but rounding
    wrong, _ = sides((1 - 2 * t) * amplified)
    fn, fp = (t * wrong).sum(0), (negative * wrong).sum(0)
    if metric == "accuracy":
        value = (fn + fp) / (n_pos + n_neg).clamp(min=1)
    elif metric == "f_beta":
        missed, total = beta**2 * fn + fp, (1 + beta**2) * n_pos - fn + fp
        value = torch.where(n_pos > 0, missed, 1) / torch.where(n_pos > 0, total, 1)
    elif metric == "balanced_accuracy":
        rates = fn / n_pos.clamp(min=1) + fp / n_neg.clamp(min=1)
        value = rates / _classes(n_pos, n_neg)
    else:  # by logarithms: the slope of a square root is infinite at a rate of 0
        log_tpr = _log_rate(amplified, t == 1, fn)
        log_tnr = _log_rate(-amplified, negative == 1, fp)
        value = complement((log_tpr + log_tnr) / _classes(n_pos, n_neg))
    labels = (n_pos + n_neg) > 0
    return torch.where(labels, value, 0).sum() / labels.sum().clamp(min=1)


def _classes(n_pos: Tensor, n_neg: Tensor) -> Tensor:
    """How many of the two classes each label's batch holds; 1 where none."""
    return ((n_pos > 0).to(n_pos) + (n_neg > 0).to(n_neg)).clamp(min=1)


def _log_rate(amplified: Tensor, members: Tensor, missed: Tensor) -> Tensor:
    """Log of the mean of sigmoid(amplified) over the members, 0 where there is none."""
    count = members.to(missed).sum(0).clamp(min=1)
    logs = torch.where(members, -softplus(-amplified), -math.inf).logsumexp(0)
    logs = torch.where(members.any(0), logs - count.log(), 0)
    return log_complement(missed / count, logs)
