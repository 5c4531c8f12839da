"""A component: a function or a module class, with what its signature and its decorator declare."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel
from torch import nn

from lossearch.components.entry import refuse_not_finite, with_indices
from lossearch.components.params import WHOLE_BATCH, Signature, read_signature, validate
from lossearch.components.schedule import CLOCK, Schedule, plain
from lossearch.errors import FieldError, ParameterError, PluginError, did_you_mean

Kind = Literal[
    "loss", "miner", "reweighting", "balancer", "metric", "dataset", "model", "provider"
]
Returns = Literal["per_sample", "per_anchor", "per_pair", "batch", "mask", "selection"]
MARK = "__lossearch_component__"
_ONCE: tuple[Kind, ...] = ("metric", "dataset", "model")  # not there while training goes on
_ACTING: tuple[Kind, ...] = ("reweighting", "miner", "balancer")  # on losses, not on samples


@dataclass(frozen=True)
class Paper:
    """Where a component comes from; ``link`` is a DOI or an arXiv number."""

    title: str
    year: int
    link: str = ""

    def __str__(self) -> str:
        return f"{self.title} ({self.year})" + (f", {self.link}" if self.link else "")


@dataclass(frozen=True)
class Component:
    """One entry of the registry: what it is, what it reads, what it can be tuned by.

    Attributes:
        name: Global, flat, snake_case.
        kind: ``loss``, ``miner``, ``reweighting``, ``balancer``, ``metric``, ``dataset``,
            ``model`` or ``provider``.
        target: The decorated function or class itself.
        task: The task or tasks that it serves, as declared.
        paper: Its source.
        returns: What a loss or a miner returns; a callable decides by the parameters.
        auxiliary: A loss that only accompanies another.
        soft_targets: Whether a loss also takes probabilities of the classes as targets; a callable
            decides by the parameters.
        maximize: Whether more of a metric is better.
        gives: The fields that a provider makes.
        vmappable: Whether ``torch.func.vmap`` may run it over members and hyperparameters.
        no_vmap: Why it may not, where it may not.
        reads_by: Which fields it reads, where that depends on the parameters.
        cost: What it costs beyond one forward and backward, in words.
        skips: Conformance checks that do not apply to it, each with the reason.
    """

    name: str
    kind: Kind
    target: Callable[..., Any]
    task: str | tuple[str, ...]
    paper: Paper | None = None
    returns: Returns | Callable[[BaseModel], Returns] | None = None
    auxiliary: bool = False
    soft_targets: bool | Callable[[BaseModel], bool] = False
    maximize: bool = True
    gives: tuple[str, ...] = ()
    vmappable: bool = False
    no_vmap: str = ""
    reads_by: Callable[[BaseModel], Iterable[str]] | None = None
    cost: str = ""
    skips: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Component:
        return self  # it is data about code: a copied objective shares it

    def __reduce__(self) -> tuple[Any, ...]:
        return component_of, (self.target,)

    @cached_property
    def signature(self) -> Signature:
        signature = read_signature(self.name, self.target)
        if signature.whole_batch and self.reads_by is None:
            raise PluginError(
                f"{self.name} takes the whole batch; say which fields it needs of it by "
                "reads= in its decorator"
            )
        return signature

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task,) if isinstance(self.task, str) else self.task

    @property
    def stateful(self) -> bool:
        """Whether it is a module class, with state or learned parameters of its own."""
        return isinstance(self.target, type)

    @property
    def fields(self) -> tuple[str, ...]:
        """The batch fields that it cannot do without."""
        return self.signature.required

    @property
    def optional_fields(self) -> tuple[str, ...]:
        return self.signature.optional

    @property
    def Params(self) -> type[BaseModel]:
        """The pydantic model of its hyperparameters."""
        return self.signature.Params

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.target) or ""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.split("\n", 1)[0]

    def complete(
        self, params: Mapping[str, Any], *, task: str | None = None, facts: Mapping[str, Any] = {}
    ) -> BaseModel:
        """Validate ``params``, filling in what the task decides and what the engine knows.

        Raises:
            ParameterError: an unknown parameter or an illegal value.
        """
        values = dict(params)
        for parameter, by_task in self.signature.by_task.items():
            if parameter not in values and task is not None and task in by_task:
                values[parameter] = by_task[task]
        for parameter, fact in self.signature.facts.items():
            if values.get(parameter) is None and fact in facts:
                values[parameter] = facts[fact]
        complete = validate(self.name, self.Params, values)
        named = {name: getattr(complete, name) for name in self.Params.model_fields}
        scheduled = [name for name, value in named.items() if isinstance(value, Schedule)]
        fixed = {*self.signature.facts, *(scheduled if self.kind in _ONCE else ())}
        for parameter in scheduled:
            if parameter in fixed:
                raise ParameterError(
                    f"{self.name}: {parameter} cannot follow a schedule: it is used once, before "
                    "training begins"
                )
        return complete

    def reads(self, params: BaseModel | None = None) -> frozenset[str]:
        """The fields that it needs at these parameters."""
        if self.reads_by is not None and params is not None:
            return frozenset(self.reads_by(params))
        return frozenset(self.fields)

    def returns_at(self, params: BaseModel) -> Returns | None:
        """What it returns at these parameters."""
        return self.returns(params) if callable(self.returns) else self.returns

    def soft_at(self, params: BaseModel | None = None) -> bool:
        """Whether it can do with probabilities of the classes, at these parameters or at some.

        It takes them as targets, or reads no targets; or it reads ``bag``, whose responses are
        such.
        """
        reads = self.reads(params) | set(self.optional_fields)
        if "targets" not in reads or "bag" in reads:
            return True
        if callable(self.soft_targets):
            return params is None or self.soft_targets(params)
        return self.soft_targets

    def build(
        self, *, task: str | None = None, facts: Mapping[str, Any] = {}, **params: Any
    ) -> Bound:
        """Bind it to its parameters; see :class:`Bound`."""
        return Bound(self, self.complete(params, task=task, facts=facts))


class Bound(nn.Module):
    """A component bound to its parameters, called with a mapping of batch fields.

    Fields that it does not read do no harm. State and learned parameters are those of the wrapped
    module, so they travel in ``state_dict`` and ``parameters()``. What follows a schedule has the
    value of the batch's ``step``; a module has it as the attribute of that name.

    Attributes:
        reads: The fields that it needs.
        schedules: The hyperparameters that change over training.

    Raises:
        ParameterError: a module keeps no attribute of a scheduled hyperparameter's name.
    """

    def __init__(self, component: Component, params: BaseModel) -> None:
        super().__init__()
        self.component = component
        self.params = params
        given = {name: getattr(params, name) for name in type(params).model_fields}
        self.schedules = {n: v for n, v in given.items() if isinstance(v, Schedule)}
        self._values = {name: plain(value) for name, value in given.items()}
        self.reads = component.reads(params) | (CLOCK if self.schedules else frozenset())
        self.module: nn.Module | None = (
            component.target(**self._values) if component.stateful else None
        )
        for name in self.schedules if self.module is not None else ():
            kept = getattr(self.module, name, None)
            if not (isinstance(kept, (int, float)) and kept == self._values[name]):
                raise ParameterError(
                    f"{component.name}: {name} cannot follow a schedule: the class uses it once, "
                    f"when it is built (an attribute self.{name}, read in forward(), would do)"
                )

    def forward(self, batch: Mapping[str, Any]) -> Any:
        """Call the component on the batch's fields; integer targets may be of any width.

        Raises:
            FieldError: the batch lacks a field that the component reads.
            NotFiniteError: a reweighting, a miner or a balancer is given losses or gradients of
                which one is NaN or infinite (looked at on the CPU only).
        """
        batch = with_indices(batch)
        if self.component.kind in _ACTING:
            refuse_not_finite(self.component.name, batch)
        signature = self.component.signature
        arguments: dict[str, Any] = {}
        named = signature.required + signature.optional
        for field in sorted(self.reads) if signature.whole_batch else named:
            if batch.get(field) is not None:
                arguments[field] = batch[field]
            elif field in self.reads or field in signature.required:
                raise self._lacking(field, batch)
        if signature.whole_batch:
            arguments = {WHOLE_BATCH: batch}
        if self.schedules:
            self._move_to(batch)
        if self.module is not None:
            return self.module(**arguments)
        return self.component.target(**arguments, **self._values)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "params": dict(self.params)}  # whose class has no module

    def __setstate__(self, state: dict[str, Any]) -> None:
        params = state["component"].Params.model_construct(**state["params"])
        super().__setstate__({**state, "params": params})

    def value(self, name: str, default: Any = None) -> Any:
        """A hyperparameter as it is now: where it follows a schedule, at the last batch's step."""
        return self._values.get(name, default)

    def _move_to(self, batch: Mapping[str, Any]) -> None:
        for field in sorted(CLOCK):
            if batch.get(field) is None:
                raise self._lacking(field, batch)
        for name, schedule in self.schedules.items():
            self._values[name] = schedule.value(batch["step"], batch["total_steps"])
            if self.module is not None:
                setattr(self.module, name, self._values[name])

    def _lacking(self, field: str, batch: Mapping[str, Any]) -> FieldError:
        have = sorted(k for k, v in batch.items() if v is not None)
        why = " for its schedule" if field in CLOCK and self.schedules else ""
        return FieldError(
            f"{self.component.name} reads '{field}'{why}, which the batch lacks"
            f"{did_you_mean(field, have) or '.'} It has: {', '.join(have) or 'nothing'}"
        )

    def start_epoch(self, epoch: int) -> None:
        """Tell a stateful component that an epoch begins, if it listens."""
        self._tell("start_epoch", epoch)

    def end_epoch(self, epoch: int) -> None:
        """Tell a stateful component that an epoch has ended, if it listens."""
        self._tell("end_epoch", epoch)

    def after_step(self) -> None:
        """Tell a stateful component that the optimizer has moved all parameters, if it listens."""
        self._tell("after_step")

    def _tell(self, event: str, *what: Any) -> None:
        listen = getattr(self.module, event, None)
        if callable(listen):
            listen(*what)

    def extra_repr(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in self._values.items())
        return f"{self.component.name}({shown})"


def component_of(target: Any) -> Component:
    """The component that a decorated function or class declares.

    Raises:
        PluginError: it was not decorated.
    """
    if isinstance(target, Component):
        return target
    found = vars(target).get(MARK) if hasattr(target, "__dict__") else None
    if not isinstance(found, Component):
        shown = getattr(target, "__name__", repr(target))
        raise PluginError(
            f"'{shown}' is not a component; decorate it with @lossearch.loss(...) or its kind"
        )
    return found
