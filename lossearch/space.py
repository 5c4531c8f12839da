"""A search space: an objective's document with ranges and choices where values stand.

.. code-block:: yaml

    task: multiclass
    terms:
      - loss:
          choice:
            - cross_entropy                       # its parameters run over their own ranges
            - {name: focal, gamma: {low: 0, high: 3}}
            - {name: poly_loss, epsilon: {choice: [-1, 1, 2]}}
            - {name: ldam, max_margin: {schedule: {choice: [constant, linear]}}}  # over training
        reweighting: {choice: [none, class_balanced]}
      - loss: orthogonal_projection
        weight: {low: 0.01, high: 2, log: true}
        optional: true
    balancer:
      choice: [{name: fixed_weights, weights: [{low: 0.5, high: 2}, 1]}, uncertainty]

``choice: "*"`` means every component that fits: the primary losses in the first term, the
auxiliary ones in the others. What does not fit the task, or reads a field that nothing provides,
leaves the space before the search, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from lossearch.components import Component
from lossearch.components.schedule import KEYS
from lossearch.documents import parse_yaml
from lossearch.feasibility import acting_problem
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec

# Stand-ins for what only the data knows, for judging a component before the data are there.
ANY_FACTS = {"train_size": 2, "num_classes": 2, "num_terms": 2, "seed": 0, "term_weights": [1, 1]}


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

    def nearest(self) -> int:
        """Which option holds the default, or comes nearest to it."""

        def distance(option: Value | Between) -> float:
            if isinstance(option, Between):
                low, high = option.low, option.high
            elif option.value == self.default:
                return 0.0
            else:
                low = high = option.value
            if not (_number(self.default) and _number(low)):
                return math.inf
            return max(low - self.default, self.default - high, 0.0)

        return min(range(len(self.options)), key=lambda i: distance(self.options[i]))

    def suggest(self, trial: Suggester, path: str) -> Any:
        name = trial.suggest_categorical(path, self.names)
        index = next(i for i, n in enumerate(self.names) if n == name and type(n) is type(name))
        return self.options[index].suggest(trial, f"{path}.{index}")

    def describe(self) -> str:
        return "one of " + ", ".join(str(n) for n in self.names)


@dataclass(frozen=True)
class Listed:
    """A list, each entry of which has a domain of its own."""

    entries: tuple[Any, ...]

    def suggest(self, trial: Suggester, path: str) -> list[Any]:
        return [entry.suggest(trial, f"{path}.{i}") for i, entry in enumerate(self.entries)]

    def describe(self) -> str:
        return f"[{', '.join(entry.describe() for entry in self.entries)}]"


@dataclass(frozen=True)
class Scheduled:
    """A number that follows a schedule: its form, and the domain of each key that a form takes.

    The form ``constant`` is the number itself.
    """

    form: OneOf
    keys: Mapping[str, Value | Between | OneOf | tuple[Value | Between | OneOf, ...]]

    def suggest(self, trial: Suggester, path: str) -> Any:
        form = self.form.suggest(trial, f"{path}.schedule") if self.several else self.forms[0]
        said: dict[str, Any] = {"schedule": form}
        for key in KEYS[form]:
            node = self.keys.get(key)
            if isinstance(node, tuple):
                said[key] = [n.suggest(trial, f"{path}.{key}.{i}") for i, n in enumerate(node)]
            elif node is not None:
                said[key] = node.suggest(trial, f"{path}.{key}")
        return said["start"] if form == "constant" else said

    @property
    def forms(self) -> tuple[str, ...]:
        return self.form.names

    @property
    def several(self) -> bool:
        return len(self.forms) > 1

    def describe(self) -> str:
        domains = {
            key: f"[{', '.join(n.describe() for n in node)}]"
            if isinstance(node, tuple)
            else node.describe()
            for key, node in self.keys.items()
        }
        inside = ", ".join(f"{key}: {text}" for key, text in domains.items())
        return f"over training, {' or '.join(self.forms)} ({inside})"


@dataclass(frozen=True)
class Part:
    """A component with the domains of its parameters."""

    component: Component
    task: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def suggest(self, trial: Suggester, path: str) -> dict[str, Any]:
        inside = f"{path}.{self.component.name}"
        conditions = self.component.signature.conditions
        # a parameter that others decide on comes after them, and only where it has an effect
        values: dict[str, Any] = {}
        for name in sorted(self.params, key=lambda name: name in conditions):
            if self._applies(conditions.get(name, {}), values):
                values[name] = self.params[name].suggest(trial, f"{inside}.{name}")
        said = {k: v for k, v in values.items() if v != default_of(self.component, k, self.task)}
        return {"name": self.component.name, **said}

    def _applies(self, condition: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
        return all(
            values.get(k, default_of(self.component, k, self.task)) in allowed
            for k, allowed in condition.items()
        )

    def complete(self, suggested: Mapping[str, Any]) -> BaseModel:
        """All parameters of a suggestion."""
        given = {k: v for k, v in suggested.items() if k != "name"}
        return self.component.complete(given, task=self.task, facts=ANY_FACTS)


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

    def part(self, name: str) -> Part | None:
        return next((p for p in self.parts if p.component.name == name), None)

    def suggest(self, trial: Suggester, path: str) -> dict[str, Any] | None:
        names: list[str] = [p.component.name for p in self.parts]
        if self.may_be_empty:
            names = ["-", *names]
        if not names:
            return None
        chosen = names[0] if len(names) == 1 else trial.suggest_categorical(path, names)
        part = self.part(chosen)
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
        weight = self.weight.suggest(trial, f"{path}.weight")
        term: dict[str, Any] = {"loss": loss, "weight": weight}
        part = self.loss.part(loss["name"])
        assert part is not None
        params = part.complete(loss)
        for place, slot in (("reweighting", self.reweighting), ("miner", self.miner)):
            if slot is None or part.component.returns_at(params) == "batch":
                continue  # no sample weight reaches a loss of the whole batch
            chosen = slot.suggest(trial, f"{path}.{place}")
            acting = slot.part(chosen["name"]) if chosen else None
            if acting and not acting_problem(part.component, params, place, acting.component):
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
        cls,
        document: Mapping[str, Any] | str,
        *,
        registry: Registry,
        task: str,
        available: Set[str],
    ) -> Space:
        """Compile a document (or YAML text) for a task and the fields that can be provided.

        Raises:
            SpecError: an unknown key, a domain that is not legal, or nothing remains.
            UnknownNameError: a component that nothing answers to.
        """
        if isinstance(document, str):
            document = parse_yaml(document, "space")
        from lossearch.space_compiler import Compiler

        return Compiler(registry, task, available).space(document)

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
        from lossearch.space_points import references

        return references(self)

    def locate(self, spec: ObjectiveSpec) -> dict[str, Any] | None:
        """The params at which the space suggests this objective; ``None`` where it never does."""
        from lossearch.space_points import locate

        return locate(self, spec)

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


def default_of(component: Component, name: str, task: str) -> Any:
    """What a parameter is where nothing is said; ``...`` where the engine fills it in."""
    signature = component.signature
    if name in signature.facts:
        return ...
    by_task = signature.by_task.get(name, {})
    return by_task.get(task, signature.Params.model_fields[name].default)


def _slot_rows(slot: Slot, path: str) -> list[tuple[str, str]]:
    rows = [(path, "or nothing")] if slot.may_be_empty else []
    for part in slot.parts:
        name = f"{path}.{part.component.name}"
        rows.append((name, part.component.summary))
        conditions = part.component.signature.conditions
        rows += [
            (f"{name}.{k}", node.describe() + _where(conditions.get(k, {})))
            for k, node in part.params.items()
        ]
    return rows


def _where(condition: Mapping[str, tuple[Any, ...]]) -> str:
    each = [f"{k} is {' or '.join(map(str, v))}" for k, v in condition.items()]
    return f", where {' and '.join(each)}" if each else ""


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
