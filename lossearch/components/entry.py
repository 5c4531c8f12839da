"""What is looked at in a batch before a component gets it: one place for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lossearch.components.tensors import readable
from lossearch.errors import NotFiniteError

# What a reweighting, a miner or a balancer acts on.
_ACTED_ON = ("losses", "losses_b", "gradients")


def with_indices(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch with integer targets of any width, and bool ones, as int64.

    torch takes uint8 and bool for masks where it indexes, and most of its operations on class
    indices take int64 alone.
    """
    targets = batch.get("targets")
    if not isinstance(targets, Tensor) or targets.dtype == torch.int64:
        return batch
    if targets.is_floating_point() or targets.is_complex():
        return batch
    return {**batch, "targets": targets.long()}


def refuse_not_finite(name: str, batch: Mapping[str, Any]) -> None:
    """Refuse losses and gradients of which one is NaN or infinite.

    Only where looking is free: on the CPU, outside ``vmap`` and ``compile``. Elsewhere such a
    value makes the objective's not finite, by which a training ends.

    Raises:
        NotFiniteError: one is not finite.
    """
    for field in _ACTED_ON:
        values = batch.get(field)
        if not isinstance(values, Tensor) or not readable(values):
            continue
        # a sum is finite only where all of its terms are: the usual, in one pass
        if math.isfinite(values.detach().sum().item()):
            continue
        bad = (~values.detach().isfinite()).nonzero()
        if not len(bad):
            continue
        place = tuple(bad[0].tolist())
        step = f" at step {batch['step']}" if batch.get("step") is not None else ""
        raise NotFiniteError(
            f"{name} acts on finite {field} alone, and {field}{[*place]} is "
            f"{values.detach()[place].item():g}{step} ({len(bad)} of {values.numel()} are not "
            "finite). Find what made it: a loss that overflows, or a network that has diverged"
        )
