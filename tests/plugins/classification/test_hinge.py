"""Margin losses against torch's multi-margin loss, plain loops and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification import binary_cross_entropy, ldr_kl
from lossearch_classification.hinge import binary_margin, multiclass_hinge

VARIANTS: list[Any] = ["crammer_singer", "weston_watkins"]
PHIS: list[Any] = ["hinge", "squared_hinge", "exponential", "logistic", "inverse_hinge"]


@pytest.fixture
def z() -> Tensor:
    return 2 * torch.randn(9, 4, dtype=torch.float64, generator=torch.manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3])


@pytest.fixture
def t() -> Tensor:
    return torch.randint(2, (9, 4), generator=torch.manual_seed(1)).double()


def test_hinge_by_hand() -> None:
    z, y = torch.tensor([[1.0, 2.0, 1.5, -3.0]]), torch.tensor([1])
    assert multiclass_hinge(z, y).item() == pytest.approx(0.5)
    assert multiclass_hinge(z, y, margin=2.0).item() == pytest.approx(1.5)
    value = multiclass_hinge(z, y, variant="weston_watkins", margin=2.0)
    assert value.item() == pytest.approx(1.0 + 1.5)


@pytest.mark.parametrize("margin", [0.1, 1.0, 3.0])
def test_weston_watkins_is_torchs_summed(z: Tensor, y: Tensor, margin: float) -> None:
    expected = 4 * F.multi_margin_loss(z, y, margin=margin, reduction="none")
    value = multiclass_hinge(z, y, variant="weston_watkins", margin=margin)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("margin", [0.1, 1.0, 3.0])
def test_crammer_singer_is_the_largest(z: Tensor, y: Tensor, margin: float) -> None:
    rows = [
        max([0.0] + [margin + row[c] - row[k] for c in range(4) if c != k])
        for row, k in zip(z.tolist(), y.tolist(), strict=True)
    ]
    value = multiclass_hinge(z, y, margin=margin)
    torch.testing.assert_close(value, torch.tensor(rows, dtype=torch.float64))


def test_crammer_singer_is_the_cold_limit_of_ldr_kl(z: Tensor, y: Tensor) -> None:
    cold = ldr_kl(z, y, lam=1e-7, margin=0.7, normalize="none")
    torch.testing.assert_close(multiclass_hinge(z, y, margin=0.7), cold, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_hinge_is_zero_past_the_margin_and_shift_invariant(variant, z: Tensor, y: Tensor) -> None:
    ahead = z.scatter(1, y[:, None], z.amax(1, keepdim=True) + 1.0)
    assert (multiclass_hinge(ahead, y, variant=variant, margin=0.99) == 0).all()
    slope = grad(lambda z: multiclass_hinge(z, y, variant=variant, margin=0.99).sum())(ahead)
    assert (slope == 0).all()
    torch.testing.assert_close(
        multiclass_hinge(z + 5, y, variant=variant), multiclass_hinge(z, y, variant=variant)
    )


def test_hinge_gradient() -> None:
    z, y = torch.tensor([[1.0, 2.0, 1.5, -3.0]]), torch.tensor([1])
    slope = grad(lambda z: multiclass_hinge(z, y, margin=2.0).sum())(z)
    assert slope.tolist() == [[0.0, -1.0, 1.0, 0.0]]
    slope = grad(lambda z: multiclass_hinge(z, y, variant="weston_watkins", margin=2.0).sum())(z)
    assert slope.tolist() == [[1.0, -2.0, 1.0, 0.0]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_classes_are_the_binary_hinge(variant, z: Tensor, y: Tensor) -> None:
    pair, y = z[:, :2], y % 2
    expected = binary_margin(pair[:, 1] - pair[:, 0], y)
    torch.testing.assert_close(multiclass_hinge(pair, y, variant=variant), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dense_is_the_mean_over_positions(variant) -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(2))
    y = torch.randint(3, (2, 4, 5), generator=torch.manual_seed(3))
    flat = multiclass_hinge(z.movedim(1, -1).reshape(-1, 3), y.reshape(-1), variant=variant)
    torch.testing.assert_close(
        multiclass_hinge(z, y, variant=variant), flat.reshape(2, -1).mean(1)
    )


@pytest.mark.parametrize(
    ("phi", "values"),
    [
        ("hinge", [3.0, 1.0, 0.5, 0.0]),
        ("squared_hinge", [9.0, 1.0, 0.25, 0.0]),
        ("exponential", [math.exp(2), 1.0, math.exp(-0.5), math.exp(-4)]),
        ("logistic", [math.log1p(math.exp(-s)) for s in (-2.0, 0.0, 0.5, 4.0)]),
        ("inverse_hinge", [3.0, 1.0, 0.5, -0.75]),
    ],
)
def test_binary_margin_by_hand(phi, values: list[float]) -> None:
    s = torch.tensor([-2.0, 0.0, 0.5, 4.0])
    torch.testing.assert_close(binary_margin(s, torch.ones(4), phi=phi), torch.tensor(values))
    torch.testing.assert_close(binary_margin(-s, torch.zeros(4), phi=phi), torch.tensor(values))


@pytest.mark.parametrize("phi", PHIS)
def test_every_phi_falls_at_zero(phi) -> None:
    slope = grad(lambda z: binary_margin(z, torch.ones(1), phi=phi).sum())(torch.zeros(1))
    assert slope.item() == pytest.approx({"squared_hinge": -2.0, "logistic": -0.5}.get(phi, -1.0))


def test_logistic_is_binary_cross_entropy(z: Tensor, t: Tensor) -> None:
    for how in ("mean", "sum"):
        torch.testing.assert_close(
            binary_margin(z, t, phi="logistic", label_reduction=how),
            binary_cross_entropy(z, t, label_reduction=how),
        )


def test_the_exponential_goes_on_as_its_tangent() -> None:
    z = torch.tensor([-79.0, -80.0, -83.0, -160.0], dtype=torch.float64, requires_grad=True)
    value = binary_margin(z, torch.ones(4), phi="exponential")
    cap = math.exp(80)
    expected = torch.tensor([math.exp(79), cap, 4 * cap, 81 * cap], dtype=torch.float64)
    torch.testing.assert_close(value, expected)
    slope = torch.autograd.grad(value.sum(), z)[0]
    torch.testing.assert_close(
        slope, -torch.tensor([math.exp(79), cap, cap, cap], dtype=torch.float64)
    )


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_binary_extremes_are_finite(phi, dtype: torch.dtype) -> None:
    z = torch.tensor([80.0, -80.0, 0.0, -160.0], dtype=dtype, requires_grad=True)
    for target in (0.0, 1.0):
        value = binary_margin(z, torch.full((4,), target), phi=phi)
        slope = torch.autograd.grad(value.sum(), z)[0]
        assert value.dtype == torch.float32
        assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_multiclass_extremes_are_finite(variant, dtype: torch.dtype) -> None:
    rows = [[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0], [80.0, 80.0, 80.0]]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for y in range(3):
        value = multiclass_hinge(z, torch.full((3,), y), variant=variant)
        slope = torch.autograd.grad(value.sum(), z)[0]
        assert value.dtype == torch.float32
        assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("phi", PHIS)
def test_unknown_labels_are_left_out(phi, z: Tensor, t: Tensor) -> None:
    z = z.requires_grad_()
    unknown = t.clone()
    unknown[0], unknown[1, 2:] = -1, -1
    value = binary_margin(z, unknown, phi=phi)
    assert value[0] == 0
    torch.testing.assert_close(value[1:2], binary_margin(z[1:2, :2], t[1:2, :2], phi=phi))
    assert (torch.autograd.grad(value.sum(), z)[0][unknown == -1] == 0).all()


def test_members_and_hyperparameters_stack(z: Tensor, y: Tensor, t: Tensor) -> None:
    stack, h = torch.stack([z, -z, 2 * z]), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    for variant in VARIANTS:
        value = vmap(lambda z, h, v=variant: multiclass_hinge(z, y, variant=v, margin=h))(stack, h)
        loop = [
            multiclass_hinge(s, y, variant=variant, margin=m)
            for s, m in zip(stack, h.tolist(), strict=True)
        ]
        torch.testing.assert_close(value, torch.stack(loop))
    for phi in PHIS:
        value = vmap(lambda z, p=phi: binary_margin(z, t, phi=p))(stack)
        loop = [binary_margin(each, t, phi=phi) for each in stack]
        torch.testing.assert_close(value, torch.stack(loop))


def test_errors() -> None:
    with pytest.raises(FieldError, match="target 2 is outside"):
        multiclass_hinge(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(FieldError, match="C >= 2"):
        multiclass_hinge(torch.zeros(2, 1), torch.tensor([0, 0]))
    with pytest.raises(FieldError, match=r"target 0\.5 is not 0, 1, or -1"):
        binary_margin(torch.zeros(2), torch.tensor([0.5, 1.0]))
    cases: list[tuple[Any, dict[str, Any]]] = [
        (multiclass_hinge, {"margin": 0.0}),
        (multiclass_hinge, {"variant": "vapnik"}),
        (binary_margin, {"phi": "sqrt"}),
        (binary_margin, {"label_reduction": "max"}),
    ]
    for loss, params in cases:
        with pytest.raises(ParameterError, match=f"{loss.__name__}: {next(iter(params))}"):
            component_of(loss).build(**params)
