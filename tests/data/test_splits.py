"""Dealing out: each class in each part, nothing twice, the same in every process."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset, TensorDataset

import lossearch
from lossearch.components import component_of
from lossearch.data import (
    DataConfig,
    Dataset,
    SplitConfig,
    as_dataset,
    prepare,
    prepare_dataset,
)
from lossearch.errors import DataError, ParameterError, UnknownNameError
from lossearch.registry import Registry

COUNTS = (60, 30, 7, 3)


def toy(counts: tuple[int, ...] = COUNTS, **more: Any) -> Dataset:
    targets = np.repeat(np.arange(len(counts)), counts)
    inputs = np.arange(len(targets), dtype=np.float32)[:, None] / len(targets)
    return Dataset(inputs, targets, **more)


def rows(split: Any, size: int = 100) -> list[int]:
    """Which samples a split of ``toy()`` holds."""
    return [round(v * size) for v in split.source.values[:, 0].tolist()]


def test_every_class_in_every_part_and_no_sample_twice() -> None:
    data = prepare_dataset(toy())
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert sorted(rows(parts[0]) + rows(parts[1]) + rows(parts[2])) == list(range(100))
    for part, counts in zip(parts, [(36, 18, 5, 1), (12, 6, 1, 1), (12, 6, 1, 1)], strict=True):
        assert part.targets.bincount().tolist() == list(counts)
    assert data.info.class_counts == (36, 18, 5, 1)


def test_split_seed_decides() -> None:
    first, again = prepare_dataset(toy()), prepare_dataset(toy(), seed=5)
    assert rows(first.test) == rows(again.test)
    assert first.info.fingerprint == again.info.fingerprint
    other = prepare_dataset(toy(), {"split": {"seed": 1}})
    assert rows(other.test) != rows(first.test)
    assert other.info.fingerprint != first.info.fingerprint


def test_shares() -> None:
    data = prepare_dataset(toy((500, 500)), {"split": {"validation": 0.1, "test": 0.3}})
    assert (len(data.train), len(data.validation), len(data.test)) == (600, 100, 300)
    for wrong in ({"validation": 0.5, "test": 0.5}, {"test": 0.0}, {"validation": 1.0}):
        with pytest.raises(ValidationError):
            SplitConfig(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("limit", [12, 37, 50, 99])
def test_limit_keeps_just_so_many_in_their_shares(limit: int) -> None:
    info = prepare_dataset(toy(), {"limit": limit}).info
    assert info.train_size + info.validation_size + info.test_size == limit
    assert min(info.class_counts) >= 1
    assert info.class_counts[0] == max(info.class_counts)


def test_limit_above_all_and_below_what_is_needed() -> None:
    assert prepare_dataset(toy(), {"limit": 1000}).info.train_size == 60
    with pytest.raises(DataError, match="limit = 11 is too small: each of the 4 classes needs 3"):
        prepare_dataset(toy(), {"limit": 11})


def test_a_fixed_test_part_stays_whole() -> None:
    fixed = (np.full((10, 1), 2, dtype=np.float32), np.arange(10) % 4)
    data = prepare_dataset(toy(test=fixed))
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, 10)
    assert data.test.targets.tolist() == fixed[1].tolist()
    limited = prepare_dataset(toy(test=fixed), {"limit": 20})
    assert (len(limited.train) + len(limited.validation), len(limited.test)) == (16, 4)


def fixed(count: int, value: float) -> tuple[np.ndarray, np.ndarray]:
    return np.full((count, 1), value, dtype=np.float32), np.arange(count) % 4


def test_a_fixed_validation_part_stays_whole() -> None:
    data = prepare_dataset(toy(validation=fixed(12, 2), test=fixed(10, 3)))
    assert rows(data.train) == list(range(100))
    assert (rows(data.validation, 1), rows(data.test, 1)) == ([2] * 12, [3] * 10)
    assert data.validation.targets.tolist() == fixed(12, 2)[1].tolist()
    alone = prepare_dataset(toy(validation=fixed(12, 2)))
    assert (len(alone.train), len(alone.validation), len(alone.test)) == (80, 12, 20)
    assert alone.test.targets.bincount().tolist() == [12, 6, 1, 1]
    assert sorted(rows(alone.train) + rows(alone.test)) == list(range(100))
    once = prepare_dataset(toy((3, 1, 1), validation=fixed(3, 2), test=fixed(3, 2)))
    assert once.info.class_counts == (3, 1, 1)


def test_a_limit_is_shared_out_to_fixed_parts() -> None:
    dataset = toy(validation=fixed(40, 2), test=fixed(40, 3))
    data = prepare_dataset(dataset, {"limit": 50, "split": {"validation": 0.1, "test": 0.2}})
    assert (len(data.train), len(data.validation), len(data.test)) == (35, 5, 10)
    with pytest.raises(DataError, match="limit = 5 is too small: each of the 4 classes needs 1"):
        prepare_dataset(dataset, {"limit": 5})


def test_a_fixed_validation_part_gets_noise_and_counts_in_the_fingerprint() -> None:
    clean = prepare_dataset(toy(validation=fixed(400, 2)))
    noisy = prepare_dataset(toy(validation=fixed(400, 2)), {"noise": {"rate": 0.5}})
    changed = (clean.validation.targets != noisy.validation.targets).float().mean()
    assert changed == pytest.approx(0.5, abs=0.08)
    other = fixed(400, 2.5), fixed(399, 2)
    assert len({prepare_dataset(toy(validation=v)).info.fingerprint for v in other}) == 2
    assert all(
        prepare_dataset(toy(validation=v)).info.fingerprint != clean.info.fingerprint
        for v in (*other, None)
    )


def test_facts() -> None:
    binary = prepare_dataset(toy((20, 10))).info
    assert (binary.task, binary.num_classes, binary.num_outputs) == ("binary", 2, 1)
    multi = prepare_dataset(toy()).info
    assert (multi.task, multi.num_classes, multi.num_outputs) == ("multiclass", 4, 4)
    assert (multi.input_shape, multi.kind, multi.class_names) == ((1,), "table", tuple("0123"))
    marks = np.random.default_rng(0).integers(0, 2, (40, 3))
    labels = prepare_dataset(as_dataset(np.ones((40, 2, 5)), marks)).info
    assert (labels.task, labels.num_classes, labels.num_outputs) == ("multilabel", 3, 3)
    assert labels.kind == "other"
    real = prepare_dataset(as_dataset(np.ones((40, 3, 8, 8)), np.linspace(0, 1, 40))).info
    assert (real.task, real.num_classes, real.num_outputs) == ("regression", 0, 1)
    assert (real.class_counts, real.kind, real.input_shape) == ((), "image", (3, 8, 8))


def test_the_config_overrides_the_task() -> None:
    data = prepare_dataset(toy((20, 10)), {"task": "multiclass"})
    assert (data.info.task, data.info.num_outputs) == ("multiclass", 2)
    assert data.train.targets.dtype == torch.int64
    assert prepare_dataset(toy(), {"task": "regression"}).info.task == "regression"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (toy((10, 1)), "class '1' has one sample; training.*3 are the least.*task: regression"),
        (toy((10, 2, 1)), r"class '1' has 2 samples \(and 1 more classes have too few\)"),
        (toy((5, 5), class_names=("a", "b", "c")), "class 'c' has no sample"),
        (Dataset(np.ones((4, 2)), [0, 1, 0]), "4 inputs and 3 targets"),
        (Dataset(np.ones((0, 2)), []), "no samples"),
        (Dataset(np.ones(6), [0, 1] * 3), r"inputs have the shape \(6,\)"),
        (Dataset(np.array([["a"]] * 6), [0, 1] * 3), "not of numbers.*data frame"),
        (Dataset(np.ones((6, 1)) * 1j, [0, 1] * 3), "complex"),
        (
            Dataset(np.array([[1, np.nan]] * 4 + [[1, np.inf]] * 2), [0, 1] * 3),
            "6 values of the inputs are NaN or infinite, in 6 of 6.*pandas.DataFrame",
        ),
        (toy((6, 6), test=(np.ones((2, 3)), [0, 1])), r"\(1,\).*test part \(3,\)"),
        (toy((6, 6), test=(pd.DataFrame({"x": [1, 2]}), [0, 1])), "test part a .*of one kind"),
        (toy((6, 6), validation=(np.ones((2, 3)), [0, 1])), r"\(1,\).*validation part \(3,\)"),
        (toy((6, 6), validation=(np.ones((2, 1)), [0])), "2 validation inputs and 1 validation"),
        (toy((6, 6), test=(np.ones((2, 1)), [0, 7])), "label 7 is not one of the classes"),
        (toy((6, 6), test=(np.ones((2, 1)), [0])), "2 test inputs and 1 test targets"),
        (Dataset(42, [0, 1]), "no length"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_refusals(dataset: Dataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_dataset(dataset)


def test_prepare_reads_the_component_by_name(registry: Registry) -> None:
    config = DataConfig.model_validate({"name": "digits", "limit": 200})
    data = prepare(config, registry)
    assert data.info.train_size == 120
    assert data.info.input_shape == (64,)
    inputs = data.train.source.values  # pyright: ignore[reportAttributeAccessIssue]
    assert (inputs.min(), inputs.max()) == (0, 1)
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        prepare(DataConfig(name="digit"), registry)
    with pytest.raises(ParameterError, match=r"no key 'nois'; did you mean 'noise'"):
        prepare(DataConfig.model_validate({"name": "digits", "nois": {}}), registry)
    with pytest.raises(ParameterError, match="no key 'limt'; did you mean 'limit'"):
        prepare_dataset(toy(), {"limt": 5})
    with pytest.raises(ParameterError, match="data: limit = 0 is not allowed"):
        prepare_dataset(toy(), {"limit": 0})


def test_a_component_that_returns_something_else_is_named(registry: Registry) -> None:
    @lossearch.dataset(name="wrong")
    def wrong() -> Any:
        return [1, 2]

    mine = Registry()
    mine.add(component_of(wrong), "test")
    with pytest.raises(DataError, match="'wrong' returned a list"):
        prepare(DataConfig(name="wrong"), mine)


def test_data_pickles_without_copies_on_devices() -> None:
    frame = pd.DataFrame({"x": np.arange(60.0), "k": list("abc") * 20})
    data = prepare_dataset(as_dataset(frame, np.arange(60) % 2))
    next(iter(data.train.batches(4)))
    again = pickle.loads(pickle.dumps(data))
    assert again.info == data.info
    assert not again.train.source._resident
    for one, two in zip(data.train.batches(8), again.train.batches(8), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(again.table(frame), data.table(frame))  # pyright: ignore


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "import pandas as pd\n"
        "from lossearch.data import as_dataset, prepare_dataset\n"
        "frame = pd.DataFrame({'x': range(40), 'k': list('abcd') * 10, 'y': ['p', 'n'] * 20})\n"
        "found = prepare_dataset(as_dataset(frame, 'y'), {'noise': {}}).info.fingerprint\n"
    )
    here: dict[str, Any] = {}
    exec(code, here)
    there = subprocess.run(
        [sys.executable, "-c", code + "print(found)"],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert here["found"] == there
    assert len(there) == 64


def test_the_fingerprint_sees_inputs_labels_and_noise() -> None:
    base = toy()
    inputs = np.array(base.inputs)
    inputs[0] += 1
    prints = {
        prepare_dataset(base).info.fingerprint,
        prepare_dataset(Dataset(inputs, base.targets)).info.fingerprint,
        prepare_dataset(base, {"noise": {"rate": 0.1}}).info.fingerprint,
        prepare_dataset(base, {"noise": {"rate": 0.1}}, seed=1).info.fingerprint,
        prepare_dataset(base, {"imbalance": {"factor": 90}}).info.fingerprint,
        prepare_dataset(base, {"limit": 90}).info.fingerprint,
    }
    assert len(prints) == 6


class Pairs(TorchDataset[Any]):
    """Items of (tensor, label), with no list of labels."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return torch.full((4,), float(position)), position % 3


def test_what_users_have_at_hand() -> None:
    inputs, targets = torch.rand(30, 4), torch.arange(30) % 3
    for given in (
        as_dataset(inputs, targets),
        as_dataset((inputs, targets)),
        as_dataset(inputs.tolist(), targets.tolist()),
        as_dataset(TensorDataset(inputs, targets)),
        as_dataset(pd.DataFrame(inputs.numpy()).assign(y=targets.numpy()), "y"),
        as_dataset(Pairs()),
        as_dataset(Pairs(), targets.numpy()),
        as_dataset(Subset(Pairs(), list(range(30)))),
    ):
        info = prepare_dataset(given).info
        assert (info.task, info.train_size, info.input_shape) == ("multiclass", 18, (4,))
    whole = as_dataset(inputs, targets)
    assert as_dataset(whole) is whole
    assert as_dataset(whole, task="regression").task == "regression"
    fixed = as_dataset((inputs, targets), test=(inputs[:5], targets[:5]))
    assert prepare_dataset(fixed).info.test_size == 5
    frame = pd.DataFrame(inputs.numpy()).assign(y=targets.numpy())
    parts = as_dataset(frame, "y", validation=frame[:6], test=frame[:9])
    info = prepare_dataset(parts).info
    assert (info.train_size, info.validation_size, info.test_size) == (30, 6, 9)


def test_what_users_cannot_give() -> None:
    frame = pd.DataFrame({"x": [1, 2], "label": [0, 1]})

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    for given, targets, message in (
        (frame, "labl", "no column 'labl'; did you mean 'label'"),
        (frame, None, "no targets for this DataFrame"),
        ((1, 2, 3), None, "not a tuple of 3"),
        ("digits", [0], "type str are not understood"),
        ([[1], [1, 2]], [0, 1], r"sample 0 has the shape \(1,\) and sample 1 \(2,\)"),
        (Stream(), None, "map-style"),
    ):
        with pytest.raises(DataError, match=message):
            as_dataset(given, targets)
    with pytest.raises(DataError, match="did you mean 'binary'"):
        as_dataset(np.ones((2, 2)), [0, 1], "binry")


def test_a_warning_of_raw_scales(caplog: pytest.LogCaptureFixture) -> None:
    prepare_dataset(as_dataset(np.ones((20, 2)) * [1, 5000], np.arange(20) % 2))
    assert "input column 1 reaches 5000" in caplog.text


def test_labels_of_minus_100_are_left_out() -> None:
    inputs = np.arange(60, dtype=np.float32)[:, None]
    targets = np.arange(60) % 3
    targets[[4, 17, 40]] = -100
    data = prepare_dataset(as_dataset(inputs, targets))
    assert (data.info.task, data.info.class_names) == ("multiclass", ("0", "1", "2"))
    assert data.info.notes == (
        "3 samples are left out of the data: the label is -100, the mark for 'ignore'",
    )
    seen = [b for s in (data.train, data.validation, data.test) for b in s.batches(60)]
    pairs = {int(x): int(t) for b in seen for x, t in zip(b["inputs"], b["targets"], strict=True)}
    kept = [i for i in range(60) if i not in (4, 17, 40)]
    assert sorted(pairs) == kept and all(pairs[i] == i % 3 for i in kept)
    for task in ("binary", None):
        two = np.where(targets == 2, 1, targets)
        assert prepare_dataset(as_dataset(inputs, two, task=task)).info.task == "binary"
    whole = prepare_dataset(as_dataset(inputs, targets, task="regression"))  # a quantity
    assert whole.info.notes == () and whole.train.targets.min() == -100
    with pytest.raises(DataError, match="all 60 labels are -100"):
        prepare_dataset(as_dataset(inputs, np.full(60, -100)))


def test_soft_labels_in_training_and_classes_elsewhere() -> None:
    draw = np.random.default_rng(0)
    shares = draw.dirichlet([0.5] * 3, size=90)
    inputs = np.arange(90, dtype=np.float32)[:, None]
    data = prepare_dataset(as_dataset(inputs, shares))
    assert data.info.soft_targets and data.info.num_classes == 3
    batch = next(iter(data.train.batches(90)))
    rows = torch.tensor(shares).float()
    assert torch.equal(batch["targets"], rows[batch["inputs"][:, 0].long()])
    for split in (data.validation, data.test):
        batch = next(iter(split.batches(90)))
        assert batch["targets"].dtype == torch.int64
        assert torch.equal(batch["targets"], rows[batch["inputs"][:, 0].long()].argmax(1))
    counts = data.train.targets.argmax(1).bincount().tolist()
    assert list(data.info.class_counts) == counts
    with pytest.raises(DataError, match=r"targets are probabilities\. Leave out 'noise'"):
        prepare_dataset(as_dataset(inputs, shares), {"noise": {"rate": 0.1}})
