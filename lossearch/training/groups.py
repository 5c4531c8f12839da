"""The objectives of a cohort on the stacked outputs: in one call where they differ in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from lossearch.components import Bound
from lossearch.components.params import WHOLE_BATCH
from lossearch.grouped import Grouped
from lossearch.grouped import signature as signature
from lossearch.objective import Objective
from lossearch.training.replay import Programs, Tape, agreed

OUTPUTS = ("logits", "embeddings", "weight")
Gradients = dict[str, Tensor]
# What a recording could not know to be another the next time.
_NO_TENSORS = {"model", WHOLE_BATCH}


def stack_problem(objective: Objective, provided: Set[str] = frozenset()) -> str | None:
    """Why an objective cannot be trained in a cohort, or ``None``.

    Args:
        objective: The objective.
        provided: The fields that provider components make in this study.
    """
    seen = objective.reads | objective.uses
    balancer = objective.balancer.component.name if objective.balancer is not None else ""
    if objective.at == "parameters":
        return f"{balancer} combines the gradients of the parameters, of one network at a time"
    if "model" in seen:
        return "it calls the network again"
    if objective.predicts:
        return "it predicts by a rule of its own, for one network at a time"
    made = sorted(seen & provided)
    if made:
        return f"it reads '{made[0]}', which a provider makes for one network at a time"
    if objective.at == "output" and "embeddings" in seen and {"logits", "predictions"} & seen:
        return (
            f"{balancer} balances at the embeddings, and some of its terms reach them only "
            "through the head"
        )
    return None


class Slice:
    """One member's objective, on its own slice."""

    size = 1

    def __init__(self, objective: Objective) -> None:
        self.objective, self.objectives = objective, [objective]
        self.reads = objective.reads | objective.uses

    def __call__(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Part:
        """Its value and gradients, as a stack of one."""
        leaves = _leaves({n: o[0] for n, o in outputs.items()}, self.reads)
        value = self.objective.backward(_fields(self.objective, batch, leaves), ())
        return Part(
            value[None], {n: g.grad[None] for n, g in leaves.items() if g.grad is not None}
        )


class Group:
    """Members whose objectives are the same function with other numbers, in one vmapped call."""

    def __init__(
        self, objectives: Sequence[Objective], device: torch.device, owner: Any = None
    ) -> None:
        self.objectives, self.owner = objectives, owner or objectives[0]
        self.size = len(objectives)
        self.same = Grouped(objectives, device)
        self.reads = objectives[0].reads | objectives[0].uses
        self.device = device
        read = {n for b in self.same.bounds.values() for n in _named(b)}
        self.replayable = not read & _NO_TENSORS
        self._programs: dict[Any, _Recorded | None] = {}

    def __call__(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Part:
        """Their values ``[members]`` and gradients."""
        self.same.move_to(batch)
        leaves = _leaves(outputs, self.reads)
        shapes = tuple((n, o.shape) for n, o in leaves.items())
        found = self._programs.get(shapes)
        if found is not None:
            return self._again(found, batch, leaves)
        values = self.same.values(batch, leaves)
        values.sum().backward()
        part = Part(
            values.detach(), {n: g.grad for n, g in leaves.items() if g.grad is not None}
        )
        if self.replayable and shapes not in self._programs:
            self._programs[shapes] = self._recorded(batch, leaves, part)
        return part

    # --- the same kernels again ------------------------------------------------------------

    def _recorded(
        self, batch: Mapping[str, Any], leaves: Gradients, part: Part
    ) -> _Recorded | None:
        """The kernels that give this part; ``None`` where they may differ for another batch."""
        names = [n for n in leaves if n in part.gradients]
        fixed = [n for n in leaves if n not in names]
        fields = [n for n, v in batch.items() if isinstance(v, Tensor)]
        size = next(iter(leaves.values())).shape[1]

        def record(again: bool) -> Programs:
            def other(tensor: Tensor, dim: int) -> Tensor:
                """The samples in another order."""
                turns = again and tensor.ndim > dim and tensor.shape[dim] == size
                return tensor.flip(dim) if turns else tensor.detach()

            own = {n: other(t, 1) for n, t in leaves.items()}
            given = {n: other(batch[n], 0) for n in fields}

            def summed(own: Gradients, rest: Gradients, given: Gradients) -> tuple[Tensor, Tensor]:
                # a recording holds for every step where nothing asks which one it is
                clock = dict.fromkeys({"epoch", "step"} & batch.keys(), _Unasked())
                values = self.same.values({**batch, **given, **clock}, {**own, **rest})
                return values.sum(), values

            tape = Tape()
            with tape.record():  # grad() wraps the batch too: checks of values leave it alone
                gradients, (_, values) = grad_and_value(summed, has_aux=True)(
                    {n: own[n] for n in names}, {n: own[n] for n in fixed}, given
                )
            outputs = [values, *(gradients[n] for n in names)]
            inputs = [*own.values(), *given.values(), *self.same.columns]
            return Programs(tape, [inputs], [outputs])

        shapes = tuple((n, t.shape, t.dtype) for n, t in (*leaves.items(), *batch.items())
                       if isinstance(t, Tensor))  # fmt: skip
        programs = agreed(self.owner, (*self.same.key, shapes, tuple(names)), record)
        if programs is None:
            return None
        return _Recorded(programs, fields, names, part.values.dtype)

    def _again(self, found: _Recorded, batch: Mapping[str, Any], leaves: Gradients) -> Part:
        values = torch.empty(self.size, dtype=found.dtype, device=self.device)
        gradients = {n: torch.empty_like(leaves[n]) for n in found.names}
        with torch.no_grad():
            found.programs.runs[0](
                (),
                [values, *gradients.values()],
                [*leaves.values(), *(batch[n] for n in found.fields), *self.same.columns],
            )
        return Part(values, gradients)


class _Unasked:
    """Stands for a number of which nothing may depend: whatever looks at it, raises."""

    def __bool__(self) -> bool:
        raise TypeError("it is not to be asked")

    def __eq__(self, other: object) -> bool:
        raise TypeError("it is not to be asked")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Recorded:
    programs: Programs
    fields: list[str]  # of the batch
    names: list[str]  # of the outputs that get a gradient
    dtype: torch.dtype  # of the values


class Part:
    """What a group or a slice gives for one batch: values, and gradients at the outputs."""

    def __init__(self, values: Tensor, gradients: Gradients) -> None:
        self.values, self.gradients = values, gradients


def _leaves(outputs: Mapping[str, Tensor], reads: Set[str]) -> dict[str, Tensor]:
    """The outputs that are read, cut from the network's graph."""
    wanted = {"logits" if r == "predictions" else r for r in reads}
    return {n: o.detach().requires_grad_() for n, o in outputs.items() if n in wanted}


def _fields(
    objective: Objective, batch: Mapping[str, Any], leaves: Mapping[str, Tensor]
) -> dict[str, Any]:
    fields = {**batch, **leaves}
    if objective.spec.task == "regression" and "logits" in leaves:
        fields["predictions"] = leaves["logits"]
    return fields


def _named(bound: Bound) -> tuple[str, ...]:
    """The fields that it may look at."""
    signature = bound.component.signature
    return (WHOLE_BATCH,) if signature.whole_batch else signature.required + signature.optional
