"""What components do alike with tensors: precision, and when values may be looked at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore


def raise_precision(x: Tensor) -> Tensor:
    """Half-precision values as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def hard_targets(task: str, targets: Tensor) -> Tensor:
    """Soft targets as those of the likeliest class, -1 staying unknown; others as they are."""
    if task == "multiclass" and targets.is_floating_point():
        return targets.argmax(1)
    if task == "binary" and targets.is_floating_point():
        return torch.where(targets >= 0, (targets > 0.5).to(targets.dtype), targets)
    return targets


def readable(*tensors: Tensor) -> bool:
    """Whether value checks are possible and free: no GPU sync, no vmap, no tracing."""
    return not torch.compiler.is_compiling() and all(
        x.device.type == "cpu" and x.numel() > 0 and not is_functorch_wrapped_tensor(x)
        for x in tensors
    )
