"""Hyperparameters that change over training: what is written where a number could stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator

from lossearch.errors import did_you_mean

Form = Literal["constant", "linear", "cosine", "deferred", "step"]
# The keys that each form takes, beside its name; those with a default may be left out.
KEYS: dict[str, tuple[str, ...]] = {
    "constant": ("start",),
    "linear": ("start", "end", "begin", "until"),
    "cosine": ("start", "end", "begin", "until"),
    "deferred": ("start", "end", "at"),
    "step": ("values", "at"),
}
DEFAULTS: dict[str, Any] = {"begin": 0.0, "until": 1.0}
CLOCK = frozenset({"step", "total_steps"})  # the batch fields that say how much is done
DEFERRED_AT = 0.8  # of training, as LDAM-DRW has it (arXiv:1906.07413: epoch 160 of 200)


class Schedule(BaseModel):
    """A number as a function of how much of training is done.

    - ``{schedule: constant, start: a}``: a;
    - ``{schedule: linear, start: a, end: b, begin: 0, until: 1}``: a until the share ``begin`` of
      training is done, b from the share ``until`` on, straight between;
    - ``{schedule: cosine, ...}``: the same along half a cosine (arXiv:1608.03983, eq. 5);
    - ``{schedule: deferred, start: a, end: b, at: 0.8}``: a, and b from the share ``at`` on;
    - ``{schedule: step, values: [a, b, c], at: [0.5, 0.75]}``: the next at each share.

    Where the hyperparameter is a whole number, so is what the schedule gives.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    schedule: Form
    start: float | int | None = None
    end: float | int | None = None
    begin: float | None = None
    until: float | None = None
    at: float | tuple[float, ...] | None = None
    values: tuple[float | int, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("schedule") not in tuple(KEYS):
            return given
        form = given["schedule"]
        usual = {"at": DEFERRED_AT} if form == "deferred" else DEFAULTS
        return {**{k: v for k, v in usual.items() if k in KEYS[form]}, **given}

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted = KEYS[self.schedule]
        for key in ("start", "end", "begin", "until", "at", "values"):
            if (getattr(self, key) is None) == (key in wanted):
                said = "needs" if key in wanted else "takes no"
                raise ValueError(
                    f"schedule: {self.schedule} {said} '{key}'; it takes {', '.join(wanted)}"
                )
        ends = tuple(s for s in (self.begin, self.until) if s is not None)
        shares = self._shares or ends
        if isinstance(self.at, tuple) != (self.schedule == "step") and self.at is not None:
            raise ValueError("'at' is a list of shares for schedule: step, one share for deferred")
        rising = all(a < b for a, b in pairwise(shares))
        if not (all(0 <= s <= 1 for s in shares) and rising):
            raise ValueError(f"shares of training are rising numbers in [0, 1], not {[*shares]}")
        if self.values is not None and len(self.values) != len(shares) + 1:
            raise ValueError(
                f"{len(shares)} shares in 'at' part training into {len(shares) + 1}: as many "
                f"values, not {len(self.values)}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: Any) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v is not None}

    @property
    def corners(self) -> tuple[float | int, ...]:
        """The values that it runs through, of which all others are between."""
        if self.values is not None:
            return self.values
        return tuple(v for v in (self.start, self.end) if v is not None)

    @property
    def _shares(self) -> tuple[float, ...]:
        """Of training, at which the value jumps."""
        if self.at is None:
            return ()
        return self.at if isinstance(self.at, tuple) else (self.at,)

    def over(self, corners: tuple[Any, ...]) -> Schedule:
        """The same course through other values."""
        if self.values is not None:
            return self.model_copy(update={"values": corners})
        names = ("start", "end")[: len(corners)]
        return self.model_copy(update=dict(zip(names, corners, strict=True)))

    def value(self, step: int, total_steps: int) -> float | int:
        """What it is at an optimizer step, counted from 0, of a training of ``total_steps``."""
        done = min(step / max(total_steps, 1), 1.0)
        first, *more = self.corners
        if self.schedule in ("linear", "cosine"):
            assert self.begin is not None and self.until is not None
            way = min(max((done - self.begin) / (self.until - self.begin), 0.0), 1.0)
            if self.schedule == "cosine":
                way = 0.5 * (1 - math.cos(math.pi * way))
            found = first + way * (more[0] - first)
            return round(found) if all(isinstance(v, int) for v in self.corners) else found
        return self.corners[sum(done >= s for s in self._shares)]

    def label(self) -> str:
        """``0→2 cosine``."""
        course = "→".join(f"{v:.4g}" for v in self.corners)
        at = f" at {', '.join(f'{s:.3g}' for s in self._shares)}" if self._shares else ""
        return f"{course} {self.schedule}{at}"


def is_schedule(value: Any) -> bool:
    """Whether a document says a schedule where a number could stand."""
    return isinstance(value, Schedule) or (isinstance(value, Mapping) and "schedule" in value)


def or_schedule(value: Any, number: Callable[[Any], Any]) -> Any:
    """Validate a hyperparameter that may be a schedule, whose every corner must be legal.

    Args:
        value: What was given.
        number: Validates a plain value.

    Raises:
        ValueError: it is no schedule, or not all of its values are numbers.
    """
    if not is_schedule(value):
        return number(value)
    try:
        given = value if isinstance(value, Schedule) else Schedule.model_validate(value)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None
    corners = tuple(number(v) for v in given.corners)
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in corners):
        raise ValueError("only a number can follow a schedule")
    return given.over(corners)


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        known = list(Schedule.model_fields)
        return f"a schedule has no '{key}'{did_you_mean(key, known) or '.'}"
    if key == "schedule":
        forms = ", ".join(KEYS)
        hint = did_you_mean(str(problem["input"]), KEYS)
        return f"there is no schedule {problem['input']!r}{hint or '.'} It is one of {forms}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {text}" if key else text


def plain(value: Any) -> Any:
    """A number as it is, and a schedule's first."""
    return value.value(0, 1) if isinstance(value, Schedule) else value
