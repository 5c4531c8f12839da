"""The objectives of a cohort on the stacked outputs: in one call where they differ in numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from lossearch.components import Bound
from lossearch.objective import Objective

OUTPUTS = ("logits", "embeddings", "weight")
Gradients = dict[str, Tensor]


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
        fixed = tuple((n, repr(v)) for n, v in bound._values.items() if not _is_number(v))
        parts.append((path, bound.component.name, fixed))
    return tuple(parts)


class Slice:
    """One member's objective, on its own slice."""

    size = 1

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
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

    def __init__(self, objectives: Sequence[Objective], device: torch.device) -> None:
        self.objectives = objectives
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
            self.numbers[path] = {n: _column(c, device) for n, c in columns.items() if _differ(c)}
        weights = [[o.spec.terms[i].weight for o in objectives] for i in range(len(first.terms))]
        self.weights = {i: _column(w, device) for i, w in enumerate(weights) if _differ(w)}

    def __call__(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Part:
        """Their values ``[members]`` and gradients."""
        leaves = _leaves(outputs, self.reads)

        def one(
            numbers: dict[str, dict[str, Tensor]], weights: dict[int, Tensor], own: Gradients
        ) -> Tensor:
            for path, bound in self.bounds.items():
                bound._values = {**plain[path], **numbers[path]}
            fields = _fields(self.template, batch, own)
            terms = [term(fields) for term in self.template.terms]
            fixed = [term.weight for term in self.template.spec.terms]
            weighted = [
                weights[i].to(v.dtype) * v if i in weights else v if w == 1 else w * v
                for i, (v, w) in enumerate(zip(terms, fixed, strict=True))
            ]
            return torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]

        plain = {path: bound._values for path, bound in self.bounds.items()}
        try:
            values = vmap(one)(self.numbers, self.weights, leaves)
        finally:
            for path, bound in self.bounds.items():
                bound._values = plain[path]
        values.sum().backward()
        return Part(
            values.detach(), {n: g.grad for n, g in leaves.items() if g.grad is not None}
        )


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


def _is_number(value: Any) -> bool:
    return isinstance(value, float)


def _differ(values: Sequence[float]) -> bool:
    return len(set(values)) > 1


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
