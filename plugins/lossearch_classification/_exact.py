"""Probabilities next to 1, and what they lack of it, to the last digit; their slopes too."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, where


def sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """p = 1 / (1 + exp(-x)) and 1 - p, both with the slope p (1 - p) where p rounds to 1 too."""
    return cast("tuple[Tensor, Tensor]", _Sides.apply(x))


class _Sides(torch.autograd.Function):
    """Torch has the slope of a sigmoid from p alone, so it is 0 from x = 17 on in float32."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sigmoid(), (-x).sigmoid()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        p, rest = ctx.saved_tensors
        return (slopes[0] - slopes[1]) * p * rest


def complement(log_p: Tensor) -> Tensor:
    """1 - p of log p <= 0, where p is next to 1 too, with the slope where it is next to 0."""
    near = log_p > -0.5
    return where(near, -where(near, log_p, 0.0).expm1(), 1 - log_p.exp())


def log_complement(p: Tensor, log_rest: Tensor) -> Tensor:
    """log(1 - p): of p where p is less than half, otherwise what is already known of it."""
    small = p < 0.5
    return where(small, (-where(small, p, 0.0)).log1p(), log_rest)
