"""Losses robust to wrong labels: their limits, truncation, closed-form gradients and kinship."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

import lossearch
from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification import (
    cross_entropy,
    generalized_cross_entropy,
    symmetric_cross_entropy,
)
from lossearch_classification.hinge import binary_margin
from lossearch_classification.robust import comp_sum, probability_mae

ROBUST = [generalized_cross_entropy, symmetric_cross_entropy, probability_mae, comp_sum]
CLASSES = 4


@pytest.fixture
def z() -> Tensor:
    return 3 * torch.randn(9, CLASSES, dtype=torch.float64, generator=torch.manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3])


def target_probability(z: Tensor, y: Tensor) -> Tensor:
    return z.softmax(1).gather(1, y[:, None])[:, 0]


def test_generalized_cross_entropy_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0)]])  # p = 1/4, 3/4
    value = generalized_cross_entropy(z, torch.tensor([0]), q=0.5)
    assert value.item() == pytest.approx((1 - 0.25**0.5) / 0.5)
    value = generalized_cross_entropy(z, torch.tensor([0]), q=0.5, k=0.36)
    assert value.item() == pytest.approx((1 - 0.6) / 0.5)


@pytest.mark.parametrize("q", [0.05, 0.7, 0.95])
def test_generalized_cross_entropy_is_the_definition(z: Tensor, y: Tensor, q: float) -> None:
    expected = (1 - target_probability(z, y) ** q) / q
    torch.testing.assert_close(generalized_cross_entropy(z, y, q=q), expected)


def test_generalized_cross_entropy_ends(z: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(generalized_cross_entropy(z, y, q=0.0), cross_entropy(z, y))
    near = generalized_cross_entropy(z, y, q=1e-9)
    torch.testing.assert_close(near, cross_entropy(z, y))
    one = generalized_cross_entropy(z, y, q=1.0)
    torch.testing.assert_close(one, 1 - target_probability(z, y))


def test_generalized_cross_entropy_gradient(z: Tensor, y: Tensor) -> None:
    slope = grad(lambda z: generalized_cross_entropy(z, y, q=0.3).sum())(z)
    p = target_probability(z, y)[:, None]
    torch.testing.assert_close(slope, p**0.3 * (z.softmax(1) - F.one_hot(y, CLASSES)))


@pytest.mark.parametrize("q", [0.0, 0.7])
def test_truncation_is_flat_below_k(z: Tensor, y: Tensor, q: float) -> None:
    k = 0.2
    value = generalized_cross_entropy(z, y, q=q, k=k)
    slope = grad(lambda z: generalized_cross_entropy(z, y, q=q, k=k).sum())(z)
    below = target_probability(z, y) <= k
    assert below.any() and not below.all()
    floor = -math.log(k) if q == 0 else (1 - k**q) / q
    torch.testing.assert_close(value[below], torch.full_like(value[below], floor))
    assert (slope[below] == 0).all()
    plain = generalized_cross_entropy(z, y, q=q)
    torch.testing.assert_close(value, plain.clamp(max=floor))  # the authors' minimum
    assert (slope[~below].abs().sum(1) > 0).all()


def test_truncation_above_chance_warns_in_the_first_epoch(z: Tensor, y: Tensor) -> None:
    with pytest.warns(UserWarning, match=r"k = 0\.3 is above 1/C = 0\.25"):
        generalized_cross_entropy(z, y, 0, k=0.3)
    generalized_cross_entropy(z, y, 1, k=0.3)  # warnings are errors here
    generalized_cross_entropy(z, y, 0, k=0.2)


def test_not_a_number_is_not_hidden_by_the_truncation() -> None:
    z = torch.tensor([[float("nan"), 0.0]])
    ks: list[Any] = [0.3, torch.tensor(0.3)]
    for k in ks:
        assert generalized_cross_entropy(z, torch.tensor([0]), k=k).isnan().all()


def test_symmetric_cross_entropy_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0)]])
    value = symmetric_cross_entropy(z, torch.tensor([0]), alpha=2.0, beta=3.0, A=-4.0)
    assert value.item() == pytest.approx(2 * math.log(4) + 3 * 4 * 0.75)


def test_symmetric_cross_entropy_special_cases(z: Tensor, y: Tensor) -> None:
    alone = symmetric_cross_entropy(z, y, alpha=1.0, beta=0.0)
    torch.testing.assert_close(alone, cross_entropy(z, y))
    reverse = symmetric_cross_entropy(z, y, alpha=0.0, beta=1.0, A=-6.0)
    torch.testing.assert_close(reverse, 6 / 2 * probability_mae(z, y))


def test_symmetric_cross_entropy_is_the_public_code(z: Tensor, y: Tensor) -> None:
    clamped = F.one_hot(y, CLASSES).double().clamp(1e-4, 1.0)
    reverse = -(z.softmax(1).clamp(1e-7, 1.0) * clamped.log()).sum(1)
    expected = 6 * F.cross_entropy(z, y, reduction="none") + 0.1 * reverse
    value = symmetric_cross_entropy(z, y, alpha=6.0, beta=0.1, A=math.log(1e-4))
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)


def test_probability_mae_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0)]])  # p = 1/4, 3/4
    assert probability_mae(z, torch.tensor([0])).item() == pytest.approx(1.5)


def test_probability_mae_is_the_definition(z: Tensor, y: Tensor) -> None:
    absolute = (F.one_hot(y, CLASSES) - z.softmax(1)).abs().sum(1)
    torch.testing.assert_close(probability_mae(z, y), absolute)
    slope = grad(lambda z: probability_mae(z, y).sum())(z)
    p = target_probability(z, y)[:, None]
    torch.testing.assert_close(slope, 2 * p * (z.softmax(1) - F.one_hot(y, CLASSES)))


def test_probability_mae_is_bounded_and_symmetric(z: Tensor) -> None:
    every = torch.stack([probability_mae(z, torch.full((9,), c)) for c in range(CLASSES)])
    assert (every >= 0).all() and (every <= 2).all()
    total = torch.full((9,), 2.0 * (CLASSES - 1), dtype=torch.float64)
    torch.testing.assert_close(every.sum(0), total)


def test_probability_mae_is_a_member_of_the_families(z: Tensor, y: Tensor) -> None:
    value = probability_mae(z, y)
    torch.testing.assert_close(2 * comp_sum(z, y, tau=2.0), value)
    torch.testing.assert_close(2 * generalized_cross_entropy(z, y, q=1.0), value)
    reverse = symmetric_cross_entropy(z, y, alpha=0.0, beta=1.0, A=-2.0)
    torch.testing.assert_close(reverse, value)


def test_comp_sum_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0)]])  # u = 3
    for tau, expected in ((0.0, 3.0), (0.5, 2.0), (1.0, math.log(4)), (1.5, 1.0), (2.0, 0.75)):
        value = comp_sum(z, torch.tensor([0]), tau=tau)
        assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.4, 2.0, 3.0])
def test_comp_sum_is_the_definition(z: Tensor, y: Tensor, tau: float) -> None:
    u = (z - z.gather(1, y[:, None])).exp().sum(1) - 1
    expected = ((1 + u) ** (1 - tau) - 1) / (1 - tau)
    torch.testing.assert_close(comp_sum(z, y, tau=tau), expected)
    slope = grad(lambda z: comp_sum(z, y, tau=tau).sum())(z)
    p = target_probability(z, y)[:, None]
    torch.testing.assert_close(slope, p ** (tau - 1) * (z.softmax(1) - F.one_hot(y, CLASSES)))


def test_comp_sum_special_cases(z: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(comp_sum(z, y, tau=1.0), cross_entropy(z, y))
    for near in (1 - 1e-9, 1 + 1e-9):
        torch.testing.assert_close(comp_sum(z, y, tau=near), cross_entropy(z, y))
    for q in (0.2, 0.7, 1.0):
        expected = generalized_cross_entropy(z, y, q=q)
        torch.testing.assert_close(comp_sum(z, y, tau=1 + q), expected)


def test_comp_sum_of_two_classes_is_the_exponential(z: Tensor, y: Tensor) -> None:
    pair, y = z[:, :2], y % 2
    expected = binary_margin(pair[:, 1] - pair[:, 0], y, phi="exponential")
    torch.testing.assert_close(comp_sum(pair, y, tau=0.0), expected)


def test_comp_sum_falls_with_tau(z: Tensor, y: Tensor) -> None:
    values = torch.stack([comp_sum(z, y, tau=tau) for tau in (0.0, 0.5, 1.0, 1.5, 2.0)])
    assert (values.diff(dim=0) < 0).all()


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_comp_sum_below_one_is_finite_up_to_twenty(tau: float) -> None:
    z = torch.tensor([[20.0, -20.0, 0.0]], requires_grad=True)
    for y in range(3):
        value = comp_sum(z, torch.tensor([y]), tau=tau)
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("loss", ROBUST)
def test_dense_is_the_mean_over_positions(loss) -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(2))
    y = torch.randint(3, (2, 4, 5), generator=torch.manual_seed(3))
    flat = loss(z.movedim(1, -1).reshape(-1, 3), y.reshape(-1))
    torch.testing.assert_close(loss(z, y), flat.reshape(2, -1).mean(1))


@pytest.mark.parametrize("loss", ROBUST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(loss, dtype: torch.dtype) -> None:
    rows = [[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0], [80.0, 80.0, 80.0]]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for y in range(3):
        value = loss(z, torch.full((3,), y))
        slope = torch.autograd.grad(value.sum(), z)[0]
        assert value.dtype == torch.float32
        assert value.isfinite().all() and slope.isfinite().all()


def test_members_and_hyperparameters_stack(z: Tensor, y: Tensor) -> None:
    stack, h = torch.stack([z, -z, 2 * z]), torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)
    cases = [
        lambda z, h: generalized_cross_entropy(z, y, q=h, k=h / 2),
        lambda z, h: symmetric_cross_entropy(z, y, alpha=h, beta=h + 1, A=-h - 1),
        lambda z, h: comp_sum(z, y, tau=h + 0.8),  # 0.8, 1 and 1.7
    ]
    for case in cases:
        loop = torch.stack([case(stack[i], h[i].item()) for i in range(3)])
        torch.testing.assert_close(vmap(case)(stack, h), loop)
        slopes = vmap(grad(lambda z, h, case=case: case(z, h).sum()))(stack, h)
        assert slopes.isfinite().all()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("generalized_cross_entropy", {"q": 1.1}),
        ("generalized_cross_entropy", {"q": -0.1}),
        ("generalized_cross_entropy", {"k": 1.0}),
        ("symmetric_cross_entropy", {"alpha": -1.0}),
        ("symmetric_cross_entropy", {"beta": -1.0}),
        ("symmetric_cross_entropy", {"A": 0.0}),
    ],
)
def test_illegal_parameters_are_refused_at_construction(name: str, params: dict) -> None:
    with pytest.raises(ParameterError, match=f"{name}: {next(iter(params))}"):
        lossearch.build(name, **params)


def test_an_illegal_tau_is_refused_at_construction() -> None:
    with pytest.raises(ParameterError, match=r"comp_sum: tau = -0\.1 is not allowed"):
        component_of(comp_sum).build(tau=-0.1)


@pytest.mark.parametrize("loss", ROBUST)
def test_fields_are_checked(loss) -> None:
    with pytest.raises(FieldError, match="target 2 is outside"):
        loss(torch.zeros(2, 2), torch.tensor([0, 2]))
