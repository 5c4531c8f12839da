"""One term of an objective: a loss, with what acts on the values of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lossearch.components import Bound
from lossearch.components.schedule import Schedule
from lossearch.components.tensors import hard_targets
from lossearch.errors import FieldError, SpecError
from lossearch.feasibility import acting_problem
from lossearch.registry import Registry
from lossearch.spec import TermSpec

Batch = Mapping[str, Any]


class Term(nn.Module):
    """One loss with its miner and reweighting: batch fields to one number."""

    def __init__(self, spec: TermSpec, task: str, registry: Registry, facts: Mapping[str, Any]):
        super().__init__()

        def bind(kind: str) -> Bound | None:
            each = getattr(spec, kind)
            if each is None:
                return None
            return registry.build(each.name, each.params, kind=kind, task=task, facts=facts)

        loss = bind("loss")
        assert loss is not None
        self.loss = loss
        self.reweighting = bind("reweighting")
        self.miner = bind("miner")
        self.task = task
        for place in ("reweighting", "miner"):
            acting = getattr(self, place)
            if acting is None:
                continue
            problem = acting_problem(loss.component, loss.params, place, acting.component)
            if problem:
                raise SpecError(problem)

    @property
    def returns(self) -> str | None:
        return self.loss.component.returns_at(self.loss.params)

    def forward(self, batch: Batch) -> Tensor:
        mines_pairs = self.miner is not None and self.miner.component.returns == "selection"
        if mines_pairs and self.miner is not None:
            batch = {**batch, "selection": self.miner(self._by_class(batch))}
        self._refuse_soft(batch)
        values: Tensor = self.loss(batch)
        self._refuse_shape(values, batch)
        if values.ndim == 0:
            return values
        if not values.numel():  # a mean of nothing would be NaN
            return values.sum()
        if self.reweighting is None and (self.miner is None or mines_pairs):
            return values.mean()
        seen = {**self._by_class(batch), "losses": values.detach()}
        keep = self.miner(seen) if self.miner is not None and not mines_pairs else None
        if self.reweighting is not None:
            weights = self.reweighting(seen)
            _refuse_other(self.reweighting, weights, values, self.loss)
            values = values * weights.to(values.dtype)
        if keep is None:
            return values.mean()
        assert self.miner is not None
        _refuse_other(self.miner, keep, values, self.loss)
        # A value that is not finite is not left out: where a miner can look at it, it is refused,
        # and where not (in a stack, on a GPU) it has to end the training all the same.
        kept = torch.where(keep, values, 0.0).sum() + 0 * values.detach().sum()
        return kept / keep.sum().clamp(min=1)

    def _by_class(self, batch: Batch) -> Batch:
        """The batch with the likeliest class in place of soft targets, for what acts."""
        targets = batch.get("targets")
        if not isinstance(targets, Tensor):
            return batch
        return {**batch, "targets": hard_targets(self.task, targets)}

    def _refuse_soft(self, batch: Batch) -> None:
        targets = batch.get("targets")
        if self.task != "multiclass" or not isinstance(targets, Tensor):
            return
        component = self.loss.component
        if targets.is_floating_point() and not component.soft_at(self.loss.params):
            raise FieldError(
                f"{component.name} takes class indices (int64 [B]) as targets, and these are "
                f"{targets.dtype} {list(targets.shape)}. Probabilities of the classes (soft "
                "labels, mixup) need a loss that declares soft_targets=True; else pass "
                "targets.argmax(1)"
            )

    def _refuse_shape(self, values: Tensor, batch: Batch) -> None:
        """A loss returns what it declares; else what acts on its samples would do nothing."""
        name, declared, found = self.loss.component.name, self.returns, list(values.shape)
        if declared == "batch":
            if found:
                raise FieldError(
                    f"{name} returns values of the shape {found}, and it declares "
                    'returns="batch", one number: return one, or leave the declaration out'
                )
        elif values.ndim != 1:
            hint = 'if it exists only for the whole batch, declare returns="batch"'
            raise FieldError(
                f"{name} returns values of the shape {found}, and it declares {declared}: return "
                f"one value for each {(declared or 'per_sample')[4:]}, not reduced; {hint}"
            )
        elif declared == "per_sample":
            size = _size(batch)
            if size is not None and len(values) != size:
                raise FieldError(
                    f"{name} returns {len(values)} values for {size} samples, and it declares "
                    'per_sample; where they are those of pairs, declare returns="per_pair"'
                )


def _size(batch: Batch) -> int | None:
    """How many samples a batch holds, by the first field that tells."""
    for field in ("targets", "logits", "predictions", "embeddings"):
        value = batch.get(field)
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    return None


def _refuse_other(acting: Bound, given: Tensor, values: Tensor, loss: Bound) -> None:
    if given.shape != values.shape:
        raise FieldError(
            f"{acting.component.name} gives {list(given.shape)} for the {list(values.shape)} "
            f"values of {loss.component.name}; one for each is wanted"
        )


def weight_now(weight: float | Schedule, batch: Batch) -> float:
    """A term's weight at the batch's step."""
    if isinstance(weight, Schedule):
        return float(weight.value(batch["step"], batch["total_steps"]))
    return weight
