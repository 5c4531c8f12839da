"""Whether a component, or a whole objective, can be trained here; each reason in words."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from pydantic import BaseModel

from lossearch.components import FIELDS, Component
from lossearch.components.schedule import plain
from lossearch.errors import InfeasibleError, LossearchError, did_you_mean
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec

# What the objective itself makes for the components that act on losses.
INTERNAL = frozenset({"losses", "gradients", "selection"})
# Stands among the fields where the embeddings are a frozen backbone's, which nothing changes.
FIXED_EMBEDDINGS = "embeddings, fixed"
# Stands among them where training targets are probabilities of the classes.
SOFT_TARGETS = "targets, soft"


def component_problem(
    component: Component, task: str, available: Set[str], params: BaseModel | None = None
) -> str | None:
    """Why a component cannot be used for this task with these fields, or ``None``."""
    if task not in component.tasks:
        return f"serves {' and '.join(component.tasks)}, not {task}"
    missing = sorted(component.reads(params) - available - INTERNAL)
    if missing:
        field = missing[0]
        if field not in FIELDS:
            hint = did_you_mean(field, [*FIELDS, *available])
            return f"reads '{field}', which is not a known field{hint}"
        return f"reads '{field}' ({FIELDS[field][1]}), which nothing here provides"
    learns = {"logits", "weight", "predictions", "model"}
    if component.kind == "loss" and FIXED_EMBEDDINGS in available:
        reads = component.reads(params)
        if "embeddings" in reads and not learns & reads:
            return "acts on the embeddings alone, and those of a frozen backbone never change"
    soft = component.kind == "loss" and SOFT_TARGETS in available
    if soft and not component.soft_at(params):
        return (
            "takes one class a sample, and the training targets are probabilities of the classes "
            "(soft labels)"
        )
    return None


def acting_problem(
    loss: Component, params: BaseModel, place: str, acting: Component
) -> str | None:
    """Why a reweighting or a miner cannot act on this loss, or ``None``."""
    if loss.returns_at(params) == "batch":
        return (
            f"{loss.name} exists only for the whole batch, so the {place} {acting.name} cannot "
            "reach its samples"
        )
    if loss.returns_at(params) == "per_pair" and acting.returns != "selection":
        return (
            f"{loss.name} returns a value for each pair, and the {place} {acting.name} is for "
            "one a sample; take a miner of pairs, or leave it out"
        )
    takes_pairs = "selection" in loss.reads(params) | set(loss.optional_fields)
    if acting.returns == "selection" and not takes_pairs:
        return f"the miner {acting.name} selects pairs, which {loss.name} does not read"
    return None


def objective_problems(
    spec: ObjectiveSpec, registry: Registry, available: Set[str], facts: dict[str, Any] = {}
) -> list[str]:
    """Every reason why an objective cannot be trained here; empty where it can."""
    problems: list[str] = []
    weights = [plain(term.weight) for term in spec.terms]
    facts = {**facts, "num_terms": len(spec.terms), "term_weights": weights}
    built: dict[str, tuple[Component, BaseModel]] = {}
    for path, each in spec.components():
        try:
            component = registry.get(each.name, kind=path.rsplit(".", 1)[-1])
            params = component.complete(each.params, task=spec.task, facts=facts)
            problem = component_problem(component, spec.task, available, params)
        except LossearchError as error:
            problems.append(str(error))
            continue
        if problem:
            problems.append(f"{each.name} {problem}")
        built[path] = (component, params)
    for number in range(len(spec.terms)):
        loss = built.get(f"terms.{number}.loss")
        if loss is None:
            continue
        for place in ("reweighting", "miner"):
            acting = built.get(f"terms.{number}.{place}")
            problem = acting_problem(*loss, place, acting[0]) if acting else None
            if problem:
                problems.append(problem)
        miner = built.get(f"terms.{number}.miner")
        mines_pairs = miner is not None and miner[0].returns == "selection"
        if "selection" in loss[0].reads(loss[1]) and not mines_pairs:
            problems.append(f"{loss[0].name} reads 'selection': give its term a miner of pairs")
    return problems


def read_objective(
    document: Any,
    where: str,
    task: str,
    *,
    registry: Registry,
    available: Set[str],
    facts: dict[str, Any],
) -> ObjectiveSpec:
    """An objective that somebody wrote down, where it can be trained here.

    Args:
        document: Its document, or what stands in the place of one.
        where: Where it stands, for messages.
        task: The data's, and the objective's where it names none.
        registry: Where its components are looked up.
        available: The fields that a batch holds here.
        facts: What components may know.

    Raises:
        SpecError: it is no objective.
        InfeasibleError: it cannot be trained here.
    """
    if isinstance(document, Mapping):
        document = {"task": task, **document}
    spec = ObjectiveSpec.parse(document, where)
    if spec.task != task:
        raise InfeasibleError(f"{where} is {spec.task}; the data is {task}")
    problems = objective_problems(spec, registry, available, facts)
    if problems:
        raise InfeasibleError(f"{where}: {'; '.join(problems)}")
    return spec
