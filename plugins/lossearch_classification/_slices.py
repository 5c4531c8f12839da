"""Losses of each sample worked out a few samples at a time, so that nothing of [B, C] is kept.

Each step of a formula makes a tensor as large as the logits, autograd keeps many of them, and on a
CPU their memory is most of the cost. A slice of the batch is taken from its logits to their slope
at once, in memory that is used again for the next, and the slope is all that is kept. The formula
is not touched, and runs whole wherever slices are of no use.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor

from lossearch.components import raise_precision, readable

P = ParamSpec("P")

_ELEMENTS = 2**18  # of a slice, for each thread: small beside the batch, long beside a dispatch


def sliced(*fields: str) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Have a formula of each sample run in slices of the batch.

    It runs whole on a GPU, on small batches, under ``torch.func`` and ``torch.compile``, and where
    anything but ``fields`` has a gradient. Second derivatives are those of the formula.

    Args:
        fields: The parameters that hold a row for each sample, logits first; all else the formula
            reads whole in every slice.

    Returns:
        A decorator of functions that return ``[B]``.
    """

    def decorate(formula: Callable[P, Tensor]) -> Callable[P, Tensor]:
        signature = inspect.signature(formula)
        first = list(signature.parameters).index(fields[0])

        @functools.wraps(formula)
        def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            logits: Any = args[first] if len(args) > first else kwargs.get(fields[0])
            if not isinstance(logits, Tensor) or logits.numel() < 2 * _ELEMENTS:
                return formula(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            rest = {name: value for name, value in given.items() if name not in fields}
            rows = {name: given[name] for name in fields if given.get(name) is not None}
            if not _divisible(list(rows.values()), rest):
                return formula(*args, **kwargs)

            def part(*tensors: Tensor) -> Tensor:
                return formula(**dict(zip(rows, tensors, strict=True)), **rest)  # type: ignore[call-arg]

            return _Slices.apply(part, torch.is_grad_enabled(), *rows.values())  # type: ignore[return-value]

        return run

    return decorate


def _divisible(rows: list[Any], rest: dict[str, Any]) -> bool:
    """Whether slices give what the whole gives: its errors too are left to the whole."""
    others = [value for value in rest.values() if isinstance(value, Tensor)]
    return (
        all(isinstance(x, Tensor) and x.ndim > 0 and len(x) == len(rows[0]) > 1 for x in rows)
        and readable(*rows, *others)
        and not any(x.requires_grad for x in others)
        and not torch._C._are_functorch_transforms_active()
    )


class _Slices(torch.autograd.Function):
    """A formula's values, slice by slice; its slope is worked out beside them and kept."""

    @staticmethod
    def forward(
        ctx: Any, formula: Callable[..., Tensor], differentiate: bool, *tensors: Tensor
    ) -> Tensor:
        wanted = [differentiate and x.requires_grad for x in tensors]
        # not in half precision: the slope is yet to be scaled
        slopes = [
            torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
            for x, want in zip(tensors, wanted, strict=True)
            if want
        ]
        size = max(1, _ELEMENTS * torch.get_num_threads() * len(tensors[0]) // tensors[0].numel())
        values = []
        for start in range(0, len(tensors[0]), size):
            at = slice(start, start + size)
            parts = [x[at].detach() for x in tensors]
            parts = [
                raise_precision(x).requires_grad_() if want else x
                for x, want in zip(parts, wanted, strict=True)
            ]
            leaves = [x for x, want in zip(parts, wanted, strict=True) if want]
            with torch.set_grad_enabled(bool(leaves)):
                value = formula(*parts)
            if leaves:
                found = torch.autograd.grad(
                    value, leaves, torch.ones_like(value), materialize_grads=True
                )
                for slope, each in zip(slopes, found, strict=True):
                    slope[at] = each
            values.append(value.detach())
        ctx.formula, ctx.wanted, ctx.slopes = formula, wanted, slopes
        ctx.save_for_backward(*tensors)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        slopes, ctx.slopes = ctx.slopes, None  # used up: what is scaled in place needs no room
        if slopes is None or torch.is_grad_enabled():  # a second time, or to differentiate it
            found = _Slices._again(ctx, grad)
        else:
            wide = [grad.reshape(-1, *(1,) * (slope.ndim - 1)) for slope in slopes]
            found = [slope.mul_(g) for slope, g in zip(slopes, wide, strict=True)]
        each = iter(found)
        back = [
            next(each).to(x.dtype) if want else None
            for x, want in zip(ctx.saved_tensors, ctx.wanted, strict=True)
        ]
        return None, None, *back

    @staticmethod
    def _again(ctx: Any, grad: Tensor) -> Sequence[Tensor]:
        """The gradients by the whole formula; differentiable where that is wanted."""
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            parts = [
                x if twice or not want else x.detach().requires_grad_()
                for x, want in zip(ctx.saved_tensors, ctx.wanted, strict=True)
            ]
            leaves = [x for x, want in zip(parts, ctx.wanted, strict=True) if want]
            return torch.autograd.grad(
                ctx.formula(*parts), leaves, grad, create_graph=twice, materialize_grads=True
            )
