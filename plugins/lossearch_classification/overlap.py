"""Losses that are one minus an overlap of predictions and labels: Dice, Tversky, Jaccard.

All three are a ratio of two sums, so a few rare positives weigh as much as many easy negatives.
Written as what is missed over what is missed or met: nothing is lost where the overlap is near 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, loss
from lossearch.components import raise_precision
from lossearch_classification._shared import (
    check_binary,
    check_multiclass,
    dense_mean,
    drop,
    log_rest,
    pick,
    reduce_labels,
    softplus,
)

_DICE_FOR_NLP = Paper("Dice Loss for Data-imbalanced NLP Tasks", 2020, "arXiv:1911.02855")
Scope = Annotated[Literal["sample", "batch"], Choices()]
Smooth = Annotated[float, Field(gt=0), Range(1e-4, 10.0, log=True)]


def _by_scope(params: Any) -> Literal["per_sample", "batch"]:
    return "per_sample" if params.scope == "sample" else "batch"


@loss(task=("multiclass", "binary", "multilabel"), returns=_by_scope, paper=_DICE_FOR_NLP)
def self_adjusting_dice(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0), Range(0.0, 1.0)] = 0.01,
    smooth: Smooth = 1.0,
    scope: Scope = "sample",
    squared: bool = False,
) -> Tensor:
    r"""Self-adjusting Dice, :math:`1 - \frac{2wt + \gamma}{w + t + \gamma}`, w = (1-p)^alpha p.

    w falls again beyond :math:`p = 1/(1+\alpha)`, so easy positives count for less. With
    alpha = 0 and scope ``batch`` it is one minus the soft Dice coefficient, which is
    :func:`tversky_index` with alpha = beta = 1/2 and half of ``smooth``, and
    :func:`sorensen_dice` of scope ``class`` with eps = ``smooth``.

    Args:
        logits: ``[B, C]`` of one class each (softmax), or of several labels (sigmoid: ``[B]``,
            ``[B, 1]``, ``[B, C]``). Trailing axes are positions, each one a sample.
        targets: int64 ``[B]`` for one class each; otherwise of the logits' shape, in {0, 1}, -1
            for unknown.
        alpha: How far easy predictions are held down, >= 0.
        smooth: The constant gamma > 0 of both sums.
        scope: ``sample``: a ratio for each label of each sample, and their mean over a sample's
            labels. ``batch``: the sums run over the batch, and the mean over classes; a class
            whose label nobody knows is left out.
        squared: Squares of w and t in the denominator.

    Returns:
        ``[B]`` for scope ``sample``, one number for ``batch``; in [0, 1].

    Raises:
        FieldError: a shape or a target is not allowed.

    Checked against the authors' code, ShannonAI/dice_loss_for_NLP (loss/dice_loss.py), on its
    binary branch. Two things there are not followed: its branch for several classes divides each
    sample's own overlap by sums over the batch, and its choice of hard examples is a miner's work.
    """
    log_w, known = _log_probabilities("self_adjusting_dice", logits, targets)
    if isinstance(alpha, Tensor) or alpha != 0:
        log_w = log_w + alpha * _log_complement(log_w, logits, multiclass=known is None)

    def met(w: Tensor) -> tuple[Tensor, Tensor]:
        return ((1 - w).square(), w.square() + 1) if squared else (1 - w, w + 1)

    false = 2 * log_w if squared else log_w
    return _ratio(log_w, false, met, targets, known, smooth, scope)


@loss(task=("multiclass", "binary", "multilabel"), returns=_by_scope, paper=_DICE_FOR_NLP)
def tversky_index(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0), Range(0.1, 0.9)] = 0.5,
    beta: Annotated[float, Field(ge=0), Range(0.1, 0.9)] = 0.5,
    smooth: Smooth = 1.0,
    scope: Scope = "batch",
) -> Tensor:
    r"""Tversky index, :math:`1 - \frac{TP + \gamma}{TP + \alpha FP + \beta FN + \gamma}`.

    TP, FP and FN are soft counts: sums of :math:`pt`, :math:`p(1-t)` and :math:`(1-p)t`. With
    alpha = beta = 1/2 it is :func:`self_adjusting_dice` with alpha = 0 and twice ``smooth``; with
    alpha = beta = 1 it is one minus the Jaccard index.

    Args:
        logits: ``[B, C]`` of one class each (softmax), or of several labels (sigmoid: ``[B]``,
            ``[B, 1]``, ``[B, C]``). Trailing axes are positions, each one a sample.
        targets: int64 ``[B]`` for one class each; otherwise of the logits' shape, in {0, 1}, -1
            for unknown.
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0.
        smooth: The constant gamma > 0 of both sums.
        scope: ``sample``: an index for each label of each sample, and their mean over a sample's
            labels. ``batch``: the counts run over the batch, and the mean over classes; a class
            whose label nobody knows is left out.

    Returns:
        ``[B]`` for scope ``sample``, one number for ``batch``; in [0, 1].

    Raises:
        FieldError: a shape or a target is not allowed.

    Written from the index's definition; the paper's text could not be read.
    """
    log_p, known = _log_probabilities("tversky_index", logits, targets)

    def met(p: Tensor) -> tuple[Tensor, Tensor]:
        return beta * (1 - p), beta * (1 - p) + p

    false = log_p + torch.as_tensor(alpha, dtype=log_p.dtype, device=log_p.device).log()
    return _ratio(log_p, false, met, targets, known, smooth, scope)


@loss(
    task=("binary", "multilabel"),
    returns=_by_scope,
    paper=Paper(
        "Improving Polyphonic Sound Event Detection on Multichannel Recordings with the "
        "Sørensen-Dice Coefficient Loss and Transfer Learning",
        2021,
        "arXiv:2107.10471",
    ),
)
def sorensen_dice(
    logits: Tensor,
    targets: Tensor,
    *,
    eps: Annotated[float, Field(gt=0), Range(1e-7, 1.0, log=True)] = 1e-7,
    squared: bool = False,
    scope: Annotated[Literal["sample", "class", "batch"], Choices()] = "sample",
) -> Tensor:
    r"""Sørensen-Dice, :math:`1 - \frac{2\sum pt + e}{\sum p + \sum t + e}`.

    For sound events: a sample's sums run over its labels and frames together. Scope ``class`` is
    :func:`self_adjusting_dice` with alpha = 0, scope ``batch`` and smooth = eps.

    Args:
        logits: ``[B]``, ``[B, 1]``, ``[B, C]`` or, with frames, ``[B, C, T]``.
        targets: Of the same shape, in {0, 1}, -1 for unknown.
        eps: The constant e > 0 of both sums: what an overlap of nothing with nothing rests on.
        squared: Squares of p and t in the denominator.
        scope: Over what the sums run: ``sample``, all labels and frames of each sample;
            ``class``, all samples and frames of each class, and then the mean over classes (but
            not those whose label nobody knows); ``batch``, everything.

    Returns:
        ``[B]`` for scope ``sample``, otherwise one number; in [0, 1].

    Raises:
        FieldError: a shape or a target is not allowed.

    Written from the catalogue's formula; the paper's text could not be read, so whether it squares
    the denominator is open.
    """
    z, t, known = check_binary("sorensen_dice", logits, targets)
    p = z.sigmoid()
    missed = torch.where(t == 1, 1 - p, p)
    if squared:
        missed, p = missed.square(), p.square()
    missed, total = torch.where(known, missed, 0), torch.where(known, p + t, 0)
    if scope == "class":
        return _mean_ratio(missed, total, known, eps)
    if scope == "sample":
        missed, total = missed.flatten(1).sum(1), total.flatten(1).sum(1)
        return missed / (total + eps)
    return missed.sum() / (total.sum() + eps)


def _log_probabilities(
    name: str, logits: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor | None]:
    """log p ``[B, C, ...]``, and which labels are known: None for one class each.

    Class indices (no class axis beside logits of several) mean a softmax, all else a sigmoid.
    """
    if logits.ndim > 1 and logits.shape[1] > 1 and targets.ndim == logits.ndim - 1:
        check_multiclass(name, logits, targets)
        return raise_precision(logits).log_softmax(1), None
    z, _, known = check_binary(name, logits, targets)
    return -softplus(-z), known


def _log_complement(log_p: Tensor, logits: Tensor, *, multiclass: bool) -> Tensor:
    """log(1 - p), exact also where p is next to 1: that can only be the likeliest class."""
    if not multiclass:
        return -softplus(raise_precision(logits)).view_as(log_p)
    top = log_p.detach().argmax(1)
    others = torch.log1p(-drop(log_p.exp(), top, 0.0))
    return others.scatter(1, top.unsqueeze(1), log_rest(log_p, top).unsqueeze(1))


def _ratio(
    log_w: Tensor,
    false: Tensor,
    met: Callable[[Tensor], tuple[Tensor, Tensor]],
    targets: Tensor,
    known: Tensor | None,
    smooth: float,
    scope: str,
) -> Tensor:
    """missed / (total + smooth): of each label, or of sums over the batch; then the mean.

    A negative label misses and totals exp(``false``), so that its ratio is a sigmoid; a positive
    one what ``met`` says of w. With one class each, that is worked out for the targets alone.
    """
    if known is not None:
        positive = (targets == 1).view_as(known)
        missed, total = met(log_w.exp())
        u = false.exp()
        missed, total = torch.where(positive, missed, u), torch.where(positive, total, u)
        if scope == "sample":
            return reduce_labels(missed / (total + smooth), known, "mean")
        missed, total = torch.where(known, missed, 0), torch.where(known, total, 0)
        return _mean_ratio(missed, total, known, smooth)
    missed, total = met(pick(log_w, targets).exp())
    if scope == "sample":
        log_smooth = torch.as_tensor(smooth, dtype=false.dtype, device=false.device).log()
        others = drop((false - log_smooth).sigmoid(), targets, 0.0).sum(1)
        return dense_mean((others + missed / (total + smooth)) / false.shape[1])
    others = drop(false.exp(), targets, 0.0).movedim(1, 0).flatten(1).sum(1)
    missed = others.index_add(0, targets.flatten(), missed.flatten())
    total = others.index_add(0, targets.flatten(), total.flatten())
    return (missed / (total + smooth)).mean()


def _mean_ratio(missed: Tensor, total: Tensor, known: Tensor, smooth: float) -> Tensor:
    """The ratio of sums over all but axis 1, and its mean over the classes that are known."""
    missed, total, known = (x.movedim(1, 0).flatten(1) for x in (missed, total, known))
    value = missed.sum(1) / (total.sum(1) + smooth)
    return value.sum() / known.any(1).sum().clamp(min=1)
