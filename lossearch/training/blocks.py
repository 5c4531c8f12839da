"""A stack's network, from a batch to the logits and back, as recorded kernels on blocks of rows.

A block's largest tensors stay in a core's own cache from one kernel to the next; those of all
rows at once would not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lossearch.training.replay import NotReplayable, Programs, Tape, agreed

Rows = Mapping[str, Tensor]
_ROWS = 8  # with fewer, the calls cost as much as the kernels
_BYTES = 1 << 19  # of the largest tensor: a core's cache holds three or four such


class Blocks:
    """What was recorded for batches of one shape.

    Args:
        owner: For whom recordings are kept.
        forward: Parameters and buffers in rows, a batch and what rows share, to the rows' logits.
        parameters: All rows.
        buffers: All rows of those that training changes.
        shared: What stands there once.
        inputs: A batch.
        training: Whether the way back is wanted too.

    Raises:
        NotReplayable: another batch would take other kernels.
    """

    def __init__(
        self,
        owner: Any,
        forward: Callable[[Rows, Tensor, Rows], Tensor],
        parameters: Rows,
        buffers: Rows,
        shared: Rows,
        inputs: Tensor,
        *,
        training: bool,
    ) -> None:
        self.owner, self.forward_of, self.training = owner, forward, training
        self.parameters, self.buffers, self.shared = parameters, buffers, shared
        total = len(next(iter(parameters.values())))
        rows = min(total, _ROWS)
        programs = self._recorded(rows, inputs)
        whole = programs.random or inputs.device.type != "cpu"  # all rows draw at once
        fit = total if whole else max(rows, _BYTES * rows // programs.largest)
        made = {rows: programs}
        self.blocks: list[tuple[slice, Programs, list[Tensor], list[Tensor]]] = []
        for start in range(0, total, fit):
            part = slice(start, min(start + fit, total))
            size = part.stop - start
            if size not in made:
                made[size] = self._recorded(size, inputs)
            state = [t.detach()[part] for t in (*parameters.values(), *buffers.values())]
            state += shared.values()
            rooms = [torch.empty_like(t) for t in made[size].rooms[0]]
            self.blocks.append((part, made[size], state, rooms))
        self.shape = (total, *programs.shape[1:])
        self.dtype = programs.dtype
        self._kept: list[tuple[Tensor, ...]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits of every row."""
        logits = torch.empty(self.shape, dtype=self.dtype, device=inputs.device)
        with torch.no_grad():
            self._kept = [
                programs.runs[0]((), [logits[part], *rooms], [*state, inputs])
                for part, programs, state, rooms in self.blocks
            ]
        return logits

    def backward(self, gradient: Tensor, into: Sequence[Sequence[Tensor]]) -> None:
        """The gradients of every block's parameters, from those at the logits."""
        with torch.no_grad():
            for (part, programs, *_), places in zip(self.blocks, into, strict=True):
                programs.runs[1](self._kept.pop(0), places, [gradient[part]])

    def _recorded(self, rows: int, inputs: Tensor) -> Programs:
        def record(again: bool) -> Programs:
            return self._record(rows, inputs.flip(0) if again else inputs)

        tensors = {**self.parameters, **self.buffers, **self.shared}
        kinds = tuple((n, t.shape[1:], t.dtype, t.requires_grad) for n, t in tensors.items())
        key = "network", rows, self.training, inputs.shape, inputs.dtype, kinds
        programs = agreed(self.owner, key, record)
        if programs is None:
            raise NotReplayable("another batch takes other kernels")
        return programs

    def _record(self, rows: int, inputs: Tensor) -> Programs:
        training = self.training
        leaves = {
            n: p.detach()[:rows].requires_grad_(training) for n, p in self.parameters.items()
        }
        buffers = {n: b[:rows].clone() for n, b in self.buffers.items()}
        given = [*leaves.values(), *buffers.values(), *self.shared.values(), inputs]
        tape = Tape()
        with torch.set_grad_enabled(training), tape.record():
            logits = self.forward_of({**leaves, **buffers}, inputs, self.shared)
        if not training:
            return Programs(tape, [given], [[logits]])
        gradient = torch.ones_like(logits.detach())
        with tape.record():
            found = torch.autograd.grad(
                logits, list(leaves.values()), gradient, allow_unused=True
            )
        reached = [g for g in found if g is not None]
        if len(reached) < len(found):
            raise NotReplayable("some parameters take no part")
        return Programs(tape, [given, [gradient]], [[logits], reached])
