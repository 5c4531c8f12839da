"""Hyperparameters: a component's keyword-only parameters, their legal values and search domains.

The annotation of a parameter says all: its type and ``pydantic.Field`` say what is legal, and one
of the marks below says what a search does with it. A parameter without a mark keeps its default.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, WrapValidator, create_model

from lossearch.components.schedule import or_schedule
from lossearch.errors import ParameterError, PluginError, did_you_mean


@dataclass(frozen=True)
class Range:
    """Search between ``low`` and ``high``, both ends included; on a log scale where ``log``."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise PluginError(f"Range needs low < high, not ({self.low}, {self.high})")
        if self.log and self.low <= 0:
            raise PluginError(f"a log Range needs low > 0, not {self.low}")

    @property
    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)


@dataclass(frozen=True, init=False)
class Choices:
    """Search among these values; without any, those of the parameter's ``Literal`` or bool."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values


Domain = Range | Choices


@dataclass(frozen=True)
class Given:
    """Filled in by the engine from what it knows of the task, never searched.

    Facts: ``train_size``, ``num_classes``, ``num_terms``, ``term_weights``, ``seed``; for
    providers ``task`` too.
    """

    fact: str


@dataclass(frozen=True, init=False)
class ByTask:
    """The task decides the default: ``ByTask(multiclass="softmax", binary="sigmoid")``."""

    values: Mapping[str, Any]

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "values", types.MappingProxyType(values))


@dataclass(frozen=True, init=False)
class When:
    """Searched only where other parameters have these values: ``When(base="focal")``.

    A tuple means any of its values.
    """

    values: Mapping[str, tuple[Any, ...]]

    def __init__(self, **values: Any) -> None:
        each = {k: v if isinstance(v, tuple) else (v,) for k, v in values.items()}
        object.__setattr__(self, "values", types.MappingProxyType(each))


WHOLE_BATCH = "batch"


@dataclass(frozen=True)
class Signature:
    """What a component's signature declares.

    A component whose only positional parameter is ``batch`` is handed the whole mapping of fields:
    for a wrapper of other components, which decide what it reads. Its decorator says so by
    ``reads=``.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    Params: type[BaseModel]
    domains: Mapping[str, Domain]
    facts: Mapping[str, str]
    by_task: Mapping[str, Mapping[str, Any]]
    conditions: Mapping[str, Mapping[str, tuple[Any, ...]]]
    whole_batch: bool = False


def read_signature(name: str, target: Callable[..., Any]) -> Signature:
    """Split a function's or a module class's signature into batch fields and hyperparameters.

    Raises:
        PluginError: a parameter lacks an annotation, a mark is misused, or an end of a search
            range is not legal.
    """
    if isinstance(target, type):
        hyper, fields = target.__init__, getattr(target, "forward", None)
        if fields is None:
            raise PluginError(f"{name}: a component class needs a forward() that reads fields")
    else:
        hyper = fields = target
    required, optional = _fields(name, fields)
    whole_batch = (required, optional) == ((WHOLE_BATCH,), ())
    if whole_batch:
        required = ()
    elif WHOLE_BATCH in required + optional:
        raise PluginError(
            f"{name}: '{WHOLE_BATCH}' is the mapping of all fields; it takes no other field "
            "beside it, and no default"
        )
    hints = _hints(name, hyper)
    declared: dict[str, Any] = {}
    domains: dict[str, Domain] = {}
    facts: dict[str, str] = {}
    by_task: dict[str, Mapping[str, Any]] = {}
    conditions: dict[str, Mapping[str, tuple[Any, ...]]] = {}
    for parameter in inspect.signature(hyper).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            if isinstance(target, type) and parameter.name != "self":
                raise PluginError(
                    f"{name}: __init__ takes '{parameter.name}' by position; hyperparameters are "
                    "keyword-only (put them after *)"
                )
            continue
        hint = hints.get(parameter.name)
        if hint is None:
            raise PluginError(f"{name}: hyperparameter '{parameter.name}' has no annotation")
        default = ... if parameter.default is parameter.empty else parameter.default
        declared[parameter.name] = (Annotated[hint, WrapValidator(or_schedule)], default)
        for mark in hint.__metadata__ if get_origin(hint) is Annotated else ():
            if isinstance(mark, (Range, Choices)):
                domains[parameter.name] = _complete(f"{name}: '{parameter.name}'", mark, hint)
            elif isinstance(mark, Given):
                facts[parameter.name] = mark.fact
            elif isinstance(mark, ByTask):
                by_task[parameter.name] = mark.values
            elif isinstance(mark, When):
                conditions[parameter.name] = mark.values
        if default is ... and parameter.name not in facts:
            raise PluginError(f"{name}: hyperparameter '{parameter.name}' has no default")
    params: type[BaseModel] = create_model(
        f"{name}_params",
        __config__=ConfigDict(
            frozen=True,
            extra="forbid",
            allow_inf_nan=False,
            arbitrary_types_allowed=True,
            validate_default=True,
            protected_namespaces=(),
        ),
        **declared,
    )
    for parameter, condition in conditions.items():
        for other in condition:
            if other not in declared or other in conditions:
                raise PluginError(
                    f"{name}: '{parameter}' is searched by the value of '{other}', which "
                    "is no parameter, or depends on others itself"
                )
    signature = Signature(
        required, optional, params, domains, facts, by_task, conditions, whole_batch
    )
    _check_domains(name, signature)
    return signature


def validate(name: str, params: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
    """The parameters as a validated model.

    Raises:
        ParameterError: for each bad value, what was given and what is allowed.
    """
    try:
        return params(**values)
    except ValidationError as error:
        raise ParameterError(_explain(name, params, error)) from None


def _explain(name: str, params: type[BaseModel], error: ValidationError) -> str:
    lines: dict[str, None] = {}
    for problem in error.errors():
        key = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            known = ", ".join(params.model_fields) or "none"
            hint = did_you_mean(key, params.model_fields)
            lines[f"{name} has no parameter '{key}'{hint or '.'} It has: {known}"] = None
        elif problem["type"] == "missing":
            lines[f"{name} needs '{key}', which the data or the study gives; pass it here"] = None
        else:
            text = problem["msg"].removeprefix("Value error, ")
            text = text[0].lower() + text[1:]
            lines[f"{name}: {key} = {problem['input']!r} is not allowed: {text}"] = None
    return "\n".join(lines)


def _hints(name: str, target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the hyperparameters; those of fields may name what is not imported."""
    parameters = inspect.signature(target).parameters.values()
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    said = {k: v for k, v in getattr(target, "__annotations__", {}).items() if k in keywords}
    scope = getattr(inspect.unwrap(target), "__globals__", {})
    try:
        return get_type_hints(
            types.SimpleNamespace(__annotations__=said), scope, include_extras=True
        )
    except NameError as error:
        raise PluginError(
            f"{name}: in the annotation of a hyperparameter {error}; import it where the module "
            "begins, not under TYPE_CHECKING"
        ) from None


def _fields(name: str, target: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    required: list[str] = []
    optional: list[str] = []
    for parameter in inspect.signature(target).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            if parameter.default is parameter.empty:
                required.append(parameter.name)
            elif parameter.default is None:
                optional.append(parameter.name)
            else:
                raise PluginError(
                    f"{name}: batch field '{parameter.name}' may only default to None; "
                    "a hyperparameter belongs after *"
                )
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            raise PluginError(f"{name}: *args and **kwargs say nothing of what it reads")
    return tuple(required), tuple(optional)


def _complete(what: str, mark: Domain, hint: Any) -> Domain:
    """``Choices()`` takes its values from the annotation."""
    if isinstance(mark, Range) or mark.values:
        return mark
    for kind in _alternatives(get_args(hint)[0]):
        if get_origin(kind) is Literal:
            return Choices(*get_args(kind))
        if kind is bool:
            return Choices(False, True)
    raise PluginError(f"{what} has Choices() without values, which needs a Literal or a bool")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def is_integer(signature: Signature, parameter: str) -> bool:
    """Whether a range of this parameter, or of an entry of it, runs over whole numbers."""
    kinds = set(_scalars(signature.Params.model_fields[parameter].annotation))
    return int in kinds and float not in kinds


def _scalars(hint: Any) -> Iterator[Any]:
    """The types of a parameter, and of the entries of its lists."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (list, tuple, typing.Union, types.UnionType):
        for each in get_args(hint):
            yield from _scalars(each)
    else:
        yield hint


def _check_domains(name: str, signature: Signature) -> None:
    """Defaults and both ends of every search domain must be legal, so that none is refused."""
    tried: list[tuple[str, str, Any]] = []
    for parameter, field in signature.Params.model_fields.items():
        if parameter not in signature.facts:
            tried.append((parameter, "default of '{}' is", field.default))
    for parameter, by_task in signature.by_task.items():
        tried += [(parameter, "default of '{}' by task is", v) for v in by_task.values()]
    for parameter, domain in signature.domains.items():
        tried += [(parameter, "search range of '{}' reaches", end) for end in domain.ends]
    for parameter, what, value in tried:
        try:
            signature.Params(**{parameter: value})
        except ValidationError as error:
            wrong = [e for e in error.errors() if e["loc"] and e["loc"][0] == parameter]
            if wrong:
                raise PluginError(
                    f"{name}: the {what.format(parameter)} {value!r}, which is not legal: "
                    f"{wrong[0]['msg']}"
                ) from None
