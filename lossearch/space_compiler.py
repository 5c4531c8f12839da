"""From a space's document to a :class:`Space`: names to components, values to domains, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from itertools import pairwise
from typing import Any

from lossearch.components import Choices, Component, Range
from lossearch.components.params import is_integer
from lossearch.components.schedule import DEFAULTS, DEFERRED_AT, KEYS, is_schedule
from lossearch.errors import LossearchError, SpecError, did_you_mean, unknown
from lossearch.feasibility import component_problem
from lossearch.registry import Registry
from lossearch.space import (
    ANY_FACTS,
    Between,
    LeftOut,
    Listed,
    Members,
    OneOf,
    Part,
    Scheduled,
    Slot,
    Space,
    Term,
    Value,
    default_of,
)

_TERM_KEYS = {"loss", "reweighting", "miner", "weight", "optional"}
_DEFERRED = (0.3, 0.95)  # of training: where a jump is searched that says nothing of it
_SPACE_KEYS = {"task", "terms", "balancer"}


class Compiler:
    """Turns a document into a :class:`Space`, noting what leaves it."""

    def __init__(self, registry: Registry, task: str, available: Set[str]) -> None:
        self.registry, self.task, self.available = registry, task, available
        self.left_out: list[LeftOut] = []

    def space(self, document: Mapping[str, Any]) -> Space:
        _known_keys(document, _SPACE_KEYS, "space")
        tasks = document.get("task", self.task)
        tasks = tasks if isinstance(tasks, (list, tuple)) else [tasks]
        if not tasks or not all(isinstance(task, str) for task in tasks):
            raise SpecError(f"task = {tasks} is not allowed: a task's name, or a list of them")
        if self.task not in tasks:
            raise SpecError(f"this space is for {' or '.join(tasks)}; the data is {self.task}")
        listed = document.get("terms")
        if not isinstance(listed, list) or not listed:
            raise SpecError("a space needs 'terms', a list with at least one term")
        terms: list[Term] = []
        for i, each in enumerate(listed):
            term = self._term(each, i)
            if term is not None:
                terms.append(term)
        slot = self._slot(document.get("balancer"), "balancer", "balancer")
        return Space(self.task, tuple(terms), slot, tuple(self.left_out))

    def _term(self, document: Any, number: int) -> Term | None:
        where = f"terms.{number}"
        if not isinstance(document, Mapping):
            raise SpecError(f"{where} must be a mapping with 'loss'")
        _known_keys(document, _TERM_KEYS, where)
        if "loss" not in document:
            raise SpecError(f"{where} has no 'loss'")
        optional = _yes_or_no(document, "optional", where)
        if optional and number == 0:
            raise SpecError("the first term cannot be optional: an objective needs a loss")
        loss = self._slot(document["loss"], "loss", f"{where}.loss", auxiliary=number > 0)
        if loss is None or not loss.parts:
            if number == 0 or not optional:
                reasons = "\n".join(f"  {x.what}: {x.why}" for x in self.left_out)
                raise SpecError(f"nothing remains for {where}.loss:\n{reasons}")
            return None
        weight = self._domain(document.get("weight", 1.0), f"{where}.weight", float)
        for end in _ends(weight):
            least = -math.ulp(0.0) if isinstance(weight, Scheduled) else 0  # it may begin at 0
            if not _is_number(end) or not least < end < math.inf:
                raise SpecError(f"{where}.weight = {end!r} is not allowed: it is a number above 0")
        return Term(
            loss,
            weight,
            self._slot(document.get("reweighting"), "reweighting", f"{where}.reweighting"),
            self._slot(document.get("miner"), "miner", f"{where}.miner"),
            optional,
        )

    def _slot(
        self, document: Any, kind: str, where: str, *, auxiliary: bool = False
    ) -> Slot | None:
        if document is None:
            return None
        listed: Any = [document]
        if isinstance(document, Mapping) and "choice" in document:
            _known_keys(document, {"choice"}, where)
            listed = document["choice"]
        every = listed == "*"
        if every:
            listed = [
                c.name
                for c in self.registry.list(kind)
                if kind != "loss" or c.auxiliary == auxiliary
            ]
        if not isinstance(listed, list) or not (listed or every):
            raise SpecError(f"{where}.choice must be a list of components, or \"*\" for all")
        parts = [self._part(each, kind, where) for each in listed if each is not None]
        kept = tuple(p for p in parts if p is not None)
        names = [p.component.name for p in kept]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise SpecError(f"{where} lists '{twice}' twice; give it one range or choice instead")
        return Slot(kept, may_be_empty=None in listed)

    def _part(self, document: Any, kind: str, where: str) -> Part | None:
        if isinstance(document, str):
            document = {"name": document}
        if not isinstance(document, Mapping) or "name" not in document:
            raise SpecError(f"{where}: a component is a name, or a mapping with 'name'")
        component = self.registry.get(document["name"], kind)
        given = {k: v for k, v in document.items() if k != "name"}
        known = component.Params.model_fields
        for key in given:
            if key not in known:
                raise SpecError(
                    f"{where}: {unknown(f'parameter of {component.name}', key, known)}"
                )
        params = {k: self._parameter(component, k, v, where) for k, v in given.items()}
        for name, domain in component.signature.domains.items():
            if name not in params and name not in component.signature.facts:
                params[name] = self._from_domain(component, name, domain)
        problem = self._problem(component, params)
        if problem:
            self.left_out.append(LeftOut(f"{kind} {component.name}", problem))
            return None
        return Part(component, self.task, params)

    def _problem(self, component: Component, params: Mapping[str, Any]) -> str | None:
        """Why a component leaves the space: it is judged at its fixed values and its defaults."""
        fixed: dict[str, Any] = {}
        for name, node in params.items():
            if isinstance(node, Value):
                fixed[name] = node.value
            elif isinstance(node, Members):
                fixed[name] = [{"name": p.component.name} for p in node.parts]
        try:
            typical = component.complete(fixed, task=self.task, facts=ANY_FACTS)
        except LossearchError as error:  # too few of its members are left
            return str(error)
        return component_problem(component, self.task, self.available, typical)

    def _parameter(self, component: Component, name: str, value: Any, where: str) -> Any:
        where = f"{where}.{component.name}.{name}"
        if isinstance(value, list) and value and all(map(self._is_member, value)):
            parts = [self._part(v, component.kind, where) for v in value]
            return Members(tuple(p for p in parts if p is not None))
        integer = is_integer(component.signature, name)
        default = default_of(component, name, self.task)
        own = component.signature.domains.get(name)
        usual = self._from_domain(component, name, own) if own else None
        kind = int if integer else float
        if _holds_domain(value):
            node = self._listed(value, where, kind)
        else:
            node = self._domain(value, where, kind, default, usual)
        for end in _ends(node):
            component.complete({name: end}, task=self.task, facts=ANY_FACTS)
        return node

    def _listed(self, value: Any, where: str, kind: type) -> Any:
        if _holds_domain(value):
            each = (self._listed(v, f"{where}.{i}", kind) for i, v in enumerate(value))
            return Listed(tuple(each))
        if is_schedule(value):
            raise SpecError(f"{where}: an entry of a list cannot follow a schedule")
        return self._domain(value, where, kind)

    def _schedule(
        self, value: Mapping[str, Any], where: str, kind: type, default: Any, usual: Any
    ) -> Scheduled:
        said = value["schedule"]
        listed: list[Any] = [said]
        if isinstance(said, Mapping) and "choice" in said:
            listed = said["choice"]
            if not isinstance(listed, list) or not listed:
                raise SpecError(f"{where}.schedule.choice must be a list of schedules")
        for form in listed:
            if not isinstance(form, str) or form not in KEYS:
                raise SpecError(f"{where}: {unknown('schedule', str(form), KEYS)}")
        wanted = dict.fromkeys(key for form in listed for key in KEYS[form])
        _known_keys(value, {"schedule", *wanted}, where)
        if "step" in listed and len(listed) > 1:
            raise SpecError(f"{where}: schedule: step, with a list of values, stands alone")
        keys: dict[str, Any] = {}
        for key in wanted:
            inside = f"{where}.{key}"
            if key == "values" or (key == "at" and "step" in listed):
                each = value.get(key)
                if not isinstance(each, list) or not each:
                    raise SpecError(f"{inside} must be a list")
                numbers = kind if key == "values" else float
                keys[key] = tuple(
                    self._domain(v, f"{inside}.{i}", numbers) for i, v in enumerate(each)
                )
            elif key in value:
                corner = key in ("start", "end")
                says = (kind, default) if corner else (float, None)
                keys[key] = self._domain(value[key], inside, *says)
            elif key in ("start", "end"):
                if usual is None:
                    raise SpecError(f"{where}: a schedule needs '{key}', since there is no range")
                keys[key] = usual
            elif key == "at":
                keys[key] = Between(*_DEFERRED, default=DEFERRED_AT)
        shares = [keys.get(k, Value(DEFAULTS[k])) for k in DEFAULTS if k in wanted]
        _rising(shares, where)
        at = keys.get("at")
        if at is not None:
            _rising(list(at) if isinstance(at, tuple) else [at], f"{where}.at")
        if isinstance(at, tuple) and len(keys["values"]) != len(at) + 1:
            raise SpecError(f"{where}: {len(at)} shares in 'at' need {len(at) + 1} values")
        return Scheduled(OneOf(tuple(Value(f) for f in listed)), keys)

    def _is_member(self, value: Any) -> bool:
        if isinstance(value, str):
            return value in self.registry
        return isinstance(value, Mapping) and "name" in value

    def _from_domain(self, component: Component, name: str, domain: Range | Choices) -> Any:
        default = default_of(component, name, self.task)
        if isinstance(domain, Choices):
            return OneOf(tuple(Value(v) for v in domain.values), default)
        integer = is_integer(component.signature, name)
        return Between(domain.low, domain.high, domain.log, integer, default)

    def _domain(
        self, value: Any, where: str, kind: type, default: Any = None, usual: Any = None
    ) -> Any:
        """A value, a range, a choice, or a schedule of such; ``usual`` where one says nothing."""
        if isinstance(value, Mapping) and "schedule" in value:
            return self._schedule(value, where, kind, default, usual)
        if isinstance(value, Mapping) and "choice" in value:
            _known_keys(value, {"choice"}, where)
            if not isinstance(value["choice"], list) or not value["choice"]:
                raise SpecError(f"{where}.choice must be a list of values")
            if any(map(is_schedule, value["choice"])):
                raise SpecError(
                    f"{where}.choice holds a schedule. Choose among forms instead: "
                    "{schedule: {choice: [constant, linear]}, start: ..., end: ...}"
                )
            inner = (self._domain(v, where, kind, default) for v in value["choice"])
            return OneOf(tuple(inner), default)
        if isinstance(value, Mapping) and ("low" in value or "high" in value):
            _known_keys(value, {"low", "high", "log"}, where)
            try:
                low, high = float(value["low"]), float(value["high"])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise SpecError(f"{where}: a range is {{low: number, high: number}}") from None
            if kind is int and math.isfinite(low) and math.isfinite(high):
                if not (low.is_integer() and high.is_integer()):
                    raise SpecError(f"{where}: low and high are whole numbers, not {low}, {high}")
                low, high = int(low), int(high)
            log = _yes_or_no(value, "log", where)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise SpecError(f"{where}: a range is {{low: number, high: number}}, both finite")
            if not low < high or (log and low <= 0):
                need = "0 < low < high" if log else "low < high"
                raise SpecError(f"{where}: a range needs {need}, not low {low} and high {high}")
            return Between(low, high, log, kind is int, default)
        return Value(value)


def _rising(shares: list[Any], where: str) -> None:
    """Shares of training, each of which must lie after the one before wherever both are drawn."""
    ends = [_ends(node) for node in shares]
    for each in (e for some in ends for e in some):
        if not _is_number(each) or not 0 <= each <= 1:
            raise SpecError(f"{where}: {each!r} is not a share of training, from 0 to 1")
    for before, after in pairwise(ends):
        if max(before) >= min(after):
            raise SpecError(
                f"{where}: shares of training must rise, whatever is drawn: the ranges "
                "may not overlap"
            )


def _holds_domain(value: Any) -> bool:
    """Whether a list has an entry that is no value but a range, a choice or a schedule."""
    keys = {"low", "high", "choice", "schedule"}
    return isinstance(value, list) and any(
        bool(keys & set(v)) if isinstance(v, Mapping) else _holds_domain(v) for v in value
    )


def _ends(node: Any) -> tuple[Any, ...]:
    if isinstance(node, Listed):  # all at their first ends, all at their second ones, ...
        each = [_ends(entry) for entry in node.entries]
        most = max(map(len, each))
        return tuple([ends[min(i, len(ends) - 1)] for ends in each] for i in range(most))
    if isinstance(node, Between):
        return (node.low, node.high)
    if isinstance(node, OneOf):
        return tuple(e for o in node.options for e in _ends(o))
    if isinstance(node, Scheduled):
        corners = [node.keys[k] for k in ("start", "end", "values") if k in node.keys]
        each = [n for c in corners for n in (c if isinstance(c, tuple) else (c,))]
        return tuple(e for n in each for e in _ends(n))
    return (node.value,) if isinstance(node, Value) else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _yes_or_no(document: Mapping[str, Any], key: str, where: str) -> bool:
    value = document.get(key, False)
    if not isinstance(value, bool):
        raise SpecError(f"{where}.{key} = {value!r} is not allowed: it is true or false")
    return value


def _known_keys(document: Mapping[str, Any], known: Set[str], where: str) -> None:
    for key in document:
        if key not in known:
            hint = did_you_mean(str(key), known) or f". Known: {', '.join(sorted(known))}"
            raise SpecError(f"{where} has an unknown key '{key}'{hint}")
