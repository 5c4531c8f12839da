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

IGNORE = -100


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
        soft: Whether they are probabilities of the classes. A sample's class, where one is
            wanted, is then its likeliest.
    """

    task: str
    values: tuple[Any, ...]
    class_names: tuple[str, ...]
    width: int = 1
    notes: tuple[str, ...] = ()
    soft: bool = False

    def encode(self, raw: np.ndarray) -> Tensor:
        """Multiclass int64 ``(N,)``; all others float32, ``(N,)`` or ``(N, labels)``.

        Soft ones are float32: multiclass ``(N, classes)``, binary ``(N,)``.

        Raises:
            DataError: a label that the classes do not hold.
        """
        if self.task in ("multilabel", "regression"):
            width = raw.shape[1] if raw.ndim == 2 else 1
            if width != self.width or not _numeric(raw):
                raise DataError(f"{self.width} numeric labels a sample are wanted, not {width}")
            return torch.as_tensor(raw.astype(np.float32))
        if raw.ndim == 2:
            if raw.shape[1] != len(self.values) or _rows_of(raw) is None:
                raise DataError(
                    f"targets have the shape {raw.shape}; a label a sample is wanted, or a row of "
                    f"{len(self.values)} probabilities of the classes, which sum to 1"
                )
            if not self.soft:
                raw = np.asarray(self.values)[raw.argmax(1)]
            else:
                shares = torch.as_tensor(raw / raw.sum(1, keepdims=True)).float()
                return shares[:, 1] if self.task == "binary" else shares
        elif self.soft and self.task == "binary" and _within(raw):
            return torch.as_tensor(raw.astype(np.float32))
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
        if not self.values:
            return np.zeros(len(encoded), dtype=np.int64)
        if encoded.ndim == 2:
            return encoded.argmax(1).numpy()
        return ((encoded > 0.5) if self.soft and self.task == "binary" else encoded).long().numpy()

    def hard(self, encoded: Tensor) -> Tensor:
        """Soft labels as those of the likeliest class; others as they are."""
        if not self.soft:
            return encoded
        classes = torch.as_tensor(self.classes(encoded))
        return classes.float() if self.task == "binary" else classes

    def counts(self, encoded: Tensor) -> tuple[int, ...]:
        """Samples of each class; for multilabel ones the positives of each label."""
        if self.task == "multilabel":
            return tuple((encoded == 1).sum(dim=0).tolist())
        if self.values:
            return tuple(np.bincount(self.classes(encoded), minlength=len(self.values)).tolist())
        return ()


def read_labels(raw: np.ndarray, task: str | None, class_names: tuple[str, ...] = ()) -> Labels:
    """Decide the task and the classes.

    Whole numbers and text are classes, other numbers a regression target, rows of 0 and 1 are
    multilabel. Two classes are a binary task. Its positive class is the larger of 0/1 or -1/1,
    the second of ``class_names``, and else the rarer one. Rows that sum to 1 are the classes'
    probabilities, of one label a sample where each is one 1 and else 0; so are numbers between 0
    and 1 where the task is binary.

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
        hint = ()
        if task is None and _within(raw):
            hint = (
                "the targets lie between 0 and 1 and are read as a regression; where they are "
                "the probability of a class, say task: binary",
            )
        return Labels("regression", (), (), notes=hint)
    if not whole and task == "binary" and _within(raw):
        return _shares(np.stack([1 - raw, raw], 1), task, class_names)
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
    marks = _numeric(raw) and bool(np.isin(raw, (-1, 0, 1)).all())
    if task in (None, "multiclass", "binary") and _rows_of(raw) is not None:
        return _shares(raw, task, names)
    if task in ("multiclass", "binary"):
        raise DataError(
            f"task {task} needs one label a sample, and targets have the shape {raw.shape}; rows "
            "of probabilities lie in [0, 1] and sum to 1, and these do not"
        )
    if task == "multilabel" and not marks:
        raise DataError("multilabel targets are 0 and 1, with -1 for unknown; there are others")
    if not _numeric(raw):
        raise DataError("targets of several columns must be numbers")
    width = raw.shape[1]
    if task == "regression" or not marks:
        return Labels("regression", (), (), width)
    if names and len(names) != width:
        raise DataError(f"there are {len(names)} class names for {width} labels")
    constant = [c for c in range(width) if len(np.unique(raw[:, c][raw[:, c] >= 0])) < 2]
    if len(constant) == width:
        raise DataError("each label is the same for all samples, so there is nothing to learn")
    return Labels("multilabel", (), names or tuple(str(c) for c in range(width)), width)


def _shares(raw: np.ndarray, task: str | None, names: tuple[str, ...]) -> Labels:
    """Labels of one-hot rows, or of rows of probabilities."""
    width = raw.shape[1]
    found = "binary" if width == 2 else "multiclass"
    if task == "binary" and found != "binary":
        raise DataError(f"task binary needs two classes, and there are rows of {width}")
    if names and len(names) != width:
        raise DataError(f"there are {len(names)} class names for {width} classes")
    _refuse_equal(raw)
    soft = _rows_of(raw) == "soft"
    task = task or found
    if soft:
        note = (
            f"the targets are probabilities of {width} classes: training takes them as they are "
            "where a loss can; class counts, validation and test take the likeliest class"
        )
    else:
        note = (
            f"one-hot rows: read as one label a sample of {width} classes, task {task}; where "
            "several labels may be true at once, say task: multilabel"
        )
    names = names or tuple(str(c) for c in range(width))
    return Labels(task, tuple(range(width)), names, notes=(note,), soft=soft)


def _rows_of(raw: np.ndarray) -> str | None:
    """Whether rows are ``one_hot``, or ``soft`` (probabilities that sum to 1); else ``None``."""
    if raw.ndim != 2 or raw.shape[1] < 2 or not _numeric(raw) or not _within(raw):
        return None
    if np.abs(raw.sum(1, dtype=np.float64) - 1).max() > 1e-3:
        return None
    return "one_hot" if bool(((raw == 0) | (raw == 1)).all()) else "soft"


def _within(raw: np.ndarray) -> bool:
    return _numeric(raw) and bool(((raw >= 0) & (raw <= 1)).all())


def marked(raw: np.ndarray, task: str | None) -> np.ndarray:
    """Which samples' one label is -100, torch's mark for "ignore"; none where it is a quantity."""
    none = np.zeros(len(raw), dtype=bool)
    if raw.ndim != 1 or task == "regression":
        return none
    if not _numeric(raw):
        return raw == str(IGNORE)
    if task is None and np.issubdtype(raw.dtype, np.floating) and (raw != np.round(raw)).any():
        return none
    return raw == IGNORE


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
    if len(raw) and (raw == raw[0]).all():
        raise DataError(f"all {len(raw)} targets are {raw[0]}, so there is nothing to learn")
