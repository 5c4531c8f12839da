"""The registry of the models alone."""

from __future__ import annotations

import pytest

from lossearch.components import component_of
from lossearch.models import model_components
from lossearch.registry import Registry


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for target in model_components():
        registry.add(component_of(target), "test")
    return registry
