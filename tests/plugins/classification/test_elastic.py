"""ElasticFace: margins drawn for each sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.elastic import ElasticArcFace, ElasticCosFace
from lossearch_classification.margin import arcface, cosface

KINDS = [ElasticArcFace, ElasticCosFace]


def make(dtype: torch.dtype = torch.float64, size: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    e = torch.randn(size, 5, generator=g, dtype=dtype)
    w = torch.randn(4, 5, generator=g, dtype=dtype)
    return e, w, torch.arange(size) % 4


def fixed(kind: Any, e: Tensor, w: Tensor, y: Tensor, margin: float) -> Tensor:
    """The head that the elastic one varies, at one margin."""
    if kind is ElasticArcFace:
        return arcface(e, w, y, margin=margin, guard="none")
    return cosface(e, w, y, margin=margin)


def read_back(kind: Any, e: Tensor, w: Tensor, y: Tensor, values: Tensor) -> list[float]:
    """Each sample's margin, found from its loss at scale 8 by bisection: it rises with it."""
    loss = kind(scale=8.0)
    low, high = torch.full_like(values, -0.5), torch.full_like(values, 0.99)
    for _ in range(50):
        middle = (low + high) / 2
        less = loss(e, w, y, middle) < values
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return ((low + high) / 2).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plus", [False, True])
def test_without_spread_it_is_the_fixed_head(kind: Any, plus: bool) -> None:
    e, w, y = make()
    got = kind(std=0.0, margin=0.3, plus=plus)(e, w, y)
    torch.testing.assert_close(got, fixed(kind, e, w, y, 0.3))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_takes_the_mean_margin_and_draws_none(kind: Any) -> None:
    e, w, y = make()
    loss = kind(margin=0.4).eval()
    before = loss.generator.get_state()
    torch.testing.assert_close(loss(e, w, y), fixed(kind, e, w, y, 0.4))
    assert torch.equal(loss.generator.get_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_the_margins(kind: Any) -> None:
    e, w, y = make()
    margins = torch.linspace(0.1, 0.6, 9, dtype=e.dtype)
    got = kind()(e, w, y, margins)
    for i in range(9):
        row = (e[i : i + 1], w, y[i : i + 1])
        torch.testing.assert_close(got[i : i + 1], fixed(kind, *row, margins[i].item()))


def test_the_target_by_a_loop() -> None:
    e, w, y = make()
    m = [0.05 * i for i in range(9)]
    arc = ElasticArcFace(scale=10.0)(e, w, y, torch.tensor(m))
    cosine = ElasticCosFace(scale=10.0)(e, w, y, torch.tensor(m))
    for i, label in enumerate(y.tolist()):
        z = [float(e[i] @ k / (e[i].norm() * k.norm())) for k in w]
        for got, moved in (
            (arc, math.cos(math.acos(z[label]) + m[i])),
            (cosine, z[label] - m[i]),
        ):
            others = sum(math.exp(10 * v) for c, v in enumerate(z) if c != label)
            expected = math.log(others + math.exp(10 * moved)) - 10 * moved
            assert got[i].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_plus_gives_the_nearest_the_smallest_of_the_same_margins(kind: Any) -> None:
    e, w, y = make()
    w = w + 2 * torch.stack([F.normalize(e)[y == c].mean(0) for c in range(4)])  # all angles small
    g = torch.Generator().manual_seed(5)
    margins = 0.3 + 0.1 * torch.randn(9, generator=g, dtype=e.dtype)
    got = read_back(kind, e, w, y, kind(plus=True, scale=8.0)(e, w, y, margins))
    assert sorted(got) == pytest.approx(margins.sort().values.tolist(), abs=1e-6)
    target = (F.normalize(e) * F.normalize(w)[y]).sum(1)
    by_nearness = [got[i] for i in target.argsort(descending=True)]
    assert by_nearness == sorted(by_nearness)


def test_plus_draws_the_same_margins_as_without() -> None:
    e, w, y = make()
    plain = ElasticCosFace(scale=8.0, seed=3)(e, w, y)
    plus = ElasticCosFace(scale=8.0, seed=3, plus=True)(e, w, y)
    one = read_back(ElasticCosFace, e, w, y, plain)
    other = read_back(ElasticCosFace, e, w, y, plus)
    assert one != pytest.approx(other, abs=1e-6)
    assert sorted(one) == pytest.approx(sorted(other), abs=1e-6)


def test_the_margins_have_the_mean_and_spread_asked_for() -> None:
    # two classes at right angles to the sample: at scale 1 the loss tells its margin
    e = torch.tensor([[0.0, 0, 1]], dtype=torch.float64).expand(4000, 3)
    w = torch.eye(3, dtype=torch.float64)[:2]
    y = torch.zeros(4000, dtype=torch.long)
    values = ElasticCosFace(scale=1.0, margin=0.35, std=0.05)(e, w, y)
    margins = values.expm1().log()  # log(1 + exp(m))
    assert margins.mean().item() == pytest.approx(0.35, abs=0.004)
    assert margins.std().item() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_differ_and_resume_from_the_state(kind: Any) -> None:
    e, w, y = make()
    loss = kind(seed=1)
    first, state = loss(e, w, y), loss.state_dict()
    second = loss(e, w, y)
    assert not torch.allclose(first, second)
    other = kind(seed=2)
    other.load_state_dict(state)
    assert torch.equal(other(e, w, y), second)
    assert torch.equal(kind(seed=1)(e, w, y), first)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: Any) -> None:
    e, w, y = make()
    e.requires_grad_()
    w.requires_grad_()
    margins = torch.linspace(0.1, 0.6, 9, dtype=e.dtype)
    loss = kind(scale=8.0)
    torch.autograd.gradcheck(lambda e, w: loss(e, w, y, margins), (e, w))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes(kind: Any, dtype: torch.dtype) -> None:
    w = torch.tensor([[80.0, 0, 0], [0, -80.0, 0]], dtype=dtype, requires_grad=True)
    e = torch.tensor([[80.0, 0, 0], [-80.0, 0, 0]], dtype=dtype, requires_grad=True)
    value = kind(plus=True)(e, w, torch.tensor([0, 0]))
    value.sum().backward()
    assert e.grad is not None and w.grad is not None
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert e.grad.isfinite().all() and w.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind: Any) -> None:
    e, w, y = make()
    with pytest.raises(FieldError, match=r"one margin for each sample in draws: \[9\], not \[4\]"):
        kind()(e, w, y, torch.zeros(4))
    with pytest.raises(FieldError, match=r"elastic_\w+: target 4 is outside \[0, 4\)"):
        kind()(e, w, y + 1)
    bad: dict[str, Any]
    for bad in ({"scale": 0.0}, {"margin": -0.1}, {"margin": 1.6}, {"std": -0.01}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(kind).build(**bad)
