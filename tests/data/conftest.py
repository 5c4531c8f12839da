"""What the tests of the data layer share."""

from __future__ import annotations

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
