"""What the tests of the data layer share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lossearch.components import component_of
from lossearch.data import dataset_components
from lossearch.registry import Registry

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """The built-in datasets, and nothing else."""
    registry = Registry()
    for target in dataset_components():
        registry.add(component_of(target), "engine")
    return registry


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real data beside the project."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LOSSEARCH_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the data folder is not here: {folder} (set LOSSEARCH_DATA)")
    return folder
