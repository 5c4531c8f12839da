"""Checking a dataset's inputs, and loading those of each part."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lossearch.components.inputs import tensors
from lossearch.data.dataset import Dataset, ImageFiles
from lossearch.data.inputs import Images, Items, Source, Tensors, decode, item_input
from lossearch.data.items import (
    Shapes,
    as_inputs,
    kept_type,
    refuse_unequal,
    several,
    shapes_of,
)
from lossearch.data.several import Several
from lossearch.data.tables import TableEncoder, clean_table
from lossearch.errors import DataError

logger = logging.getLogger(__name__)
KEPT_BYTES = 512 * 2**20  # images of up to this size, decoded, are kept in memory
LOOKED_AT = 16  # items of a torch dataset that are read before training
Kind = Literal["table", "image", "other", "tokens", "several"]
Parts = Sequence[tuple[Any, np.ndarray]]


@dataclass
class Loaded:
    """The inputs of all parts, and what is known of them."""

    sources: list[Source]
    shape: tuple[int, ...]
    kind: Kind
    digest: str
    table: TableEncoder | None = None
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
    return Loaded(sources, (), "several", digest, *tables, shapes=shapes)


def _tables(parts: Parts) -> Loaded:
    cleaned = {key: clean_table(frame) for key, frame in _distinct(parts).items()}
    frames = [cleaned[id(frame)].iloc[rows] for frame, rows in parts]
    encoder = TableEncoder(frames[0])
    sources: list[Source] = [Tensors(encoder.encode(frame)) for frame in frames]
    digest = hashlib.sha256()
    for frame in cleaned.values():
        for name in frame.columns:
            values = frame[name].to_numpy()
            if values.dtype == object:  # text; one byte that no text holds parts the cells
                data = "\0".join("" if v is None else str(v) for v in values).encode()
            else:
                data = values.tobytes()
            digest.update(f"{name} {len(values)}\n".encode() + data)
    shape = (len(encoder.feature_names),)
    return Loaded(sources, shape, "table", digest.hexdigest(), encoder)


def _arrays(dataset: Dataset, parts: Parts, one_of_several: bool) -> Loaded:
    checked = {
        key: _check_array(array, one_of_several) for key, array in _distinct(parts).items()
    }
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
    if kind == "table" and selected[0].is_floating_point():
        _warn_of_scale(selected[0])
    return Loaded(sources, shape, kind, _digest(t.numpy() for t in checked.values()))


def _distinct(parts: Parts) -> dict[int, Any]:
    """The collections behind the parts, each once: parts of one collection share it."""
    return {id(inputs): inputs for inputs, _ in parts}


def _check_array(array: np.ndarray | Tensor, one_of_several: bool = False) -> Tensor:
    """float32, or uint8 ``(N, channels, H, W)`` for images; of several, int64 and bool too.

    Raises:
        DataError: not numbers, not finite, or not a sample in each row.
    """
    if isinstance(array, np.ndarray):
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise DataError(
                f"the inputs are an array of {array.dtype}, not of numbers; put columns of text "
                "into a data frame, which is encoded"
            )
        array = np.ascontiguousarray(array)
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
    image = values.dtype == torch.uint8 and values.ndim in (3, 4)
    if image and values.ndim == 3:
        values = values[:, None]
    if values.ndim == 4 and values.shape[3] in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
        values = values.permute(0, 3, 1, 2)
    if image:
        return values.contiguous()
    values = values.to(kept_type(values) if one_of_several else torch.float32).contiguous()
    bad = ~torch.isfinite(values)
    if bad.any():
        samples = int(bad.reshape(len(bad), -1).any(dim=1).sum())
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
        whole = bool((values == values.round()).all())
        logger.warning(
            "input column %d reaches %g, which trains badly; arrays are used as they are: pass "
            "pandas.DataFrame(X) to have the columns standardised%s",
            worst,
            float(largest[worst]),
            " (tokens for an embedding are right as they are)" if whole else "",
        )


def _items(dataset: Dataset, parts: Parts, one_of_several: bool) -> Loaded:
    sample = item_input(parts[0][0], int(parts[0][1][0]))
    if not hasattr(sample, "convert"):  # not a PIL image
        return _tensor_items(sample, parts, one_of_several)
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
            for name, tensor in zip(names, tensors(inputs), strict=True)
        }
        return Loaded(sources, (), "several", _items_digest(parts), shapes=shapes)
    try:
        shape = tuple(torch.as_tensor(sample).shape)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"the torch dataset's inputs are {type(sample).__name__} objects; tensors, arrays or "
            "PIL images are wanted, all of one shape"
        ) from None
    _refuse_unlike([shape], items, rows)
    kind: Kind = {1: "table", 3: "image"}.get(len(shape), "other")  # pyright: ignore
    return Loaded(sources, shape, kind, _items_digest(parts))


def _refuse_unlike(shapes: Shapes, items: Any, rows: np.ndarray) -> None:
    """Look at the first items now, rather than in every trial."""
    for row in map(int, rows[:LOOKED_AT]):
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
                sha.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
            continue
        sha.update(f"{type(items).__name__} {len(items)}".encode())
        for row in rows[:LOOKED_AT]:
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
    return [tensor.numpy() for tensor in tensors(as_inputs(found, row))]
