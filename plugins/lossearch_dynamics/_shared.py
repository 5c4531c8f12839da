"""What the components of this package do alike: precision, and when values may be looked at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from lossearch.errors import FieldError

BY_TARGET = ("multiclass", "binary", "multilabel")


def raise_precision(x: Tensor) -> Tensor:
    """Half-precision values as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def readable(*tensors: Tensor) -> bool:
    """Whether value checks are possible and free: no GPU sync, no vmap, no tracing."""
    return not torch.compiler.is_compiling() and all(
        x.device.type == "cpu" and x.numel() > 0 and not is_functorch_wrapped_tensor(x)
        for x in tensors
    )


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
