"""Points of a space: a loss at its defaults, or a given objective, as the params that give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from lossearch.components.schedule import Schedule, is_schedule
from lossearch.errors import LossearchError
from lossearch.space import (
    Between,
    Listed,
    Members,
    OneOf,
    Part,
    Scheduled,
    Slot,
    Space,
    default_of,
)
from lossearch.spec import ComponentSpec, ObjectiveSpec

_PLACES = ("loss", "reweighting", "miner")
_UNSAID: Any = ...  # where a document says nothing, the default holds


def references(space: Space) -> Iterator[tuple[ObjectiveSpec, dict[str, Any]]]:
    """Each primary loss at its defaults (or what of the range is nearest), with its params."""
    defaults: dict[str, Any] = dict(_values("balancer", space.balancer, _UNSAID))
    for i, term in enumerate(space.terms):
        for place in (*_PLACES, "weight"):
            defaults.update(_values(f"terms.{i}.{place}", getattr(term, place), _UNSAID))
    for part in space.terms[0].loss.parts:
        point = _Point({**defaults, "terms.0.loss": part.component.name})
        yield space.suggest(point), point.params


def locate(space: Space, spec: ObjectiveSpec) -> dict[str, Any] | None:
    """The params at which the space suggests ``spec``; ``None`` where it never does."""
    if spec.task != space.task or spec.scale != 1:
        return None
    optional = [i for i, term in enumerate(space.terms) if term.optional]
    absent = len(space.terms) - len(spec.terms)
    if not 0 <= absent <= len(optional):
        return None
    for left_out in combinations(optional, absent):
        used = [i for i in range(len(space.terms)) if i not in left_out]
        point = _Point(_wanted(space, spec, used))
        try:
            made = space.suggest(point)
        except LossearchError:  # such a value is not legal in that place
            continue
        if _plain(space, made, used).key == _plain(space, spec, used).key:
            return point.params
    return None


def _wanted(space: Space, spec: ObjectiveSpec, used: Sequence[int]) -> dict[str, Any]:
    """What each parameter must be for ``spec``, its terms being the ``used`` ones of the space."""
    wanted: dict[str, Any] = {f"terms.{i}.use": i in used for i in range(len(space.terms))}
    for i, term in zip(used, spec.terms, strict=True):
        for place in _PLACES:
            said = _document(getattr(term, place))
            wanted.update(_values(f"terms.{i}.{place}", getattr(space.terms[i], place), said))
        wanted.update(_values(f"terms.{i}.weight", space.terms[i].weight, term.weight))
    wanted.update(_values("balancer", space.balancer, _document(spec.balancer)))
    return wanted


def _plain(space: Space, spec: ObjectiveSpec, used: Sequence[int]) -> ObjectiveSpec:
    """The objective without what goes without saying."""
    terms: list[dict[str, Any]] = []
    for i, term in zip(used, spec.terms, strict=True):
        plain: dict[str, Any] = {"weight": term.weight}
        for place in _PLACES:
            slot, said = getattr(space.terms[i], place), _document(getattr(term, place))
            if said is not None and said["name"] != "none":
                plain[place] = _short(slot, said)
        terms.append(plain)
    document: dict[str, Any] = {"task": spec.task, "terms": terms}
    if spec.balancer is not None:
        document["balancer"] = _short(space.balancer, _document(spec.balancer) or {})
    return ObjectiveSpec.model_validate(document)


def _short(node: Slot | Part | None, said: Mapping[str, Any]) -> dict[str, Any]:
    """A component's document without the parameters that are at their defaults."""
    part = node.part(said["name"]) if isinstance(node, Slot) else node
    if part is None:
        return dict(said)
    kept: dict[str, Any] = {}
    for name, value in said.items():
        inner = part.params.get(name)
        if isinstance(inner, Members) and isinstance(value, (list, tuple)):
            pairs = zip(inner.parts, value, strict=False)
            kept[name] = [_short(p, {"name": v} if isinstance(v, str) else v) for p, v in pairs]
        elif name not in part.component.Params.model_fields or (
            value != default_of(part.component, name, part.task)
        ):
            kept[name] = value
    return kept


def _document(spec: ComponentSpec | None) -> dict[str, Any] | None:
    return None if spec is None else {"name": spec.name, **spec.params}


def _values(path: str, node: Any, said: Any) -> Iterator[tuple[str, Any]]:
    """The value at each path that a node may ask for, given what a document says there."""
    if isinstance(node, Between):
        yield path, node.default if said is _UNSAID else said
    elif isinstance(node, OneOf):
        node = node if said is _UNSAID else replace(node, default=said)
        index = node.nearest()
        yield path, node.names[index]
        yield from _values(f"{path}.{index}", node.options[index], said)
    elif isinstance(node, Scheduled):
        said = said.model_dump() if isinstance(said, Schedule) else said
        follows = is_schedule(said)
        form = said["schedule"] if follows else "constant"
        yield f"{path}.schedule", form if form in node.forms else node.forms[0]
        for key, inner in node.keys.items():
            value = said.get(key, _UNSAID) if follows else said if key == "start" else _UNSAID
            if not isinstance(inner, tuple):
                yield from _values(f"{path}.{key}", inner, value)
                continue
            values = value if isinstance(value, (list, tuple)) else [_UNSAID] * len(inner)
            for i, (one, its) in enumerate(zip(inner, values, strict=False)):
                yield from _values(f"{path}.{key}.{i}", one, its)
    elif isinstance(node, Part):
        document = said if isinstance(said, Mapping) else {}
        for name, inner in node.params.items():
            where = f"{path}.{node.component.name}.{name}"
            yield from _values(where, inner, document.get(name, _UNSAID))
    elif isinstance(node, Listed):
        listed = said if isinstance(said, (list, tuple)) else [_UNSAID] * len(node.entries)
        for i, (entry, each) in enumerate(zip(node.entries, listed, strict=False)):
            yield from _values(f"{path}.{i}", entry, each)
    elif isinstance(node, Members):
        listed = said if isinstance(said, (list, tuple)) else [_UNSAID] * len(node.parts)
        for i, (part, each) in enumerate(zip(node.parts, listed, strict=False)):
            yield from _values(f"{path}.{i}", part, each)
    elif isinstance(node, Slot):
        if isinstance(said, Mapping):
            yield path, said["name"]
        elif said is None:
            yield path, "-" if node.may_be_empty else "none"
        for part in node.parts:
            mine = isinstance(said, Mapping) and said["name"] == part.component.name
            yield from _values(path, part, said if mine else _UNSAID)


class _Point:
    """Suggests what is wanted at each path, or what of the domain is nearest to it."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self.params: dict[str, Any] = {}
        self._wanted = wanted

    def _take(self, name: str, value: Any) -> Any:
        self.params[name] = value
        return value

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        wanted = self._wanted.get(name)
        middle = (low * high) ** 0.5 if log else (low + high) / 2
        chosen = float(wanted) if isinstance(wanted, (int, float)) else middle
        return self._take(name, min(max(chosen, low), high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self._take(name, round(self.suggest_float(name, low, high, log=log))))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        wanted = self._wanted.get(name)
        same = (c for c in choices if c == wanted and type(c) is type(wanted))
        return self._take(name, next(same, choices[0]))
