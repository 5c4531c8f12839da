"""A split's logits and targets as the metrics read them: values checked, the task by the shapes.

The fields hold a whole split, on the CPU. Logits ``[N]`` or ``[N, 1]`` are binary; ``[N, C]`` are
multiclass with targets ``[N]`` and multilabel with targets ``[N, C]``.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lossearch.errors import FieldError

TASKS = ("multiclass", "binary", "multilabel")
Task = Literal["multiclass", "binary", "multilabel"]


def read_outputs(name: str, logits: Tensor, targets: Tensor) -> tuple[Task, Tensor, Tensor]:
    """The task, logits in float64, and targets to match; binary ones ``[N]`` without the unknown.

    Raises:
        FieldError: the fields do not match, are empty, or hold logits that are not finite.
    """
    z = logits.detach().double()
    shapes = f"logits {list(z.shape)} and targets {list(targets.shape)}"
    if z.numel() == 0 or targets.numel() == 0:
        raise FieldError(f"{name} is undefined without samples: it was given {shapes}")
    broken = int((~z.isfinite()).sum())
    if broken:
        raise FieldError(f"{name}: {broken} of {z.numel()} logits are not finite")
    task: Task
    if z.ndim == 1 or z.shape[1:] == (1,):
        if targets.numel() != len(z):
            raise FieldError(f"{name}: {shapes} do not go together")
        known = targets.flatten() >= 0
        task, z, t = "binary", z.flatten()[known], (targets.flatten()[known] > 0.5).long()
    elif z.ndim == 2 and targets.shape == z.shape[:1]:
        task, t = "multiclass", targets.long()
        low, high = int(t.min()), int(t.max())
        if low < 0 or high >= z.shape[1]:
            bad = low if low < 0 else high
            raise FieldError(f"{name}: target {bad} is outside [0, {z.shape[1]})")
    elif z.ndim == 2 and targets.shape == z.shape:
        task, t = "multilabel", targets
    else:
        raise FieldError(f"{name}: {shapes} do not go together")
    if not (t >= 0).any():
        raise FieldError(f"{name} is undefined: no target is known (all are -1)")
    return task, z, t


def predicted(task: Task, z: Tensor) -> Tensor:
    """The class of each sample, ``[N]``; binary 1 where the logit is above 0."""
    return (z > 0).long() if task == "binary" else z.argmax(1)
