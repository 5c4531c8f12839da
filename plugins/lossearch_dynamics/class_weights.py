"""Weights of samples by the frequency of their class in the training split."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, reweighting
from lossearch.components import readable
from lossearch.errors import FieldError
from lossearch_dynamics._shared import BY_TARGET, check_classes, mean_of_known, mismatch


@reweighting(task=BY_TARGET)
def inverse_frequency(
    targets: Tensor,
    class_counts: Tensor,
    losses: Tensor | None = None,
    *,
    power: Annotated[float, Field(ge=0), Range(0.0, 1.5)] = 1.0,
    normalize: Annotated[Literal["classes", "samples", "none"], Choices()] = "classes",
) -> Tensor:
    r"""A power of each class's inverse frequency, :math:`w_c \propto n_c^{-power}`.

    Args:
        targets: Class index ``[B]``, integer; binary ``[B]`` or multilabel ``[B, C]``, float.
            A multilabel sample gets the mean over its known labels of :math:`w_c` where it is
            positive and 1 where it is negative: losses come as one number a sample, so labels
            cannot be weighted apart. A sample of which no label is known (-1) has weight 1, as
            without a reweighting.
        class_counts: Training samples of each class, ``[C]``; binary ``[2]``, negatives first;
            multilabel the positives of each label.
        losses: Loss of each sample, ``[B]``, of which only the precision is read.
        power: 0 weighs all classes alike, 1 gives every class the same total weight.
        normalize: ``classes`` scales the weights of the classes that have samples to mean 1;
            ``samples`` scales those of the training samples to mean 1 (scikit-learn's
            ``balanced`` at power 1); ``none`` does not scale.

    Returns:
        Weights, ``[B]``, float32, or float64 where the losses are (without these: another field).

    Raises:
        FieldError: all counts are 0, a target's class has count 0, or the shapes do not match.
            Values are only looked at on the CPU.
    """
    counts = _counts("inverse_frequency", class_counts, targets, losses)
    seen = counts > 0
    raw = torch.where(seen, counts.clamp(min=1) ** -power, 0.0)
    if normalize == "classes":
        raw = raw * (seen.sum() / raw.sum())
    elif normalize == "samples":
        raw = raw * (counts.sum() / (counts * raw).sum())
    return _by_target("inverse_frequency", targets, counts, raw)


@reweighting(
    task=BY_TARGET,
    paper=Paper(
        "Class-Balanced Loss Based on Effective Number of Samples", 2019, "arXiv:1901.05555"
    ),
)
def class_balanced(
    targets: Tensor,
    class_counts: Tensor,
    losses: Tensor | None = None,
    *,
    beta: Annotated[float, Field(ge=0, le=1), Choices(0.9, 0.99, 0.999, 0.9999, 0.99999)] = 0.9999,
) -> Tensor:
    r"""The inverse effective number of samples, :math:`w_c \propto (1-\beta)/(1-\beta^{n_c})`.

    Scaled to mean 1 over the classes that have samples. ``beta`` 0 weighs all classes alike; the
    limit at 1, which is taken there, is ``inverse_frequency`` at power 1.

    Args:
        targets: As in ``inverse_frequency``.
        class_counts: As in ``inverse_frequency``.
        losses: As in ``inverse_frequency``.
        beta: Overlap of the samples, in [0, 1]; ``1/(1 - beta)`` is the count from which on a
            further sample of a class adds little.

    Returns:
        Weights, ``[B]``, float32, or float64 where the losses are (without these: another field).

    Raises:
        FieldError: as in ``inverse_frequency``.
    """
    counts = _counts("class_balanced", class_counts, targets, losses)
    seen = counts > 0
    full = counts.clamp(min=1)
    rest = torch.zeros_like(counts) + (1 - beta)
    inverse = -rest / torch.expm1(full * torch.log1p(-rest))  # beta^n as exp(n log beta)
    raw = torch.where(seen, torch.where(rest > 0, inverse, 1 / full), 0.0)
    return _by_target("class_balanced", targets, counts, raw * (seen.sum() / raw.sum()))


def _counts(name: str, class_counts: Tensor, targets: Tensor, losses: Tensor | None) -> Tensor:
    if class_counts.ndim != 1:
        raise FieldError(f"{name} reads class_counts [C], not {list(class_counts.shape)}")
    if readable(class_counts) and not bool((class_counts > 0).any()):
        raise FieldError(
            f"{name}: all class_counts are 0; count the classes of the training split"
        )
    told = (class_counts, targets) if losses is None else (losses,)
    double = any(field.dtype == torch.float64 for field in told)
    return class_counts.double() if double else class_counts.float()


def _by_target(name: str, targets: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """Class weights ``[C]`` to sample weights ``[B]``."""
    classes = len(counts)
    single = targets.ndim == 1 or targets.shape[1:] == (1,)
    if targets.ndim == 1 and not targets.is_floating_point():
        _check_counted(name, targets, counts)
        return weights[targets]
    if classes == 2 and single:
        t = targets.reshape(-1)
        if readable(t, counts):
            _check_counted(name, (t[t >= 0] > 0.5).long(), counts)
        return torch.where(t >= 0, torch.where(t > 0.5, weights[1], weights[0]), 1.0)
    if targets.ndim != 2 or targets.shape[1] != classes:
        raise mismatch(name, "class_counts", counts, targets)
    if readable(targets, counts):
        _check_counted(name, (targets > 0.5).nonzero()[:, 1], counts)
    return mean_of_known(torch.where(targets > 0.5, weights, 1.0), targets)


def _check_counted(name: str, index: Tensor, counts: Tensor) -> None:
    if not readable(index, counts):
        return
    check_classes(name, index, len(counts), "the class_counts")
    empty = counts[index] == 0
    if bool(empty.any()):
        raise FieldError(
            f"{name}: a target is of class {int(index[empty][0])}, whose class_counts is 0; count "
            "the classes of the split that is trained on"
        )
