"""The checks that a component has to pass, and a run over all of them.

A component that must break one, and says why, opts out in its decorator:

.. code-block:: python

    @loss(task="binary", skips={"gradcheck": "the weight is held constant by design"})
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from lossearch.components import Component, component_of
from lossearch.errors import unknown
from lossearch.testing import common_checks, loss_checks, other_checks, weight_checks
from lossearch.testing.common_checks import Rule
from lossearch.testing.subject import CheckFailure, Subject

Check = Callable[[], None]

_RULES: dict[str, Callable[[Subject], Iterator[tuple[str, Rule]]]] = {
    "loss": loss_checks.rules,
    "reweighting": weight_checks.reweighting_rules,
    "miner": weight_checks.miner_rules,
    "balancer": other_checks.balancer_rules,
    "metric": other_checks.metric_rules,
}


@dataclass(frozen=True)
class CheckResult:
    """How a check ended; ``message`` says why it failed, or why it was skipped."""

    name: str
    ok: bool
    message: str
    seconds: float
    skipped: bool = False


def checks(component: Any) -> Iterator[tuple[str, Check]]:
    """The checks of a component: a name, and a function that raises where it fails.

    Args:
        component: A decorated function or class, or its :class:`~lossearch.Component`. One that
            serves several tasks is checked for each, and the task stands behind the name.

    Raises:
        PluginError: it is not a component.
        CheckFailure: it opts out of a check that does not exist.
    """
    found = component_of(component)
    names: set[str] = set()
    for subject in _subjects(found):
        rules = _RULES.get(found.kind, _only_parameters)(subject)
        suffix = f" [{subject.task}]" if _by_task(found) else ""
        for name, rule in rules:
            names.add(name)
            yield name + suffix, partial(rule, subject)
    for name in found.skips:
        if name.split(" [")[0] not in names:
            raise CheckFailure(f"{found.name}: skips: {unknown('check', name, names)}")


def skip_reason(component: Component, name: str) -> str | None:
    """Why the component opts out of this check, if it does."""
    return component.skips.get(name) or component.skips.get(name.split(" [")[0])


def run_checks(component: Any) -> list[CheckResult]:
    """Run every check of a component.

    Raises:
        PluginError: it is not a component.
    """
    found = component_of(component)
    results: list[CheckResult] = []
    try:
        for name, check in checks(found):
            results.append(_run(found, name, check))
    except CheckFailure as failure:
        results.append(CheckResult("checks", False, str(failure), 0.0))
    return results


def _run(component: Component, name: str, check: Check) -> CheckResult:
    reason = skip_reason(component, name)
    if reason is not None:
        return CheckResult(name, True, reason, 0.0, skipped=True)
    start = time.perf_counter()
    message = ""
    try:
        check()
    except CheckFailure as failure:
        message = str(failure)
    except Exception as error:  # it returned what the check could not even look at
        message = f"{component.name} breaks the check itself: {type(error).__name__}: {error}"
    return CheckResult(name, not message, message, time.perf_counter() - start)


def _subjects(component: Component) -> Iterator[Subject]:
    for task in component.tasks if _by_task(component) else component.tasks[:1]:
        yield Subject(component, task)


def _by_task(component: Component) -> bool:
    """Whether the task changes what it is given; a balancer sees terms, whatever the task."""
    return len(component.tasks) > 1 and component.kind not in ("balancer", "dataset", "provider")


def _only_parameters(subject: Subject) -> Iterator[tuple[str, Rule]]:
    yield "parameters round trip", common_checks.parameters_round_trip
