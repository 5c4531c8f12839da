"""What a network is given: one tensor, or several by name or in order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Inputs = Tensor | Mapping[str, Tensor] | tuple[Tensor, ...]


def each(change: Callable[[Tensor], Any], inputs: Inputs) -> Any:
    """The same with every tensor changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: change(tensor) for name, tensor in inputs.items()}
    return tuple(change(tensor) for tensor in inputs)


def tensors(inputs: Inputs) -> list[Tensor]:
    """All of them, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def fed(module: nn.Module, inputs: Inputs) -> Any:
    """What a module gives for these inputs: names become keywords, a tuple positions.

    A module whose arguments they do not fit is given the mapping or the tuple as it is.
    """
    if isinstance(inputs, Tensor):
        return module(inputs)
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    placed = () if isinstance(inputs, Mapping) else inputs
    try:
        # what wraps a module takes everything, and hands it on
        inspect.signature(getattr(module, "wrapped", module).forward).bind(*placed, **named)
    except TypeError:
        return module(inputs)
    return module(*placed, **named)


def without_several(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as components read it, whose field ``inputs`` is one tensor or missing."""
    if not isinstance(batch.get("inputs"), (Tensor, type(None))):
        del batch["inputs"]
    return batch


def described(inputs: Inputs) -> str:
    """Types and shapes in words: ``{input_ids: int64 [B, 16], mask: bool [B, 16]}``."""
    if isinstance(inputs, Tensor):
        shape = ", ".join(["B", *map(str, inputs.shape[1:])])
        return f"{str(inputs.dtype).removeprefix('torch.')} [{shape}]"
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{n}: {described(t)}" for n, t in inputs.items()) + "}"
    return "(" + ", ".join(map(described, inputs)) + ")"
