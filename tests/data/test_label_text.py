"""Classes in text: one class of several spellings, and words that mean "none"."""

from __future__ import annotations

import numpy as np
import pytest

from lossearch.data import as_dataset, prepare_dataset
from lossearch.data.labels import Labels, read_labels, tidy
from lossearch.errors import DataError


def read(targets: list[str], names: tuple[str, ...] = ()) -> tuple[Labels, list[float]]:
    raw = tidy(targets)
    labels = read_labels(raw, None, names)
    return labels, labels.encode(raw).tolist()


def test_spellings_are_one_class_by_the_most_frequent_one() -> None:
    labels, encoded = read(["Yes", "yes", "YES ", "Yes", "no", "No", "no"])
    assert labels.task == "binary" and set(labels.values) == {"Yes", "no"}
    assert labels.counts(labels.encode(tidy(["YES", "nO", "no"]))) == (1, 2)  # the rarer: no
    assert encoded == [0.0] * 4 + [1.0] * 3
    assert labels.notes == (
        "labels 'No' are taken as 'no'",
        "labels 'YES' and 'yes' are taken as 'Yes'",
    )


def test_letters_stay_apart_unless_two_classes_remain() -> None:
    labels, encoded = read(["a", "A", "b", "B", "c"])
    assert labels.values == ("A", "B", "a", "b", "c") and len(set(encoded)) == 5
    assert len(labels.notes) == 2 and "differ in case alone, and are kept apart" in labels.notes[0]
    labels, encoded = read(["y", "Y", "n", "N", "y"])
    assert labels.task == "binary" and sorted(encoded) == [0, 0, 0, 1, 1]


def test_a_test_part_is_spelled_as_training() -> None:
    inputs = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    test = (inputs[:4], ["YES", "no", "NO ", "yes"])
    data = prepare_dataset(as_dataset(inputs, ["yes", "no", "no", "no"] * 10, test=test))
    assert data.info.class_names == ("no", "yes")
    assert data.test.targets.tolist() == [1, 0, 0, 1]


def test_given_class_names_say_the_spelling() -> None:
    labels, encoded = read(["CAT", "dog", "Dog", "cat"], ("cat", "Dog"))
    assert labels.class_names == ("cat", "Dog") and encoded == [0, 1, 1, 0]
    assert read(["a", "A"], ("a", "A"))[1] == [0, 1]
    with pytest.raises(DataError, match="no class 'CATT'; did you mean"):
        read(["CATT", "dog"], ("CAT", "dog"))


@pytest.mark.parametrize("word", ["None", "NA", "null", "n/a"])
def test_a_word_for_none_is_a_class_where_it_is_frequent(word: str) -> None:
    labels, _ = read([word] * 6 + ["mild"] * 50 + ["severe"] * 44)
    assert word in labels.class_names
    assert labels.notes == (
        f"label '{word}' (6 of 100) is a class; where it means missing, drop those rows",
    )
    assert word in read([word] * 2 + ["mild"] * 96 + ["severe"] * 2)[0].class_names
    with pytest.raises(DataError, match=rf"label '{word}' \(2 of 100\) is taken as missing"):
        read([word] * 2 + ["mild"] * 50 + ["severe"] * 48)
    with pytest.raises(DataError, match="3 of 100 targets are missing"):
        read([word] * 3 + ["0"] * 50 + ["1"] * 47)


def test_only_empty_a_question_mark_and_nan_are_missing() -> None:
    for missing in ("", " ", "?", "nan", "NaN", None, float("nan")):
        with pytest.raises(DataError, match=r"2 of 22 targets are missing.*row 20"):
            tidy(["a", "b"] * 10 + [missing] * 2)
    assert read(["-", "+", "+", "+"] * 10)[0].notes == ()  # signs are classes


def test_objects_are_no_labels() -> None:
    with pytest.raises(DataError, match="targets hold list objects"):
        tidy(np.array([[1, 2], [3]], dtype=object))
