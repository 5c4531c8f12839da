"""Losses inside a loss: a wrapper's members, given as specs, made ready as the engine would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel

import lossearch
from lossearch import ByTask, Component, Given
from lossearch.errors import ParameterError

Spec = str | dict[str, Any]
StudyTask = Annotated[
    Literal["multiclass", "binary", "multilabel"] | None,
    ByTask(multiclass="multiclass", binary="binary", multilabel="multilabel"),
]
NumClasses = Annotated[int | None, Given("num_classes")]
TrainSize = Annotated[int | None, Given("train_size")]


def resolve(
    owner: str,
    members: Sequence[Spec],
    task: str | None,
    seed: int,
    facts: Mapping[str, int | None],
) -> list[tuple[Component, BaseModel]]:
    """Each member's component and its parameters.

    Args:
        owner: The wrapper's name, for messages.
        members: Losses: a name, or a mapping of ``name`` and parameters.
        task: The task, for defaults that depend on it.
        seed: The wrapper's; each member gets another.
        facts: What members may need to know, where it is known.

    Raises:
        ParameterError: a member is no loss, does not serve the task, has a prediction rule of its
            own, or has a bad parameter.
        UnknownNameError: nothing answers to its name.
    """
    known = {fact: value for fact, value in facts.items() if value is not None}
    resolved = []
    for position, spec in enumerate(members, start=1):
        params = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = params.pop("name", None)
        if not isinstance(name, str):
            raise ParameterError(f"{owner}: member {spec!r} has no 'name'")
        component = lossearch.get(name)
        if component.kind != "loss":
            raise ParameterError(
                f"{owner}: '{name}' is a {component.kind}; its members are losses"
            )
        if task is not None and task not in component.tasks:
            raise ParameterError(
                f"{owner}: '{name}' serves {', '.join(component.tasks)}, not {task}"
            )
        if hasattr(component.target, "predictions"):
            raise ParameterError(
                f"{owner}: '{name}' has a prediction rule of its own, which would be lost here; "
                "take it alone, or another member"
            )
        known["seed"] = seed + position  # two random members must not draw alike
        resolved.append((component, component.complete(params, task=task, facts=known)))
    return resolved
