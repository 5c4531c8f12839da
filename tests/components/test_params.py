"""A signature is the whole declaration: fields, hyperparameters, legal values, search ranges."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

import lossearch
from lossearch import ByTask, Choices, Component, Given, Range
from lossearch.components import component_of
from lossearch.components.params import is_integer
from lossearch.errors import ParameterError, PluginError
from tests.toys import ToyRunning, toy_ce, toy_either, toy_power


def declare(target: Any, **options: Any) -> Component:
    return component_of(lossearch.loss(task="multiclass", **options)(target))


# Marks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_range_needs_low_below_high(low: float, high: float) -> None:
    with pytest.raises(PluginError, match="low < high"):
        Range(low, high)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_a_log_range_is_positive(low: float) -> None:
    with pytest.raises(PluginError, match="low > 0"):
        Range(low, 1.0, log=True)


def test_choices_come_from_a_literal_or_a_bool() -> None:
    def several(
        logits: Tensor,
        *,
        mode: Annotated[Literal["a", "b"], Choices()] = "a",
        maybe: Annotated[Literal["c"] | None, Choices()] = None,
        flag: Annotated[bool, Choices()] = True,
        width: Annotated[int, Choices(3, 5)] = 4,
    ) -> Tensor:
        return logits

    domains = declare(several).signature.domains
    assert domains["mode"] == Choices("a", "b")
    assert domains["maybe"] == Choices("c")
    assert domains["flag"] == Choices(False, True)
    assert domains["width"] == Choices(3, 5)


def test_choices_of_a_number_must_be_said() -> None:
    def vague(logits: Tensor, *, width: Annotated[int, Choices()] = 4) -> Tensor:
        return logits

    with pytest.raises(PluginError, match=r"vague: 'width' has Choices\(\) without values"):
        declare(vague)


def test_whole_numbers_are_told_from_fractions() -> None:
    def mixed(
        logits: Tensor,
        *,
        a: Annotated[int, Range(1, 3)] = 1,
        b: Annotated[float, Range(1, 3)] = 1,
        c: Annotated[int | None, Range(1, 3)] = None,
        d: Annotated[int | float, Range(1, 3)] = 1,
    ) -> Tensor:
        return logits

    signature = declare(mixed).signature
    assert [is_integer(signature, k) for k in "abcd"] == [True, False, True, False]


# What a declaration must not be ----------------------------------------------------------------


def test_both_ends_of_a_range_are_tried_when_it_is_declared() -> None:
    def low(
        logits: Tensor, *, gamma: Annotated[float, Field(ge=0), Range(-1.0, 5.0)] = 2.0
    ) -> Tensor:
        return logits

    def high(
        logits: Tensor, *, q: Annotated[float, Field(gt=0, lt=1), Range(0.1, 1.0)] = 0.5
    ) -> Tensor:
        return logits

    def choice(logits: Tensor, *, k: Annotated[int, Field(le=5), Choices(3, 7)] = 3) -> Tensor:
        return logits

    with pytest.raises(PluginError, match=r"low: the search range of 'gamma' reaches -1\.0"):
        declare(low)
    with pytest.raises(PluginError, match=r"high: .* 'q' reaches 1\.0, which is not legal"):
        declare(high)
    with pytest.raises(PluginError, match="choice: the search range of 'k' reaches 7"):
        declare(choice)


def test_a_default_must_be_legal() -> None:
    def wrong(logits: Tensor, *, gamma: Annotated[float, Field(ge=0)] = -1.0) -> Tensor:
        return logits

    def by_task(
        logits: Tensor, *, mode: Annotated[Literal["a", "b"], ByTask(binary="c")] = "a"
    ) -> Tensor:
        return logits

    with pytest.raises(PluginError, match=r"wrong: the default of 'gamma' is -1\.0"):
        declare(wrong)
    with pytest.raises(PluginError, match="by_task: the default of 'mode' by task is 'c'"):
        declare(by_task)


def test_ranges_are_tried_beside_a_fact_that_is_not_known_yet() -> None:
    class Sized(nn.Module):
        def __init__(
            self,
            *,
            rate: Annotated[float, Field(ge=0), Range(0.0, 1.0)] = 0.5,
            train_size: Annotated[int, Field(ge=2), Given("train_size")],
        ) -> None:
            super().__init__()

        def forward(self, logits: Tensor) -> Tensor:
            return logits

    assert set(declare(Sized, name="sized").signature.domains) == {"rate"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(logits, *, gamma=1.0): ...", "hyperparameter 'gamma' has no annotation"),
        ("def f(logits, *, gamma: float): ...", "hyperparameter 'gamma' has no default"),
        ("def f(logits, gamma=1.0): ...", "batch field 'gamma' may only default to None"),
        ("def f(*logits): ...", r"\*args and \*\*kwargs say nothing"),
        ("def f(logits, **others): ...", r"\*args and \*\*kwargs say nothing"),
        ("class f:\n  def __init__(self, *, a: int = 1): ...", r"needs a forward\(\)"),
        (
            "class f:\n  def __init__(self, a: int = 1): ...\n  def forward(self, logits): ...",
            "takes 'a' by position; hyperparameters are keyword-only",
        ),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(source: str, message: str) -> None:
    scope: dict[str, Any] = {}
    exec(source, scope)
    with pytest.raises(PluginError, match=f"wrong_one: .*{message}|wrong_one: {message}"):
        declare(scope["f"], name="wrong_one")


def test_only_hyperparameters_must_have_annotations_that_can_be_read() -> None:
    def lazily(logits: NotImported, *, gamma: float = 1.0) -> NotImported:  # type: ignore  # noqa
        return logits

    assert set(declare(lazily).Params.model_fields) == {"gamma"}

    def hidden(logits: Tensor, *, gamma: NotImported = 1.0) -> Tensor:  # type: ignore  # noqa
        return logits

    with pytest.raises(PluginError, match=r"hidden: .*'NotImported' is not defined; import it"):
        declare(hidden)


# Fields and hyperparameters --------------------------------------------------------------------


def test_positional_parameters_are_fields() -> None:
    signature = component_of(toy_power).signature
    assert signature.required == ("logits",)
    assert signature.optional == ("class_counts",)
    assert set(signature.Params.model_fields) == {"exponent", "rounds", "mode", "scale"}


def test_a_class_reads_its_fields_in_forward() -> None:
    component = component_of(ToyRunning)
    assert component.fields == ("logits",)
    assert set(component.Params.model_fields) == {"decay", "num_classes", "seed"}
    assert component.signature.facts == {"num_classes": "num_classes", "seed": "seed"}


def test_params_are_frozen() -> None:
    params = component_of(toy_ce).complete({"smoothing": 0.1})
    with pytest.raises(ValidationError, match="frozen"):
        params.smoothing = 0.2  # type: ignore[attr-defined]


def test_params_round_trip_through_json() -> None:
    component = component_of(toy_power)
    params = component.complete({"exponent": 3, "mode": "mean"})
    assert component.Params.model_validate_json(params.model_dump_json()) == params


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"smoothin": 0.1}, r"toy_ce has no parameter 'smoothin'; did you mean 'smoothing'\?"),
        ({"zzz": 0.1}, r"no parameter 'zzz'\. It has: smoothing"),
        ({"smoothing": -0.1}, r"toy_ce: smoothing = -0\.1 is not allowed: .*greater than or eq"),
        ({"smoothing": 1.0}, r"smoothing = 1\.0 is not allowed: .*less than 1"),
        ({"smoothing": "much"}, "smoothing = 'much' is not allowed: .*number"),
        ({"smoothing": None}, "smoothing = None is not allowed"),
        ({"smoothing": float("nan")}, "smoothing = nan is not allowed: .*(finite|greater)"),
    ],
)
def test_a_bad_value_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        component_of(toy_ce).complete(given)


def test_infinity_is_refused_where_no_bound_is_declared() -> None:
    with pytest.raises(ParameterError, match=r"scale = inf is not allowed: .*finite"):
        component_of(toy_power).complete({"scale": float("inf")})


def test_every_bad_value_is_listed_at_once() -> None:
    with pytest.raises(ParameterError) as caught:
        component_of(toy_power).complete({"exponent": 0, "rounds": 0.5, "mod": "sum"})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "did you mean 'mode'" in str(caught.value)


def test_a_choice_outside_a_literal_lists_what_is_allowed() -> None:
    with pytest.raises(ParameterError, match=r"mode = 'max' is not allowed: .*'sum' or 'mean'"):
        component_of(toy_power).complete({"mode": "max"})


# The task and the facts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "mode"),
    [("multiclass", "sum"), ("binary", "mean"), ("multilabel", "sum"), (None, "sum")],
)
def test_the_task_decides_a_default(task: str | None, mode: str) -> None:
    assert component_of(toy_power).complete({}, task=task).mode == mode  # type: ignore[attr-defined]


def test_what_is_said_goes_before_what_the_task_decides() -> None:
    params = component_of(toy_power).complete({"mode": "sum"}, task="binary")
    assert params.mode == "sum"  # type: ignore[attr-defined]


def test_the_engine_fills_in_facts() -> None:
    component = component_of(ToyRunning)
    params: Any = component.complete({}, facts={"num_classes": 7, "seed": 3, "train_size": 100})
    assert (params.num_classes, params.seed) == (7, 3)
    params = component.complete({"seed": 5}, facts={"num_classes": 7, "seed": 3})
    assert params.seed == 5, "what is said goes first"


def test_a_fact_without_default_must_come_from_somewhere() -> None:
    with pytest.raises(ParameterError, match="toy_running needs 'num_classes', which the data"):
        component_of(ToyRunning).complete({})


def test_a_switch_is_a_bool() -> None:
    class Odd(enum.Enum):
        yes = "yes!"

    with pytest.raises(ParameterError, match=r"whole = .* is not allowed: .*boolean"):
        component_of(toy_either).complete({"whole": Odd.yes})


def test_signature_of_a_plain_call_is_kept() -> None:
    logits = torch.tensor([[0.0, 0.0]])
    value = toy_ce(logits, torch.tensor([1]), smoothing=0.0)
    assert value.tolist() == pytest.approx([0.693147], abs=1e-6)
