"""Real data: the files beside the project, as a user would name them."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lossearch.data import Data, DataConfig, prepare
from lossearch.errors import DataError
from lossearch.registry import Registry

pytestmark = pytest.mark.data


def load(registry: Registry, path: Path, **block: Any) -> Data:
    name = "image_folder" if path.is_dir() else "csv"
    return prepare(DataConfig.model_validate({"name": name, "path": str(path), **block}), registry)


@pytest.mark.parametrize(
    ("file", "rows", "positive", "share"),
    [
        ("adult-train", 32561, ">50K", 0.24),
        ("mammography", 11183, "1", 0.023),
        ("phoneme", 5404, "1", 0.29),
        ("pima-indians-diabetes", 768, "1", 0.35),
    ],
)
def test_binary_tables(
    registry: Registry, samples: Path, file: str, rows: int, positive: str, share: float
) -> None:
    data = load(registry, samples / f"{file}.csv")
    info = data.info
    assert info.task == "binary"
    assert info.class_names[1] == positive
    assert info.train_size + info.validation_size + info.test_size == rows
    for split in (data.train, data.validation, data.test):
        assert split.targets.mean().item() == pytest.approx(share, abs=0.006)
        for batch in split.batches(4096):
            assert torch.isfinite(batch["inputs"]).all()


def test_adult_has_its_unknowns_and_categories(registry: Registry, samples: Path) -> None:
    table = load(registry, samples / "adult-train.csv").table
    assert table is not None
    assert len(table.numeric) == 6
    assert {"1_missing", "1_Private"} <= set(table.feature_names)


def test_abalone_is_a_quantity(registry: Registry, samples: Path) -> None:
    with pytest.raises(DataError, match="task: regression"):
        load(registry, samples / "abalone.csv")
    info = load(registry, samples / "abalone.csv", task="regression").info
    assert (info.num_outputs, info.input_shape) == (1, (10,))  # 7 numbers, 3 categories


@pytest.fixture(scope="session")
def cifar(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The first images of each class."""
    folder = tmp_path_factory.mktemp("cifar")
    taken: dict[str, int] = {}
    with zipfile.ZipFile(samples / "cifar10-train-jpg.zip") as archive:
        for name in archive.namelist():
            kind = name.split("/")[1]
            if name.endswith(".jpg") and taken.get(kind, 0) < 100:
                taken[kind] = taken.get(kind, 0) + 1
                archive.extract(name, folder)
    yield folder / "train"


def test_cifar(registry: Registry, cifar: Path) -> None:
    start = time.perf_counter()
    data = load(registry, cifar, imbalance={"factor": 10}, noise={"rate": 0.2})
    assert time.perf_counter() - start < 20  # a thousand images; about 0.3 s on an idle core
    info = data.info
    assert (info.input_shape, info.num_classes, info.test_size) == ((3, 32, 32), 10, 200)
    assert info.train_size == sum(int(60 * 10 ** (-c / 9) + 1e-9) for c in range(10))
    pixels = torch.cat([batch["inputs"] for batch in data.test.batches(64)])
    assert pixels.mean().abs() < 0.5
    assert 0.7 < pixels.std() < 1.5


def test_omniglot(
    registry: Registry, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("omniglot")
    with zipfile.ZipFile(samples / "omniglot-small1.zip") as archive:
        wanted = [name for name in archive.namelist() if "/Early_Aramaic/" in name]
        archive.extractall(folder, wanted)
    path = folder / "images_background_small1" / "Early_Aramaic"
    info = load(registry, path, image_size=28, augment=False).info
    assert (info.num_classes, set(info.class_counts)) == (22, {12})
    assert info.class_names[0] == "character01"
