"""Objectives that are one function with other numbers: their values in one vmapped call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from lossearch.components import Bound
from lossearch.components.schedule import Schedule, plain
from lossearch.objective import Objective

Fields = Callable[[Mapping[str, Tensor]], Mapping[str, Any]]


def bounds(objective: Objective) -> Iterator[tuple[str, Bound]]:
    """Its components, by where they stand in it."""
    for path, module in objective.named_modules():
        if isinstance(module, Bound):
            yield path, module


def signature(objective: Objective) -> Hashable | None:
    """What objectives of one vmapped call have in common; ``None`` where it must go alone."""
    if objective.balancer is not None:
        return None
    parts: list[Hashable] = []
    for path, bound in bounds(objective):
        if bound.component.stateful or not bound.component.vmappable:
            return None
        if not all(_is_number(bound.value(name)) for name in bound.schedules):
            return None  # whole numbers decide on shapes
        fixed = tuple((n, repr(v)) for n, v in bound._values.items() if not _is_number(v))
        parts.append((path, bound.component.name, fixed))
    return tuple(parts)


def by_signature(objectives: Iterable[Objective | None]) -> list[list[int]]:
    """The places of objectives that can be one call, in order; ``None`` is left out."""
    found: dict[Hashable, list[int]] = {}
    for i, objective in enumerate(objectives):
        if objective is not None:
            same = signature(objective)
            found.setdefault(("alone", i) if same is None else same, []).append(i)
    return list(found.values())


class Grouped:
    """Objectives of one signature, on stacked outputs.

    Numbers in which they differ are columns, which vmap goes down; numbers that all share stay
    plain.

    Args:
        objectives: At least one.
        device: Where the outputs will be.
    """

    def __init__(self, objectives: Sequence[Objective], device: torch.device) -> None:
        first = self.template = objectives[0]
        self.size = len(objectives)
        self.bounds = dict(bounds(first))
        each = [dict(bounds(o)) for o in objectives]
        # float64 columns round as Python's numbers do
        self.numbers: dict[str, dict[str, Tensor]] = {}
        for path, bound in self.bounds.items():
            columns = {
                name: [one[path]._values[name] for one in each]
                for name, value in bound._values.items()
                if _is_number(value)
            }
            courses = {n for one in each for n in one[path].schedules}
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
        # what the kernels depend on beside shapes; the columns are given to them
        shared = tuple(
            (path, n, v)
            for path, bound in self.bounds.items()
            for n, v in bound._values.items()
            if _is_number(v) and n not in self.numbers[path]
        )
        fixed = tuple(None if i in self.weights else w[0] for i, w in enumerate(weights))
        named = tuple((p, *sorted(n)) for p, n in self.numbers.items())
        whole = None if -1 in self.weights else scales[0]
        self.key = self.size, first.spec.task, signature(first), named, shared, fixed, whole
        self.columns = [c for some in self.numbers.values() for c in some.values()]
        self.columns += self.weights.values()

    def move_to(self, batch: Mapping[str, Any]) -> None:
        """Give the numbers that follow a schedule the values of the batch's step."""
        for column, member, schedule in self._courses:
            column[member] = schedule.value(batch["step"], batch["total_steps"])

    def values(
        self,
        batch: Mapping[str, Any],
        outputs: Mapping[str, Tensor],
        *,
        fields: Fields | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The value of each row, ``[rows]``.

        Args:
            batch: What all rows share.
            outputs: Stacked, a row for each objective.
            fields: Makes the batch fields of one row's outputs; as they are, where left out.
            rows: Which objective each row belongs to, where not each has one.
        """

        def one(
            numbers: dict[str, dict[str, Tensor]], weights: dict[int, Tensor], own: Any
        ) -> Tensor:
            for path, bound in self.bounds.items():
                bound._values = {**shared[path], **numbers[path]}
            seen = {**batch, **(own if fields is None else fields(own))}
            spec = self.template.spec
            if spec.task == "regression" and "logits" in seen:
                seen["predictions"] = seen["logits"]
            constant: list[float] = [plain(term.weight) for term in spec.terms]
            weighted = [
                _times(term(seen), weights.get(i, w))
                for i, (term, w) in enumerate(zip(self.template.terms, constant, strict=True))
            ]
            value = torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]
            return _times(value, weights.get(-1, spec.scale))

        numbers, weights = self.numbers, self.weights
        if rows is not None:
            numbers = {p: {n: c[rows] for n, c in some.items()} for p, some in numbers.items()}
            weights = {i: c[rows] for i, c in weights.items()}
        shared = {path: bound._values for path, bound in self.bounds.items()}
        courses = {path: bound.schedules for path, bound in self.bounds.items()}
        for bound in self.bounds.values():
            bound.schedules = {}  # they are in the numbers
        try:
            return vmap(one)(numbers, weights, dict(outputs))
        finally:
            for path, bound in self.bounds.items():
                bound._values, bound.schedules = shared[path], courses[path]

    def _scheduled(self, objective: Objective) -> Iterator[tuple[Tensor, Schedule]]:
        """The columns in which an objective's numbers change over training."""
        for path, bound in bounds(objective):
            for name, schedule in bound.schedules.items():
                yield self.numbers[path][name], schedule
        for i, term in enumerate(objective.spec.terms):
            if isinstance(term.weight, Schedule):
                yield self.weights[i], term.weight


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def _times(value: Tensor, factor: Tensor | float) -> Tensor:
    if isinstance(factor, Tensor):
        return factor.to(value.dtype) * value
    return value if factor == 1 else factor * value


def _is_number(value: Any) -> bool:
    return isinstance(value, float)


def _differ(values: Sequence[float]) -> bool:
    return len(set(values)) > 1
