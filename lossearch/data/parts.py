"""Checking a dataset's inputs, and loading those of each part."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

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
from lossearch.data.pixels import channels_first, dark_note, deep_note, image_notes, images_of
from lossearch.data.reading import Reading, listed
from lossearch.data.tables import TableEncoder
from lossearch.errors import DataError

logger = logging.getLogger(__name__)
KEPT_BYTES = 512 * 2**20  # images of up to this size, decoded, are kept in memory
LOOKED_AT = 256  # images of a larger set that are read once to say what they are
LARGE = 100  # values above it train badly where nothing scales them
Kind = Literal["table", "image", "other"]
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


def load_parts(dataset: Dataset, parts: Parts) -> Loaded:
    """Load the inputs of each part: a collection of inputs, and which rows of it.

    Raises:
        DataError: inputs that are not usable, and why.
    """
    first = parts[0][0]
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
        return _arrays(dataset, parts)
    if isinstance(first, TorchDataset):
        return _items(dataset, parts)
    raise DataError(
        f"inputs of type {type(first).__name__} are not understood; pass an array, a tensor, a "
        "data frame, image files or a map-style torch dataset"
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


def _arrays(dataset: Dataset, parts: Parts) -> Loaded:
    checked = {key: _check_array(array) for key, array in _distinct(parts).items()}
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
    if kinds[0] != torch.float32:
        images: list[Source] = [Images(part, augment=dataset.augment) for part in selected]
        notes = (*deep_note(kinds[0]), *dark_note(tensors))
        return Loaded(images, shape, kind, digest, notes=notes)
    if kind == "table":
        _warn_of_scale(selected[0])
    sources: list[Source] = [Tensors(part) for part in selected]
    return Loaded(sources, shape, kind, digest, notes=_scale_note(selected[0], kind))


def _distinct(parts: Parts) -> dict[int, Any]:
    """The collections behind the parts, each once: parts of one collection share it."""
    return {id(inputs): inputs for inputs, _ in parts}


def _check_array(array: np.ndarray | Tensor) -> tuple[Tensor, torch.dtype]:
    """The values: float32, or images ``(N, channels, H, W)`` out of 255, and what they were.

    What they were is uint8 or uint16 for images, else float32.

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
    if values.ndim < 2 or values.numel() == 0:
        raise DataError(
            f"the inputs have the shape {tuple(values.shape)}; (samples, features) or (samples, "
            "channels, height, width) is wanted"
        )
    if values.is_complex():
        raise DataError("the inputs are complex numbers; pass real and imaginary part apart")
    images = images_of(values)
    if images is not None:
        return images, values.dtype
    values = channels_first(values).to(torch.float32).contiguous()
    bad = ~torch.isfinite(values)
    if bad.any():
        samples = int(bad.flatten(1).any(dim=1).sum())
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
        logger.warning(
            "input column %d reaches %g, which trains badly; arrays are used as they are: pass "
            "pandas.DataFrame(X) to have the columns standardised",
            worst,
            float(largest[worst]),
        )


def _scale_note(values: Tensor, kind: Kind) -> tuple[str, ...]:
    largest = float(values.abs().max()) if values.numel() else 0.0
    if kind == "table" or largest <= LARGE:
        return ()
    return (
        f"the inputs reach {largest:g} and are used as they are, which trains badly: divide all "
        "by one number; images are scaled where they are arrays, or items, of uint8 or uint16",
    )


def _items(dataset: Dataset, parts: Parts) -> Loaded:
    sample = item_input(parts[0][0], int(parts[0][1][0]))
    if not hasattr(sample, "convert"):  # not a PIL image
        return _tensor_items(sample, parts)
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


def _tensor_items(sample: Any, parts: Parts) -> Loaded:
    try:
        values = item_array(sample)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"the torch dataset's inputs are {type(sample).__name__} objects; tensors, arrays or "
            "PIL images are wanted, all of one shape"
        ) from None
    shape = tuple(values.shape)
    kind: Kind = {1: "table", 3: "image"}.get(len(shape), "other")  # pyright: ignore
    sources: list[Source] = [Items(items, rows) for items, rows in parts]
    return Loaded(sources, shape, kind, _items_digest(parts), notes=_scale_note(values, kind))


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
        for row in rows[:16]:
            once, again = (np.asarray(item_input(items, int(row))) for _ in range(2))
            sha.update(repr(once.shape).encode())
            if np.array_equal(once, again):  # a random transform would give it a new digest
                sha.update(np.ascontiguousarray(once).tobytes())
    return sha.hexdigest()
