"""An objective as data: which losses, with what weights, miners, reweightings and balancer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)

from lossearch.components.schedule import Schedule, is_schedule, or_schedule
from lossearch.documents import parse

Task = Literal["multiclass", "binary", "multilabel", "regression"]


class ComponentSpec(BaseModel):
    """A component's name and the parameters that differ from its defaults.

    In a document, ``focal`` is short for ``{name: focal}``.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def label(self) -> str:
        """``focal(gamma=2)``."""
        shown = ", ".join(f"{k}={_short(v)}" for k, v in self.params.items())
        return f"{self.name}({shown})" if shown else self.name


def _weight(value: Any) -> float | Schedule:
    """A number above 0; a schedule may begin or end at 0."""
    if not is_schedule(value):
        return _number(value, positive=True)
    schedule = or_schedule(value, _number)
    if not any(schedule.corners):
        raise ValueError("a term whose weight stays 0 does nothing: leave it out")
    return schedule


def _number(value: Any, positive: bool = False) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("input should be a number") from None
    if not math.isfinite(found):
        raise ValueError("input should be a finite number")
    if found < 0 or (positive and found == 0):
        raise ValueError(f"input should be greater than {'' if positive else 'or equal to '}0")
    return found


class TermSpec(BaseModel):
    """One loss of an objective, with what acts on its per-sample values."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    loss: ComponentSpec
    weight: Annotated[Any, BeforeValidator(_weight)] = 1.0  # a float, or a Schedule
    reweighting: ComponentSpec | None = None
    miner: ComponentSpec | None = None

    def label(self) -> str:
        parts = [self.loss, self.reweighting, self.miner]
        text = " · ".join(p.label() for p in parts if p is not None and p.name != "none")
        return text if self.weight == 1 else f"{_short(self.weight)} × {text}"


class ObjectiveSpec(BaseModel):
    """A whole training objective; round-trips through YAML.

    Its ``scale`` multiplies all of it: a study sets it so that every objective begins with the
    baseline's gradient norm (:mod:`lossearch.training.scale`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: Task
    terms: tuple[TermSpec, ...] = Field(min_length=1)
    balancer: ComponentSpec | None = None
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: Any) -> dict[str, Any]:
        document = handler(self)
        document["terms"] = [
            {k: v for k, v in t.items() if v is not None and (k, v) != ("weight", 1.0)}
            for t in document["terms"]
        ]
        return {k: v for k, v in document.items() if v is not None and (k, v) != ("scale", 1.0)}

    @classmethod
    def parse(cls, document: Any, where: str = "objective") -> ObjectiveSpec:
        """Validate a document.

        Raises:
            SpecError: naming each wrong key.
        """
        return parse(cls, document, where)

    def document(self) -> dict[str, Any]:
        """Plain data, as it is written to YAML: only what differs from the defaults."""
        return self.model_dump(mode="json")

    def components(self) -> Iterator[tuple[str, ComponentSpec]]:
        """Every component with its place: ``terms.0.loss``, ..., ``balancer``."""
        for number, term in enumerate(self.terms):
            for place in ("loss", "reweighting", "miner"):
                spec = getattr(term, place)
                if spec is not None:
                    yield f"terms.{number}.{place}", spec
        if self.balancer is not None:
            yield "balancer", self.balancer

    @property
    def structure(self) -> str:
        """The component names alone: objectives that differ in parameters share it."""
        return " + ".join(f"{path}={spec.name}" for path, spec in self.components())

    @property
    def key(self) -> str:
        """A short hash that is the same for the same objective, on any machine."""
        text = json.dumps(_as_float(self.document()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def label(self) -> str:
        """One line for a person: ``poly_loss(epsilon=2.3) · class_balanced + 0.1 × ...``."""
        text = " + ".join(term.label() for term in self.terms)
        return f"{text} | {self.balancer.label()}" if self.balancer else text

    def flat(self) -> dict[str, Any]:
        """Flat parameters, as MLflow shows them: ``terms.0.loss.name``, ``terms.0.loss.gamma``."""
        return dict(_flatten(self.document()))


def _as_float(value: Any) -> Any:
    """Every whole number as a float: ``gamma: 2`` and ``gamma: 2.0`` are the same objective."""
    if isinstance(value, Mapping):
        return {k: _as_float(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_as_float(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flatten(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        for number, each in enumerate(value):
            yield from _flatten(each, f"{path}.{number}")
    else:
        yield path, value


def _short(value: Any) -> str:
    if is_schedule(value):
        return or_schedule(value, lambda number: number).label()
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    if isinstance(value, Mapping):
        named = isinstance(value.get("name"), str) and all(isinstance(key, str) for key in value)
        return ComponentSpec.model_validate(value).label() if named else str(dict(value))
    return str(value)
