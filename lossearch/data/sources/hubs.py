"""Datasets from torchvision, Hugging Face and OpenML; what is not on disk they download."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lossearch.components import dataset
from lossearch.data.dataset import Dataset, as_dataset
from lossearch.data.sources.images import Side
from lossearch.errors import DataError, unknown


@dataset(name="torchvision", task=("multiclass", "binary"))
def torchvision(
    *,
    dataset: str = "CIFAR10",
    root: str = "data",
    download: bool = False,
    image_size: Side = None,
    augment: bool = True,
) -> Dataset:
    """A classification dataset of ``torchvision.datasets``, with its own test part.

    Args:
        dataset: The class, such as ``CIFAR10`` or ``Food101``.
        root: The folder that holds it, or shall.
        download: Whether to download what is not there.
        image_size: Side in pixels of images that come as files.
        augment: Whether training images are cropped and flipped at random.

    Raises:
        DataError: torchvision has no such dataset, it is not on disk, or not to be reached.
    """
    from torchvision import datasets

    if dataset not in datasets.__all__:
        raise DataError("torchvision: " + unknown("dataset", dataset, datasets.__all__))
    make = getattr(datasets, dataset)
    known = inspect.signature(make).parameters
    options: dict[str, Any] = {}
    if "root" in known:
        options["root"] = str(Path(root).expanduser())
    if "download" in known:
        options["download"] = download
    if "train" in known:
        choices: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in known:
        choices = [{"split": "train"}, {"split": "test"}]
    else:
        choices = [{}]
    try:
        parts = [as_dataset(_in_memory(make(**options, **choice))) for choice in choices]
    except DataError:
        raise
    except Exception as error:  # each set has its own ways to fail
        remedy = (
            "put the files there by hand, or run this once on a machine with network access and "
            "copy the folder"
            if download
            else "set download: true, or put the files there"
        )
        raise DataError(
            f"torchvision's {dataset} in {root} cannot be used: {_said(error)}. "
            f"{_tried(download, error)}{remedy}"
        ) from error
    names = getattr(make, "classes", None)
    targets, names = _named(
        [np.asarray(part.targets) for part in parts],
        tuple(map(str, names)) if isinstance(names, (list, tuple)) else (),
    )
    return Dataset(
        parts[0].inputs,
        targets[0],
        class_names=names,
        test=(parts[1].inputs, targets[1]) if len(parts) > 1 else None,
        image_size=image_size,
        augment=augment,
    )


def _named(
    targets: list[np.ndarray], names: tuple[str, ...]
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Targets and class names, without the classes that the set lists but holds no sample of."""
    found = np.unique(targets[0])
    if not names or len(found) == len(names) or found[0] < 0 or found[-1] >= len(names):
        return targets, names
    return [np.asarray(names)[part] for part in targets], tuple(names[c] for c in found)


def _in_memory(found: TorchDataset[Any]) -> Any:
    """The arrays of a set that holds all its images, such as CIFAR-10 or MNIST; else itself."""
    data = getattr(found, "data", None)
    targets = getattr(found, "targets", getattr(found, "labels", None))
    if isinstance(data, (np.ndarray, Tensor)) and targets is not None and len(data) == len(found):  # pyright: ignore[reportArgumentType]
        return torch.as_tensor(data), np.asarray(targets)
    return found


class HubImages(TorchDataset[Any]):
    """The image column of a Hugging Face dataset."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows = rows
        self.column = column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Any:
        return self.rows[position][self.column]


@dataset()
def huggingface(
    *,
    dataset: str = "",
    config: str | None = None,
    part: str = "train",
    validation_part: str | None = None,
    test_part: str | None = None,
    label: str = "label",
    columns: tuple[str, ...] = (),
    image_size: Side = None,
    augment: bool = True,
) -> Dataset:
    """A dataset of images or of a table from the Hugging Face hub, or from a folder.

    Args:
        dataset: Its name on the hub, a folder of data files, or one that ``save_to_disk`` wrote.
        config: Which of its configurations, where it has several.
        part: Its split that is dealt out into training and what the next two do not name.
        validation_part: Its split that is the fixed validation part.
        test_part: Its split that is the fixed test part.
        label: The column of labels.
        columns: The columns to learn from: one image column, or those of a table. Where left
            out: the image column if there is one, else all others.
        image_size: Side in pixels that images are brought to.
        augment: Whether training images are cropped and flipped at random.

    Raises:
        DataError: the package is missing, the hub is not to be reached, or no such column.
    """
    if not dataset:
        raise DataError("dataset 'huggingface' needs 'dataset', a name on the hub or a folder")
    try:
        import datasets
    except ImportError:
        raise DataError(
            "dataset 'huggingface' needs the package datasets; pip install "
            "'lossearch[huggingface]'"
        ) from None
    try:
        saved = Path(dataset).expanduser()
        if (saved / "state.json").exists() or (saved / "dataset_dict.json").exists():
            found: Any = datasets.load_from_disk(str(saved))
        else:
            found = datasets.load_dataset(dataset, config)
    except Exception as error:
        raise DataError(
            f"Hugging Face dataset '{dataset}' cannot be loaded: {_said(error)}. "
            f"{_tried(True, error)}check the name, or load it once on a machine with network "
            "access, write it with save_to_disk and give that folder as 'dataset'"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        found = datasets.DatasetDict({part: found})
    for name in (part, validation_part, test_part):
        if name is not None and name not in found:
            raise DataError(f"'{dataset}': {unknown('split', name, map(str, found))}")
    rows = found[part]
    features = dict(rows.features)
    for name in (label, *columns):
        if name not in features:
            raise DataError(f"'{dataset}': {unknown('column', name, features)}")
    names = tuple(getattr(features[label], "names", None) or ())
    images = [c for c in columns or features if isinstance(features[c], datasets.Image)]

    def inputs(part_rows: Any) -> Any:
        if images:
            return HubImages(part_rows, images[0])
        table = part_rows.to_pandas()
        return table[list(columns)] if columns else table.drop(columns=label)

    fixed = {"validation": validation_part, "test": test_part}
    parts = {which: found[name] for which, name in fixed.items() if name}
    labels = [np.asarray(part_rows[label][:]) for part_rows in (rows, *parts.values())]
    targets, names = _named(labels, names)
    pairs = {w: (inputs(r), t) for (w, r), t in zip(parts.items(), targets[1:], strict=True)}
    return Dataset(
        inputs(rows),
        targets[0],
        class_names=names,
        test=pairs.get("test"),
        image_size=image_size,
        augment=augment,
        validation=pairs.get("validation"),
    )


@dataset()
def openml(
    *,
    dataset: str | None = None,
    id: int | None = None,
    version: int | str = "active",
    label: str | None = None,
) -> Dataset:
    """A table from OpenML, by scikit-learn's ``fetch_openml``, which keeps what it downloads.

    Args:
        dataset: Its name, such as ``adult``, or
        id: its number.
        version: Which version of the name.
        label: The label column; the one that OpenML says where left out.

    Raises:
        DataError: neither name nor number, no such dataset, or OpenML is not to be reached.
    """
    if (dataset is None) == (id is None):
        raise DataError("dataset 'openml' needs either 'dataset', a name, or 'id', a number")
    from sklearn.datasets import fetch_openml, get_data_home

    named = f"'{dataset}'" if id is None else f"number {id}"
    which: dict[str, Any] = (
        {"name": dataset, "version": version} if id is None else {"data_id": id}
    )
    try:
        bunch: Any = fetch_openml(
            **which, target_column=label or "default-target", as_frame=True, parser="auto"
        )
    except Exception as error:
        raise DataError(
            f"OpenML dataset {named} cannot be loaded: {_said(error)}. {_tried(True, error)}check "
            f"the name, or fetch it once with network access (it is kept in {get_data_home()})"
        ) from error
    if bunch.target is None:
        raise DataError(f"OpenML dataset {named} names no label column; give 'label'")
    return Dataset(bunch.data, bunch.target)


def _said(error: Exception) -> str:
    """The last line of a library's error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip(' .')}" if lines else type(error).__name__


def _tried(network: bool, error: Exception) -> str:
    """A word on the network where that is what failed."""
    reasons = (ConnectionError, TimeoutError)
    text = f"{type(error).__name__} {error}".lower()
    marks = ("urlopen", "connect", "resolve", "network", "timed out", "offline", "proxy")
    if network and (isinstance(error, reasons) or any(mark in text for mark in marks)):
        return "A download was tried and the network is not reachable from here; "
    return "What to do: "
