"""The decorators that turn a function or a module class into a component.

Each returns what it was given, unchanged: a decorated loss is still the plain function that it
was, with its own types, and can be called, pickled and tested as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from lossearch.components.component import MARK, Component, Kind, Paper, Returns
from lossearch.components.fields import TASKS
from lossearch.errors import PluginError, did_you_mean

T = TypeVar("T", bound=Callable[..., Any])
Tasks = str | tuple[str, ...]
Reads = Callable[[BaseModel], Iterable[str]]


def loss(
    *,
    task: Tasks,
    name: str | None = None,
    returns: Returns | Callable[[BaseModel], Returns] = "per_sample",
    auxiliary: bool = False,
    soft_targets: bool | Callable[[BaseModel], bool] = False,
    paper: Paper | None = None,
    vmap: bool | str | None = None,
    reads: Reads | None = None,
    cost: str = "",
    skips: Mapping[str, str] = {},
) -> Callable[[T], T]:
    """Declare a loss: batch fields in, unreduced values out.

    Args:
        task: The task or tasks that it serves (``multiclass``, ``binary``, ...).
        name: Its name; the function's own where left out. A class needs one.
        returns: ``per_sample`` [B], ``per_anchor``, ``per_pair``, or ``batch`` (a scalar that no
            sample weight can reach); a callable decides by the parameters.
        auxiliary: It only accompanies another loss.
        soft_targets: It also takes the classes' probabilities as targets: float ``[B, C]`` of sum
            1 (multiclass), ``[B]`` in [0, 1] (binary); at one-hot rows its value is that at the
            class. A callable decides by the parameters.
        paper: Its source.
        vmap: Whether ``torch.func.vmap`` may run it; functions by default, classes not. Text says
            no, and why.
        reads: Which fields it reads, where that depends on the parameters.
        cost: What it costs beyond one forward and backward, in words.
        skips: Conformance checks that do not apply to it by design: name to reason.
    """
    return _declare(
        "loss", task, name, vmap,
        returns=returns, auxiliary=auxiliary, soft_targets=soft_targets, paper=paper,
        reads_by=reads, cost=cost, skips=skips,
    )  # fmt: skip


def reweighting(
    *,
    task: Tasks = TASKS,
    name: str | None = None,
    paper: Paper | None = None,
    vmap: bool | str | None = None,
    reads: Reads | None = None,
    cost: str = "",
    skips: Mapping[str, str] = {},
) -> Callable[[T], T]:
    """Declare a reweighting: fields (``losses`` [B] among them) to weights [B] of mean 1."""
    return _declare(
        "reweighting", task, name, vmap, paper=paper, reads_by=reads, cost=cost, skips=skips
    )


def miner(
    *,
    task: Tasks = TASKS,
    name: str | None = None,
    returns: Returns = "mask",
    paper: Paper | None = None,
    vmap: bool | str | None = None,
    reads: Reads | None = None,
    cost: str = "",
    skips: Mapping[str, str] = {},
) -> Callable[[T], T]:
    """Declare a miner: fields to a bool mask [B] over ``losses``, or a ``selection`` of pairs."""
    return _declare(
        "miner", task, name, vmap,
        returns=returns, paper=paper, reads_by=reads, cost=cost, skips=skips,
    )  # fmt: skip


def balancer(
    *,
    task: Tasks = TASKS,
    name: str | None = None,
    paper: Paper | None = None,
    vmap: bool | str | None = None,
    reads: Reads | None = None,
    cost: str = "",
    skips: Mapping[str, str] = {},
) -> Callable[[T], T]:
    """Declare a balancer of several terms.

    One that reads ``losses`` [K] returns the scalar to minimise. One that reads ``gradients``
    [K, ...] returns the combined gradient; its hyperparameter ``at`` says of what: ``parameters``
    ([K, P], over the model's parameters) or ``output`` ([K, B, ...], at the model's output).
    """
    return _declare(
        "balancer", task, name, vmap, paper=paper, reads_by=reads, cost=cost, skips=skips
    )


def metric(
    *,
    task: Tasks,
    name: str | None = None,
    maximize: bool = True,
    paper: Paper | None = None,
) -> Callable[[T], T]:
    """Declare a metric: fields of a whole split (on the CPU, float64) to one number."""
    return _declare("metric", task, name, False, maximize=maximize, paper=paper)


def provider(
    *, gives: str | tuple[str, ...], name: str | None = None, cost: str = ""
) -> Callable[[T], T]:
    """Declare a provider: fields to one further field, or to a tuple in the order of ``gives``."""
    given = (gives,) if isinstance(gives, str) else gives
    return _declare("provider", TASKS, name, False, gives=given, cost=cost)


def dataset(*, task: Tasks = TASKS, name: str | None = None) -> Callable[[T], T]:
    """Declare a dataset: keyword-only parameters to a :class:`lossearch.data.Dataset`."""
    return _declare("dataset", task, name, False)


def model(*, task: Tasks = TASKS, name: str | None = None) -> Callable[[T], T]:
    """Declare a model: ``data`` (a :class:`lossearch.data.DataInfo`) to an ``nn.Module``."""
    return _declare("model", task, name, False)


def _declare(
    kind: Kind, task: Tasks, name: str | None, vmap: bool | str | None, **traits: Any
) -> Callable[[T], T]:
    for each in (task,) if isinstance(task, str) else task:
        if each not in TASKS:
            raise PluginError(
                f"there is no task '{each}'{did_you_mean(each, TASKS) or '.'} "
                f"Tasks: {', '.join(TASKS)}"
            )

    def mark(target: T) -> T:
        is_class = isinstance(target, type)
        if is_class and name is None:
            raise PluginError(f"class {target.__name__} needs a name: @{kind}(name=...)")
        component = Component(
            name=name or target.__name__,
            kind=kind,
            target=target,
            task=task,
            vmappable=(not is_class) if vmap is None else vmap is True,
            no_vmap=vmap if isinstance(vmap, str) else "it has state of its own",
            **traits,
        )
        _ = component.signature  # a wrong declaration is an error where it stands
        setattr(target, MARK, component)
        return target

    return mark
