"""A search space: an objective's document with ranges and choices where values stand.

.. code-block:: yaml

    task: multiclass
    terms:
      - loss:
          choice:
            - cross_entropy                       # its parameters run over their own ranges
            - {name: focal, gamma: {low: 0, high: 3}}
            - {name: poly_loss, epsilon: {choice: [-1, 1, 2]}}
        reweighting: {choice: [none, class_balanced]}
      - loss: orthogonal_projection
        weight: {low: 0.01, high: 2, log: true}
        optional: true
    balancer: {choice: [fixed_weights, uncertainty]}

``choice: "*"`` means every component that fits: the primary losses in the first term, the
auxiliary ones in the others. What does not fit the task, or reads a field that nothing provides,
leaves the space before the search, with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from lossearch.components import Choices, Component, Range
from lossearch.components.params import is_integer
from lossearch.documents import parse_yaml
from lossearch.errors import LossearchError, SpecError, did_you_mean, unknown
from lossearch.feasibility import component_problem
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec, ObjectiveSpec

_PLACES = {"loss": "loss", "reweighting": "reweighting", "miner": "miner"}
_TERM_KEYS = {*_PLACES, "weight", "optional"}
_SPACE_KEYS = {"task", "terms", "balancer"}


class Suggester(Protocol):
    """What a space asks for values; an Optuna trial is one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class LeftOut:
    """Something that left the space before the search, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Value:
    """A fixed value."""

    value: Any

    def suggest(self, trial: Suggester, path: str) -> Any:
        return self.value

    def describe(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Between:
    """A number in a range."""

    low: float
    high: float
    log: bool = False
    integer: bool = False
    default: Any = None

    def suggest(self, trial: Suggester, path: str) -> Any:
        if self.integer:
            return trial.suggest_int(path, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(path, self.low, self.high, log=self.log)

    def describe(self) -> str:
        kind = " whole" if self.integer else ""
        return f"{self.low:g} … {self.high:g}{kind}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class OneOf:
    """One of several values, each of which may again be a range."""

    options: tuple[Value | Between, ...]
    default: Any = None

    @property
    def names(self) -> tuple[Any, ...]:
        return tuple(
            o.value if isinstance(o, Value) and _plain(o.value) else o.describe()
            for o in self.options
        )

    def suggest(self, trial: Suggester, path: str) -> Any:
        name = trial.suggest_categorical(path, self.names)
        index = next(i for i, n in enumerate(self.names) if n == name and type(n) is type(name))
        return self.options[index].suggest(trial, f"{path}.{index}")

    def describe(self) -> str:
        return "one of " + ", ".join(str(n) for n in self.names)


@dataclass(frozen=True)
class Part:
    """A component with the domains of its parameters."""

    component: Component
    params: Mapping[str, Any] = field(default_factory=dict)

    def suggest(self, trial: Suggester, path: str) -> dict[str, Any]:
        inside = f"{path}.{self.component.name}"
        values = {k: node.suggest(trial, f"{inside}.{k}") for k, node in self.params.items()}
        known = self.component.Params.model_fields
        return {
            "name": self.component.name,
            **{k: v for k, v in values.items() if v != known[k].default},
        }

    @property
    def always_batch(self) -> bool:
        return self.component.returns == "batch"


@dataclass(frozen=True)
class Members:
    """A list of components, each with its own domains (the members of an ensemble)."""

    parts: tuple[Part, ...]

    def suggest(self, trial: Suggester, path: str) -> list[dict[str, Any]]:
        return [part.suggest(trial, f"{path}.{i}") for i, part in enumerate(self.parts)]

    def describe(self) -> str:
        return "[" + ", ".join(p.component.name for p in self.parts) + "]"


@dataclass(frozen=True)
class Slot:
    """A place for one component: the parts that may stand there."""

    parts: tuple[Part, ...]
    may_be_empty: bool = False

    def suggest(self, trial: Suggester, path: str) -> dict[str, Any] | None:
        names: list[str] = [p.component.name for p in self.parts]
        if self.may_be_empty:
            names = ["-", *names]
        if not names:
            return None
        chosen = names[0] if len(names) == 1 else trial.suggest_categorical(path, names)
        part = next((p for p in self.parts if p.component.name == chosen), None)
        return None if part is None else part.suggest(trial, path)


@dataclass(frozen=True)
class Term:
    loss: Slot
    weight: Any
    reweighting: Slot | None
    miner: Slot | None
    optional: bool

    def suggest(self, trial: Suggester, path: str) -> dict[str, Any] | None:
        if self.optional and not trial.suggest_categorical(f"{path}.use", (False, True)):
            return None
        loss = self.loss.suggest(trial, f"{path}.loss")
        assert loss is not None
        term: dict[str, Any] = {"loss": loss, "weight": self.weight.suggest(trial, f"{path}.weight")}
        part = next(p for p in self.loss.parts if p.component.name == loss["name"])
        if not part.always_batch:  # no sample weight reaches a loss of the whole batch
            for place, slot in (("reweighting", self.reweighting), ("miner", self.miner)):
                chosen = slot.suggest(trial, f"{path}.{place}") if slot else None
                if chosen is not None:
                    term[place] = chosen
        return term


@dataclass(frozen=True)
class Space:
    """A compiled search space.

    Attributes:
        task: The task that it was compiled for.
        terms: The terms of an objective, the first one always present.
        left_out: What left the space before the search, and why.
    """

    task: str
    terms: tuple[Term, ...]
    balancer: Slot | None
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any] | str, *, registry: Registry, task: str, available: Set[str]
    ) -> Space:
        """Compile a document (or YAML text) for a task and the fields that can be provided.

        Raises:
            SpecError: an unknown key, a domain that is not legal, or nothing remains.
            UnknownNameError: a component that nothing answers to.
        """
        if isinstance(document, str):
            document = parse_yaml(document, "space")
        return _Compiler(registry, task, available).space(document)

    def suggest(self, trial: Suggester) -> ObjectiveSpec:
        """One objective from the space."""
        terms = [t.suggest(trial, f"terms.{i}") for i, t in enumerate(self.terms)]
        used = [t for t in terms if t is not None]
        document: dict[str, Any] = {"task": self.task, "terms": used}
        if self.balancer is not None and len(used) > 1:
            balancer = self.balancer.suggest(trial, "balancer")
            if balancer is not None:
                document["balancer"] = balancer
        return ObjectiveSpec.model_validate(document)

    def references(self) -> Iterator[tuple[ObjectiveSpec, dict[str, Any]]]:
        """Each primary loss at its defaults (or what of the range is nearest), with its params."""
        for part in self.terms[0].loss.parts:
            trial = _Defaults(self, part.component.name)
            yield self.suggest(trial), trial.params

    def describe(self) -> list[tuple[str, str]]:
        """Every choice with its domain, as ``(path, domain)`` rows."""
        rows: list[tuple[str, str]] = []
        for i, term in enumerate(self.terms):
            path = f"terms.{i}"
            if term.optional:
                rows.append((path, "optional"))
            rows += _slot_rows(term.loss, f"{path}.loss")
            if not isinstance(term.weight, Value) or term.weight.value != 1.0:
                rows.append((f"{path}.weight", term.weight.describe()))
            for place, slot in (("reweighting", term.reweighting), ("miner", term.miner)):
                rows += _slot_rows(slot, f"{path}.{place}") if slot else []
        rows += _slot_rows(self.balancer, "balancer") if self.balancer else []
        return rows


def _slot_rows(slot: Slot, path: str) -> list[tuple[str, str]]:
    rows = [(path, "or nothing")] if slot.may_be_empty else []
    for part in slot.parts:
        name = f"{path}.{part.component.name}"
        rows.append((name, part.component.summary))
        rows += [(f"{name}.{k}", node.describe()) for k, node in part.params.items()]
    return rows


class _Defaults:
    """Suggests each parameter's default, so that a reference is a point of the space."""

    def __init__(self, space: Space, loss: str) -> None:
        self.params: dict[str, Any] = {}
        self._loss = loss
        self._defaults = dict(_defaults(space))

    def _take(self, name: str, value: Any) -> Any:
        self.params[name] = value
        return value

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        default = self._defaults.get(name)
        middle = (low * high) ** 0.5 if log else (low + high) / 2
        chosen = float(default) if isinstance(default, (int, float)) else middle
        return self._take(name, min(max(chosen, low), high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self._take(name, round(self.suggest_float(name, low, high, log=log))))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        wanted = self._loss if name == "terms.0.loss" else self._defaults.get(name)
        return self._take(name, wanted if wanted in choices else choices[0])


def _defaults(space: Space) -> Iterator[tuple[str, Any]]:
    slots: list[tuple[str, Slot | None]] = [("balancer", space.balancer)]
    for i, term in enumerate(space.terms):
        slots += [(f"terms.{i}.{p}", getattr(term, p)) for p in _PLACES]
        if isinstance(term.weight, (Between, OneOf)):
            yield f"terms.{i}.weight", term.weight.default
    for path, slot in slots:
        for part in slot.parts if slot else ():
            for name, node in part.params.items():
                if isinstance(node, (Between, OneOf)):
                    yield f"{path}.{part.component.name}.{name}", node.default


class _Compiler:
    """Turns a document into a :class:`Space`, noting what leaves it."""

    def __init__(self, registry: Registry, task: str, available: Set[str]) -> None:
        self.registry, self.task, self.available = registry, task, available
        self.left_out: list[LeftOut] = []

    def space(self, document: Mapping[str, Any]) -> Space:
        _known_keys(document, _SPACE_KEYS, "space")
        tasks = document.get("task", self.task)
        tasks = [tasks] if isinstance(tasks, str) else list(tasks)
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
        optional = bool(document.get("optional", False))
        if optional and number == 0:
            raise SpecError("the first term cannot be optional: an objective needs a loss")
        loss = self._slot(document["loss"], "loss", f"{where}.loss", auxiliary=number > 0)
        if loss is None or not loss.parts:
            if number == 0 or not optional:
                reasons = "\n".join(f"  {x.what}: {x.why}" for x in self.left_out)
                raise SpecError(f"nothing remains for {where}.loss:\n{reasons}")
            return None
        weight = self._domain(document.get("weight", 1.0), f"{where}.weight", float)
        return Term(
            loss,
            weight,
            self._slot(document.get("reweighting"), "reweighting", f"{where}.reweighting"),
            self._slot(document.get("miner"), "miner", f"{where}.miner"),
            optional,
        )

    def _slot(self, document: Any, kind: str, where: str, *, auxiliary: bool = False) -> Slot | None:
        if document is None:
            return None
        listed: Any = [document]
        if isinstance(document, Mapping) and "choice" in document:
            _known_keys(document, {"choice"}, where)
            listed = document["choice"]
        if listed == "*":
            listed = [
                c.name
                for c in self.registry.list(kind)
                if kind != "loss" or c.auxiliary == auxiliary
            ]
        if not isinstance(listed, list) or not listed:
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
                params[name] = _from_domain(component, name, domain)
        problem = component_problem(component, self.task, self.available, self._typical(component, params))
        if problem:
            self.left_out.append(LeftOut(f"{kind} {component.name}", problem))
            return None
        return Part(component, params)

    def _typical(self, component: Component, params: Mapping[str, Any]) -> BaseModel | None:
        """The parameters at which it is judged; ``None`` where a fact is not known yet."""
        fixed = {k: n.value for k, n in params.items() if isinstance(n, Value)}
        try:
            return component.complete(fixed, task=self.task)
        except LossearchError:
            return None

    def _parameter(self, component: Component, name: str, value: Any, where: str) -> Any:
        where = f"{where}.{component.name}.{name}"
        if isinstance(value, list) and value and all(_is_spec(v) for v in value):
            parts = [self._part(v, component.kind, where) for v in value]
            return Members(tuple(p for p in parts if p is not None))
        integer = is_integer(component.signature, name)
        default = component.Params.model_fields[name].default
        node = self._domain(value, where, int if integer else float, default)
        for end in _ends(node):
            component.complete({name: end}, task=self.task, facts=_ANY_FACTS)
        return node

    def _domain(self, value: Any, where: str, kind: type, default: Any = None) -> Any:
        if isinstance(value, Mapping) and "choice" in value:
            _known_keys(value, {"choice"}, where)
            if not isinstance(value["choice"], list) or not value["choice"]:
                raise SpecError(f"{where}.choice must be a list of values")
            return OneOf(tuple(self._domain(v, where, kind) for v in value["choice"]), default)
        if isinstance(value, Mapping) and ("low" in value or "high" in value):
            _known_keys(value, {"low", "high", "log"}, where)
            try:
                low, high = kind(value["low"]), kind(value["high"])
            except (KeyError, TypeError, ValueError):
                raise SpecError(f"{where}: a range is {{low: number, high: number}}") from None
            log = bool(value.get("log", False))
            if not low < high or (log and low <= 0):
                need = "0 < low < high" if log else "low < high"
                raise SpecError(f"{where}: a range needs {need}, not low {low} and high {high}")
            return Between(low, high, log, kind is int, default)
        return Value(value)


# Stand-ins for what only the data knows, for checking that a domain is legal.
_ANY_FACTS = {"train_size": 2, "num_classes": 2, "num_terms": 2, "seed": 0, "term_weights": [1, 1]}


def _from_domain(component: Component, name: str, domain: Range | Choices) -> Any:
    default = component.Params.model_fields[name].default
    if isinstance(domain, Choices):
        return OneOf(tuple(Value(v) for v in domain.values), default)
    integer = is_integer(component.signature, name)
    return Between(domain.low, domain.high, domain.log, integer, default)


def _ends(node: Any) -> tuple[Any, ...]:
    if isinstance(node, Between):
        return (node.low, node.high)
    if isinstance(node, OneOf):
        return tuple(e for o in node.options for e in _ends(o))
    return (node.value,) if isinstance(node, Value) else ()


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _is_spec(value: Any) -> bool:
    return isinstance(value, ComponentSpec) or (isinstance(value, Mapping) and "name" in value)


def _known_keys(document: Mapping[str, Any], known: Set[str], where: str) -> None:
    for key in document:
        if key not in known:
            hint = did_you_mean(str(key), known) or f". Known: {', '.join(sorted(known))}"
            raise SpecError(f"{where} has an unknown key '{key}'{hint}")
