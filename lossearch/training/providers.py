"""Who makes which batch field: the data, the model, the training loop, and provider components.

Built in: the data give ``inputs``, ``targets``, ``index`` and ``class_counts``; the loop
``epoch``, ``step`` and ``total_steps``; the network ``logits``, ``embeddings``, ``weight`` and
itself as ``model``. A provider component adds fields made from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn

from lossearch.components import Bound, Component
from lossearch.models import Network
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec

LOOP = ("inputs", "targets", "index", "epoch", "step", "total_steps", "model")


def available_fields(
    task: str, gives: Iterable[str], providers: Iterable[Component] = ()
) -> frozenset[str]:
    """Every field that a study can supply, with the providers that can run."""
    fields = {*LOOP, *gives}
    if task != "regression":
        fields.add("class_counts")
    else:
        fields.add("predictions")
    waiting = list(providers)
    while ready := [p for p in waiting if set(p.fields) <= fields]:
        for provider in ready:
            fields.update(provider.gives)
            waiting.remove(provider)
    return frozenset(fields)


class Fields(nn.Module):
    """Makes the batch that an objective reads: runs the network, and the providers it needs."""

    def __init__(
        self,
        network: Network,
        providers: Sequence[ComponentSpec],
        registry: Registry,
        reads: Set[str],
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.reads = frozenset(reads)
        self._regression = facts.get("task") == "regression"
        bound = [registry.build(p.name, p.params, kind="provider", facts=facts) for p in providers]
        self.providers = nn.ModuleList(_needed(bound, self.reads))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the network's outputs and every provided field that is read."""
        fields: dict[str, Any] = {**batch, **self.network(batch["inputs"]), "model": self.network}
        if "weight" in self.reads:
            fields["weight"] = self.network.weight
        if self._regression:
            fields["predictions"] = fields["logits"]
        for provider in self.providers:
            assert isinstance(provider, Bound)
            made = provider(fields)
            names = provider.component.gives
            fields.update(zip(names, (made,) if isinstance(made, Tensor) else made, strict=True))
        return fields


def _needed(providers: list[Bound], reads: Set[str]) -> list[Bound]:
    """The providers whose fields are read, by the objective or by each other, in running order."""
    needed: list[Bound] = []
    wanted = set(reads)
    while more := [
        p for p in providers if p not in needed and wanted & set(p.component.gives)
    ]:
        needed += more
        for provider in more:
            wanted |= set(provider.component.fields)
    ordered: list[Bound] = []
    made: set[str] = {f for f in wanted if not any(f in p.component.gives for p in needed)}
    while ready := [p for p in needed if p not in ordered and set(p.component.fields) <= made]:
        ordered += ready
        for provider in ready:
            made |= set(provider.component.gives)
    return ordered
