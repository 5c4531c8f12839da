"""What is under check: a component, for one of its tasks, at one set of hyperparameters."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from lossearch.components import Bound, Component
from lossearch.errors import LossearchError
from lossearch.testing import batches


class CheckFailure(AssertionError):
    """A component breaks a rule; the message says which, where, and what usually helps."""


@dataclass(frozen=True)
class Subject:
    """A component to be called again and again, each time as if for the first time.

    Attributes:
        component: The component.
        task: Which of its tasks.
        values: Hyperparameters other than the defaults.
        terms: Number of terms, for a balancer.
    """

    component: Component
    task: str
    values: Mapping[str, Any] = field(default_factory=dict)
    terms: int = 2

    @property
    def label(self) -> str:
        several = len(self.component.tasks) > 1 and self.component.kind != "balancer"
        given = ", ".join(f"{k}={v!r}" for k, v in self.values.items())
        return (
            self.component.name
            + (f"({given})" if given else "")
            + (f" [{self.task}]" if several else "")
        )

    @cached_property
    def params(self) -> BaseModel:
        return self.component.complete(
            self.values, task=self.task, facts=batches.facts(self.task, self.terms)
        )

    @cached_property
    def bound(self) -> Bound:
        with self.reporting("cannot be built"):
            return Bound(self.component, self.params)

    def fresh(self) -> Bound:
        """A copy in training mode, of which nobody has made use."""
        fixed = {
            id(m.component): m.component for m in self.bound.modules() if isinstance(m, Bound)
        }
        return copy.deepcopy(self.bound, fixed).train()

    def batch(self, **options: Any) -> dict[str, Any]:
        with self.reporting("has no example batch"):
            return batches.example(
                self.component, self.task, self.params, terms=self.terms, **options
            )

    def __call__(self, batch: Mapping[str, Any], what: str = "an ordinary batch") -> Any:
        """Its result on the batch, from a fresh copy.

        Raises:
            CheckFailure: it raised.
        """
        return self.run(self.fresh(), batch, what)

    def run(self, bound: Callable[..., Any], batch: Mapping[str, Any], what: str) -> Any:
        with self.reporting(f"raises on {what}"):
            return bound(dict(batch))

    def slopes(
        self, batch: Mapping[str, Any], what: str = "an ordinary batch"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Its value, and the slope of its sum at each output that it reads."""
        inputs, leaves = batches.differentiable(batch)
        bound = self.fresh()
        value = self.run(bound, inputs, what)
        self.expect(isinstance(value, Tensor), f"returns {type(value).__name__}, not a tensor")
        if not value.requires_grad:
            return value, {}
        with self.reporting(f"raises in its backward pass on {what}"):
            found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        return value, {k: g for k, g in zip(leaves, found, strict=True) if g is not None}

    def expect(self, holds: Any, problem: str, hint: str = "") -> None:
        """Raise a failure that reads ``<component> <problem>`` unless it holds."""
        if not holds:
            raise CheckFailure(f"{self.label} {problem}" + (f".\n  {hint}" if hint else ""))

    def expect_finite(self, tensor: Tensor, what: str, hint: str = "") -> None:
        bad = ~torch.isfinite(tensor.detach())
        if bad.any():
            kind = "a NaN" if tensor.detach()[bad].isnan().any() else "an infinite"
            where = f"{int(bad.sum())} of {bad.numel()} entries"
            self.expect(False, f"has {kind} {what} ({where})", hint)

    def reporting(self, problem: str) -> _Reporting:
        """Turn whatever is raised inside into a :class:`CheckFailure` that says where."""
        return _Reporting(self, problem)


class _Reporting:
    def __init__(self, subject: Subject, problem: str) -> None:
        self.subject, self.problem = subject, problem

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, CheckFailure) or not isinstance(error, Exception):
            return
        text = str(error).strip() or type(error).__name__
        if not isinstance(error, LossearchError):
            text = f"{type(error).__name__}: {text.splitlines()[0]}"
        where = _where(self.subject.component, error)
        raise CheckFailure(f"{self.subject.label} {self.problem}{where}: {text}") from error


def _where(component: Component, error: Exception) -> str:
    """The line of the component's own file that raised, if one did."""
    try:
        source = inspect.getsourcefile(component.target)
    except TypeError:
        return ""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == source]
    return f" (line {lines[-1]} of {source})" if lines else ""
