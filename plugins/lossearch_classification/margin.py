"""Fixed margins: the target's cosine is made smaller so that classes keep apart.

The margin is one number (CosFace, ArcFace) or one for each class (LDAM). With margin 0 each is
the normalised softmax; see :mod:`lossearch_classification.cosines`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lossearch import ByTask, Choices, Paper, Range, When, loss
from lossearch_classification._shared import (
    check_binary,
    check_counts,
    given,
    reduce_labels,
    softplus,
)
from lossearch_classification._slices import sliced
from lossearch_classification.cosines import (
    Guard,
    Scale,
    add_angle,
    cosine_cross_entropy,
    cosines,
)


@loss(
    task="multiclass",
    paper=Paper(
        "CosFace: Large Margin Cosine Loss for Deep Face Recognition", 2018, "arXiv:1801.09414"
    ),
)
def cosface(
    embeddings: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    scale: Scale = 64.0,
    margin: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.6)] = 0.35,
) -> Tensor:
    r"""CosFace: cross_entropy(scale·c), with :math:`c_y = \cos\theta_y - m` at the target.

    Args:
        embeddings: ``[B, E]``, of any length but zero.
        weight: The head's class vectors, ``[C, E]``.
        targets: Class of each sample, int64 ``[B]``.
        scale: Inverse temperature, > 0.
        margin: What is taken off the target's cosine, in [0, 1).

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: shapes that do not match, or a target outside [0, C).

    Checked against deepinsight/insightface (recognition/arcface_torch/losses.py) and
    pytorch-metric-learning.
    """
    cos, target = cosines("cosface", embeddings, weight, targets)
    return cosine_cross_entropy(cos, target - margin, targets, scale)


@loss(
    task="multiclass",
    paper=Paper(
        "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", 2019, "arXiv:1801.07698"
    ),
)
def arcface(
    embeddings: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    scale: Scale = 64.0,
    margin: Annotated[float, Field(ge=0, lt=math.pi / 2), Range(0.0, 0.8)] = 0.5,
    guard: Annotated[Guard, Choices()] = "linear",
    gradient: Annotated[Literal["exact", "straight_through"], Choices()] = "exact",
) -> Tensor:
    r"""ArcFace: cross_entropy(scale·c), with :math:`c_y = \cos(\theta_y + m)` at the target.

    :math:`\cos(\theta+m)` rises again beyond :math:`\theta = \pi - m`; ``guard`` says what then.

    Args:
        embeddings: ``[B, E]``, of any length but zero.
        weight: The head's class vectors, ``[C, E]``.
        targets: Class of each sample, int64 ``[B]``.
        scale: Inverse temperature, > 0.
        margin: Angle added to the target's, radians in [0, pi/2).
        guard: ``linear`` goes on with :math:`\cos\theta - m \sin m` beyond :math:`\pi - m`, so
            that the target's logit falls all the way; ``easy`` keeps :math:`\cos\theta` where it
            is not positive; ``none`` leaves it.
        gradient: Of the target's logit by its cosine: ``exact`` is
            :math:`\sin(\theta+m)/\sin\theta`, ``straight_through`` takes 1.

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: shapes that do not match, or a target outside [0, C).

    The guards are those of the authors' code, deepinsight/insightface
    (recognition/arcface_torch/losses.py); checked against it and pytorch-metric-learning.
    """
    cos, target = cosines("arcface", embeddings, weight, targets)
    moved = add_angle(target, margin, guard)
    if gradient == "straight_through":
        moved = target + (moved - target).detach()
    return cosine_cross_entropy(cos, moved, targets, scale)


def _ldam_reads(params: Any) -> Iterable[str]:
    if params.mode == "multilabel":
        return ("logits", "targets", "class_counts")
    return ("embeddings", "weight", "targets", "class_counts")


@loss(
    task=("multiclass", "multilabel"),
    reads=_ldam_reads,
    paper=Paper(
        "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
        2019,
        "arXiv:1906.07413",
    ),
)
@sliced("logits", "targets")
def ldam(
    targets: Tensor,
    class_counts: Tensor,
    embeddings: Tensor | None = None,
    weight: Tensor | None = None,
    logits: Tensor | None = None,
    step: int | None = None,
    total_steps: int | None = None,
    *,
    max_margin: Annotated[float, Field(ge=0), Range(0.1, 1.0), When(mode="multiclass")] = 0.5,
    scale: Annotated[
        float, Field(gt=0), Range(8.0, 64.0, log=True), When(mode="multiclass")
    ] = 30.0,
    beta: Annotated[
        float, Field(ge=0, lt=1), Choices(0.9, 0.99, 0.999, 0.9999), When(mode="multiclass")
    ] = 0.9999,
    drw_start: Annotated[
        float | None, Field(ge=0, le=1), Range(0.3, 1.0), When(mode="multiclass")
    ] = 0.8,
    mode: Annotated[
        Literal["multiclass", "multilabel"],
        ByTask(multiclass="multiclass", multilabel="multilabel"),
    ] = "multiclass",
    margin_scale: Annotated[float, Field(ge=0), Range(0.5, 10.0), When(mode="multilabel")] = 3.0,
) -> Tensor:
    r"""LDAM: rarer classes get wider margins (as :math:`n_c^{-1/4}`), and later more weight.

    ``multiclass`` is CosFace with :math:`m_c = m\, n_c^{-1/4} / \max_k n_k^{-1/4}`, times a class
    weight that is 1 until ``step`` reaches ``drw_start * total_steps`` and from then on
    :math:`w_c \propto (1-\beta)/(1-\beta^{n_c})`, summing to C (deferred reweighting).
    ``multilabel`` is the binary cross-entropy of :math:`z - t\, s\, n_c^{-1/4}`, averaged over
    the known labels, without weights.

    Args:
        targets: int64 ``[B]``; multilabel ``[B, C]`` in {0, 1}, -1 for unknown.
        class_counts: Training samples (multilabel: positives) of each class, ``[C]``, > 0.
        embeddings: ``[B, E]``, multiclass.
        weight: The head's class vectors, ``[C, E]``, multiclass.
        logits: ``[B, C]``, multilabel.
        step: The optimizer step; without it or ``total_steps`` the weights stay 1.
        total_steps: The number of steps that training will take.
        max_margin: Margin of the rarest class.
        scale: Inverse temperature of the cosines.
        beta: Of the effective number of samples, in [0, 1); 0 leaves the weights at 1.
        drw_start: When the weights set in, as a share of training; None for never.
        mode: Decided by the task.
        margin_scale: s above, multilabel.

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: a class without samples, or fields that are missing or do not match.

    Checked against the authors' code, kaidic/LDAM-DRW (losses.py, cifar_train.py); multilabel
    after biplob1ly/TransICD (code/models.py), where a class without positives gets margin 1 and
    is an error here.
    """
    if mode == "multilabel":
        (scores,) = given("ldam(mode='multilabel')", logits=logits)
        z, t, known = check_binary("ldam", scores, targets)
        counts = _counts(class_counts, z)
        z = z - t * margin_scale * counts**-0.25
        return reduce_labels(t * softplus(-z) + (1 - t) * softplus(z), known, "mean")
    embeddings, weight = given("ldam(mode='multiclass')", embeddings=embeddings, weight=weight)
    cos, target = cosines("ldam", embeddings, weight, targets)
    counts = _counts(class_counts, cos)
    margins = max_margin * (counts / counts.min()) ** -0.25
    values = cosine_cross_entropy(cos, target - margins[targets], targets, scale)
    if drw_start is None or step is None or total_steps is None:
        return values
    gap = torch.as_tensor(1 - beta, dtype=cos.dtype, device=cos.device)
    weights = gap / -torch.expm1(counts * torch.log1p(-gap))  # (1 - beta) / (1 - beta^n)
    weights = weights * (cos.shape[1] / weights.sum())
    late = step >= drw_start * total_steps  # a tensor where drw_start is one, under vmap
    return values * (1 + late * (weights[targets] - 1))


def _counts(class_counts: Tensor, scores: Tensor) -> Tensor:
    """The class counts in the scores' dtype, checked."""
    why = "has no training sample, so it has no margin"
    check_counts("ldam", class_counts, scores.shape[1:], why)
    return class_counts.to(scores)
