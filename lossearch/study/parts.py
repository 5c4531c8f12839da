"""An objective's parts, and what is left without them: pure functions of specs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossearch.errors import ParameterError
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec, ObjectiveSpec, TermSpec

# Names of a margin that is added to a loss; where two are set against each other, as between
# positive and negative pairs, neither can be left out.
_MARGINS = ("margin", "max_margin", "margin_scale")


@dataclass(frozen=True)
class Part:
    """Something that can be left out of an objective.

    Attributes:
        name: For a person: ``reweighting small_loss``.
        paths: Where it stands: ``terms.0.reweighting``; a margin at ``terms.0.loss.margin``.
        objective: What is left without it.
    """

    name: str
    paths: tuple[str, ...]
    objective: ObjectiveSpec


def parts(
    spec: ObjectiveSpec, registry: Registry, facts: Mapping[str, Any] | None = None
) -> list[Part]:
    """The parts of an objective: terms, margins, reweightings, miners and the balancer.

    Args:
        spec: The objective.
        registry: Knows which losses have a margin.
        facts: What the components are told of the data (see :class:`lossearch.Given`).
    """
    several = len(spec.terms) > 1
    named: list[tuple[str, str]] = []
    for i, term in enumerate(spec.terms):
        where, path = f" (term {i + 1})" if several else "", f"terms.{i}"
        if several:
            named.append((f"term {i + 1}: {term.loss.name}", path))
        for margin in _margins(term.loss, registry, spec.task, facts or {}):
            shown = margin.replace("_", " ")
            named.append((f"{shown} of {term.loss.name}{where}", f"{path}.loss.{margin}"))
        if term.reweighting is not None and term.reweighting.name != "none":
            named.append((f"reweighting {term.reweighting.name}{where}", f"{path}.reweighting"))
        if term.miner is not None:
            named.append((f"miner {term.miner.name}{where}", f"{path}.miner"))
    if spec.balancer is not None:
        named.append((f"balancer {spec.balancer.name}", "balancer"))
    left = [(name, path, without(spec, (path,))) for name, path in named]
    return [Part(name, (path,), rest) for name, path, rest in left if rest is not None]


def _margins(
    loss: ComponentSpec, registry: Registry, task: str, facts: Mapping[str, Any]
) -> Iterator[str]:
    """The margins of a loss that are in force and may be 0."""
    component = registry.get(loss.name, "loss")
    for name in component.Params.model_fields:
        if name not in _MARGINS:
            continue
        try:
            params = component.complete(loss.params, task=task, facts=facts)
            component.complete({**loss.params, name: 0.0}, task=task, facts=facts)
        except ParameterError:  # 0 is not legal
            continue
        conditions = component.signature.conditions.get(name, {})
        if getattr(params, name) and all(getattr(params, k) in v for k, v in conditions.items()):
            yield name


def without(spec: ObjectiveSpec, paths: Collection[str]) -> ObjectiveSpec | None:
    """What is left of an objective; ``None`` where no term is.

    A term that is left alone has no weight, and needs no balancer.
    """
    terms: list[TermSpec] = []
    for i, term in enumerate(spec.terms):
        here = f"terms.{i}"
        if here in paths:
            continue
        changes: dict[str, Any] = {
            place: None for place in ("reweighting", "miner") if f"{here}.{place}" in paths
        }
        margins = [p.rsplit(".", 1)[1] for p in paths if p.startswith(f"{here}.loss.")]
        if margins:
            params = {**term.loss.params, **dict.fromkeys(margins, 0.0)}
            changes["loss"] = ComponentSpec(name=term.loss.name, **params)
        terms.append(term.model_copy(update=changes))
    if not terms:
        return None
    if len(terms) == 1 < len(spec.terms):
        terms = [terms[0].model_copy(update={"weight": 1.0})]
    balancer = spec.balancer if len(terms) > 1 and "balancer" not in paths else None
    return spec.model_copy(update={"terms": tuple(terms), "balancer": balancer})


def joined(spec: ObjectiveSpec, several: Sequence[Part]) -> Part:
    """Several parts as one; one that would leave no term, after those before it, stays."""
    names: list[str] = []
    paths: tuple[str, ...] = ()
    rest = spec
    for part in several:
        less = without(spec, (*paths, *part.paths))
        if less is not None and less != rest:
            names.append(part.name)
            paths, rest = (*paths, *part.paths), less
    return Part(" and ".join(names), paths, rest)
