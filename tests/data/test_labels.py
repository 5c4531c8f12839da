"""Labels: task, classes and positive class from what a file holds, and each refusal by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lossearch.data.labels import read_labels, tidy
from lossearch.errors import DataError


def read(targets: Any, task: str | None = None, names: tuple[str, ...] = ()) -> tuple[Any, Any]:
    raw = tidy(targets)
    labels = read_labels(raw, task, names)
    return labels, labels.encode(raw)


@pytest.mark.parametrize(
    ("targets", "positive"),
    [
        ([0, 1, 1, 1], "1"),
        ([-1, 1, 1, 1], "1"),
        (["0", "1", "1", "1"], "1"),
        (["'-1'", "'1'", "'1'", "'1'"], "1"),
        ([1.0, 2.0, 2.0, 2.0], "1"),  # neither 0/1 nor -1/1: the rarer
        ([1, 1, 1, 2], "2"),
        ([" yes", "no", "no ", "no"], "yes"),
        (["a", "b", "a", "b"], "b"),  # a tie: the later
        ([False, True, True, True], "True"),
    ],
)
def test_the_positive_class(targets: list[Any], positive: str) -> None:
    labels, encoded = read(targets)
    assert labels.task == "binary"
    assert labels.class_names[1] == positive
    assert encoded.dtype == torch.float32
    marked = [str(t).strip(" '").removesuffix(".0") == positive for t in targets]
    assert encoded.tolist() == [float(m) for m in marked]


def test_class_names_say_which_class_is_second() -> None:
    labels, encoded = read([0, 1, 1, 1], names=("benign", "malignant"))
    assert labels.class_names == ("benign", "malignant")
    labels, encoded = read(["b", "a", "a"], names=("b", "a"))
    assert encoded.tolist() == [0.0, 1.0, 1.0]


def test_multiclass_values_are_numbered_in_order() -> None:
    labels, encoded = read([30, 10, 20, 10])
    assert (labels.task, labels.class_names) == ("multiclass", ("10", "20", "30"))
    assert encoded.dtype == torch.int64
    assert encoded.tolist() == [2, 0, 1, 0]
    assert labels.counts(encoded) == (2, 1, 1)


def test_two_classes_can_be_multiclass() -> None:
    labels, encoded = read(["a", "b", "b"], task="multiclass")
    assert (labels.task, encoded.dtype) == ("multiclass", torch.int64)


def test_real_numbers_are_regression_and_whole_ones_on_demand() -> None:
    assert read([0.5, 1.0, 2.0])[0].task == "regression"
    labels, encoded = read([3, 4, 5], task="regression")
    assert labels.class_names == ()
    assert (encoded.dtype, encoded.tolist()) == (torch.float32, [3.0, 4.0, 5.0])
    assert read(np.random.default_rng(0).normal(size=(5, 2)))[0].width == 2


def test_rows_of_marks_are_multilabel() -> None:
    labels, encoded = read(np.array([[1, 0, -1], [0, 1, 1], [1, 1, 0]]))
    assert (labels.task, labels.class_names) == ("multilabel", ("0", "1", "2"))
    assert (encoded.dtype, tuple(encoded.shape)) == (torch.float32, (3, 3))
    assert labels.counts(encoded) == (2, 2, 1)  # -1 is unknown, not a positive


def test_a_column_and_a_series_are_one_label() -> None:
    assert read(np.array([[1], [2], [3]]))[0].task == "multiclass"
    assert read(pd.Series(["x", "y", "z"], dtype="category"))[0].class_names == ("x", "y", "z")
    assert read(torch.tensor([0, 1, 2]))[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("targets", "task", "names", "message"),
    [
        ([1, 1, 1], None, (), "all 3 labels are '1'"),
        ([0.5, 0.5], None, (), r"all 2 targets are 0.5"),
        ([0.0, np.nan, 1.0, np.inf], None, (), "2 of 4 targets are missing or infinite.*row 1"),
        (["a", None, "b"], None, (), "1 of 3 targets are missing"),
        (["a", "b", " "], None, (), "1 of 3 targets are missing"),
        ([0, 1, 2], "binary", (), "two classes, and there are 3: 0, 1, 2"),
        ([0.5, 1, 2], "multiclass", (), "0.5; is it task: regression"),
        (["a", "b"], "regression", (), "the label 'a' is text"),
        ([0, 1], "multilabel", (), r"\(samples, labels\)"),
        ([[1, 1], [0, 1]], "multiclass", (), r"sum to 1, and these do not"),
        ([[1, 0, 0], [0, 1, 0]], "binary", (), "two classes, and there are rows of 3"),
        ([[2, 0], [0, 1]], "multilabel", (), "0 and 1, with -1"),
        ([[1, 0], [0, 1]], None, ("a",), "1 class names for 2 classes"),
        ([0, 1, 5], None, ("a", "b"), "label 5 is outside the 2"),
        (["cat", "dgo"], None, ("cat", "dog"), "did you mean 'dog'"),
        ([0, 1], "multclass", (), "did you mean 'multiclass'"),
        (np.zeros((2, 2, 2)), None, (), r"shape \(2, 2, 2\)"),
        ([[1, 0], [1, 0]], None, (), "nothing to learn"),
    ],
)
def test_refusals(targets: Any, task: str | None, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(targets, task, names)


def test_a_test_part_with_a_strange_class_is_refused() -> None:
    labels, _ = read(["a", "b", "c"])
    with pytest.raises(DataError, match="label d is not one of the classes: a, b, c"):
        labels.encode(tidy(["a", "d"]))


def test_one_hot_rows_are_one_label() -> None:
    labels, encoded = read(np.eye(3)[[2, 0, 1, 1]], names=("a", "b", "c"))
    assert (labels.task, labels.class_names, labels.soft) == ("multiclass", ("a", "b", "c"), False)
    assert (encoded.dtype, encoded.tolist()) == (torch.int64, [2, 0, 1, 1])
    assert "read as one label a sample of 3 classes" in labels.notes[0]
    assert labels.encode(tidy(np.eye(3)[[1, 2]])).tolist() == [1, 2]
    assert read(np.eye(3), task="multilabel")[0].task == "multilabel"
    labels, encoded = read(np.eye(2)[[0, 1, 1]])
    assert (labels.task, encoded.tolist()) == ("binary", [0.0, 1.0, 1.0])
    assert read(np.array([[1, 0], [0, 0]]))[0].task == "multilabel"  # a row without a label


def test_rows_of_probabilities_are_soft_labels() -> None:
    given = [[0.7, 0.2, 0.1], [0.1, 0.45, 0.45], [0.0, 0.0, 1.0], [0.2, 0.5, 0.3]]
    labels, encoded = read(given)
    assert (labels.task, labels.soft, encoded.dtype) == ("multiclass", True, torch.float32)
    assert torch.equal(encoded, torch.tensor(given))
    assert labels.classes(encoded).tolist() == [0, 1, 2, 1]  # of a tie the first
    assert labels.counts(encoded) == (1, 2, 1)
    assert labels.hard(encoded).tolist() == [0, 1, 2, 1]
    assert "probabilities of 3 classes" in labels.notes[0]
    assert read(given, task="regression")[0].width == 3
    with pytest.raises(DataError, match="a row of 3 probabilities"):
        labels.encode(np.array([[0.5, 0.2, 0.1]]))
    with pytest.raises(DataError, match="these do not"):
        read([[0.5, 0.2], [0.1, 0.9]], task="multiclass")


def test_probabilities_of_two_classes() -> None:
    labels, encoded = read([0.1, 0.9, 0.6], task="binary")
    assert (labels.task, labels.soft, labels.class_names) == ("binary", True, ("0", "1"))
    assert torch.equal(encoded, torch.tensor([0.1, 0.9, 0.6]))
    assert labels.hard(encoded).tolist() == [0.0, 1.0, 1.0]
    assert labels.counts(encoded) == (1, 2)
    assert torch.equal(read([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])[1], encoded)
    guessed, _ = read([0.1, 0.9, 0.6])
    assert guessed.task == "regression" and "say task: binary" in guessed.notes[0]
