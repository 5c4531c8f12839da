"""Bags of training samples: who shares one, which label it gets, and that batches hold whole."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lossearch.data import BagsConfig, Split, as_dataset, prepare_dataset
from lossearch.data.corrupt import into_bags
from lossearch.data.labels import Labels, read_labels
from lossearch.errors import DataError

THREE = read_labels(np.arange(30) % 3, None, ("a", "b", "c"))


def by_hand(targets: Tensor, bag: Tensor, label: str, task: str, classes: int) -> list[Any]:
    """The response of each sample's bag, by plain loops."""
    found: list[Any] = []
    for mine in bag.tolist():
        members = [t for t, b in zip(targets.tolist(), bag.tolist(), strict=True) if b == mine]
        if task == "multiclass":
            counts = [members.count(c) for c in range(classes)]
            share = [c / len(members) for c in counts]
            found.append(share if label == "proportion" else counts.index(max(counts)))
        else:
            mean = sum(members) / len(members)
            found.append(mean if label == "proportion" else float(mean > 0.5))
    return found


@pytest.mark.parametrize("label", ["proportion", "majority"])
@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_the_label_of_a_bag(task: str, label: str) -> None:
    classes = 3 if task == "multiclass" else 2
    raw = np.random.default_rng(0).integers(0, classes, 50)
    labels = read_labels(raw, task, tuple("abc"[:classes]))
    targets = labels.encode(raw)
    config = BagsConfig.model_validate({"size": 8, "label": label})
    found, bag = into_bags(targets, labels, config, 0)
    assert bag.bincount().tolist() == [8] * 6 + [2]
    assert bag.dtype == torch.int64
    assert found.dtype == (torch.int64 if (task, label) == ("multiclass", "majority")
                           else torch.float32)  # fmt: skip
    expected = torch.tensor(by_hand(targets, bag, label, task, classes))
    torch.testing.assert_close(found, expected.to(found.dtype))


def test_unknown_labels_of_a_bag_are_left_out() -> None:
    labels = Labels("multilabel", (), ("x", "y", "z"), 3)
    targets = torch.tensor([[1.0, -1, -1], [0, -1, 1], [1, -1, 1]])
    found, _ = into_bags(targets, labels, BagsConfig(size=3), 0)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, -1, 1]]).expand(3, 3))
    found, _ = into_bags(targets, labels, BagsConfig(size=3, label="majority"), 0)
    assert found.tolist() == [[1, -1, 1]] * 3


def test_a_regression_has_means_and_no_majority() -> None:
    labels = Labels("regression", (), (), 2)
    targets = torch.tensor([[-1.0, 2], [-3, 4], [5, 6], [7, -8]])
    found, bag = into_bags(targets, labels, BagsConfig(size=2), 0)
    for one in range(2):
        expected = targets[bag == one].mean(0).expand(2, 2)
        torch.testing.assert_close(found[bag == one], expected)
    with pytest.raises(DataError, match="no majority; take label: proportion"):
        into_bags(targets, labels, BagsConfig(size=2, label="majority"), 0)


def test_bags_of_one_are_the_samples() -> None:
    targets = torch.arange(30) % 3
    found, bag = into_bags(targets, THREE, BagsConfig(size=1, label="majority"), 0)
    assert torch.equal(found, targets)
    assert bag.sort().values.tolist() == list(range(30))
    shares, _ = into_bags(targets, THREE, BagsConfig(size=1), 0)
    assert torch.equal(shares, torch.nn.functional.one_hot(targets).float())


def data(**bags: Any) -> Any:
    inputs = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
    return prepare_dataset(as_dataset(inputs, np.arange(300) % 3), {"bags": bags} if bags else {})


def test_only_training_is_put_into_bags() -> None:
    plain, bagged = data(), data(size=8)
    assert bagged.train.targets.shape == (180, 3)
    assert torch.equal(plain.validation.targets, bagged.validation.targets)
    assert torch.equal(plain.test.targets, bagged.test.targets)
    assert bagged.train.bag is not None and bagged.validation.bag is None
    assert "bag" in bagged.train.gives and "bag" not in bagged.test.gives
    assert bagged.info.class_counts == plain.info.class_counts == (60, 60, 60)
    assert bagged.info.fingerprint != plain.info.fingerprint
    majority = data(size=8, label="majority")
    assert majority.info.class_counts == tuple(majority.train.targets.bincount().tolist())


def test_bags_repeat_by_their_seed() -> None:
    one, other = data(size=8), data(size=8)
    assert torch.equal(one.train.bag, other.train.bag)
    assert one.info.fingerprint == other.info.fingerprint
    another = data(size=8, seed=1)
    assert not torch.equal(one.train.bag, another.train.bag)
    assert one.info.fingerprint != another.info.fingerprint


def test_shuffled_batches_hold_whole_bags() -> None:
    split = data(size=8).train  # 22 bags and one of four
    seen: list[list[int]] = []
    for epoch in range(2):
        batches = list(split.batches(32, generator=torch.Generator().manual_seed(epoch)))
        assert len(batches) == 6  # as many as without bags: the schedule counts on it
        index = torch.cat([b["index"] for b in batches])
        assert index.sort().values.tolist() == list(range(180))
        owners: dict[int, int] = {}
        for number, batch in enumerate(batches):
            assert len(batch["index"]) <= 32
            assert torch.equal(batch["bag"], split.bag[batch["index"]])
            assert torch.equal(batch["targets"], split.targets[batch["index"]])
            for bag in batch["bag"].unique().tolist():
                assert owners.setdefault(bag, number) == number  # in one batch alone
        assert len(owners) == 23
        seen.append(index.tolist())
    assert seen[0] != seen[1]


def test_batches_in_order_and_the_last_one() -> None:
    split = Split(torch.zeros(10, 1), torch.zeros(10), bag=torch.arange(10) // 2)
    assert torch.cat([b["index"] for b in split.batches(3)]).tolist() == list(range(10))
    generator = torch.Generator().manual_seed(0)
    kept = list(split.batches(4, generator=generator, drop_last=True))
    assert [len(b["index"]) for b in kept] == [4, 4]


def test_bags_travel() -> None:
    split = pickle.loads(pickle.dumps(data(size=8).train))
    assert torch.equal(split.bag, data(size=8).train.bag)


def test_refusals() -> None:
    with pytest.raises(DataError, match="batch_size = 20 cannot hold whole bags of 8"):
        data(size=8).train.batches(20, generator=torch.Generator())
    for wrong in ({"size": 0}, {"label": "mean", "size": 2}, {}):
        with pytest.raises(ValidationError):
            BagsConfig.model_validate(wrong)
