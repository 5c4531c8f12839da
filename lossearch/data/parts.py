"""Checking a dataset's inputs, and loading those of each part."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lossearch.components.inputs import tensors as tensors_of
from lossearch.data.columns import Table, unique_names
from lossearch.data.dataset import Dataset, ImageFiles
from lossearch.data.inputs import (
    Images,
    Items,
    Source,
    Tensors,
    decode,
    item_array,
    item_input,
)
from lossearch.data.items import (
    Shapes,
    as_inputs,
    kept_type,
    refuse_unequal,
    several,
    shapes_of,
)
from lossearch.data.pixels import channels_first, dark_note, deep_note, image_notes, images_of
from lossearch.data.reading import Reading, listed
from lossearch.data.several import Several
from lossearch.data.tables import TableEncoder
from lossearch.errors import DataError

logger = logging.getLogger(__name__)
KEPT_BYTES = 512 * 2**20  # images of up to this size, decoded, are kept in memory
LOOKED_AT = 256  # images of a larger set that are read once to say what they are
ITEMS_LOOKED_AT = 16  # items of a torch dataset that are read before training
LARGE = 100  # values above it train badly where nothing scales them
Kind = Literal["table", "image", "other", "tokens", "several"]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
Parts = Sequence[tuple[Any, np.ndarray]]


@dataclass
class Loaded:
    """The inputs of all parts, what is known of them, and what was done in reading them."""

    sources: list[Source]
    shape: tuple[int, ...]
    kind: Kind
    digest: str
    table: TableEncoder | None = None
    reading: Reading | None = None
    notes: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def load_parts(dataset: Dataset, parts: Parts, *, one_of_several: bool = False) -> Loaded:
    """Load the inputs of each part: a collection of inputs, and which rows of it.

    Args:
        dataset: Where they are from.
        parts: The collections and rows.
        one_of_several: Arrays of whole numbers stay such, and may hold one for each sample.

    Raises:
        DataError: inputs that are not usable, and why.
    """
    first = parts[0][0]
    if isinstance(first, (Mapping, tuple)) and not one_of_several:
        return _several(dataset, parts)
    for name, (inputs, _) in zip(PARTS, parts, strict=True):
        if isinstance(inputs, (np.ndarray, Tensor)) != isinstance(first, (np.ndarray, Tensor)) or (
            isinstance(inputs, pd.DataFrame) != isinstance(first, pd.DataFrame)
        ):
            raise DataError(
                f"the inputs are a {type(first).__name__} and those of the {name} part a "
                f"{type(inputs).__name__}; they must be of one kind"
            )
    if isinstance(first, pd.DataFrame):
        return _tables(parts)
    if isinstance(first, (np.ndarray, Tensor)):
        return _arrays(dataset, parts, one_of_several)
    if isinstance(first, TorchDataset):
        return _items(dataset, parts, one_of_several)
    raise DataError(
        f"inputs of type {type(first).__name__} are not understood; pass an array, a tensor, a "
        "data frame, image files or a map-style torch dataset"
    )


def _several(dataset: Dataset, parts: Parts) -> Loaded:
    """Inputs by name or in order, each loaded as if it were alone."""
    first, named = parts[0][0], isinstance(parts[0][0], Mapping)
    keys: Sequence[Any] = list(first) if named else range(len(first))
    for inputs, _ in parts:
        if isinstance(inputs, Mapping) != named or len(inputs) != len(keys) or (
            named and set(inputs) != set(keys)
        ):
            own = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else len(inputs)
            raise DataError(
                f"the inputs are {', '.join(map(str, keys))}, and those of the test part {own}; "
                "they must be the same"
            )
    loaded: dict[str, Loaded] = {}
    for key in keys:
        try:
            of_key = [(inputs[key], rows) for inputs, rows in parts]
            loaded[str(key)] = load_parts(dataset, of_key, one_of_several=True)
        except DataError as error:
            raise DataError(f"input '{key}': {error}") from None
    tables = [one.table for one in loaded.values() if one.table is not None]
    if len(tables) > 1:
        raise DataError("several of the inputs are data frames; join them into one")
    sources: list[Source] = [
        Several({key: one.sources[i] for key, one in loaded.items()}, named=named)
        for i in range(len(parts))
    ]
    facts = [[key, one.digest] for key, one in loaded.items()]
    digest = hashlib.sha256(repr([named, facts]).encode()).hexdigest()
    shapes = {key: one.shape for key, one in loaded.items()}
    notes = tuple(f"input '{key}': {note}" for key, one in loaded.items() for note in one.notes)
    return Loaded(
        sources,
        (),
        "several",
        digest,
        tables[0] if tables else None,
        reading=next((one.reading for one in loaded.values() if one.reading), None),
        notes=notes,
        shapes=shapes,
    )


def _tables(parts: Parts) -> Loaded:
    first, test = parts[0][0], parts[-1][0]
    table = Table(first)
    called = {id(frame): f"the {name} part" for name, (frame, _) in zip(PARTS, parts, strict=True)}
    called[id(first)] = "the table"
    read = {key: table.read(frame, called[key]) for key, frame in _distinct(parts).items()}
    frames = [read[id(frame)].iloc[rows] for frame, rows in parts]
    encoder = TableEncoder(table, frames[0])
    sources: list[Source] = [Tensors(encoder.encode(frame)) for frame in frames]
    digest = hashlib.sha256()
    for frame in read.values():
        for name in encoder.columns:
            values = frame[name].to_numpy()
            if values.dtype == object:  # text; one byte that no text holds parts the cells
                data = "\0".join("nan" if pd.isna(v) else str(v) for v in values).encode()
            else:
                data = values.tobytes()
            digest.update(f"{name} {len(values)}\n".encode() + data)
    shape = (len(encoder.feature_names),)
    reading = encoder.reading(read[id(first)])
    notes = (*reading.notes(), *_test_notes(encoder, frames[0], test, read[id(test)]))
    return Loaded(sources, shape, "table", digest.hexdigest(), encoder, reading, notes)


def _test_notes(
    encoder: TableEncoder, training: pd.DataFrame, test: pd.DataFrame, read: pd.DataFrame
) -> list[str]:
    """How a test part differs from training, where it can be used all the same."""
    notes: list[str] = []
    strange = [name for name in unique_names(test.columns) if name not in encoder.table.names]
    if strange:
        notes.append(f"columns of the test part that training does not have: {listed(strange)}")
    other = [
        name
        for name in encoder.columns
        if name not in encoder.numeric and not bool(read[name].isin(training[name]).any())
    ]
    if other:
        notes.append(f"none of the test part's values is in training: {listed(other)}")
    return notes


def _arrays(dataset: Dataset, parts: Parts, one_of_several: bool) -> Loaded:
    checked = {
        key: _check_array(array, one_of_several) for key, array in _distinct(parts).items()
    }
    tensors, kinds = zip(*(checked[id(array)] for array, _ in parts), strict=True)
    shape = tuple(tensors[0].shape[1:])
    for name, tensor, other in zip(PARTS, tensors, kinds, strict=True):
        if (tuple(tensor.shape[1:]), other) != (shape, kinds[0]):
            raise DataError(
                f"a sample has the shape {shape} ({kinds[0]}), and one of the {name} part "
                f"{tuple(tensor.shape[1:])} ({other})"
            )
    digest = _digest(tensor.numpy() for tensor, _ in checked.values())
    rows = [torch.as_tensor(rows) for _, rows in parts]
    selected = [tensor[row] for tensor, row in zip(tensors, rows, strict=True)]
    kind: Kind = {1: "table", 3: "image"}.get(len(shape), "other")  # pyright: ignore
    if kinds[0] in (torch.uint8, torch.uint16):
        images: list[Source] = [Images(part, augment=dataset.augment) for part in selected]
        notes = (*deep_note(kinds[0]), *dark_note(tensors))
        return Loaded(images, shape, kind, digest, notes=notes)
    if kind == "table" and selected[0].is_floating_point():
        _warn_of_scale(selected[0])
    sources: list[Source] = [Tensors(part) for part in selected]
    return Loaded(sources, shape, kind, digest, notes=_scale_note(selected[0], kind))


def _distinct(parts: Parts) -> dict[int, Any]:
    """The collections behind the parts, each once: parts of one collection share it."""
    return {id(inputs): inputs for inputs, _ in parts}


def _check_array(
    array: np.ndarray | Tensor, one_of_several: bool = False
) -> tuple[Tensor, torch.dtype]:
    """The values: float32, or images ``(N, channels, H, W)`` out of 255, and what they were.

    What they were is uint8 or uint16 for images, else their type, which of several inputs may
    also be int64 or bool.

    Raises:
        DataError: not numbers, not finite, or not a sample in each row.
    """
    if isinstance(array, np.ndarray):
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise DataError(
                f"the inputs are an array of {array.dtype}, not of numbers; put columns of text "
                "into a data frame, which is encoded"
            )
        long = np.issubdtype(array.dtype, np.longdouble)  # torch has neither it nor big-endian
        native = np.dtype(np.float64) if long else array.dtype.newbyteorder("=")
        array = np.ascontiguousarray(array, dtype=native)
        values = torch.from_numpy(array if array.flags.writeable else array.copy())
    else:
        values = array.detach().cpu()
    if values.ndim < 2 - one_of_several or values.numel() == 0:
        raise DataError(
            f"the inputs have the shape {tuple(values.shape)}; (samples, features) or (samples, "
            "channels, height, width) is wanted"
        )
    if values.is_complex():
        raise DataError("the inputs are complex numbers; pass real and imaginary part apart")
    images = images_of(values)
    if images is not None:
        return images, values.dtype
    kept = kept_type(values) if one_of_several else torch.float32
    values = channels_first(values).to(kept).contiguous()
    bad = ~torch.isfinite(values)
    if bad.any():
        samples = int(bad.reshape(len(bad), -1).any(dim=1).sum())
        raise DataError(
            f"{int(bad.sum())} values of the inputs are NaN or infinite, in {samples} of "
            f"{len(values)} samples; drop or fill them, or pass a data frame "
            "(pandas.DataFrame(X)), which is imputed"
        )
    return values, values.dtype


def _warn_of_scale(values: Tensor) -> None:
    largest = values.abs().amax(dim=0)
    worst = int(largest.argmax())
    if largest[worst] > LARGE:
        whole = bool((values == values.round()).all())
        logger.warning(
            "input column %d reaches %g, which trains badly; arrays are used as they are: pass "
            "pandas.DataFrame(X) to have the columns standardised%s",
            worst,
            float(largest[worst]),
            " (tokens for an embedding are right as they are)" if whole else "",
        )


def _scale_note(values: Tensor, kind: Kind) -> tuple[str, ...]:
    if kind == "table" or not values.is_floating_point():  # tokens and masks are no measure
        return ()
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest <= LARGE:
        return ()
    return (
        f"the inputs reach {largest:g} and are used as they are, which trains badly: divide all "
        "by one number; images are scaled where they are arrays, or items, of uint8 or uint16",
    )


def _items(dataset: Dataset, parts: Parts, one_of_several: bool) -> Loaded:
    sample = item_input(parts[0][0], int(parts[0][1][0]))
    if not hasattr(sample, "convert"):  # not a PIL image
        return _tensor_items(sample, parts, one_of_several)
    size = dataset.image_size or min(max(sample.size), 224)
    total = sum(len(rows) for _, rows in parts)
    shape = (3, size, size)
    sources: list[Source]
    large = total * 3 * size * size > KEPT_BYTES
    step = max(total // LOOKED_AT, 1) if large else 1
    read = [decode(items, rows[::step], size) for items, rows in parts]
    stores, facts = zip(*read, strict=True)
    looked = sum(map(len, stores))
    notes = (*image_notes(sum(facts, Counter()), looked, total), *dark_note(stores))
    if large:
        digest = _items_digest(parts)
        sources = [
            Items(items, rows, image_size=size, augment=dataset.augment) for items, rows in parts
        ]
    else:
        digest = _digest(store.numpy() for store in stores)
        sources = [Images(store, augment=dataset.augment) for store in stores]
    return Loaded(sources, shape, "image", digest, notes=notes)


def _tensor_items(sample: Any, parts: Parts, one_of_several: bool) -> Loaded:
    items, rows = parts[0]
    made = [Items(items, rows) for items, rows in parts]
    sources: list[Source] = [
        (each.as_integers() if one_of_several else None) or each for each in made
    ]
    if several(sample):
        inputs = as_inputs(sample, int(rows[0]))
        _refuse_unlike(shapes_of(inputs), items, rows)
        names = sample if isinstance(sample, Mapping) else range(len(sample))
        shapes = {
            str(name): tuple(tensor.shape)
            for name, tensor in zip(names, tensors_of(inputs), strict=True)
        }
        return Loaded(sources, (), "several", _items_digest(parts), shapes=shapes)
    try:
        values = item_array(sample, int(rows[0]))
    except DataError:
        raise
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"the torch dataset's inputs are {type(sample).__name__} objects; tensors, arrays or "
            "PIL images are wanted, all of one shape"
        ) from None
    assert isinstance(values, Tensor)
    shape = tuple(values.shape)
    _refuse_unlike([shape], items, rows)
    kind: Kind = {1: "table", 3: "image"}.get(len(shape), "other")  # pyright: ignore
    return Loaded(sources, shape, kind, _items_digest(parts), notes=_scale_note(values, kind))


def _refuse_unlike(shapes: Shapes, items: Any, rows: np.ndarray) -> None:
    """Look at the first items now, rather than in every trial."""
    for row in map(int, rows[:ITEMS_LOOKED_AT]):
        found = shapes_of(as_inputs(item_input(items, row), row))
        refuse_unequal(shapes, found, (f"item {rows[0]} of the torch dataset", f"item {row}"))


def _digest(arrays: Iterable[np.ndarray]) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(repr((array.shape, str(array.dtype))).encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _items_digest(parts: Parts) -> str:
    """Of what is too large to read twice: names and sizes of files, else the first items."""
    sha = hashlib.sha256()
    for items, rows in parts:
        if isinstance(items, ImageFiles):
            for row in rows:
                path = Path(items.paths[row])
                size = path.stat().st_size
                if size == 0:
                    raise DataError(f"image {path} is empty (0 bytes); take it out of the folder")
                sha.update(f"{path.parent.name}/{path.name} {size}\n".encode())
            continue
        sha.update(f"{type(items).__name__} {len(items)}".encode())
        for row in rows[:ITEMS_LOOKED_AT]:
            for once, again in zip(*(_as_arrays(items, int(row)) for _ in range(2)), strict=True):
                sha.update(repr(once.shape).encode())
                if np.array_equal(once, again):  # a random transform would give it a new digest
                    sha.update(np.ascontiguousarray(once).tobytes())
    return sha.hexdigest()


def _as_arrays(items: Any, row: int) -> list[np.ndarray]:
    """An item's inputs as they are."""
    found = item_input(items, row)
    if not several(found):
        return [np.asarray(found)]
    return [tensor.numpy() for tensor in tensors_of(as_inputs(found, row))]
