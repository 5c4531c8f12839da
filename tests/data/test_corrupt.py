"""Label noise and long tails: the rates, the directions, and that they repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lossearch.data import ImbalanceConfig, NoiseConfig, as_dataset, prepare_dataset
from lossearch.data.corrupt import add_noise, long_tail
from lossearch.data.labels import Labels, read_labels
from lossearch.errors import DataError

COUNT = 20_000
CLASSES = torch.arange(COUNT) % 4
FOUR = read_labels(CLASSES.numpy(), None, ("a", "b", "c", "d"))


def confusion(clean: torch.Tensor, noisy: torch.Tensor, size: int) -> torch.Tensor:
    table = torch.zeros(size, size)
    table.index_put_((clean, noisy.long()), torch.ones(len(clean)), accumulate=True)
    return table / table.sum(dim=1, keepdim=True)


def test_symmetric_goes_to_each_other_class_alike() -> None:
    noisy, rate = add_noise(CLASSES, FOUR, NoiseConfig(rate=0.3), (0, 0))
    expected = torch.full((4, 4), 0.1).fill_diagonal_(0.7)
    assert torch.allclose(confusion(CLASSES, noisy, 4), expected, atol=0.02)
    assert rate == pytest.approx((noisy != CLASSES).float().mean().item())
    assert noisy.dtype == torch.int64


def test_asymmetric_goes_to_the_next_class_or_by_the_map() -> None:
    pair, _ = add_noise(CLASSES, FOUR, NoiseConfig(kind="asymmetric", rate=0.3), (0, 0))
    expected = 0.7 * torch.eye(4) + 0.3 * torch.eye(4).roll(1, dims=1)
    assert torch.allclose(confusion(CLASSES, pair, 4), expected, atol=0.02)
    config = NoiseConfig(kind="asymmetric", rate=0.5, map={"a": "d", 2: 1})
    mapped, _ = add_noise(CLASSES, FOUR, config, (0, 0))
    expected = torch.eye(4)
    expected[0] = torch.tensor([0.5, 0, 0, 0.5])
    expected[2] = torch.tensor([0, 0.5, 0.5, 0])
    assert torch.allclose(confusion(CLASSES, mapped, 4), expected, atol=0.03)


def test_binary_and_multilabel_are_switched() -> None:
    binary = (torch.arange(COUNT) % 2).float()
    labels = read_labels(binary.numpy(), None)
    noisy, rate = add_noise(binary, labels, NoiseConfig(rate=0.25), (0, 0))
    assert noisy.dtype == torch.float32
    assert rate == pytest.approx(0.25, abs=0.02)
    marks = torch.tensor([[1.0, -1.0], [0.0, 1.0]]).repeat(COUNT // 2, 1)
    noisy, rate = add_noise(marks, Labels("multilabel", (), ("0", "1"), 2), NoiseConfig(), (0, 0))
    assert ((noisy == -1) == (marks == -1)).all()  # unknown stays unknown
    assert (noisy != marks)[marks >= 0].float().mean() == pytest.approx(0.2, abs=0.02)


def test_noise_repeats_by_its_seed() -> None:
    config = NoiseConfig(rate=0.5)
    first, _ = add_noise(CLASSES, FOUR, config, (3, 0))
    assert torch.equal(first, add_noise(CLASSES, FOUR, config, (3, 0))[0])
    assert not torch.equal(first, add_noise(CLASSES, FOUR, config, (3, 1))[0])
    assert torch.equal(add_noise(CLASSES, FOUR, NoiseConfig(rate=0), (0, 0))[0], CLASSES)


def test_noise_is_in_training_and_validation_never_in_test() -> None:
    inputs = np.arange(3000, dtype=np.float32)[:, None].repeat(2, axis=1) / 3000
    targets = np.arange(3000) % 3
    dataset = as_dataset(inputs, targets)
    clean = prepare_dataset(dataset)
    noisy = prepare_dataset(dataset, {"noise": {"rate": 0.4}})
    assert torch.equal(clean.test.targets, noisy.test.targets)
    changed = (clean.train.targets != noisy.train.targets).float().mean().item()
    assert changed == pytest.approx(0.4, abs=0.05)
    assert noisy.info.noise_rate == pytest.approx(changed)
    in_validation = (clean.validation.targets != noisy.validation.targets).float().mean().item()
    assert in_validation == pytest.approx(0.4, abs=0.06)
    assert noisy.info.class_counts == tuple(noisy.train.targets.bincount().tolist())
    again = prepare_dataset(dataset, {"noise": {"rate": 0.4}}, seed=1)
    assert not torch.equal(again.train.targets, noisy.train.targets)
    pinned = {"noise": {"rate": 0.4, "seed": 0}}
    assert torch.equal(prepare_dataset(dataset, pinned, seed=1).train.targets, noisy.train.targets)


def test_long_tail_by_hand() -> None:
    classes = np.repeat(np.arange(5), 1000)
    kept = long_tail(classes, ImbalanceConfig(factor=100), 0)
    # 1000 * 100 ** (-c / 4): 1000, 316.2, 100, 31.6, 10
    assert np.bincount(classes[kept]).tolist() == [1000, 316, 100, 31, 10]
    assert (np.diff(kept) > 0).all()
    step = long_tail(classes, ImbalanceConfig(factor=50, kind="step"), 0)
    assert np.bincount(classes[step]).tolist() == [1000, 1000, 1000, 20, 20]
    assert len(long_tail(classes, ImbalanceConfig(factor=1), 0)) == 5000


def test_long_tail_is_in_training_alone() -> None:
    inputs = np.random.default_rng(0).normal(size=(1000, 2))
    dataset = as_dataset(inputs, np.arange(1000) % 2)
    data = prepare_dataset(dataset, {"imbalance": {"factor": 10}})
    assert data.info.class_counts == (300, 30)
    assert data.info.train_size == 330
    assert data.validation.targets.mean() == 0.5
    assert data.test.targets.mean() == 0.5


def test_refusals() -> None:
    regression = as_dataset(np.ones((10, 2)), np.arange(10) / 7)
    with pytest.raises(DataError, match="task regression has none"):
        prepare_dataset(regression, {"noise": {}})
    with pytest.raises(DataError, match="'imbalance' needs classes"):
        prepare_dataset(regression, {"imbalance": {"factor": 2}})
    with pytest.raises(DataError, match="no class 'catt'; did you mean 'cat'"):
        names = Labels("multiclass", (0, 1, 2), ("cat", "dog", "emu"))
        config = NoiseConfig(kind="asymmetric", map={"catt": "dog"})
        add_noise(CLASSES % 3, names, config, (0, 0))
    with pytest.raises(ValidationError, match="map"):
        NoiseConfig(map={0: 1})
    for wrong in ({"rate": 1.0}, {"rate": -0.1}, {"ratio": 0.1}):
        with pytest.raises(ValidationError):
            NoiseConfig(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValidationError):
        ImbalanceConfig(factor=0.5)
