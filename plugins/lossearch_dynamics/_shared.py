"""What the components of this package do alike."""

from __future__ import annotations

import torch
from torch import Tensor

from lossearch.components import readable
from lossearch.errors import FieldError

BY_TARGET = ("multiclass", "binary", "multilabel")


def mean_of_known(values: Tensor, targets: Tensor) -> Tensor:
    """Values of labels ``[B, L]`` to samples ``[B]``; a sample without known labels gets 1."""
    known = (targets >= 0).to(values.dtype)
    number = known.sum(1)
    return torch.where(number > 0, (values * known).sum(1) / number.clamp(min=1), 1.0)


def is_labels(scores: Tensor, targets: Tensor) -> bool:
    """Whether targets are binary or multilabel, of any dtype: shaped as the scores, or float."""
    single = scores.shape[1:].numel() == 1  # one score a sample, [B] or [B, 1]
    return targets.is_floating_point() or targets.shape == scores.shape or single


def check_classes(name: str, targets: Tensor, classes: int, of: str) -> None:
    """Refuse a class index outside [0, classes), where it can be looked at.

    Raises:
        FieldError: there is one.
    """
    if not readable(targets):
        return
    low, high = (int(end) for end in targets.aminmax())
    if low < 0 or high >= classes:
        bad = low if low < 0 else high
        raise FieldError(f"{name}: target {bad} is outside [0, {classes}), {of}")


def mismatch(name: str, what: str, field: Tensor, targets: Tensor) -> FieldError:
    """The error of a field that does not fit the targets."""
    return FieldError(
        f"{name}: {what} {list(field.shape)} do not go with {targets.dtype} targets "
        f"{list(targets.shape)}"
    )
