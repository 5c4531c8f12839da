"""The standard losses that a search starts from: cross-entropy, its binary form, square losses."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from lossearch import Paper, Range, loss
from lossearch.components import raise_precision
from lossearch_classification._shared import (
    ClassWeights,
    LabelReduction,
    along_classes,
    check_binary,
    check_classes,
    check_multiclass,
    class_vector,
    dense_mean,
    drop,
    expect,
    pick,
    reduce_labels,
    softplus,
)
from lossearch_classification._slices import sliced


@loss(task="multiclass", soft_targets=True)
def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.3)] = 0.0,
    class_weights: ClassWeights | None = None,
    temperature: Annotated[float, Field(gt=0), Range(0.25, 4.0, log=True)] = 1.0,
) -> Tensor:
    r"""Cross-entropy, :math:`-\sum_c w_c q_c \log \mathrm{softmax}(z/T)_c`.

    :math:`q = (1-\varepsilon)\,\mathrm{target} + \varepsilon/C`; the smoothing mass of class c
    carries :math:`w_c`, as in ``torch.nn.functional.cross_entropy(reduction="none")``. There is no
    factor :math:`T^2`, and no division by a sum of weights.

    At its defaults it is what many losses come down to: comp_sum at tau = 1,
    generalized_cross_entropy at q = 0, symmetric_cross_entropy at alpha = 1 and beta = 0,
    logit_adjusted at tau = 0, squentropy at alpha = 0, poly_loss at epsilon = 0, focal and
    dual_focal at gamma = 0, and log C + ldr_kl at lam = 1, margin = 0, normalize = none.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``), or float in the shape of ``logits``, each class
            distribution summing to 1.
        label_smoothing: Mass spread evenly over the classes, in [0, 1).
        class_weights: One weight >= 0 for each class.
        temperature: What the logits are divided by, > 0.

    Returns:
        ``[B]``, in nats.

    Raises:
        FieldError: a shape or a target is not allowed, or soft targets do not sum to 1 (1e-4).
        ParameterError: there are not C class weights.
    """
    check_classes("cross_entropy", logits, targets)
    z = raise_precision(logits)
    if isinstance(temperature, Tensor) or temperature != 1:
        z = z / temperature
    log_p = z.log_softmax(1)
    if class_weights is not None:
        weights = class_vector("cross_entropy", "class_weights", class_weights, log_p)
        log_p = along_classes(weights, log_p) * log_p
    hard = expect(log_p, targets)
    if isinstance(label_smoothing, Tensor) or label_smoothing > 0:
        hard = (1 - label_smoothing) * hard + label_smoothing * log_p.mean(1)
    return dense_mean(-hard)


def _positive(value: float | list[float] | None) -> float | list[float] | None:
    for each in value if isinstance(value, list) else [value]:
        if each is not None and each <= 0:
            raise ValueError(f"every weight must be > 0, not {each}")
    return value


@loss(task=("binary", "multilabel"), soft_targets=True)
def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.2)] = 0.0,
    pos_weight: Annotated[
        float | list[float] | None, AfterValidator(_positive), Range(0.1, 100.0, log=True)
    ] = None,
    label_reduction: LabelReduction = "mean",
) -> Tensor:
    r"""Binary cross-entropy, :math:`w\,t\,\mathrm{softplus}(-z) + (1-t)\,\mathrm{softplus}(z)`.

    The target t is smoothed to :math:`t(1-\varepsilon) + \varepsilon/2`. Without that it is
    ``torch.nn.functional.binary_cross_entropy_with_logits(reduction="none")``, and what focal at
    gamma = 0, poly_loss at epsilon = 0 (both in sigmoid mode) and binary_margin at
    phi = logistic come down to.

    Args:
        logits: ``[B]``, ``[B, 1]``, ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: In [0, 1], or -1 where unknown; such a label is left out.
        label_smoothing: How far each target moves towards one half, in [0, 1).
        pos_weight: Weight > 0 of the positives, one for all labels or one for each.
        label_reduction: ``mean`` over a sample's known labels, or their ``sum``.

    Returns:
        ``[B]``, in nats; 0 where no label is known.

    Raises:
        FieldError: a shape or a target is not allowed.
        ParameterError: there are not C positive weights.
    """
    z, t, known = check_binary("binary_cross_entropy", logits, targets, soft=True)
    if isinstance(label_smoothing, Tensor) or label_smoothing > 0:
        t = t * (1 - label_smoothing) + label_smoothing / 2
    if pos_weight is None:
        values = F.binary_cross_entropy_with_logits(z, t, reduction="none")
        return reduce_labels(values, known, label_reduction)
    positives = t * softplus(-z)
    if isinstance(pos_weight, list):
        weights = class_vector("binary_cross_entropy", "pos_weight", pos_weight, z)
        positives = along_classes(weights, z) * positives
    else:
        positives = pos_weight * positives
    return reduce_labels(positives + (1 - t) * softplus(z), known, label_reduction)


@loss(
    task="multiclass",
    paper=Paper(
        "Evaluation of Neural Architectures Trained with Square Loss vs Cross-Entropy in "
        "Classification Tasks",
        2021,
        "arXiv:2006.07322",
    ),
)
@sliced("logits", "targets")
def mse_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    k: Annotated[float, Field(gt=0), Range(1.0, 30.0, log=True)] = 1.0,
    M: Annotated[float, Field(gt=0), Range(1.0, 100.0, log=True)] = 1.0,
) -> Tensor:
    r"""Rescaled square loss, :math:`\frac1C[k(z_y - M)^2 + \sum_{c \ne y} z_c^2]`.

    No softmax anywhere: the prediction is the argmax of the logits, and adding a constant to them
    changes the value. k = M = 1 is the plain square loss, advised up to about 42 classes; with
    1000 the paper is reported to use k = 15, M = 30. Checked against the authors' code
    (Like-Hui/Squentropy_vision svhn.py, where k is 1 + ``weighted``); the k and M for many classes
    are not in it.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``).
        k: Weight > 0 of the target class.
        M: Height > 0 that the target's logit is drawn to.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_multiclass("mse_logits", logits, targets)
    z = raise_precision(logits)
    others = drop(z, targets, 0.0).square().sum(1)
    return dense_mean((k * (pick(z, targets) - M).square() + others) / z.shape[1])


@loss(
    task="multiclass",
    paper=Paper("Cut your Losses with Squentropy", 2023, "arXiv:2302.03952"),
)
@sliced("logits", "targets")
def squentropy(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0), Range(0.01, 3.0, log=True)] = 1.0,
) -> Tensor:
    r"""Squentropy, :math:`-\log p_y + \frac{\alpha}{C-1}\sum_{c\ne y} z_c^2`.

    alpha = 0 is cross_entropy. Not shift invariant. Checked against the authors' code
    (Like-Hui/Squentropy_vision svhn.py, whose ``resquare`` is ``alpha``; the paper has no such
    factor).

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``).
        alpha: Weight >= 0 of the square part.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.
    """
    check_multiclass("squentropy", logits, targets)
    z = raise_precision(logits)
    others = drop(z, targets, 0.0).square().sum(1) / (z.shape[1] - 1)
    return dense_mean(alpha * others - pick(z.log_softmax(1), targets))
