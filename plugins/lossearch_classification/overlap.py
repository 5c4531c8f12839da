"""Losses that are one minus an overlap of predictions and labels: Dice, Tversky, Jaccard.

All three are a ratio of two sums, so a few rare positives weigh as much as many easy negatives.
Written as what is missed over what is missed or met: nothing is lost where the overlap is near 1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, loss
from lossearch.components import raise_precision
from lossearch_classification._exact import complement, log_complement, sides
from lossearch_classification._shared import (
    check_binary,
    check_multiclass,
    dense_mean,
    drop,
    log_others,
    log_rest,
    of_known,
    pick,
    reduce_labels,
    softplus,
)
from lossearch_classification._slices import sliced

_DICE_FOR_NLP = Paper("Dice Loss for Data-imbalanced NLP Tasks", 2020, "arXiv:1911.02855")
Scope = Annotated[Literal["sample", "batch"], Choices()]
Pair = tuple[Tensor, Tensor]
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
    formula = _dice_of_samples if scope == "sample" else _dice
    return formula(logits, targets, alpha, smooth, scope, squared)


def _dice(
    logits: Tensor, targets: Tensor, alpha: float, smooth: float, scope: Scope, squared: bool
) -> Tensor:
    def met(w: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        return (rest.square(), w.square() + 1) if squared else (rest, w + 1)

    adjusted = isinstance(alpha, Tensor) or alpha != 0  # then w does not come next to 1
    if _one_class_each(logits, targets):
        check_multiclass("self_adjusting_dice", logits, targets)
        log_w = log_p = raise_precision(logits).log_softmax(1)
        if adjusted:
            log_w = log_p + alpha * log_others(log_p)
        own = pick(log_w, targets) if adjusted else _log_target(log_p, targets)
        false = 2 * log_w if squared else log_w
        return _of_classes(false, met(own.exp(), complement(own)), targets, smooth, scope)
    z, t, known = check_binary("self_adjusting_dice", logits, targets)
    if adjusted:
        log_p = -softplus(-z)
        w = (log_p + alpha * (log_p - z)).exp()
        rest = 1 - w
    else:
        w, rest = sides(z)
    false = w.square() if squared else w
    return _of_labels(false, met(w, rest), t, known, smooth, scope)


_dice_of_samples = sliced("logits", "targets")(_dice)


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
    if _one_class_each(logits, targets):
        check_multiclass("tversky_index", logits, targets)
        log_p = raise_precision(logits).log_softmax(1)
        own = _log_target(log_p, targets)
        missed = beta * complement(own)
        false = log_p + torch.as_tensor(alpha, dtype=log_p.dtype, device=log_p.device).log()
        return _of_classes(false, (missed, missed + own.exp()), targets, smooth, scope)
    z, t, known = check_binary("tversky_index", logits, targets)
    p, rest = sides(z)
    missed = beta * rest
    return _of_labels(alpha * p, (missed, missed + p), t, known, smooth, scope)


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
    formula = _sorensen_of_samples if scope == "sample" else _sorensen
    return formula(logits, targets, eps, squared, scope)


def _sorensen(logits: Tensor, targets: Tensor, eps: float, squared: bool, scope: str) -> Tensor:
    z, t, known = check_binary("sorensen_dice", logits, targets)
    p, rest = sides(z)
    missed = torch.lerp(p, rest, t)
    if squared:
        missed, p = missed.square(), p.square()
    missed, total = of_known(missed, known), of_known(p + t, known)
    if scope == "class":
        return _mean_ratio(missed, total, known, eps)
    if scope == "sample":
        missed, total = missed.flatten(1).sum(1), total.flatten(1).sum(1)
        return missed / (total + eps)
    return missed.sum() / (total.sum() + eps)


_sorensen_of_samples = sliced("logits", "targets")(_sorensen)


def _one_class_each(logits: Tensor, targets: Tensor) -> bool:
    """Class indices (no class axis beside logits of several) mean a softmax, else a sigmoid."""
    return logits.ndim > 1 and logits.shape[1] > 1 and targets.ndim == logits.ndim - 1


def _log_target(log_p: Tensor, targets: Tensor) -> Tensor:
    """log p_y ``[B, ...]``, exact also where p_y is next to 1: there by the other classes."""
    return log_complement(log_rest(log_p, targets).exp(), pick(log_p, targets))


def _of_labels(
    false: Tensor, own: Pair, t: Tensor, known: Tensor, smooth: float, scope: str
) -> Tensor:
    """missed / (total + smooth): of each label, or of sums over the batch; then the mean.

    A negative label misses and totals ``false``, a positive one the pair ``own``.
    """
    missed, total = (torch.lerp(false, x, t) for x in own)  # where() for such t, but quicker
    if scope == "sample":
        return reduce_labels(missed / (total + smooth), known, "mean")
    missed, total = of_known(missed, known), of_known(total, known)
    return _mean_ratio(missed, total, known, smooth)


def _of_classes(
    log_false: Tensor, own: Pair, targets: Tensor, smooth: float, scope: str
) -> Tensor:
    """The same of one class each: ``own`` for the targets alone, and the logarithm of false.

    A negative label's ratio is then a sigmoid.
    """
    missed, total = own
    if scope == "sample":
        log_smooth = torch.as_tensor(smooth, dtype=missed.dtype, device=missed.device).log()
        others = drop((log_false - log_smooth).sigmoid(), targets, 0.0).sum(1)
        return dense_mean((others + missed / (total + smooth)) / log_false.shape[1])
    others = drop(log_false.exp(), targets, 0.0).movedim(1, 0).flatten(1).sum(1)
    missed = others.index_add(0, targets.flatten(), missed.flatten())
    total = others.index_add(0, targets.flatten(), total.flatten())
    return (missed / (total + smooth)).mean()


def _mean_ratio(missed: Tensor, total: Tensor, known: Tensor, smooth: float) -> Tensor:
    """The ratio of sums over all but axis 1, and its mean over the classes that are known."""
    missed, total, known = (x.movedim(1, 0).flatten(1) for x in (missed, total, known))
    value = missed.sum(1) / (total.sum(1) + smooth)
    return value.sum() / known.any(1).sum().clamp(min=1)
