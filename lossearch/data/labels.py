"""Labels: from what a file holds to the tensor a loss reads, with the task that they suggest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lossearch.components import TASKS
from lossearch.data.numbers import MARKS, plain_numbers
from lossearch.errors import DataError, unknown

# What people write for "none", and also call a class.
_NONE = frozenset(("none", "na", "n/a", "n.a.", "n.a", "#n/a", "<na>", "null", "nil"))

IGNORE = -100


def tidy_text(values: pd.Series) -> pd.Series:
    """Text without blanks and quotes around it; None where it is missing."""

    def tidied(value: Any) -> Any:
        return (value.strip().strip("'\"").strip() or None) if isinstance(value, str) else value

    there = values.notna().to_numpy()
    texts = [tidied(v) if t else None for v, t in zip(values.tolist(), there, strict=True)]
    return pd.Series(texts, index=values.index, dtype=object)


def tidy(targets: Any) -> np.ndarray:
    """The labels as an array, numeric where they can be.

    Missing is an empty one, ``?`` and NaN; a word such as ``n.a.`` only among numbers. In rows of
    0 and 1 a missing one stays NaN: it may be unknown.

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
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim == 1 and not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
        values = _text_or_numbers(pd.Series(values)).to_numpy()
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


def _text_or_numbers(values: pd.Series) -> pd.Series:
    """Labels as text or, where all that are not missing are numeric, as numbers."""
    text = tidy_text(values)
    odd = next((v for v in text if isinstance(v, (list, tuple, dict, set, np.ndarray))), None)
    if odd is not None:
        raise DataError(
            f"targets hold {type(odd).__name__} objects; one label a sample, or an array "
            "(samples, labels), is wanted"
        )
    words = text.map(lambda v: v.casefold() if isinstance(v, str) else v)
    text = text.where(~words.isin(["?", "nan"]).to_numpy(), None)
    for missing in (text, text.where(~words.isin(MARKS).to_numpy(), None)):
        numbers = plain_numbers(missing)
        if numbers is not None and missing.notna().any():
            return numbers
    return text


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
            encoded = torch.as_tensor(raw.astype(np.float32))
            return encoded.nan_to_num(nan=-1.0) if self.task == "multilabel" else encoded
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
        raw = _spelled(raw, self.values)
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
    values, notes = _class_values(raw, class_names)
    raw = _spelled(raw, values)
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
    return Labels(task or found, tuple(values), names, notes=notes)


def _several(raw: np.ndarray, task: str | None, names: tuple[str, ...]) -> Labels:
    unknown_ones = int(np.isnan(raw).sum()) if np.issubdtype(raw.dtype, np.floating) else 0
    marks = _numeric(raw) and bool((np.isin(raw, (-1, 0, 1)) | (raw != raw)).all())
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


def _class_values(
    raw: np.ndarray, class_names: tuple[str, ...]
) -> tuple[list[Any], tuple[str, ...]]:
    """The raw value of each class, and what a person should know of how they were found."""
    values, counts = np.unique(raw, return_counts=True)
    found: list[Any] = values.tolist()
    notes: tuple[str, ...] = ()
    if not class_names and not _numeric(raw):
        found, notes = _one_spelling(dict(zip(found, counts.tolist(), strict=True)))
        notes += _words(_spelled(raw, found))
    if len(found) == 1:
        raise DataError(
            f"all {len(raw)} labels are '{_name(found[0])}', so there is nothing to learn; is it "
            "the right label column?"
        )
    if not class_names:
        return found, notes
    if not _numeric(raw):
        strange = [v for v in np.unique(_spelled(raw, class_names)) if v not in class_names]
        if strange:
            raise DataError(unknown("class", str(strange[0]), class_names))
        return list(class_names), notes
    if found[0] < 0 or found[-1] >= len(class_names):
        outside = found[0] if found[0] < 0 else found[-1]
        raise DataError(f"label {outside} is outside the {len(class_names)} class names given")
    return list(range(len(class_names))), notes


def _one_spelling(counts: dict[str, int]) -> tuple[list[str], tuple[str, ...]]:
    """Classes without those that are another one in capitals, and what became of these.

    Letters stay apart, since ``a`` and ``A`` may be two, unless two classes remain.
    """
    groups: dict[str, list[str]] = {}
    for value in counts:
        groups.setdefault(value.casefold(), []).append(value)
    classes, notes = list(counts), []
    for group in (group for group in groups.values() if len(group) > 1):
        first, *others = sorted(group, key=lambda value: -counts[value])
        if len(first) == 1 and len(groups) > 2:
            notes.append(f"classes {_quoted(group)} differ in case alone, and are kept apart")
            continue
        classes = [value for value in classes if value not in others]
        notes.append(f"labels {_quoted(others)} are taken as '{first}'")
    return classes, tuple(notes)


def _words(raw: np.ndarray) -> tuple[str, ...]:
    """What became of classes whose name is a word for what is missing.

    Raises:
        DataError: there are too few of them for a class.
    """
    found, counts = np.unique(raw, return_counts=True)
    classes: dict[str, int] = dict(zip(found.tolist(), counts.tolist(), strict=True))
    words = [value for value in classes if value.casefold() in _NONE]
    least = min((n for value, n in classes.items() if value not in words), default=0)
    notes: list[str] = []
    for word in words:
        if classes[word] < min(least, 0.05 * len(raw)):
            raise DataError(
                f"label '{word}' ({classes[word]} of {len(raw)}) is taken as missing, since it is "
                "so rare; drop those rows, or, if it is a class, give it another name"
            )
        notes.append(
            f"label '{word}' ({classes[word]} of {len(raw)}) is a class; where it means missing, "
            "drop those rows"
        )
    return tuple(notes)


def _spelled(raw: np.ndarray, values: Iterable[Any]) -> np.ndarray:
    """Text labels as the classes are spelled: ``yes`` is ``Yes``, unless it is a class too."""
    if _numeric(raw):
        return raw
    classes, folded = set(values), {}
    for value in classes:
        folded.setdefault(str(value).casefold(), []).append(value)
    found, inverse = np.unique(raw, return_inverse=True)
    spelled: list[Any] = []
    for value in found.tolist():
        near = folded.get(value.casefold(), [])
        spelled.append(near[0] if value not in classes and len(near) == 1 else value)
    return np.asarray(spelled)[inverse] if spelled != found.tolist() else raw


def _quoted(values: Iterable[str]) -> str:
    return " and ".join(f"'{value}'" for value in values)


def _numeric(raw: np.ndarray) -> bool:
    return np.issubdtype(raw.dtype, np.number) or raw.dtype == bool


def _signed(values: list[Any]) -> bool:
    return values in ([0, 1], [-1, 1])  # True and False too


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) else str(value)


def _refuse_equal(raw: np.ndarray) -> None:
    if len(raw) and (raw == raw[0]).all():
        raise DataError(f"all {len(raw)} targets are {raw[0]}, so there is nothing to learn")
