"""The asymmetric losses, for several labels and for one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.base import binary_cross_entropy, cross_entropy
from lossearch_classification.focal import focal
from lossearch_classification.multilabel import asymmetric, asymmetric_single_label


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(7, 5, generator=g, dtype=dtype)
    return z, torch.randint(0, 2, (7, 5), generator=g).to(dtype)


def oracle(z: float, t: float, gamma_neg: float, gamma_pos: float, clip: float) -> float:
    """One label as in the authors' code, without its clamp of the logarithm."""
    p = 1 / (1 + math.exp(-z))
    if t == 1:
        return (1 - p) ** gamma_pos * -math.log(p)
    rest = min(1 - p + clip, 1.0)
    return (1 - rest) ** gamma_neg * -math.log(rest)


@pytest.mark.parametrize("gammas", [(4.0, 1.0), (2.0, 0.0), (0.5, 0.5), (8.0, 3.0)])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("detach", [True, False])
def test_the_authors_formula(gammas: tuple[float, float], clip: float, detach: bool) -> None:
    z, t = make()
    bound = component_of(asymmetric).build(
        gamma_neg=gammas[0], gamma_pos=gammas[1], clip=clip, detach_weight=detach
    )
    got = bound({"logits": z, "targets": t})
    for i in range(7):
        expected = sum(oracle(float(z[i, c]), float(t[i, c]), *gammas, clip) for c in range(5))
        assert got[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])  # p = 1/2, 3/4
    value = asymmetric(logits, torch.tensor([[1.0, 0.0]]), gamma_neg=2.0, gamma_pos=1.0, clip=0.25)
    assert value.item() == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("detach", [True, False])
def test_without_powers_and_clip_it_is_binary_cross_entropy(detach: bool) -> None:
    z, t = make()
    got = asymmetric(z, t, gamma_neg=0.0, gamma_pos=0.0, clip=0.0, detach_weight=detach)
    expected = F.binary_cross_entropy_with_logits(z, t, reduction="none").sum(1)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got, binary_cross_entropy(z, t, label_reduction="sum"))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_equal_powers_without_clip_are_focal(gamma: float) -> None:
    z, t = make()
    z.requires_grad_()
    ours = asymmetric(z, t, gamma_neg=gamma, gamma_pos=gamma, clip=0.0, detach_weight=False)
    theirs = focal(z, t, gamma=gamma, mode="sigmoid", label_reduction="sum")
    torch.testing.assert_close(ours, theirs)
    slopes = [torch.autograd.grad(v.sum(), z)[0] for v in (ours, theirs)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
def test_a_negative_below_the_clip_costs_exactly_nothing(detach: bool, gamma_neg: float) -> None:
    clip = 0.2
    edge = math.log(clip / (1 - clip))
    z = torch.tensor([[-80.0, -10.0, edge - 1e-3]], requires_grad=True)
    value = asymmetric(z, torch.zeros(1, 3), clip=clip, gamma_neg=gamma_neg, detach_weight=detach)
    value.sum().backward()
    assert value.item() == 0.0
    assert z.grad is not None and torch.equal(z.grad, torch.zeros(1, 3))


def test_detached_powers_are_constants_in_the_gradient() -> None:
    z, t = make()
    z.requires_grad_()
    p = z.detach().sigmoid()
    (slope,) = torch.autograd.grad(asymmetric(z, t, clip=0.0, gamma_neg=3.0).sum(), z)
    expected = torch.where(t == 1, -((1 - p) ** 2), p**4)
    torch.testing.assert_close(slope, expected)
    (whole,) = torch.autograd.grad(
        asymmetric(z, t, clip=0.0, gamma_neg=3.0, detach_weight=False).sum(), z
    )
    assert not torch.allclose(whole, slope)


def test_gradcheck_of_the_whole() -> None:
    z, t = make()
    z.requires_grad_()
    torch.autograd.gradcheck(lambda z: asymmetric(z, t, detach_weight=False), (z,))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_extreme_logits(detach: bool, gamma: float, clip: float) -> None:
    z = torch.tensor([[80.0, -80.0, 80.0, -80.0]], requires_grad=True)
    t = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    value = asymmetric(z, t, gamma_neg=gamma, gamma_pos=gamma, clip=clip, detach_weight=detach)
    value.sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
    negative = 80.0 if clip == 0 else -math.log(clip) * 0.95**gamma
    assert value.item() == pytest.approx(80.0 + negative, rel=1e-5)


def test_unknown_labels_count_neither_way() -> None:
    z, t = make()
    t[0, 1:] = -1
    t[1] = -1
    summed = asymmetric(z, t)
    averaged = asymmetric(z, t, label_reduction="mean")
    assert summed[0].item() == pytest.approx(asymmetric(z[:1, :1], t[:1, :1]).item())
    assert summed[1].item() == averaged[1].item() == 0.0
    torch.testing.assert_close(averaged[0], summed[0])
    torch.testing.assert_close(averaged[2:], summed[2:] / 5)


def test_binary_shapes_and_half_precision() -> None:
    z, t = make(torch.float32)
    flat = asymmetric(z[:, 0], t[:, 0])
    torch.testing.assert_close(asymmetric(z[:, :1], t[:, 0]), flat)
    torch.testing.assert_close(asymmetric(z[:, :1], t[:, :1]), flat)
    half = asymmetric(z[:, 0].bfloat16(), t[:, 0])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, asymmetric(z[:, 0].bfloat16().float(), t[:, 0]))


def test_vmap_over_hyperparameters() -> None:
    z, t = make()
    stack = torch.stack([z, -z])
    neg, pos, clip = (torch.tensor(v, dtype=z.dtype) for v in ([0.0, 4], [0.0, 1], [0.0, 0.1]))
    got = torch.func.vmap(lambda z, n, p, c: asymmetric(z, t, gamma_neg=n, gamma_pos=p, clip=c))(
        stack, neg, pos, clip
    )
    for k in range(2):
        alone = asymmetric(
            stack[k], t, gamma_neg=float(neg[k]), gamma_pos=float(pos[k]), clip=float(clip[k])
        )
        torch.testing.assert_close(got[k], alone)


def test_errors() -> None:
    z, t = make()
    with pytest.raises(FieldError, match="target 2 is not 0, 1"):
        asymmetric(z, t + 1)
    with pytest.raises(FieldError, match="go with targets of that shape"):
        asymmetric(z, t[:, :2])
    bad: dict[str, Any]
    for bad in ({"clip": 1.0}, {"gamma_neg": -0.1}, {"gamma_pos": -1}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(asymmetric).build(**bad)


# One label ------------------------------------------------------------------------------------


def one_label(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    z = 2 * torch.randn(9, 6, generator=g, dtype=dtype)
    return z, torch.randint(0, 6, (9,), generator=g)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gammas", [(0.0, 4.0), (2.0, 0.5), (0.5, 8.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_one_label_is_the_authors_formula(
    dtype: torch.dtype, gammas: tuple[float, float], smoothing: float
) -> None:
    z, y = one_label(dtype)
    got = asymmetric_single_label(
        z, y, gamma_pos=gammas[0], gamma_neg=gammas[1], label_smoothing=smoothing
    )
    assert got.dtype == dtype
    for i in range(len(z)):
        row, target = [math.exp(v) for v in z[i].tolist()], int(y[i])
        expected = 0.0
        for c, e in enumerate(row):
            p = e / sum(row)
            q = (1 - smoothing) * (c == target) + smoothing / 6
            weight = (1 - p) ** gammas[0] if c == target else p ** gammas[1]
            expected -= q * weight * math.log(p)
        assert got[i].item() == pytest.approx(expected, rel=1e-5)


def test_one_label_by_hand() -> None:
    # p = 1/2 each: 0.9 * (1/2)^1 * log 2 at y, 0.1 * (1/2)^2 * log 2 beside it
    value = asymmetric_single_label(
        torch.zeros(1, 2), torch.tensor([0]), gamma_pos=1.0, gamma_neg=2.0, label_smoothing=0.2
    )
    assert value.item() == pytest.approx((0.45 + 0.025) * math.log(2))


@pytest.mark.parametrize("gamma_neg", [0.0, 1.0, 8.0])
def test_without_smoothing_and_power_one_label_is_cross_entropy(gamma_neg: float) -> None:
    z, y = one_label()
    got = asymmetric_single_label(z, y, gamma_pos=0.0, gamma_neg=gamma_neg, label_smoothing=0.0)
    torch.testing.assert_close(got, F.cross_entropy(z, y, reduction="none"))


def test_without_powers_one_label_is_smoothed_cross_entropy() -> None:
    z, y = one_label()
    got = asymmetric_single_label(z, y, gamma_pos=0.0, gamma_neg=0.0, label_smoothing=0.2)
    torch.testing.assert_close(got, cross_entropy(z, y, label_smoothing=0.2))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_without_smoothing_one_label_is_focal(gamma: float) -> None:
    z, y = one_label()
    z.requires_grad_()
    ours = asymmetric_single_label(z, y, gamma_pos=gamma, label_smoothing=0.0)
    theirs = focal(z, y, gamma=gamma)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), z)[0] for v in (ours, theirs)))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 3.0])
def test_one_label_at_extreme_logits(gamma: float) -> None:
    z = torch.tensor([[80.0, -80.0], [-80.0, 80.0], [0.0, 0.0]], requires_grad=True)
    y = torch.tensor([0, 0, 1])
    value = asymmetric_single_label(z, y, gamma_pos=gamma, gamma_neg=gamma, label_smoothing=0.0)
    value.sum().backward()
    assert value[0].item() == 0.0
    assert value[1].item() == pytest.approx(160.0)
    assert z.grad is not None and z.grad.isfinite().all()
    torch.testing.assert_close(z.grad[1], torch.tensor([-1.0, 1.0]))


def test_one_label_errors() -> None:
    z, y = one_label()
    with pytest.raises(FieldError, match="target 6 is outside"):
        asymmetric_single_label(z, torch.full_like(y, 6))
    with pytest.raises(FieldError, match="C >= 2"):
        asymmetric_single_label(z[:, :1], y)
    bad: dict[str, Any]
    for bad in ({"label_smoothing": 1.0}, {"gamma_neg": -0.1}, {"gamma_pos": -1}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(asymmetric_single_label).build(**bad)
