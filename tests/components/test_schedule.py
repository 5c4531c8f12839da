"""Schedules: what they give at each step, which documents are one, and who may follow one."""

from __future__ import annotations

import copy
import math
from typing import Annotated, Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import lossearch
from lossearch import Given, Range
from lossearch.components import component_of
from lossearch.components.schedule import Schedule
from lossearch.errors import FieldError, ParameterError


@lossearch.loss(task="multiclass")
def tilted(
    logits: Tensor,
    targets: Tensor,
    *,
    tilt: Annotated[float, Field(ge=0), Range(0.0, 4.0)] = 1.0,
    rank: Annotated[int, Field(ge=1)] = 1,
    mode: str = "plain",
) -> Tensor:
    """tilt times rank times cross-entropy."""
    return tilt * rank * F.cross_entropy(logits, targets, reduction="none")


@lossearch.loss(name="kept", task="multiclass")
class Kept(nn.Module):
    """Keeps one hyperparameter, uses the other up when it is built."""

    def __init__(
        self, *, keep: float = 1.0, used: float = 1.0, seed: Annotated[int, Given("seed")] = 0
    ) -> None:
        super().__init__()
        self.keep = keep
        self.twice = 2 * used
        self.seed = seed

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.keep * self.twice * F.cross_entropy(logits, targets, reduction="none")


@lossearch.metric(task="multiclass")
def share(logits: Tensor, targets: Tensor, *, top: int = 1) -> float:
    """A metric with a number."""
    return float((logits.argmax(1) == targets).double().mean())


def course(schedule: dict[str, Any], steps: int = 10) -> list[float]:
    return [Schedule.model_validate(schedule).value(step, steps) for step in range(steps + 1)]


def test_linear_and_cosine_go_from_start_to_end_between_begin_and_until() -> None:
    plain = {"start": 1.0, "end": 3.0}
    assert course({"schedule": "linear", **plain}) == pytest.approx([1 + i / 5 for i in range(11)])
    bent = course({"schedule": "linear", **plain, "begin": 0.2, "until": 0.7})
    assert bent == pytest.approx([1, 1, 1, 1.4, 1.8, 2.2, 2.6, 3, 3, 3, 3])
    wave = [1 + (1 - math.cos(math.pi * i / 10)) for i in range(11)]
    assert course({"schedule": "cosine", **plain}) == pytest.approx(wave)
    assert course({"schedule": "cosine", "start": 3.0, "end": 1.0})[::-1] == pytest.approx(wave)


def test_constant_deferred_and_step() -> None:
    assert course({"schedule": "constant", "start": 2.5}) == [2.5] * 11
    assert course({"schedule": "deferred", "start": 0.0, "end": 1.0}) == [0.0] * 8 + [1.0] * 3
    assert course({"schedule": "deferred", "start": 0.0, "end": 1.0, "at": 0.0}) == [1.0] * 11
    steps = {"schedule": "step", "values": [3.0, 2.0, 1.0], "at": [0.25, 0.5]}
    assert course(steps) == [3.0] * 3 + [2.0] * 2 + [1.0] * 6


def test_whole_numbers_stay_whole_and_steps_past_the_end_stay_at_it() -> None:
    component = component_of(tilted)
    params: Any = component.complete({"rank": {"schedule": "linear", "start": 1, "end": 4}})
    found = [params.rank.value(step, 6) for step in range(7)]
    assert found == [1, 2, 2, 2, 3, 4, 4] and all(type(v) is int for v in found)
    assert params.rank.value(600, 6) == 4


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"schedule": "linaer", "start": 0, "end": 1}, "did you mean 'linear'"),
        ({"schedule": "linear", "start": 0}, "needs 'end'"),
        ({"schedule": "linear", "start": 0, "end": 1, "at": 0.5}, "takes no 'at'"),
        ({"schedule": "linear", "strat": 0, "end": 1}, "did you mean 'start'"),
        ({"schedule": "linear", "start": 0, "end": 1, "begin": 0.6, "until": 0.5}, "rising"),
        ({"schedule": "linear", "start": 0, "end": -1}, "greater than or equal to 0"),
        ({"schedule": "deferred", "start": 0, "end": 1, "at": 1.5}, r"in \[0, 1\]"),
        ({"schedule": "deferred", "start": 0, "end": 1, "at": [0.5]}, "one share"),
        ({"schedule": "step", "values": [1, 2], "at": 0.5}, "list of shares"),
        ({"schedule": "step", "values": [1, 2], "at": [0.5, 0.7]}, "as many values, not 2"),
        ({"schedule": "constant", "start": math.nan}, "finite"),
    ],
)
def test_what_is_no_schedule_says_why(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        component_of(tilted).complete({"tilt": schedule})
    assert "tilted: tilt" in str(caught.value)


def test_only_numbers_follow_a_schedule() -> None:
    with pytest.raises(ParameterError, match="mode"):
        component_of(tilted).complete({"mode": {"schedule": "linear", "start": 0, "end": 1}})


def test_a_function_has_the_value_of_the_batch() -> None:
    bound = component_of(tilted).build(tilt={"schedule": "linear", "start": 0.0, "end": 4.0})
    batch = {"logits": torch.zeros(2, 3), "targets": torch.tensor([0, 1]), "total_steps": 8}
    plain = math.log(3)
    for step in (0, 2, 7, 4):
        assert bound({**batch, "step": step})[0].item() == pytest.approx(step / 2 * plain)
        assert bound.value("tilt") == step / 2
    assert bound.reads == {"logits", "targets", "step", "total_steps"}
    with pytest.raises(FieldError, match="reads 'step' for its schedule"):
        bound(batch)


def test_a_class_has_it_as_its_attribute_or_refuses() -> None:
    component = component_of(Kept)
    deferred = {"schedule": "deferred", "start": 1.0, "end": 5.0, "at": 0.5}
    bound = component.build(keep=deferred)
    batch = {"logits": torch.zeros(2, 3), "targets": torch.tensor([0, 1]), "total_steps": 4}
    values = [bound({**batch, "step": step})[0].item() / math.log(3) for step in range(4)]
    assert values == pytest.approx([2, 2, 10, 10])
    assert copy.deepcopy(bound)({**batch, "step": 0})[0].item() == pytest.approx(2 * math.log(3))
    with pytest.raises(ParameterError, match=r"used cannot follow a schedule.*self\.used"):
        component.build(used=deferred)
    with pytest.raises(ParameterError, match="seed cannot follow a schedule"):
        component.build(seed={"schedule": "linear", "start": 0, "end": 1})


def test_what_runs_beside_training_cannot_follow_it() -> None:
    with pytest.raises(ParameterError, match="top cannot follow a schedule"):
        component_of(share).complete({"top": {"schedule": "linear", "start": 1, "end": 2}})


def test_it_round_trips_and_has_a_short_label() -> None:
    said = {"schedule": "cosine", "start": 0.0, "end": 2.0}
    schedule = Schedule.model_validate(said)
    assert schedule.model_dump() == {**said, "begin": 0.0, "until": 1.0}
    assert Schedule.model_validate(schedule.model_dump()) == schedule
    assert schedule.label() == "0→2 cosine"
    late = {"schedule": "deferred", "start": 0.0, "end": 0.9999}
    assert Schedule.model_validate(late).label() == "0→0.9999 deferred at 0.8"
