"""Items of a torch dataset: which part is the input and which the target, and tensors of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from lossearch.components.inputs import Inputs, tensors
from lossearch.errors import DataError

TARGETS = ("labels", "label", "targets", "target", "y")  # as what a dict names its target
_WEIGHTS = ("sample_weight", "sample_weights")
_NO_WEIGHTS = (
    "weights of samples are not supported yet. Leave them out; a reweighting of the search space "
    "can weigh classes"
)


def parted(item: Any, position: int) -> tuple[Any, Any]:
    """An item's input and its target, ``None`` where it has none.

    Raises:
        DataError: it has more parts than these.
    """
    where = f"item {position} of the torch dataset"
    if isinstance(item, (tuple, list)):
        if not 1 <= len(item) <= 2:
            raise DataError(
                f"{where} has {len(item)} parts, and an item is (input, target). Of several "
                f"inputs make one part: ((a, b), target), or a dict. If the third is a weight: "
                f"{_NO_WEIGHTS}"
            )
        first, *rest = item
        return first, rest[0] if rest else None
    if not isinstance(item, Mapping):
        return item, None
    named = [name for name in TARGETS if name in item]
    if len(named) > 1:
        raise DataError(f"{where} has both '{named[0]}' and '{named[1]}'; keep its target alone")
    weight = next((name for name in _WEIGHTS if name in item), None)
    if weight is not None:
        raise DataError(f"{where} has '{weight}'; {_NO_WEIGHTS}")
    inputs = {name: part for name, part in item.items() if name not in named}
    only = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return only, item[named[0]] if named else None


def several(value: Any) -> bool:
    """Whether an input is several: by name, or in order."""
    return isinstance(value, Mapping) or (
        isinstance(value, (tuple, list))
        and len(value) > 0
        and all(isinstance(part, (Tensor, np.ndarray)) and part.ndim for part in value)
    )


def as_inputs(value: Any, position: int, *, whole: bool = False) -> Inputs:
    """An item's input as tensors.

    Args:
        value: One array becomes float32. Of several, whole numbers become int64, truth values stay
            and all others become float32.
        position: Which item it is.
        whole: One array is to become int64.

    Raises:
        DataError: a part is no number, or not finite.
    """
    where = f"the input of item {position} of the torch dataset"
    if isinstance(value, Mapping):
        return {str(n): _tensor(v, f"'{n}', in {where},", None) for n, v in value.items()}
    if several(value):
        return tuple(_tensor(v, f"part {i} of {where}", None) for i, v in enumerate(value))
    return _tensor(value, where, torch.int64 if whole else torch.float32)


def kept_type(values: Tensor) -> torch.dtype:
    """The type that one of several inputs has in a batch."""
    if values.is_floating_point() or values.dtype == torch.uint8:
        return torch.float32
    return torch.bool if values.dtype == torch.bool else torch.int64


def _tensor(value: Any, where: str, dtype: torch.dtype | None) -> Tensor:
    try:
        values = torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"{where} is a {type(value).__name__}; make a tensor of it in the dataset, or leave "
            "it out"
        ) from None
    values = values.to(kept_type(values) if dtype is None else dtype)
    bad = int((~values.isfinite()).sum())
    if bad:
        raise DataError(
            f"{where} holds {bad} values that are NaN or infinite; fill them in, or leave the "
            "item out"
        )
    return values


Shapes = Sequence[tuple[int, ...]]


def shapes_of(inputs: Inputs) -> Shapes:
    """The shape of each tensor."""
    return [tuple(tensor.shape) for tensor in tensors(inputs)]


def refuse_unequal(one: Shapes, other: Shapes, names: tuple[str, str]) -> None:
    """Refuse samples of which one is longer than the other.

    Raises:
        DataError: they differ in a shape.
    """
    if list(one) == list(other):
        return
    pairs = zip(one, other, strict=False)
    first, second = next((pair for pair in pairs if pair[0] != pair[1]), (one, other))
    raise DataError(
        f"{names[0]} has the shape {first} and {names[1]} {second}, and a batch holds samples of "
        f"one shape. Sequences bring to one length: pad them with 0 (torch.nn.utils.rnn."
        "pad_sequence) and tell the network which places count, by inputs such as {'input_ids': "
        "..., 'attention_mask': ...}. Images resize in the dataset"
    )


def collated(samples: Sequence[Inputs]) -> Inputs:
    """A batch of samples.

    Raises:
        DataError: they do not have one shape.
    """
    try:
        batch = default_collate(list(samples))
    except (RuntimeError, KeyError):
        for sample in samples[1:]:
            refuse_unequal(shapes_of(samples[0]), shapes_of(sample), ("an item", "another"))
        raise
    return tuple(batch) if isinstance(batch, list) else batch
