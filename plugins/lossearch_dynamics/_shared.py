"""What the components of this package do alike."""

from __future__ import annotations

import torch
from torch import Tensor

from lossearch.errors import FieldError

BY_TARGET = ("multiclass", "binary", "multilabel")


def mean_of_known(values: Tensor, targets: Tensor) -> Tensor:
    """Values of labels ``[B, L]`` to samples ``[B]``; a sample without known labels gets 1."""
    known = (targets >= 0).to(values.dtype)
    number = known.sum(1)
    return torch.where(number > 0, (values * known).sum(1) / number.clamp(min=1), 1.0)


def mismatch(name: str, what: str, field: Tensor, targets: Tensor) -> FieldError:
    """The error of a field that does not fit the targets."""
    return FieldError(
        f"{name}: {what} {list(field.shape)} do not go with {targets.dtype} targets "
        f"{list(targets.shape)}"
    )
