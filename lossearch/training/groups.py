"""The objectives of a cohort on the stacked outputs: in one call where they differ in numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from lossearch.components import Bound
from lossearch.components.params import WHOLE_BATCH
from lossearch.components.schedule import Schedule, plain
from lossearch.objective import Objective
from lossearch.training.replay import Programs, Tape, agreed

OUTPUTS = ("logits", "embeddings", "weight")
Gradients = dict[str, Tensor]
# What a recording could not know to be another the next time: numbers, and whole batches of them.
_NO_TENSORS = {"epoch", "step", "total_steps", "model", WHOLE_BATCH}


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


def signature(objective: Objective) -> Hashable | None:
    """What objectives of one vmapped call have in common; ``None`` where it must go alone."""
    if objective.balancer is not None:
        return None
    parts: list[Hashable] = []
    for path, bound in _bounds(objective):
        if bound.component.stateful or not bound.component.vmappable:
            return None
        if not all(_is_number(bound.value(name)) for name in bound.schedules):
            return None  # whole numbers decide on shapes
        fixed = tuple((n, repr(v)) for n, v in bound._values.items() if not _is_number(v))
        parts.append((path, bound.component.name, fixed))
    return tuple(parts)


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
        first = objectives[0]
        self.template = first
        self.reads = first.reads | first.uses
        self.bounds = dict(_bounds(first))
        # Numbers that all share stay plain; float64 ones round as Python's do.
        self.numbers: dict[str, dict[str, Tensor]] = {}
        for path, bound in self.bounds.items():
            columns = {
                name: [dict(_bounds(o))[path]._values[name] for o in objectives]
                for name, value in bound._values.items()
                if _is_number(value)
            }
            courses = {n for o in objectives for n in dict(_bounds(o))[path].schedules}
            self.numbers[path] = {
                n: _column(c, device) for n, c in columns.items() if _differ(c) or n in courses
            }
        terms = [[o.spec.terms[i].weight for o in objectives] for i in range(len(first.terms))]
        weights = [[plain(w) for w in some] for some in terms]
        self.weights: dict[int, Tensor] = {
            i: _column(w, device)
            for i, w in enumerate(weights)
            if _differ(w) or any(isinstance(each, Schedule) for each in terms[i])
        }
        self._courses = [
            (column, member, schedule)
            for member, objective in enumerate(objectives)
            for column, schedule in self._scheduled(objective)
        ]
        scales = [o.spec.scale for o in objectives]
        if _differ(scales):
            self.weights[-1] = _column(scales, device)  # of the whole
        # what a recording depends on beside shapes; the columns are given to it
        shared = tuple(
            (path, n, v)
            for path, bound in self.bounds.items()
            for n, v in bound._values.items()
            if _is_number(v) and n not in self.numbers[path]
        )
        fixed = tuple(None if i in self.weights else w[0] for i, w in enumerate(weights))
        columns = tuple((p, *sorted(n)) for p, n in self.numbers.items())
        whole = None if -1 in self.weights else scales[0]
        self.key = self.size, first.spec.task, signature(first), columns, shared, fixed, whole
        self._columns = [c for some in self.numbers.values() for c in some.values()]
        self._columns += self.weights.values()
        self.device = device
        read = {n for b in self.bounds.values() for n in _named(b)}
        self.replayable = not read & _NO_TENSORS
        self._programs: dict[Any, _Recorded | None] = {}

    def __call__(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Part:
        """Their values ``[members]`` and gradients."""
        for column, member, schedule in self._courses:
            column[member] = schedule.value(batch["step"], batch["total_steps"])
        leaves = _leaves(outputs, self.reads)
        shapes = tuple((n, o.shape) for n, o in leaves.items())
        found = self._programs.get(shapes)
        if found is not None:
            return self._again(found, batch, leaves)
        values = self._values(batch, leaves)
        values.sum().backward()
        part = Part(
            values.detach(), {n: g.grad for n, g in leaves.items() if g.grad is not None}
        )
        if self.replayable and shapes not in self._programs:
            self._programs[shapes] = self._recorded(batch, leaves, part)
        return part

    def _values(self, batch: Mapping[str, Any], leaves: Gradients) -> Tensor:
        def one(
            numbers: dict[str, dict[str, Tensor]], weights: dict[int, Tensor], own: Gradients
        ) -> Tensor:
            for path, bound in self.bounds.items():
                bound._values = {**shared[path], **numbers[path]}
            fields = _fields(self.template, batch, own)
            terms = [term(fields) for term in self.template.terms]
            spec = self.template.spec
            constant: list[float] = [plain(term.weight) for term in spec.terms]
            weighted = [
                _times(v, weights.get(i, w))
                for i, (v, w) in enumerate(zip(terms, constant, strict=True))
            ]
            value = torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]
            return _times(value, weights.get(-1, spec.scale))

        shared = {path: bound._values for path, bound in self.bounds.items()}
        courses = {path: bound.schedules for path, bound in self.bounds.items()}
        for bound in self.bounds.values():
            bound.schedules = {}  # they are in the numbers
        try:
            return vmap(one)(self.numbers, self.weights, leaves)
        finally:
            for path, bound in self.bounds.items():
                bound._values, bound.schedules = shared[path], courses[path]

    def _scheduled(self, objective: Objective) -> Iterator[tuple[Tensor, Schedule]]:
        """The columns in which an objective's numbers change over training."""
        for path, bound in _bounds(objective):
            for name, schedule in bound.schedules.items():
                yield self.numbers[path][name], schedule
        for i, term in enumerate(objective.spec.terms):
            if isinstance(term.weight, Schedule):
                yield self.weights[i], term.weight

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
                values = self._values({**batch, **given}, {**own, **rest})
                return values.sum(), values

            tape = Tape()
            with tape.record():  # grad() wraps the batch too: checks of values leave it alone
                gradients, (_, values) = grad_and_value(summed, has_aux=True)(
                    {n: own[n] for n in names}, {n: own[n] for n in fixed}, given
                )
            outputs = [values, *(gradients[n] for n in names)]
            inputs = [*own.values(), *given.values(), *self._columns]
            return Programs(tape, [inputs], [outputs])

        shapes = tuple((n, t.shape, t.dtype) for n, t in (*leaves.items(), *batch.items())
                       if isinstance(t, Tensor))  # fmt: skip
        programs = agreed(self.owner, (*self.key, shapes, tuple(names)), record)
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
                [*leaves.values(), *(batch[n] for n in found.fields), *self._columns],
            )
        return Part(values, gradients)


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


def _bounds(objective: Objective) -> Iterator[tuple[str, Bound]]:
    for path, module in objective.named_modules():
        if isinstance(module, Bound):
            yield path, module


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


def _times(value: Tensor, factor: Tensor | float) -> Tensor:
    if isinstance(factor, Tensor):
        return factor.to(value.dtype) * value
    return value if factor == 1 else factor * value


def _is_number(value: Any) -> bool:
    return isinstance(value, float)


def _differ(values: Sequence[float]) -> bool:
    return len(set(values)) > 1


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
