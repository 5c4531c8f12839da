"""Who makes which batch field: the data, the model, the training loop, and provider components.

Built in: the data give ``inputs``, ``targets``, ``index``, ``class_counts`` and, where samples are
in bags, ``bag``; the loop
``epoch``, ``step`` and ``total_steps``; the network ``logits``, ``embeddings``, ``weight`` and
itself as ``model``. A provider component adds fields made from these.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from lossearch.components import Bound, Component
from lossearch.components.inputs import fed, without_several
from lossearch.data import Data
from lossearch.errors import LossearchError, StudyError
from lossearch.models import Network
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec

LOOP = ("inputs", "targets", "index", "epoch", "step", "total_steps", "model")
_TRIED = 8  # training samples that providers are tried on


def available_fields(
    task: str, gives: Iterable[str], providers: Iterable[Component] = ()
) -> frozenset[str]:
    """Every field that a study can supply, with the providers that can run.

    Raises:
        StudyError: a provider gives a field that the study has already. A field has one
            meaning for all losses.
    """
    fields = {*LOOP, *gives, "predictions" if task == "regression" else "class_counts"}
    waiting = list(providers)
    givers: dict[str, str] = dict.fromkeys(fields, "the study itself")
    for provider in waiting:
        for field in provider.gives:
            if field in givers:
                raise StudyError(
                    f"provider {provider.name} gives '{field}', which {givers[field]} gives too; "
                    "a field has one meaning for all losses, so leave one of the providers out"
                )
            givers[field] = provider.name
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
        self._regression = facts.get("task") == "regression"
        bound = [registry.build(p.name, p.params, kind="provider", facts=facts) for p in providers]
        needed = _needed(bound, reads)
        self.providers = nn.ModuleList(needed)
        self.reads = frozenset(reads).union(*(p.component.fields for p in needed))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the network's outputs and every provided field that is read."""
        outputs = self.network(batch["inputs"])
        fields = without_several({**batch, **outputs, "model": self.network})
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


def try_providers(
    network: Network,
    providers: Sequence[ComponentSpec],
    registry: Registry,
    data: Data,
    facts: Mapping[str, Any],
) -> dict[str, tuple[str, ...]]:
    """Run each provider once, so that what cannot work is said before anything trains.

    Args:
        network: The study's; it stays as it is.
        providers: The study's.
        registry: Where they are looked up.
        data: The study's; the first training samples are looked at.
        facts: What components may be given of the study.

    Returns:
        For each provider the fields that it makes here: all or some of those that it declares (a
        second view of a model without embeddings has none), or none where it reads what is
        missing.

    Raises:
        LossearchError: a provider refuses its parameters, these inputs or this model; or two give
            the same field.
        StudyError: it fails in another way.
    """
    components = [registry.get(p.name, "provider") for p in providers]
    if data.info.kind == "several":
        for component in components:
            if "inputs" in component.fields:
                raise StudyError(
                    f"provider {component.name} reads 'inputs' as one tensor, and these data give "
                    f"several ({', '.join(data.info.shapes)}); leave it out"
                )
    task, gives = data.info.task, (*network.gives, *data.train.gives)
    fields = available_fields(task, gives, components)
    runs = [p for p, c in zip(providers, components, strict=True) if set(c.fields) <= fields]
    counts = torch.tensor(data.info.class_counts)
    batch = {
        **next(iter(data.train.batches(_TRIED))),
        **{"class_counts": counts, "epoch": 0, "step": 0, "total_steps": 1},
    }
    with torch.random.fork_rng(devices=[]):
        own = copy.deepcopy(network).eval()
        given = {"task": task, **facts}
        failing = "the model"
        try:
            if own.frozen:  # what trains is a head on its embeddings
                batch["inputs"] = fed(own.backbone, batch["inputs"])
                own = Network(nn.Flatten(), own.head, squeeze=own.squeeze, two=own.two)
            own(batch["inputs"])
            failing = f"a provider ({', '.join(p.name for p in runs)})"
            made = Fields(own, runs, registry, fields, given)(batch)
        except LossearchError:
            raise
        except Exception as error:  # whatever a plugin raises
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise StudyError(f"{failing} fails on the first training samples: {line}") from error
    return {c.name: tuple(f for f in c.gives if made.get(f) is not None) for c in components}


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
