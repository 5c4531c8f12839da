"""The logit-adjusted loss against cross-entropy of adjusted logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

import lossearch
from lossearch.errors import FieldError, ParameterError
from lossearch_classification import cross_entropy, logit_adjusted


@pytest.fixture
def z() -> Tensor:
    return 3 * torch.randn(6, 3, dtype=torch.float64, generator=torch.manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 1])


COUNTS = torch.tensor([70, 20, 10])


def test_by_hand() -> None:
    value = logit_adjusted(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([1, 3]))
    assert value.item() == pytest.approx(math.log(4))  # the prior itself
    value = logit_adjusted(
        torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0, 3]), tau=2.0, smoothing=1.0
    )
    assert value.item() == pytest.approx(math.log(1 + 16))


def test_it_is_cross_entropy_of_adjusted_logits(z: Tensor, y: Tensor) -> None:
    shifted = z + 1.7 * torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    expected = F.cross_entropy(shifted, y, reduction="none")
    torch.testing.assert_close(logit_adjusted(z, y, COUNTS, tau=1.7), expected)
    slope = grad(lambda z: logit_adjusted(z, y, COUNTS, tau=1.7).sum())(z)
    torch.testing.assert_close(slope, shifted.softmax(1) - F.one_hot(y, 3))


def test_it_reduces_to_cross_entropy(z: Tensor, y: Tensor) -> None:
    equal = logit_adjusted(z, y, torch.tensor([5, 5, 5]), tau=2.0)
    torch.testing.assert_close(equal, cross_entropy(z, y))
    torch.testing.assert_close(logit_adjusted(z, y, COUNTS, tau=0.0), cross_entropy(z, y))


def test_dense_is_the_mean_over_positions() -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(2))
    y = torch.randint(3, (2, 4, 5), generator=torch.manual_seed(3))
    flat = logit_adjusted(z.movedim(1, -1).reshape(-1, 3), y.reshape(-1), COUNTS)
    torch.testing.assert_close(logit_adjusted(z, y, COUNTS), flat.reshape(2, -1).mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    z = torch.tensor([[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0]], dtype=dtype, requires_grad=True)
    value = logit_adjusted(z, torch.tensor([1, 0]), torch.tensor([1_000_000, 1, 1]), tau=3.0)
    assert value.dtype == torch.float32
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), z)[0].isfinite().all()


def test_members_and_hyperparameters_stack(z: Tensor, y: Tensor) -> None:
    def case(z: Tensor, h: Any) -> Tensor:
        return logit_adjusted(z, y, COUNTS, tau=h, smoothing=h)

    stack, h = torch.stack([z, -z, 2 * z]), torch.tensor([0.0, 0.2, 3.0], dtype=torch.float64)
    loop = torch.stack([case(stack[i], h[i].item()) for i in range(3)])
    torch.testing.assert_close(vmap(case)(stack, h), loop)


def test_errors(z: Tensor, y: Tensor) -> None:
    with pytest.raises(FieldError, match="class 1 has no sample; set smoothing above 0"):
        logit_adjusted(z, y, torch.tensor([3, 0, 1]))
    assert logit_adjusted(z, y, torch.tensor([3, 0, 1]), smoothing=0.5).isfinite().all()
    with pytest.raises(FieldError, match=r"class_counts \[3\], not \[2\]"):
        logit_adjusted(z, y, torch.tensor([3, 1]))
    with pytest.raises(FieldError, match="target 3 is outside"):
        logit_adjusted(z, y + 1, COUNTS)
    for params in ({"tau": -1.0}, {"smoothing": -1.0}):
        with pytest.raises(ParameterError, match="greater than or equal to 0"):
            lossearch.build("logit_adjusted", **params)
    with pytest.raises(FieldError, match="reads 'class_counts'"):
        lossearch.build("logit_adjusted")({"logits": z, "targets": y})
