"""One term of an objective: a loss, with what acts on the values of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lossearch.components import Bound
from lossearch.components.schedule import Schedule
from lossearch.errors import SpecError
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
        acting = self.reweighting or self.miner
        if acting is not None and self.returns == "batch":
            raise SpecError(
                f"{self.loss.component.name} exists only for the whole batch: "
                f"{acting.component.name} cannot reach its samples"
            )

    @property
    def returns(self) -> str | None:
        return self.loss.component.returns_at(self.loss.params)

    def forward(self, batch: Batch) -> Tensor:
        mines_pairs = self.miner is not None and self.miner.component.returns == "selection"
        if mines_pairs and self.miner is not None:
            batch = {**batch, "selection": self.miner(batch)}
        values: Tensor = self.loss(batch)
        if values.ndim == 0:
            return values
        if self.reweighting is None and (self.miner is None or mines_pairs):
            return values.mean()
        seen = {**batch, "losses": values.detach()}
        keep = self.miner(seen) if self.miner is not None and not mines_pairs else None
        if self.reweighting is not None:
            values = values * self.reweighting(seen).to(values.dtype)
        if keep is None:
            return values.mean()
        # A value that is not finite is not left out: where a miner can look at it, it is refused,
        # and where not (in a stack, on a GPU) it has to end the training all the same.
        kept = torch.where(keep, values, 0.0).sum() + 0 * values.detach().sum()
        return kept / keep.sum().clamp(min=1)


def weight_now(weight: float | Schedule, batch: Batch) -> float:
    """A term's weight at the batch's step."""
    if isinstance(weight, Schedule):
        return float(weight.value(batch["step"], batch["total_steps"]))
    return weight
