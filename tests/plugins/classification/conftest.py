"""A batch in float64 that several families of losses are tried on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def z() -> Tensor:
    """Logits of 8 samples and 5 classes or labels."""
    return 3 * torch.randn(8, 5, dtype=torch.float64, generator=torch.manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    """The class of each sample."""
    return torch.tensor([0, 1, 2, 3, 4, 0, 0, 2])


@pytest.fixture
def t() -> Tensor:
    """The labels of each sample."""
    return torch.randint(2, (8, 5), generator=torch.manual_seed(1)).double()
