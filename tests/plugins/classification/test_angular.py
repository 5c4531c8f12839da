"""Cosine heads without an additive margin: normalised softmax, SphereFace."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.angular import NormalizedSoftmax, sphereface
from lossearch_classification.margin import arcface, cosface


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    e = torch.randn(9, 5, generator=g, dtype=dtype)
    w = torch.randn(4, 5, generator=g, dtype=dtype)
    return e, w, torch.arange(9) % 4


def at_angle(theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """One sample at an angle to its class; the other class at a right angle to both."""
    e = torch.tensor([[math.cos(theta), math.sin(theta), 0.0]], dtype=torch.float64)
    w = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=torch.float64)
    return e, w, torch.tensor([0])


def psi(theta: float, m: float, **params: Any) -> float:
    """The target's logit, read back from the loss at scale 1 against a cosine of 0."""
    return -sphereface(*at_angle(theta), scale=1.0, margin=m, **params).expm1().log().item()


# --- normalised softmax


def test_normalized_softmax_by_a_loop() -> None:
    e, w, y = make()
    got = NormalizedSoftmax(scale=12.0)(e, w, y)
    for i, label in enumerate(y.tolist()):
        z = [12 * float(e[i] @ k / (e[i].norm() * k.norm())) for k in w]
        expected = math.log(sum(math.exp(v) for v in z)) - z[label]
        assert got[i].item() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [4.0, 20.0, 128.0])
def test_margin_zero_is_the_normalized_softmax(scale: float) -> None:
    e, w, y = make()
    expected = NormalizedSoftmax(scale=scale)(e, w, y)
    torch.testing.assert_close(cosface(e, w, y, scale=scale, margin=0.0), expected)
    torch.testing.assert_close(arcface(e, w, y, scale=scale, margin=0.0), expected)
    torch.testing.assert_close(sphereface(e, w, y, scale=scale, margin=1.0), expected)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_its_least_value_is_that_of_the_simplex(classes: int) -> None:
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes  # equally opposed
    value = NormalizedSoftmax(scale=5.0)(3 * corners, corners, torch.arange(classes))
    expected = math.log1p((classes - 1) * math.exp(-5 * classes / (classes - 1)))
    assert value.tolist() == pytest.approx([expected] * classes)


def test_pytorch_metric_learning_agrees() -> None:
    pml = pytest.importorskip("pytorch_metric_learning.losses")
    e, w, y = make(torch.float32)
    theirs = pml.NormalizedSoftmaxLoss(4, 5, temperature=0.05)
    theirs.W.data = w.T.clone()
    torch.testing.assert_close(theirs(e, y), NormalizedSoftmax()(e, w, y).mean())


def test_lengths_do_not_matter() -> None:
    e, w, y = make()
    lengths = torch.linspace(0.1, 50, 9, dtype=e.dtype)[:, None]
    for loss in (NormalizedSoftmax(), sphereface):
        torch.testing.assert_close(loss(e * lengths, w * lengths[:4], y), loss(e, w, y))


def test_a_learned_scale_starts_at_the_given_one_and_learns() -> None:
    e, w, y = make()
    fixed, learned = NormalizedSoftmax(scale=8.0), NormalizedSoftmax(scale=8.0, learn_scale=True)
    assert not list(fixed.parameters())
    torch.testing.assert_close(learned(e, w, y), fixed(e, w, y))
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = learned(e, w, y).mean()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(b < a for a, b in pairwise(values))
    assert isinstance(learned.current_scale, Tensor) and learned.current_scale > 0
    again = NormalizedSoftmax(scale=8.0, learn_scale=True)
    again.load_state_dict(learned.state_dict())
    torch.testing.assert_close(again(e, w, y), learned(e, w, y))


def test_the_learned_scale_has_the_gradient_of_its_logarithm() -> None:
    e, w, y = make()
    learned = NormalizedSoftmax(scale=8.0, learn_scale=True).double()
    learned(e, w, y).sum().backward()
    cos = F.normalize(e) @ F.normalize(w).T
    p = (8 * cos).softmax(1)
    expected = 8 * ((p * cos).sum(1) - cos.gather(1, y[:, None])[:, 0]).sum()
    assert learned.log_factor is not None and learned.log_factor.grad is not None
    assert learned.log_factor.grad.item() == pytest.approx(expected.item())


# --- SphereFace


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("m", [1.0, 1.7, 2.0, 3.5, 4.0])
def test_psi_by_its_formula(m: float, detach: bool) -> None:
    for theta in (0.2, 0.9, 1.5, 2.4, 3.0):
        k = math.floor(m * theta / math.pi)
        expected = (-1) ** k * math.cos(m * theta) - 2 * k
        assert psi(theta, m, detach=detach) == pytest.approx(expected, abs=1e-9)


def test_psi_by_hand_at_two() -> None:
    assert psi(math.pi / 2, 2.0) == pytest.approx(-1, abs=1e-9)
    assert psi(math.pi, 2.0) == pytest.approx(-3, abs=1e-4)
    assert psi(0.0, 2.0) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("m", [1.0, 1.7, 2.0, 4.0])
def test_psi_falls_all_the_way_without_a_jump(m: float) -> None:
    angles = torch.linspace(0.01, math.pi - 0.01, 400).tolist()
    values = [psi(theta, m) for theta in angles]
    drops = [a - b for a, b in pairwise(values)]
    assert min(drops) > 0 and max(drops) < m * (angles[1] - angles[0]) * 1.01


def test_detach_takes_the_slope_by_the_cosine_as_one() -> None:
    theta, m = 1.1, 1.7
    slopes = {}
    for detach in (True, False):
        e, w, y = at_angle(theta)
        e.requires_grad_()
        sphereface(e, w, y, scale=4.0, margin=m, detach=detach).sum().backward()
        assert e.grad is not None
        slopes[detach] = e.grad[:, :2]
    torch.testing.assert_close(
        slopes[False], m * math.sin(m * theta) / math.sin(theta) * slopes[True]
    )


@pytest.mark.parametrize("normalize_features", [True, False])
def test_gradcheck_without_detachment(normalize_features: bool) -> None:
    e, w, y = make()
    e.requires_grad_()
    w.requires_grad_()

    def value(e: Tensor, w: Tensor) -> Tensor:
        return sphereface(e, w, y, scale=8.0, detach=False, normalize_features=normalize_features)

    torch.autograd.gradcheck(value, (e, w))


def test_without_normalized_features_the_length_is_the_scale() -> None:
    e, w, y = make()
    e = 7 * F.normalize(e)
    got = sphereface(e, w, y, scale=30.0, normalize_features=False)
    torch.testing.assert_close(got, sphereface(e, w, y, scale=7.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("detach", [True, False])
def test_finite_on_and_against_the_class_vector(dtype: torch.dtype, detach: bool) -> None:
    w = torch.tensor([[80.0, 0, 0], [0, -80.0, 0]], dtype=dtype, requires_grad=True)
    e = torch.tensor([[80.0, 0, 0], [-80.0, 0, 0], [1e-3, 0, 0]], dtype=dtype, requires_grad=True)
    value = sphereface(e, w, torch.tensor([0, 0, 0]), margin=4.0, detach=detach)
    value.sum().backward()
    assert e.grad is not None and w.grad is not None
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert e.grad.isfinite().all() and w.grad.isfinite().all()


def test_errors() -> None:
    e, w, y = make()
    for loss in (NormalizedSoftmax(), sphereface):
        with pytest.raises(FieldError, match=r"target 4 is outside \[0, 4\)"):
            loss(e, w, y + 1)
        with pytest.raises(FieldError, match=r"embeddings \[B, E\] and weight \[C, E\]"):
            loss(e, w[:, :3], y)
    bad: dict[str, Any]
    for bad in ({"margin": 0.9}, {"scale": 0.0}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(sphereface).build(**bad)
    with pytest.raises(ParameterError, match="scale"):
        component_of(NormalizedSoftmax).build(scale=-1.0)
