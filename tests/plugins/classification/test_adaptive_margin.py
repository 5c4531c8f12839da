"""AdaFace and CurricularFace: margins that follow training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.adaptive_margin import AdaFace, CurricularFace
from lossearch_classification.margin import arcface, cosface


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    e = torch.randn(9, 5, generator=g, dtype=dtype)
    w = torch.randn(4, 5, generator=g, dtype=dtype)
    return e, w, torch.arange(9) % 4


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def cross_entropy(z: list[float], label: int) -> float:
    return max(z) + math.log(sum(math.exp(v - max(z)) for v in z)) - z[label]


# --- AdaFace


def adaface_oracle(
    e: Tensor, w: Tensor, y: Tensor, mean: float, std: float, m: float = 0.4, h: float = 0.333
) -> list[float]:
    values = []
    for row, label in zip(e, y.tolist(), strict=True):
        n = min(max(float(row.norm()), 0.001), 100)
        q = min(max(h * (n - mean) / (std + 1e-3), -1), 1)
        cos = [min(max(cosine(row, k), -0.999), 0.999) for k in w]
        theta = min(max(math.acos(cos[label]) - m * q, 1e-3), math.pi - 1e-3)
        cos[label] = math.cos(theta) - (m + m * q)
        values.append(cross_entropy([64 * c for c in cos], label))
    return values


def test_adaface_by_a_loop_over_three_steps() -> None:
    loss = AdaFace(momentum=0.3)
    mean, std = 20.0, 100.0
    for step in range(3):
        e, w, y = make()
        e = e * (1 + step) * torch.linspace(0.1, 60, 9, dtype=e.dtype)[:, None]
        n = e.norm(dim=1).clamp(0.001, 100)
        mean = 0.3 * n.mean().item() + 0.7 * mean
        std = 0.3 * n.std().item() + 0.7 * std
        got = loss(e, w, y)  # the statistics are renewed before they are used
        assert got.tolist() == pytest.approx(adaface_oracle(e, w, y, mean, std), rel=1e-9)
    assert loss.mean.item() == pytest.approx(mean) and loss.std.item() == pytest.approx(std)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adaface_with_equal_lengths_is_cosface(dtype: torch.dtype) -> None:
    e, w, y = make(dtype)
    e = 7.3 * F.normalize(e)
    got = AdaFace(momentum=1.0, margin=0.3)(e, w, y)
    expected = cosface(e, w, y, margin=0.3)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert AdaFace(momentum=1.0, h=0.0, margin=0.3)(e * y[:, None].add(1), w, y).tolist() == (
        pytest.approx(expected.tolist(), rel=1e-3, abs=1e-3)
    )


@pytest.mark.parametrize(("length", "sign"), [(1e-4, -1), (1e4, 1)])
def test_adaface_at_the_ends_of_quality(length: float, sign: int) -> None:
    theta, m = 1.0, 0.4
    e = length * torch.tensor([[math.cos(theta), math.sin(theta), 0.0]], dtype=torch.float64)
    w = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=torch.float64)
    loss = AdaFace(scale=1.0, h=100.0).eval()
    value = loss(e, w, torch.tensor([0]))
    moved = -value.expm1().log().item()
    # q = -1: cos(theta + m), nothing taken off; q = 1: cos(theta - m) - 2m
    expected = math.cos(theta + m) if sign < 0 else math.cos(theta - m) - 2 * m
    assert moved == pytest.approx(expected)


def test_adaface_holds_the_length_constant() -> None:
    """So its gradient is at right angles to the embedding, as of any loss of the angle."""
    e, w, y = make()
    e.requires_grad_()
    AdaFace(momentum=1.0)(e, w, y).sum().backward()
    assert e.grad is not None and e.grad.abs().max() > 0.1
    assert (e.grad * e.detach()).sum(1).abs().max() < 1e-9


def test_adaface_evaluates_with_what_it_has() -> None:
    e, w, y = make()
    loss = AdaFace(momentum=0.5)
    loss(e, w, y)
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    loss.eval()
    alone = torch.cat([loss(e[i : i + 1], w, y[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(alone, loss(e, w, y))
    assert all(torch.equal(v, state[k]) for k, v in loss.state_dict().items())
    assert alone.tolist() == pytest.approx(
        adaface_oracle(e, w, y, loss.mean.item(), loss.std.item())
    )


def test_adaface_refuses_one_sample_in_training() -> None:
    e, w, y = make()
    with pytest.raises(FieldError, match="batch size that leaves no last batch of one"):
        AdaFace()(e[:1], w, y[:1])


def test_an_empty_batch_leaves_the_statistics() -> None:
    e, w, y = make()
    one, other = AdaFace(), CurricularFace()
    assert one(e[:0], w, y[:0]).shape == other(e[:0], w, y[:0]).shape == (0,)
    assert one.mean.item() == 20 and one.std.item() == 100 and other.t.item() == 0


# --- CurricularFace


def curricularface_oracle(
    e: Tensor, w: Tensor, y: Tensor, t: float, m: float = 0.5
) -> tuple[list[float], int]:
    values, hard = [], 0
    for row, label in zip(e, y.tolist(), strict=True):
        cos = [cosine(row, k) for k in w]
        theta = math.acos(cos[label])
        z = list(cos)
        for c, v in enumerate(cos):
            if c != label and v > math.cos(theta + m):
                z[c] = v * (t + v)
                hard += 1
        above = cos[label] > math.cos(math.pi - m)
        z[label] = math.cos(theta + m) if above else cos[label] - m * math.sin(math.pi - m)
        values.append(cross_entropy([64 * v for v in z], label))
    return values, hard


def test_curricularface_by_a_loop_over_three_steps() -> None:
    loss, t = CurricularFace(momentum=0.4), 0.0
    for step in range(3):
        e, w, y = make()
        w = w + step  # other angles each time
        target = sum(cosine(row, w[c]) for row, c in zip(e, y.tolist(), strict=True)) / 9
        t = 0.4 * target + 0.6 * t
        expected, hard = curricularface_oracle(e, w, y, t)
        assert hard > 3
        assert loss(e, w, y).tolist() == pytest.approx(expected, rel=1e-9)
    assert loss.t.item() == pytest.approx(t)


def test_curricularface_without_a_hard_negative_is_arcface() -> None:
    w = torch.eye(4, 5, dtype=torch.float64)
    e, _, y = make()
    e = 5 * w[y] + 0.2 * e
    got = CurricularFace()(e, w, y)
    torch.testing.assert_close(got, arcface(e, w, y))


def test_hard_negatives_count_more_as_t_grows() -> None:
    e = torch.tensor([[1.0, 1.2, 0.0]], dtype=torch.float64)
    w = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    loss = CurricularFace(scale=4.0).eval()
    values = []
    for t in (0.0, 0.3, 0.6, 0.9):
        loss.t.fill_(t)
        values.append(loss(e, w, torch.tensor([0])).item())
    assert values == sorted(values) and values[-1] - values[0] > 1
    assert values[0] < arcface(e, w, torch.tensor([0]), scale=4.0).item()


def test_curricularface_gradcheck_at_a_fixed_t() -> None:
    e, w, y = make()
    e.requires_grad_()
    w.requires_grad_()
    loss = CurricularFace(scale=8.0).eval()
    loss.t.fill_(0.3)
    torch.autograd.gradcheck(lambda e, w: loss(e, w, y), (e, w))


# --- both


@pytest.mark.parametrize("kind", [AdaFace, CurricularFace])
def test_a_resumed_run_goes_on_alike(kind: Any) -> None:
    e, w, y = make()
    loss, again = kind(), kind()
    loss(e, w, y)
    again.load_state_dict(loss.state_dict())
    torch.testing.assert_close(again(2 * e, w, y), loss(2 * e, w, y), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [AdaFace, CurricularFace])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes(kind: Any, dtype: torch.dtype) -> None:
    w = torch.tensor([[80.0, 0, 0], [0, -80.0, 0]], dtype=dtype, requires_grad=True)
    e = torch.tensor([[80.0, 0, 0], [-80.0, 0, 0], [1e-3, 0, 0]], dtype=dtype, requires_grad=True)
    value = kind()(e, w, torch.tensor([0, 0, 1]))
    value.sum().backward()
    assert e.grad is not None and w.grad is not None
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert e.grad.isfinite().all() and w.grad.isfinite().all()


@pytest.mark.parametrize("kind", [AdaFace, CurricularFace])
def test_errors(kind: Any) -> None:
    e, w, y = make()
    with pytest.raises(FieldError, match=r"target 4 is outside \[0, 4\)"):
        kind()(e, w, y + 1)
    with pytest.raises(FieldError, match=r"embeddings \[B, E\] and weight \[C, E\]"):
        kind()(e, w[:, :3], y)
    bad: dict[str, Any]
    for bad in ({"scale": 0.0}, {"margin": -0.1}, {"margin": 1.6}, {"momentum": 1.1}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(kind).build(**bad)
    for bad in ({"eps": 0.0}, {"h": -0.1}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(AdaFace).build(**bad)
