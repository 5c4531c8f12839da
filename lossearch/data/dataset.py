"""What a dataset component returns: all samples, not yet split; and the way there from arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from lossearch.components import TASKS
from lossearch.data.items import TARGETS, as_inputs, parted, refuse_unequal, shapes_of
from lossearch.errors import DataError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageFiles(TorchDataset[Any]):
    """Image files by their paths; an item is the decoded RGB image."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Image:
        from PIL import Image

        path = self.paths[position]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"image {path} cannot be read ({error}); repair it or take it out of the folder"
            ) from None


OneInput = np.ndarray | Tensor | pd.DataFrame | TorchDataset[Any]
Inputs = OneInput | Mapping[str, OneInput] | tuple[OneInput, ...]


@dataclass
class Dataset:
    """What a dataset component returns: all samples, not yet split.

    Attributes:
        inputs: An array or tensor ``(samples, ...)`` (8-bit ones of three or four dimensions are
            images), a table, image files, or a map-style torch dataset whose items are the input
            or begin with it. Arrays are used as they are; tables are imputed, standardised and
            encoded on the training split. A mapping or a tuple of such gives a network several
            inputs, as keywords or in order.
        targets: One label for each sample: whole numbers or text for classes, ``(samples,
            labels)`` of 0 and 1 (-1 unknown) for multilabel, real numbers for regression.
        task: ``multiclass``, ``binary``, ``multilabel`` or ``regression``; where left out, what
            the targets suggest.
        class_names: The classes that whole-number targets count, in order. Without them the
            classes are the values that occur.
        test: Inputs and targets of the test part, for datasets that come with one.
        image_size: Side in pixels that images of files are brought to; where left out, that of
            the first image, at most 224.
        augment: Whether training images are cropped and flipped at random.
        notes: What a person should know of the reading, a sentence each: what was guessed, left
            out or changed. They go to the terminal, the report and ``lossearch data``.
    """

    inputs: Inputs
    targets: Any
    task: str | None = None
    class_names: tuple[str, ...] = ()
    test: tuple[Inputs, Any] | None = None
    image_size: int | None = None
    augment: bool = True
    notes: tuple[str, ...] = ()


def as_dataset(
    data: Any,
    targets: Any = None,
    task: str | None = None,
    *,
    class_names: tuple[str, ...] = (),
    test: Any = None,
) -> Dataset:
    """A dataset from what a user has at hand.

    Args:
        data: An array or tensor, a mapping or a tuple of several, an ``(inputs, targets)`` pair,
            a data frame, a map-style torch dataset of ``(input, target)`` items or of dicts with
            a ``label``, a ``DataLoader`` of one, or a :class:`Dataset`, which is returned.
        targets: The labels; for a data frame also the name of their column.
        task: ``multiclass``, ``binary``, ``multilabel`` or ``regression``; where left out, what
            the labels suggest.
        class_names: Names of the classes 0, 1, ....
        test: A test part of the same form as ``data``, if there is a fixed one.

    Raises:
        DataError: there are no labels, no such column, or the data is of another kind.
    """
    if task is not None and task not in TASKS:
        raise DataError(unknown("task", task, TASKS))
    if isinstance(data, Dataset):
        return replace(data, task=task) if task else data
    notes = () if not isinstance(data, DataLoader) else (_unused(data),)
    inputs, labels = _pair(data, targets)
    fixed = None
    if test is not None:
        fixed = _pair(test, targets if isinstance(targets, str) else None)
    return Dataset(inputs, labels, task, tuple(class_names), fixed, notes=notes)


def _unused(loader: DataLoader[Any]) -> str:
    """What a study does not take of a loader, in words."""
    sampler = type(loader.sampler).__name__
    return (
        f"of the DataLoader the dataset is taken; its batch_size ({loader.batch_size}), its "
        f"{sampler} and its workers are not: training.batch_size says how large batches are, and "
        "the order is shuffled"
    )


def _in_loader(loader: DataLoader[Any]) -> TorchDataset[Any]:
    """A loader's dataset.

    Raises:
        DataError: batches are made by the user's own function.
    """
    if loader.collate_fn is not default_collate:
        name = getattr(loader.collate_fn, "__name__", type(loader.collate_fn).__name__)
        raise DataError(
            f"the DataLoader makes its batches by a collate_fn of its own ({name}), which a study "
            "does not call. Do what it does in the dataset's __getitem__ (pad all items to one "
            "length), and pass the dataset"
        )
    return loader.dataset


def _pair(data: Any, targets: Any) -> tuple[Inputs, Any]:
    """Inputs and labels of one part."""
    if isinstance(data, DataLoader):
        data = _in_loader(data)
    if isinstance(data, tuple) and targets is None:
        if len(data) != 2:
            raise DataError(f"a pair (inputs, targets) is wanted, not a tuple of {len(data)}")
        return _pair(*data)
    if isinstance(data, pd.DataFrame) and isinstance(targets, str):
        if targets not in data.columns:
            raise DataError(unknown("column", targets, map(str, data.columns)))
        return data.drop(columns=targets), data[targets]
    if isinstance(data, TensorDataset) and len(data.tensors) == 2 and targets is None:
        return data.tensors
    if isinstance(data, TorchDataset):
        return data, _targets_of(data) if targets is None else targets
    if targets is None:
        raise DataError(
            f"there are no targets for this {type(data).__name__}; pass targets=..., for a data "
            "frame the name of their column"
        )
    if isinstance(data, Mapping):
        return {str(name): _one_input(part) for name, part in data.items()}, targets
    arrays = isinstance(data, tuple) and all(isinstance(part, _ARRAYS) for part in data)
    if arrays and {len(part) for part in data} == {len(targets)}:  # and not samples in a tuple
        return data, targets
    return _one_input(data), targets


_ARRAYS = (np.ndarray, Tensor, pd.DataFrame, TorchDataset)


def _one_input(data: Any) -> OneInput:
    if isinstance(data, _ARRAYS):
        return data
    if isinstance(data, (list, tuple)):
        _refuse_ragged(data)
    try:
        inputs = np.asarray(data)
    except ValueError as error:
        raise DataError(f"the inputs are not an array: {error}") from None
    if inputs.dtype == object or inputs.ndim == 0:
        raise DataError(
            f"inputs of type {type(data).__name__} are not understood; pass an array, a tensor, a "
            "data frame or a map-style torch dataset"
        )
    return inputs


def _refuse_ragged(data: Sequence[Any]) -> None:
    """Samples in a list must be of one length."""
    lengths = [np.shape(x) if hasattr(x, "shape") else (len(x),) for x in data
               if hasattr(x, "__len__") and not isinstance(x, str)]  # fmt: skip
    other = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
    if other is not None:
        refuse_unequal(lengths[:1], [lengths[other]], ("sample 0", f"sample {other}"))


def length(inputs: Inputs) -> int:
    """How many samples there are.

    Raises:
        DataError: that cannot be known, or several inputs differ in it.
    """
    if isinstance(inputs, (Mapping, tuple)):
        names = inputs if isinstance(inputs, Mapping) else range(len(inputs))
        parts = inputs.values() if isinstance(inputs, Mapping) else inputs
        each = {str(name): length(part) for name, part in zip(names, parts, strict=True)}
        if len(set(each.values())) != 1:
            words = ", ".join(f"{number} of '{name}'" for name, number in each.items())
            raise DataError(f"each input needs one row a sample, and there are {words or 'none'}")
        return next(iter(each.values()))
    if not hasattr(inputs, "__len__"):
        raise DataError("inputs have no length; a map-style dataset is wanted")
    return len(inputs)  # pyright: ignore[reportArgumentType]


def _targets_of(data: TorchDataset[Any]) -> Any:
    """A torch dataset's labels: its attribute ``targets`` or ``labels``, else of the items."""
    if not hasattr(data, "__len__"):
        raise DataError("an iterable dataset cannot be split; pass a map-style one (with __len__)")
    found = _attribute(data)
    if found is not None:
        return found
    labels: list[Any] = []
    shapes: Any = None
    for position in range(len(data)):  # pyright: ignore[reportArgumentType]
        value, label = parted(data[position], position)
        if label is None:
            raise DataError(
                f"item {position} of the torch dataset is a {type(value).__name__}, not an "
                f"(input, target) pair or a dict with one of {', '.join(TARGETS)}; pass "
                "targets=..."
            )
        labels.append(label)
        if not hasattr(value, "convert") and not isinstance(value, str):  # all are read anyway
            of_item = shapes_of(as_inputs(value, position))
            shapes = of_item if shapes is None else shapes
            refuse_unequal(shapes, of_item, ("item 0", f"item {position} of the torch dataset"))
    if labels and isinstance(labels[0], Tensor):
        return torch.stack(labels)
    return np.asarray(labels)


def _attribute(data: Any) -> Any:
    """A torch dataset's labels where it holds them itself."""
    if isinstance(data, Subset):
        found = _attribute(data.dataset)
        return None if found is None else np.asarray(found)[np.asarray(data.indices)]
    for name in ("targets", "labels", "_labels"):
        found = getattr(data, name, None)
        if found is not None and not callable(found):
            return found
    return None
