"""Items of a torch dataset, loaders, tokens and several inputs: taken, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from lossearch.data import Data, as_dataset, prepare_dataset
from lossearch.errors import DataError

TARGETS = np.arange(30) % 3
IDS = np.arange(120).reshape(30, 4)
MASK = np.ones((30, 4), dtype=bool)
NUMBERS = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)


class Made(TorchDataset[Any]):
    def __init__(self, make: Callable[[int], Any], size: int = 30) -> None:
        self.make, self.size = make, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int) -> Any:
        return self.make(position)


def ready(data: Any, targets: Any = None) -> Data:
    return prepare_dataset(as_dataset(data, targets))


def everything(data: Data) -> dict[int, Any]:
    """The inputs of each sample, by its first token, with its target."""
    found: dict[int, Any] = {}
    for split in (data.train, data.validation, data.test):
        for batch in split.batches(7, generator=torch.Generator().manual_seed(0)):
            inputs = batch["inputs"]
            for row, target in enumerate(batch["targets"].tolist()):
                named = isinstance(inputs, dict)
                one = {n: t[row] for n, t in inputs.items()} if named else [t[row] for t in inputs]
                first = one["input_ids"] if isinstance(one, dict) else one[0]
                found[int(first[0])] = one, target
    return found


NAMED = {
    "arrays": lambda: ready({"input_ids": IDS, "mask": MASK}, TARGETS),
    "a pair": lambda: ready(({"input_ids": IDS.tolist(), "mask": torch.tensor(MASK)}, TARGETS)),
    "items of dicts": lambda: ready(
        Made(lambda i: {"input_ids": IDS[i], "mask": MASK[i], "labels": TARGETS[i]})
    ),
    "pairs with a dict": lambda: ready(
        Made(lambda i: ({"input_ids": torch.tensor(IDS[i]), "mask": MASK[i]}, int(TARGETS[i])))
    ),
    "a dataset": lambda: ready({"input_ids": Made(lambda i: IDS[i]), "mask": MASK}, TARGETS),
}


@pytest.mark.parametrize("form", list(NAMED))
def test_several_inputs_by_name(form: str) -> None:
    data = NAMED[form]()
    assert data.info.kind == "several" and data.info.input_shape == ()
    assert data.info.shapes == {"input_ids": (4,), "mask": (4,)}
    found = everything(data)
    assert sorted(found) == IDS[:, 0].tolist()
    for first, (inputs, target) in found.items():
        assert inputs["input_ids"].dtype == torch.int64 and inputs["mask"].dtype == torch.bool
        assert inputs["input_ids"].tolist() == IDS[first // 4].tolist()
        assert target == TARGETS[first // 4]
    samples = data.samples()
    assert isinstance(samples, dict) and set(samples) == {"input_ids", "mask"}


def test_several_inputs_in_order_with_a_table_and_an_image() -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 3, 8, 8)).astype(np.uint8)
    frame = pd.DataFrame(NUMBERS, columns=list("abcde")).assign(kind=["x", "y"] * 15)
    data = ready((images, frame), TARGETS)
    assert data.info.shapes == {"0": (3, 8, 8), "1": (7,)}
    assert data.table is not None
    picture, table = next(iter(data.validation.batches(3)))["inputs"]
    alone = ready(images, TARGETS).validation
    assert torch.equal(picture, next(iter(alone.batches(3)))["inputs"])
    assert torch.equal(table, next(iter(ready(frame, TARGETS).validation.batches(3)))["inputs"])
    items = Made(lambda i: ((torch.full((4,), float(i)), NUMBERS[i]), TARGETS[i]))
    found = everything(ready(items))
    assert all(torch.equal(x[1], torch.tensor(NUMBERS[i])) for i, (x, _) in found.items())


def test_the_fingerprint_sees_every_input() -> None:
    def fingerprint(mask: Any) -> str:
        return ready({"input_ids": IDS, "mask": mask}, TARGETS).info.fingerprint

    assert fingerprint(MASK) == fingerprint(MASK.copy()) != fingerprint(~MASK)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": IDS, "b": NUMBERS[:20]}, "one row a sample, and there are 30 of 'a', 20 of 'b'"),
        ({"a": IDS, "b": np.full((30, 2), np.nan)}, "input 'b': 60 values .* are NaN"),
        ({"a": IDS, "b": np.array(["x"] * 30)}, "input 'b': the inputs are an array of <U1"),
        ({"a": [[1, 2]] * 29 + [[1]]}, r"sample 0 has the shape \(2,\) and sample 29 \(1,\).*pad"),
        ({}, "there are none"),
    ],
)
def test_several_inputs_that_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ready(data, TARGETS)


def test_a_test_part_with_other_inputs() -> None:
    test = ({"input_ids": IDS}, TARGETS)
    with pytest.raises(DataError, match="are input_ids, mask, and those of the test part input"):
        prepare_dataset(as_dataset({"input_ids": IDS, "mask": MASK}, TARGETS, test=test))


# tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [False, True])
def test_whole_numbers_stay_such_for_an_embedding(items: bool) -> None:
    data = ready(Made(lambda i: (IDS[i], TARGETS[i]))) if items else ready(IDS, TARGETS)
    assert next(iter(data.train.batches(3)))["inputs"].dtype == torch.float32
    whole = data.as_integers()
    assert whole is not None and whole.info.kind == "tokens"
    assert "whole numbers (int64)" in whole.info.notes[-1]
    for before, after in ((data.train, whole.train), (data.test, whole.test)):
        one, other = (next(iter(s.batches(30))) for s in (before, after))
        assert other["inputs"].dtype == torch.int64
        assert torch.equal(one["inputs"].long(), other["inputs"])
        assert torch.equal(one["targets"], other["targets"])
    samples = whole.samples()
    assert isinstance(samples, torch.Tensor)
    if not items:  # the largest token is among those that a model is tried on
        assert samples.max() == whole.train.source.values.max()  # pyright: ignore


@pytest.mark.parametrize("inputs", [NUMBERS, pd.DataFrame(IDS), IDS + 2**25])
def test_numbers_that_are_no_tokens(inputs: Any) -> None:
    assert ready(inputs, TARGETS).as_integers() is None


# loaders -----------------------------------------------------------------------------------------


def test_of_a_loader_the_dataset_is_taken_and_the_rest_named() -> None:
    dataset = TensorDataset(torch.tensor(NUMBERS), torch.tensor(TARGETS))
    given = as_dataset(DataLoader(dataset, batch_size=5, shuffle=True))
    assert prepare_dataset(given).info.fingerprint == ready(dataset).info.fingerprint
    assert "its batch_size (5), its RandomSampler" in given.notes[0]
    part = as_dataset(dataset, test=DataLoader(dataset))
    assert prepare_dataset(part).info.test_size == 30


def test_a_loader_that_makes_batches_itself_is_refused() -> None:
    def padded(items: Any) -> Any:
        return items

    loader = DataLoader(Made(lambda i: (IDS[i], TARGETS[i])), collate_fn=padded)
    with pytest.raises(DataError, match=r"collate_fn of its own \(padded\).*__getitem__"):
        as_dataset(loader)


# items that are refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: (NUMBERS[i], 0, 1.0), "item 0 .* has 3 parts.*weights of samples are not supp"),
        (lambda i: {"x": NUMBERS[i], "label": 0, "sample_weight": 1}, "weights of samples"),
        (lambda i: {"x": NUMBERS[i], "label": 0, "y": 1}, "both 'label' and 'y'"),
        (lambda i: {"x": NUMBERS[i]}, r"not an \(input, target\) pair or a dict with one"),
        (lambda i: ({"x": NUMBERS[i], "text": "no"}, 0), "'text', in the input of item 0 .*str"),
        (lambda i: (NUMBERS[i] if i < 20 else NUMBERS[i] / 0, i % 3), "item 20 .* holds 5 values"),
        (lambda i: (NUMBERS[i, : 5 - (i == 25)], i % 3), r"\(5,\) and item 25 .* \(4,\).*pad"),
    ],
)
def test_items_are_refused_by_their_number(make: Any, message: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(DataError, match=message):
        ready(Made(make))


def test_what_only_training_meets_is_named_there() -> None:
    late = Made(lambda i: (NUMBERS[i, : 5 - (i == 29)], 0))
    data = ready(late, TARGETS)
    with pytest.raises(DataError, match=r"an item has the shape .* and another"):
        for split in (data.train, data.validation, data.test):
            list(split.batches(30))
    missing = Made(lambda i: (NUMBERS[i] * (np.nan if i == 29 else 1), 0))
    data = ready(missing, TARGETS)
    with pytest.raises(DataError, match=r"item 29 .* holds 5 values that are NaN"):
        for split in (data.train, data.validation, data.test):
            list(split.batches(30))


def test_a_dict_of_one_input_is_that_input() -> None:
    data = ready(Made(lambda i: {"pixels": NUMBERS[i], "label": TARGETS[i]}))
    assert data.info.kind == "table" and data.info.input_shape == (5,)


def test_a_subset_reads_its_own_items_alone() -> None:
    def make(position: int) -> Any:
        assert position < 20
        return NUMBERS[position], TARGETS[position]

    assert ready(Subset(Made(make), list(range(20)))).info.train_size == 12


# unknown labels ----------------------------------------------------------------------------------


def test_missing_labels_of_several_are_unknown() -> None:
    marks = (np.arange(90).reshape(30, 3) % 2).astype(float)
    marks[4, 1] = marks[5] = np.nan
    data = ready(NUMBERS, marks)
    assert data.info.task == "multilabel"
    assert "4 of 90 labels are missing, and count as unknown (-1)" in data.info.notes
    whole = [s.targets for s in (data.train, data.validation, data.test)]
    assert int((torch.cat(whole) == -1).sum()) == 4
    with pytest.raises(DataError, match="4 of 90 targets are missing"):
        prepare_dataset(as_dataset(NUMBERS, marks, "regression"))
    with pytest.raises(DataError, match="are missing"):
        ready(NUMBERS, np.where(np.isnan(marks), np.nan, marks * 0.5))
