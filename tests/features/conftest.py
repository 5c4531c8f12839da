"""Noise images, a frozen network for them, and what tests ask of cached embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossearch import features
from lossearch.components import component_of
from lossearch.data import Data, Dataset, prepare_dataset
from lossearch.models import Network, build_network, model_components
from lossearch.registry import Registry

torch.set_num_threads(1)
Embed = Callable[[Data, Network, str], Tensor]


def _small(width: int = 6) -> nn.Sequential:
    """A convolutional network for 8 x 8 images, with a batch norm; its last layer alone learns."""
    body = [nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU()]
    module = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    module[:-1].requires_grad_(False)
    return module


@pytest.fixture(scope="session")
def small() -> Callable[..., nn.Sequential]:
    """A maker of networks; the width may be given."""
    return _small


@pytest.fixture(scope="session")
def registry() -> Registry:
    registry = Registry()
    for target in model_components():
        registry.add(component_of(target), "engine")
    return registry


@pytest.fixture(scope="session")
def images() -> Data:
    """90 noise images of 8 x 8 in three classes; 54, 18 and 18."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (90, 3, 8, 8), dtype=np.uint8)
    return prepare_dataset(Dataset(torch.from_numpy(pixels), np.arange(90) % 3))


@pytest.fixture
def network(images: Data, registry: Registry) -> Network:
    torch.manual_seed(0)
    return build_network(_small(), images.info, registry)


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The views that were computed, as a list that grows."""
    calls: list[int] = []
    passes = features._passes

    def counted(splits: Any, views: int, *rest: Any) -> Any:
        calls.append(views)
        return passes(splits, views, *rest)

    monkeypatch.setattr(features, "_passes", counted)
    return calls


@pytest.fixture
def embed() -> Embed:
    """The embeddings of a whole split by the network itself."""

    def embed(data: Data, network: Network, split: str) -> Tensor:
        batch = next(iter(getattr(data, split).batches(1000)))
        return network.eval()(batch["inputs"])["embeddings"]

    return embed


@pytest.fixture
def the_file(tmp_path: Path) -> Callable[[], Path]:
    """The only file that there is."""

    def the_file() -> Path:
        (path,) = tmp_path.iterdir()
        return path

    return the_file
