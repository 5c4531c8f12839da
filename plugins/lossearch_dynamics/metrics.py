"""Metrics of a whole split: how often the model is right, and how well it ranks.

Unknown binary and multilabel targets (-1) are left out. Logits that are not finite, and a split on
which a metric has no value, raise a ``FieldError``, never give NaN. Counts are summed by hand,
which takes a twentieth of the time of scikit-learn's checks; rankings are scikit-learn's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch import metric
from lossearch.errors import FieldError
from lossearch_dynamics._outputs import TASKS, predicted, read_outputs


@metric(task=TASKS)
def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of right predictions; multilabel: share of the known labels that are right.

    Args:
        logits: Scores, ``[N, C]``, or binary ``[N]``: above 0 means class 1.
        targets: Labels.

    Returns:
        In [0, 1], more is better.

    Raises:
        FieldError: the fields do not match, are empty, or hold logits that are not finite.
    """
    task, z, t = read_outputs("accuracy", logits, targets)
    if task == "multilabel":
        return float(((z > 0) == (t > 0.5))[t >= 0].double().mean())
    return float((predicted(task, z) == t).double().mean())


@metric(task=("multiclass", "binary"))
def balanced_accuracy(logits: Tensor, targets: Tensor) -> float:
    """Mean recall of the classes that the split holds.

    Args:
        logits: As in ``accuracy``.
        targets: Labels.

    Returns:
        In [0, 1], more is better.

    Raises:
        FieldError: as in ``accuracy``.
    """
    right, _, actual = _counts("balanced_accuracy", logits, targets)
    held = actual > 0
    return float((right[held] / actual[held]).mean())


@metric(task=TASKS)
def macro_f1(logits: Tensor, targets: Tensor) -> float:
    """Mean F1 of the classes (binary: of both; multilabel: of the labels).

    A class that is neither held by the split nor predicted has no F1 and is left out; one that is
    predicted and not held counts 0.

    Args:
        logits: As in ``accuracy``.
        targets: Labels.

    Returns:
        In [0, 1], more is better.

    Raises:
        FieldError: as in ``accuracy``; or no label is positive, or predicted to be.
    """
    right, chosen, actual = _counts("macro_f1", logits, targets)
    total = chosen + actual
    if not total.any():
        raise FieldError("macro_f1 is undefined: no label is positive, and none predicted to be")
    return float((2 * right[total > 0] / total[total > 0]).mean())


@metric(task=TASKS)
def auroc(logits: Tensor, targets: Tensor) -> float:
    """Area under the receiver operating characteristic; macro one-vs-rest over several classes.

    A class (label) of which the split holds no positive or no negative is left out of the mean.

    Args:
        logits: As in ``accuracy``; multiclass ones are ranked by the class's probability.
        targets: Labels.

    Returns:
        In [0, 1], more is better.

    Raises:
        FieldError: as in ``accuracy``; or every class would be left out.
    """
    from sklearn.metrics import roc_auc_score

    return _one_vs_rest("auroc", roc_auc_score, logits, targets)


@metric(task=TASKS)
def average_precision(logits: Tensor, targets: Tensor) -> float:
    """Average precision, the sum of precision by step of recall; macro one-vs-rest.

    A class (label) of which the split holds no positive or no negative is left out of the mean.

    Args:
        logits: As in ``auroc``.
        targets: Labels.

    Returns:
        In [0, 1], more is better.

    Raises:
        FieldError: as in ``auroc``.
    """
    from sklearn.metrics import average_precision_score

    return _one_vs_rest("average_precision", average_precision_score, logits, targets)


@metric(task=TASKS, maximize=False)
def nll(logits: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood, by log-softmax; binary and multilabel: mean over the labels.

    Args:
        logits: As in ``accuracy``.
        targets: Labels.

    Returns:
        In nats, 0 or more, less is better.

    Raises:
        FieldError: as in ``accuracy``.
    """
    task, z, t = read_outputs("nll", logits, targets)
    if task == "multiclass":
        return float(F.cross_entropy(z, t))
    known = t >= 0
    return float(F.binary_cross_entropy_with_logits(z[known], t[known].double()))


def _counts(name: str, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """How often each class was predicted rightly, was predicted, and was there."""
    task, z, t = read_outputs(name, logits, targets)
    if task == "multilabel":
        chosen, actual = (z > 0) & (t >= 0), t > 0.5
        return tuple(x.sum(0).double() for x in (chosen & actual, chosen, actual))
    p = predicted(task, z)
    classes = 2 if task == "binary" else z.shape[1]
    return tuple(x.bincount(minlength=classes).double() for x in (t[p == t], p, t))


def _one_vs_rest(
    name: str, score: Callable[[Any, Any], float], logits: Tensor, targets: Tensor
) -> float:
    """Mean of ``score(is positive, rank)`` over the classes that have positives and negatives."""
    task, z, t = read_outputs(name, logits, targets)
    if task == "binary":
        z, t = z.unsqueeze(1), t.unsqueeze(1)
    elif task == "multiclass":
        z, t = _log_odds(z), F.one_hot(t, z.shape[1])
    found: list[float] = []
    for column, labels in zip(z.unbind(1), t.unbind(1), strict=True):
        known = labels >= 0
        positive = labels[known] > 0.5
        if positive.any() and not positive.all():
            found.append(float(score(positive.numpy(), column[known].numpy())))
    if not found:
        raise FieldError(
            f"{name} is undefined: no class has both positives and negatives among the {len(t)} "
            "targets (one class only); evaluate on a larger or a stratified split"
        )
    return math.fsum(found) / len(found)


def _log_odds(z: Tensor) -> Tensor:
    """log p_c - log(1 - p_c): ranks as p_c does, also where p_c would round to 1 or to 0."""
    log_p = z.log_softmax(1)
    top = log_p.argmax(1, keepdim=True)
    others = log_p.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
    log_rest = torch.log1p(-log_p.exp().clamp(max=0.5)).scatter(1, top, others)
    return log_p - log_rest
