"""Labels: from what a file holds to the tensor a loss reads, with the task that they suggest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lossearch.components import TASKS
from lossearch.errors import DataError, unknown


def tidy_text(values: pd.Series) -> pd.Series:
    """Text without blanks and quotes around it; None where it is missing."""
    text = values.astype(object).where(values.notna(), None)
    text = text.map(lambda v: v.strip().strip("'\"").strip() if isinstance(v, str) else v)
    return text.where(text.notna() & (text != ""), None)


def as_numbers(text: pd.Series) -> pd.Series:
    """Text as numbers where all of it is numeric, else as it is."""
    try:
        return pd.Series(pd.to_numeric(text))
    except (ValueError, TypeError):
        return text


def tidy(targets: Any) -> np.ndarray:
    """The labels as an array, numeric where they can be.

    In rows of 0 and 1 a missing one stays NaN: it may be unknown.

    Raises:
        DataError: a label is missing.
    """
    if isinstance(targets, Tensor):
        targets = targets.detach().cpu().numpy()
    if isinstance(targets, (pd.DataFrame, pd.Series, pd.Index)):
        values = targets.to_numpy()
    else:
        values = np.asarray(targets)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2):
        raise DataError(
            f"targets have the shape {values.shape}; one label a sample (samples,) or several "
            "(samples, labels) are wanted"
        )
    if values.ndim == 1 and not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
        values = as_numbers(tidy_text(pd.Series(values))).to_numpy()
    elif values.ndim == 2 and values.dtype == object:
        values = values.astype(float)
    missing = np.asarray(pd.isna(values))
    if values.ndim == 2 and missing.any() and np.isin(values[~missing], (-1, 0, 1)).all():
        return values
    if np.issubdtype(values.dtype, np.floating):
        missing = missing | np.isinf(values)
    if missing.any():
        first = int(np.argwhere(missing)[0][0])
        raise DataError(
            f"{int(missing.sum())} of {len(values)} targets are missing or infinite, the first "
            f"in row {first}; drop those rows or fill them in"
        )
    return values.astype(str) if values.dtype == object else values


@dataclass(frozen=True)
class Labels:
    """How raw labels become a tensor, decided once from the samples that will be split.

    Attributes:
        task: What they are.
        values: The raw value of each class, in order; none where there are no classes.
        class_names: Their names. For binary ones the second is the positive class.
        width: How many labels a multilabel or a regression sample has.
        notes: What was guessed or changed in reading them, a sentence each.
    """

    task: str
    values: tuple[Any, ...]
    class_names: tuple[str, ...]
    width: int = 1
    notes: tuple[str, ...] = ()

    def encode(self, raw: np.ndarray) -> Tensor:
        """Multiclass int64 ``(N,)``; all others float32, ``(N,)`` or ``(N, labels)``.

        Raises:
            DataError: a label that the classes do not hold.
        """
        if self.task in ("multilabel", "regression"):
            width = raw.shape[1] if raw.ndim == 2 else 1
            if width != self.width or not _numeric(raw):
                raise DataError(f"{self.width} numeric labels a sample are wanted, not {width}")
            encoded = torch.as_tensor(raw.astype(np.float32))
            return encoded.nan_to_num(nan=-1.0) if self.task == "multilabel" else encoded
        codes = pd.Index(self.values).get_indexer(pd.Index(raw))
        if (codes < 0).any():
            strange = raw[codes < 0][0]
            raise DataError(
                f"label {strange!s} is not one of the classes: "
                f"{', '.join(map(str, self.values[:20]))}{', …' if len(self.values) > 20 else ''}"
            )
        index = torch.as_tensor(codes, dtype=torch.int64)
        return index.float() if self.task == "binary" else index

    def classes(self, encoded: Tensor) -> np.ndarray:
        """The class of each sample; one class for all where the task has none."""
        if self.values:
            return encoded.long().numpy()
        return np.zeros(len(encoded), dtype=np.int64)

    def counts(self, encoded: Tensor) -> tuple[int, ...]:
        """Samples of each class; for multilabel ones the positives of each label."""
        if self.task == "multilabel":
            return tuple((encoded == 1).sum(dim=0).tolist())
        if self.values:
            return tuple(encoded.long().bincount(minlength=len(self.values)).tolist())
        return ()


def read_labels(raw: np.ndarray, task: str | None, class_names: tuple[str, ...] = ()) -> Labels:
    """Decide the task and the classes.

    Whole numbers and text are classes, other numbers a regression target, rows of 0 and 1 are
    multilabel. Two classes are a binary task. Its positive class is the larger of 0/1 or -1/1,
    the second of ``class_names``, and else the rarer one.

    Raises:
        DataError: the task does not fit the labels, or all labels are equal.
    """
    if task is not None and task not in TASKS:
        raise DataError(unknown("task", task, TASKS))
    if len(raw) == 0:
        raise DataError("the dataset has no samples")
    if raw.ndim == 2:
        return _several(raw, task, class_names)
    if task == "multilabel":
        raise DataError(
            "task multilabel needs targets of the shape (samples, labels) with 0 and 1, and there "
            "is one label a sample"
        )
    whole = not np.issubdtype(raw.dtype, np.floating) or bool((raw == np.round(raw)).all())
    if task == "regression" or (task is None and not whole):
        if not _numeric(raw):
            raise DataError(f"task regression needs numbers, and the label '{raw[0]}' is text")
        _refuse_equal(raw)
        return Labels("regression", (), ())
    if not whole:
        raise DataError(
            f"task {task} needs whole numbers or text as labels, and there is "
            f"{raw[raw != np.round(raw)][0]}; is it task: regression?"
        )
    values = _class_values(raw, class_names)
    found = "binary" if len(values) == 2 else "multiclass"
    if task == "binary" and found != "binary":
        raise DataError(
            f"task binary needs two classes, and there are {len(values)}: "
            f"{', '.join(map(str, values[:10]))}{', …' if len(values) > 10 else ''}"
        )
    if found == "binary" and not class_names and not _signed(values):
        shares = [(raw == value).sum() for value in values]
        values = values if shares[1] <= shares[0] else values[::-1]
    names = class_names or tuple(_name(value) for value in values)
    return Labels(task or found, tuple(values), names)


def _several(raw: np.ndarray, task: str | None, names: tuple[str, ...]) -> Labels:
    unknown_ones = int(np.isnan(raw).sum()) if np.issubdtype(raw.dtype, np.floating) else 0
    marks = _numeric(raw) and bool((np.isin(raw, (-1, 0, 1)) | (raw != raw)).all())
    if task in ("multiclass", "binary"):
        raise DataError(
            f"task {task} needs one label a sample, and targets have the shape {raw.shape}; for "
            "one-hot rows pass targets.argmax(1)"
        )
    if task == "multilabel" and not marks:
        raise DataError("multilabel targets are 0 and 1, with -1 for unknown; there are others")
    if not _numeric(raw):
        raise DataError("targets of several columns must be numbers")
    width = raw.shape[1]
    if task == "regression" or not marks:
        if unknown_ones:
            raise DataError(f"{unknown_ones} of {raw.size} targets are missing; leave those out")
        return Labels("regression", (), (), width)
    if names and len(names) != width:
        raise DataError(f"there are {len(names)} class names for {width} labels")
    constant = [c for c in range(width) if len(np.unique(raw[:, c][raw[:, c] >= 0])) < 2]
    if len(constant) == width:
        raise DataError("each label is the same for all samples, so there is nothing to learn")
    notes: tuple[str, ...] = ()
    if unknown_ones:
        notes = (f"{unknown_ones} of {raw.size} labels are missing, and count as unknown (-1)",)
    names = names or tuple(str(c) for c in range(width))
    return Labels("multilabel", (), names, width, notes)


def _class_values(raw: np.ndarray, class_names: tuple[str, ...]) -> list[Any]:
    found = np.unique(raw).tolist()
    if len(found) == 1:
        raise DataError(
            f"all {len(raw)} labels are '{_name(found[0])}', so there is nothing to learn; is it "
            "the right label column?"
        )
    if not class_names:
        return found
    if not _numeric(raw):
        strange = [value for value in found if value not in class_names]
        if strange:
            raise DataError(unknown("class", str(strange[0]), class_names))
        return list(class_names)
    if found[0] < 0 or found[-1] >= len(class_names):
        outside = found[0] if found[0] < 0 else found[-1]
        raise DataError(f"label {outside} is outside the {len(class_names)} class names given")
    return list(range(len(class_names)))


def _numeric(raw: np.ndarray) -> bool:
    return np.issubdtype(raw.dtype, np.number) or raw.dtype == bool


def _signed(values: list[Any]) -> bool:
    return values in ([0, 1], [-1, 1])  # True and False too


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) else str(value)


def _refuse_equal(raw: np.ndarray) -> None:
    if (raw == raw[0]).all():
        raise DataError(f"all {len(raw)} targets are {raw[0]}, so there is nothing to learn")
