"""UNPG: the batch's different-class pairs as further negatives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.angular import NormalizedSoftmax
from lossearch_classification.margin import arcface, cosface
from lossearch_classification.negatives import _negatives, unpg

WHISKERS = [0.0, 0.3, 1.5, None]


def make(dtype: torch.dtype = torch.float64, size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    e = torch.randn(size, 5, generator=g, dtype=dtype)
    w = torch.randn(4, 5, generator=g, dtype=dtype)
    return e, w, torch.arange(size) % 4


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def kept_by_a_loop(e: Tensor, y: Tensor, whisker: float | None) -> list[float]:
    pairs = [(i, j) for i in range(len(e)) for j in range(i + 1, len(e)) if y[i] != y[j]]
    s = sorted(cosine(e[i], e[j]) for i, j in pairs)
    if whisker is None or not s:
        return s
    first, third = s[int(0.25 * len(s))], s[int(0.75 * len(s))]
    reach = whisker * (third - first)
    slack = 1e-12  # the ends belong to it, and another order of summing rounds them otherwise
    return [v for v in s if first - reach - slack <= v <= third + reach + slack]


def plain(head: str, e: Tensor, w: Tensor, y: Tensor, scale: float = 64.0) -> Tensor:
    if head == "none":
        return NormalizedSoftmax(scale=scale)(e, w, y)
    if head == "cosface":
        return cosface(e, w, y, scale=scale, margin=0.35)
    return arcface(e, w, y, scale=scale, margin=0.35, guard="none")  # as the authors' own


@pytest.mark.parametrize("whisker", WHISKERS)
@pytest.mark.parametrize("head", ["cosface", "arcface", "none"])
def test_by_a_loop(head: Any, whisker: float | None) -> None:
    e, w, y = make()
    kept = kept_by_a_loop(e, y, whisker)
    got = unpg(e, w, y, head=head, scale=10.0, whisker=whisker)
    for i, label in enumerate(y.tolist()):
        cos = [cosine(e[i], k) for k in w]
        if head == "cosface":
            cos[label] -= 0.35
        elif head == "arcface":
            cos[label] = math.cos(math.acos(cos[label]) + 0.35)
        z = [10 * c for c in cos + kept]
        expected = math.log(sum(math.exp(v) for v in z)) - z[label]
        assert got[i].item() == pytest.approx(expected)


def test_the_arcface_head_has_no_guard() -> None:
    """Beyond pi - m the cosine rises again, as in the authors' head.py."""
    angle = 0.95 * math.pi
    e = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    w = torch.eye(2, dtype=torch.float64)
    value = unpg(e, w, torch.tensor([0]), head="arcface", scale=4.0, margin=0.5)
    z = [4 * math.cos(angle + 0.5), 4 * math.sin(angle)]
    assert value.item() == pytest.approx(math.log(sum(map(math.exp, z))) - z[0])


@pytest.mark.parametrize("whisker", WHISKERS)
def test_the_filter(whisker: float | None) -> None:
    e, _, y = make(size=20)
    pairs, kept = _negatives(e, y, whisker)
    expected = kept_by_a_loop(e, y, whisker)
    assert pairs[kept].sort().values.tolist() == pytest.approx(expected)


def test_whisker_zero_keeps_the_middle_half() -> None:
    e, _, y = make(size=20)
    total = int(_negatives(e, y, None)[1].sum())
    middle = int(_negatives(e, y, 0.0)[1].sum())
    assert total == 150 and middle == int(0.75 * total) - int(0.25 * total) + 1


@pytest.mark.parametrize("whisker", WHISKERS)
@pytest.mark.parametrize("head", ["cosface", "arcface", "none"])
def test_one_class_in_the_batch_is_the_plain_head(head: Any, whisker: float | None) -> None:
    e, w, y = make()
    y = torch.full_like(y, 2)
    e.requires_grad_()
    value = unpg(e, w, y, head=head, whisker=whisker)
    torch.testing.assert_close(value, plain(head, e, w, y))
    (slope,) = torch.autograd.grad(value.sum(), e)
    (expected,) = torch.autograd.grad(plain(head, e, w, y).sum(), e)
    torch.testing.assert_close(slope, expected)
    single = unpg(e[:1], w, y[:1], head=head, whisker=whisker)
    torch.testing.assert_close(single, plain(head, e[:1], w, y[:1]))


@pytest.mark.parametrize("head", ["cosface", "arcface", "none"])
def test_never_below_the_plain_head(head: Any) -> None:
    e, w, y = make()
    for whisker in WHISKERS:
        assert (unpg(e, w, y, head=head, whisker=whisker) >= plain(head, e, w, y)).all()


def test_gradients_flow_through_the_kept_pairs() -> None:
    e, w, y = make()
    e.requires_grad_()
    unpg(e, w, y, scale=8.0)[0].backward()
    assert e.grad is not None and (e.grad[1:].abs().sum(1) > 0).all()


@pytest.mark.parametrize("head", ["cosface", "arcface", "none"])
def test_gradcheck(head: Any) -> None:
    e, w, y = make()
    e.requires_grad_()
    w.requires_grad_()
    torch.autograd.gradcheck(lambda e, w: unpg(e, w, y, head=head, scale=8.0), (e, w))


def test_lengths_do_not_matter() -> None:
    e, w, y = make()
    lengths = torch.linspace(0.1, 50, 12, dtype=e.dtype)[:, None]
    torch.testing.assert_close(unpg(e * lengths, w * lengths[:4], y), unpg(e, w, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes(dtype: torch.dtype) -> None:
    e = torch.tensor([[80.0, -80], [80, -80], [-80, 80]], dtype=dtype, requires_grad=True)
    w = torch.tensor([[80.0, -80], [-80, 80]], dtype=dtype, requires_grad=True)
    value = unpg(e, w, torch.tensor([0, 1, 1]), scale=128.0)
    value.sum().backward()
    assert e.grad is not None and w.grad is not None
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert e.grad.isfinite().all() and w.grad.isfinite().all()
    # all three rows have the pairs (0, 1) and (0, 2) at cosines 1 and -1 beside the classes
    assert value[1].item() == pytest.approx(128 * 2.35 + math.log(2), rel=1e-5)


def test_errors() -> None:
    e, w, y = make()
    with pytest.raises(FieldError, match=r"target 4 is outside \[0, 4\)"):
        unpg(e, w, y + 1)
    with pytest.raises(FieldError, match=r"embeddings \[B, E\] and weight \[C, E\]"):
        unpg(e, w[:, :3], y)
    bad: dict[str, Any]
    for bad in ({"head": "magface"}, {"whisker": -1.0}, {"margin": 1.0}, {"scale": 0.0}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(unpg).build(**bad)
