"""Checking a dataset's inputs, and loading those of each part."""

from __future__ import annotations

import hashlib
import logging
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
from lossearch.data.inputs import Images, Items, Source, Tensors, decode, item_input
from lossearch.data.reading import Reading, listed
from lossearch.data.tables import TableEncoder
from lossearch.errors import DataError

logger = logging.getLogger(__name__)
KEPT_BYTES = 512 * 2**20  # images of up to this size, decoded, are kept in memory
Kind = Literal["table", "image", "other"]
Parts = Sequence[tuple[Any, np.ndarray]]


@dataclass
class Loaded:
    """The inputs of all parts, and what is known of them."""

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
    for inputs, _ in parts:
        if isinstance(inputs, (np.ndarray, Tensor)) != isinstance(first, (np.ndarray, Tensor)) or (
            isinstance(inputs, pd.DataFrame) != isinstance(first, pd.DataFrame)
        ):
            raise DataError(
                f"the inputs are a {type(first).__name__} and those of the test part a "
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
    read = {
        key: table.read(frame, "the table" if frame is first else "the test part")
        for key, frame in _distinct(parts).items()
    }
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
    tensors = [checked[id(array)] for array, _ in parts]
    if len({(tensor.shape[1:], tensor.dtype) for tensor in tensors}) > 1:
        raise DataError(
            f"a sample has the shape {tuple(tensors[0].shape[1:])} ({tensors[0].dtype}), and one "
            f"of the test part {tuple(tensors[-1].shape[1:])} ({tensors[-1].dtype})"
        )
    shape = tuple(tensors[0].shape[1:])
    rows = [torch.as_tensor(rows) for _, rows in parts]
    selected = [tensor[row] for tensor, row in zip(tensors, rows, strict=True)]
    sources: list[Source]
    if tensors[0].dtype == torch.uint8:
        sources = [Images(part, augment=dataset.augment) for part in selected]
    else:
        sources = [Tensors(part) for part in selected]
    kind: Kind = {1: "table", 3: "image"}.get(len(shape), "other")  # pyright: ignore
    if kind == "table":
        _warn_of_scale(selected[0])
    return Loaded(sources, shape, kind, _digest(t.numpy() for t in checked.values()))


def _distinct(parts: Parts) -> dict[int, Any]:
    """The collections behind the parts, each once: parts of one collection share it."""
    return {id(inputs): inputs for inputs, _ in parts}


def _check_array(array: np.ndarray | Tensor) -> Tensor:
    """float32, or uint8 ``(N, channels, H, W)`` for images.

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
    image = values.dtype == torch.uint8 and values.ndim in (3, 4)
    if image and values.ndim == 3:
        values = values[:, None]
    if values.ndim == 4 and values.shape[3] in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
        values = values.permute(0, 3, 1, 2)
    if image:
        return values.contiguous()
    values = values.to(torch.float32).contiguous()
    bad = ~torch.isfinite(values)
    if bad.any():
        samples = int(bad.flatten(1).any(dim=1).sum())
        raise DataError(
            f"{int(bad.sum())} values of the inputs are NaN or infinite, in {samples} of "
            f"{len(values)} samples; drop or fill them, or pass a data frame "
            "(pandas.DataFrame(X)), which is imputed"
        )
    return values


def _warn_of_scale(values: Tensor) -> None:
    largest = values.abs().amax(dim=0)
    worst = int(largest.argmax())
    if largest[worst] > 100:
        logger.warning(
            "input column %d reaches %g, which trains badly; arrays are used as they are: pass "
            "pandas.DataFrame(X) to have the columns standardised",
            worst,
            float(largest[worst]),
        )


def _items(dataset: Dataset, parts: Parts) -> Loaded:
    sample = item_input(parts[0][0], int(parts[0][1][0]))
    if not hasattr(sample, "convert"):  # not a PIL image
        return _tensor_items(sample, parts)
    size = dataset.image_size or min(max(sample.size), 224)
    total = sum(len(rows) for _, rows in parts)
    shape = (3, size, size)
    sources: list[Source]
    if total * 3 * size * size <= KEPT_BYTES:
        stores = [decode(items, rows, size) for items, rows in parts]
        sources = [Images(store, augment=dataset.augment) for store in stores]
        return Loaded(sources, shape, "image", _digest(store.numpy() for store in stores))
    sources = [
        Items(items, rows, image_size=size, augment=dataset.augment) for items, rows in parts
    ]
    return Loaded(sources, shape, "image", _items_digest(parts))


def _tensor_items(sample: Any, parts: Parts) -> Loaded:
    try:
        shape = tuple(torch.as_tensor(sample).shape)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"the torch dataset's inputs are {type(sample).__name__} objects; tensors, arrays or "
            "PIL images are wanted, all of one shape"
        ) from None
    kind: Kind = {1: "table", 3: "image"}.get(len(shape), "other")  # pyright: ignore
    sources: list[Source] = [Items(items, rows) for items, rows in parts]
    return Loaded(sources, shape, kind, _items_digest(parts))


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
                sha.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
            continue
        sha.update(f"{type(items).__name__} {len(items)}".encode())
        for row in rows[:16]:
            once, again = (np.asarray(item_input(items, int(row))) for _ in range(2))
            sha.update(repr(once.shape).encode())
            if np.array_equal(once, again):  # a random transform would give it a new digest
                sha.update(np.ascontiguousarray(once).tobytes())
    return sha.hexdigest()
