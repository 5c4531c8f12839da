"""Margin heads: CosFace, ArcFace, LDAM."""

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
from lossearch_classification.cosines import sine
from lossearch_classification.margin import arcface, cosface, ldam

COUNTS = torch.tensor([1000, 100, 10, 1])


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    e = torch.randn(9, 5, generator=g, dtype=dtype)
    w = torch.randn(4, 5, generator=g, dtype=dtype)
    return e, w, torch.arange(9) % 4


def normalized_softmax(e: Tensor, w: Tensor, y: Tensor, scale: float) -> Tensor:
    return F.cross_entropy(scale * F.normalize(e) @ F.normalize(w).T, y, reduction="none")


def at_angle(theta: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """One sample at an angle to its class; the other class at a right angle to both."""
    e = torch.tensor([[math.cos(theta), math.sin(theta), 0.0]], dtype=dtype)
    w = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=dtype)
    return e, w, torch.tensor([0])


def target_logit(theta: float, **params: Any) -> float:
    """The target's modified cosine, read back from the loss at scale 1 against a cosine of 0."""
    return -arcface(*at_angle(theta), scale=1.0, **params).expm1().log().item()


@pytest.mark.parametrize("loss", [cosface, arcface])
@pytest.mark.parametrize("scale", [1.0, 16.0, 64.0])
def test_margin_zero_is_the_normalized_softmax(loss: Any, scale: float) -> None:
    e, w, y = make()
    expected = normalized_softmax(e, w, y, scale)
    torch.testing.assert_close(loss(e, w, y, scale=scale, margin=0.0), expected)


@pytest.mark.parametrize("loss", [cosface, arcface])
def test_lengths_do_not_matter(loss: Any) -> None:
    e, w, y = make()
    lengths = torch.linspace(0.1, 50, 9, dtype=e.dtype)[:, None]
    expected = loss(e, w, y)
    torch.testing.assert_close(loss(e * lengths, w * lengths[:4], y), expected)


def test_cosface_by_hand() -> None:
    theta = math.pi / 3
    expected = math.log1p(math.exp(0 - 10 * (0.5 - 0.35)))
    assert cosface(*at_angle(theta), scale=10.0).item() == pytest.approx(expected)


def test_cosface_is_never_below_the_normalized_softmax() -> None:
    e, w, y = make()
    for margin in (0.05, 0.35, 0.9):
        assert (cosface(e, w, y, margin=margin) >= normalized_softmax(e, w, y, 64.0)).all()


def test_cosface_gradient_is_the_softmax_of_the_shifted_logits() -> None:
    y = torch.tensor([0, 2])
    e = F.normalize(torch.randn(2, 3, dtype=torch.float64, generator=torch.manual_seed(0)))
    w = torch.eye(3, dtype=torch.float64)  # so that the cosines are the embedding itself
    e.requires_grad_()
    cosface(e, w, y, scale=8.0, margin=0.3).sum().backward()
    onehot = F.one_hot(y, 3)
    by_cosine = 8 * ((8 * (e - 0.3 * onehot)).softmax(1) - onehot)
    tangent = by_cosine - (by_cosine * e).sum(1, keepdim=True) * e
    assert e.grad is not None
    torch.testing.assert_close(e.grad, tangent.detach())


@pytest.mark.parametrize("seed", range(3))
def test_pytorch_metric_learning_agrees(seed: int) -> None:
    pml = pytest.importorskip("pytorch_metric_learning.losses")
    e, w, y = make(seed, torch.float32)
    for theirs, ours in (
        (pml.CosFaceLoss(4, 5, margin=0.35, scale=64), cosface(e, w, y)),
        (pml.ArcFaceLoss(4, 5, margin=math.degrees(0.5), scale=64), arcface(e, w, y)),
    ):
        theirs.W.data = w.T.clone()
        torch.testing.assert_close(theirs(e, y), ours.mean(), rtol=1e-4, atol=1e-4)


def test_arcface_adds_the_margin_to_the_angle() -> None:
    for theta in (0.2, 1.0, 2.0):
        for guard in ("linear", "none"):
            expected = math.cos(theta + 0.5)
            assert target_logit(theta, guard=guard) == pytest.approx(expected, abs=1e-9)


def test_arcface_linear_guard_falls_all_the_way_and_none_does_not() -> None:
    angles = torch.linspace(0.01, math.pi - 0.01, 200).tolist()
    linear = [target_logit(theta, guard="linear") for theta in angles]
    assert all(b < a for a, b in pairwise(linear))
    free = [target_logit(theta, guard="none") for theta in angles if theta > math.pi - 0.5]
    assert len(free) > 20 and all(b > a for a, b in pairwise(free))
    expected = math.cos(3.0) - 0.5 * math.sin(0.5)
    assert target_logit(3.0, guard="linear") == pytest.approx(expected)


def test_arcface_easy_guard_leaves_what_is_not_acute() -> None:
    assert target_logit(2.0, guard="easy") == pytest.approx(math.cos(2.0))
    assert target_logit(1.0, guard="easy") == pytest.approx(math.cos(1.5))


@pytest.mark.parametrize("guard", ["linear", "none"])
def test_arcface_gradient_in_closed_form(guard: Any) -> None:
    gradient: Any
    for theta in (0.3, 1.2, 2.2):
        slopes = {}
        for gradient in ("exact", "straight_through"):
            e, w, y = at_angle(theta)
            e.requires_grad_()
            value = arcface(e, w, y, scale=4.0, guard=guard, gradient=gradient)
            value.sum().backward()
            slopes[gradient] = e.grad
        ratio = math.sin(theta + 0.5) / math.sin(theta)
        torch.testing.assert_close(
            slopes["exact"][:, :2], ratio * slopes["straight_through"][:, :2]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guard", ["linear", "none", "easy"])
def test_arcface_is_finite_on_and_against_the_class_vector(dtype: torch.dtype, guard: Any) -> None:
    w = torch.tensor([[80.0, 0, 0], [0, -80.0, 0]], dtype=dtype, requires_grad=True)
    e = torch.tensor([[80.0, 0, 0], [-80.0, 0, 0], [1e-3, 0, 0]], dtype=dtype, requires_grad=True)
    value = arcface(e, w, torch.tensor([0, 0, 0]), guard=guard)
    value.sum().backward()
    assert e.grad is not None and w.grad is not None
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert e.grad.isfinite().all() and w.grad.isfinite().all()


def test_arcface_does_not_clamp_the_value_where_it_clamps_the_slope() -> None:
    e, w, y = at_angle(0.0, torch.float32)
    expected = math.log1p(math.exp(-math.cos(0.5)))
    assert arcface(e, w, y, scale=1.0).item() == pytest.approx(expected, rel=1e-6)


def test_the_slope_of_the_angle_is_finite_at_its_ends() -> None:
    """Of its own: whether torch.clamp passes a gradient at its bounds changed between versions."""
    cos = torch.tensor([1.0, -1.0, 0.6], requires_grad=True)
    (slope,) = torch.autograd.grad(sine(cos).sum(), cos)
    assert slope.isfinite().all() and (slope[:2].abs() > 1000).all()
    assert slope[2].item() == pytest.approx(-0.75)


@pytest.mark.parametrize("loss", [cosface, arcface])
def test_gradcheck(loss: Any) -> None:
    e, w, y = make()
    e.requires_grad_()
    w.requires_grad_()
    torch.autograd.gradcheck(lambda e, w: loss(e, w, y, scale=8.0), (e, w))


def test_vmap_over_heads_and_hyperparameters() -> None:
    e, w, y = make()
    heads = torch.stack([w, -w])
    scales = torch.tensor([8.0, 30.0], dtype=e.dtype)
    margins = torch.tensor([0.1, 0.4], dtype=e.dtype)
    for loss in (cosface, arcface):
        got = torch.func.vmap(lambda w, s, m, f=loss: f(e, w, y, scale=s, margin=m))(
            heads, scales, margins
        )
        for k in range(2):
            alone = loss(e, heads[k], y, scale=float(scales[k]), margin=float(margins[k]))
            torch.testing.assert_close(got[k], alone)


def test_autocast_does_not_round_the_cosines() -> None:
    e, w, y = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cosface(e, w, y)
    torch.testing.assert_close(inside, cosface(e, w, y))


@pytest.mark.parametrize("loss", [cosface, arcface])
def test_errors(loss: Any) -> None:
    e, w, y = make()
    with pytest.raises(FieldError, match=r"target 4 is outside \[0, 4\)"):
        loss(e, w, y + 1)
    with pytest.raises(FieldError, match=r"embeddings \[B, E\] and weight \[C, E\]"):
        loss(e, w[:, :3], y)
    with pytest.raises(FieldError, match=r"not \[8\]"):
        loss(e, w, y[:8])
    with pytest.raises(FieldError, match="C >= 2"):
        loss(e, w[:1], torch.zeros_like(y))
    bad: dict[str, Any]
    for bad in ({"scale": 0.0}, {"margin": -0.1}, {"margin": 1.6}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(loss).build(**bad)


# --- LDAM


def ldam_oracle(e: Tensor, w: Tensor, y: Tensor, counts: Tensor, beta: float | None) -> Tensor:
    n = [float(c) for c in counts]
    margins = [0.5 * c**-0.25 / max(k**-0.25 for k in n) for c in n]
    weights = [1.0 if beta is None else (1 - beta) / (1 - beta**c) for c in n]
    weights = [v * len(n) / sum(weights) for v in weights]
    values = []
    for row, label in zip(e, y.tolist(), strict=True):
        cos = [float(row @ k / (row.norm() * k.norm())) for k in w]
        cos[label] -= margins[label]
        z = [30 * c for c in cos]
        lse = max(z) + math.log(sum(math.exp(v - max(z)) for v in z))
        values.append(weights[label] * (lse - z[label]))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("step", "beta"), [(0, None), (159, None), (160, 0.9999), (199, 0.9999), (160, 0.9)]
)
def test_ldam_by_a_loop(step: int, beta: float | None) -> None:
    e, w, y = make()
    bound = component_of(ldam).build(beta=0.9999 if beta is None else beta)
    fields = {"embeddings": e, "weight": w, "targets": y, "class_counts": COUNTS}
    got = bound({**fields, "step": step, "total_steps": 200})
    torch.testing.assert_close(got, ldam_oracle(e, w, y, COUNTS, beta))


def test_ldam_without_the_step_never_reweights() -> None:
    e, w, y = make()
    plain = ldam(y, COUNTS, e, w)
    torch.testing.assert_close(plain, ldam_oracle(e, w, y, COUNTS, None))
    assert torch.equal(plain, ldam(y, COUNTS, e, w, step=300))
    assert torch.equal(plain, ldam(y, COUNTS, e, w, step=300, total_steps=300, drw_start=None))


def test_ldam_with_equal_counts_is_cosface() -> None:
    e, w, y = make()
    same = torch.full((4,), 37)
    for step in (0, 200):
        got = ldam(y, same, e, w, step=step, total_steps=200, max_margin=0.4)
        torch.testing.assert_close(got, cosface(e, w, y, scale=30.0, margin=0.4))


def test_ldam_beta_zero_leaves_the_weights_at_one() -> None:
    e, w, y = make()
    late = ldam(y, COUNTS, e, w, step=200, total_steps=200, beta=0.0)
    torch.testing.assert_close(late, ldam(y, COUNTS, e, w))


def test_ldam_gives_the_rarest_class_the_widest_margin() -> None:
    e, w, _ = make()
    for label, margin in ((3, 0.5), (1, 0.5 * 100**-0.25)):
        y = torch.full((9,), label)
        expected = cosface(e, w, y, scale=30.0, margin=margin)
        torch.testing.assert_close(ldam(y, COUNTS, e, w), expected)


def test_ldam_weights_are_precise_in_float32() -> None:
    """1 - 0.9999**n loses four digits in float32 if it is written so."""
    e, w, y = make()
    late: dict[str, Any] = {"step": 1, "total_steps": 1}
    got = ldam(y, COUNTS, e.float(), w.float(), **late)
    torch.testing.assert_close(got.double(), ldam(y, COUNTS, e, w, **late), rtol=2e-5, atol=1e-5)


def test_ldam_multilabel_by_a_loop() -> None:
    g = torch.Generator().manual_seed(1)
    z = torch.randn(6, 4, generator=g, dtype=torch.float64)
    t = torch.randint(-1, 2, (6, 4), generator=g).double()
    t[0] = -1
    bound = component_of(ldam).build(task="multilabel", margin_scale=2.0)
    got = bound({"logits": z, "targets": t, "class_counts": COUNTS})
    for i in range(6):
        terms = []
        for c in range(4):
            moved = float(z[i, c]) - 2.0 * float(COUNTS[c]) ** -0.25 * (t[i, c] == 1).item()
            if t[i, c] >= 0:
                terms.append(math.log1p(math.exp(-moved if t[i, c] == 1 else moved)))
        expected = sum(terms) / len(terms) if terms else 0.0
        assert got[i].item() == pytest.approx(expected)


def test_ldam_multilabel_extremes() -> None:
    z = torch.tensor([[80.0, -80.0, 80.0, -80.0]], requires_grad=True)
    value = ldam(torch.tensor([[1.0, 1, 0, 0]]), COUNTS, logits=z, mode="multilabel")
    value.sum().backward()
    assert z.grad is not None and value.isfinite().all() and z.grad.isfinite().all()
    expected = (80 + 3 * 100**-0.25 + 80) / 4
    assert value.item() == pytest.approx(expected)


def test_ldam_reads_by_mode() -> None:
    component = component_of(ldam)
    multiclass = component.complete({}, task="multiclass")
    assert component.reads(multiclass) == {"embeddings", "weight", "targets", "class_counts"}
    multilabel = component.complete({}, task="multilabel")
    assert component.reads(multilabel) == {"logits", "targets", "class_counts"}
    e, w, y = make()
    batch = {"targets": y, "class_counts": COUNTS, "weight": w}
    with pytest.raises(FieldError, match="reads 'embeddings'"):
        component.build()(batch)
    with pytest.raises(FieldError, match="reads 'embeddings'"):
        ldam(y, COUNTS, weight=w)
    with pytest.raises(FieldError, match="reads 'weight'"):
        ldam(y, COUNTS, e)
    with pytest.raises(FieldError, match="reads 'logits'"):
        ldam(y, COUNTS, e, w, mode="multilabel")


def test_ldam_errors() -> None:
    e, w, y = make()
    with pytest.raises(FieldError, match="class 2 has no training sample"):
        ldam(y, torch.tensor([3, 2, 0, 1]), e, w)
    with pytest.raises(FieldError, match=r"4 classes go with class_counts \[4\], not \[3\]"):
        ldam(y, COUNTS[:3], e, w)
    bad: dict[str, Any]
    for bad in ({"beta": 1.0}, {"drw_start": 1.2}, {"max_margin": -1.0}, {"mode": "binary"}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(ldam).build(**bad)


def test_ldam_under_vmap() -> None:
    e, w, y = make()
    heads = torch.stack([w, 2 - w, w])
    scales, margins, betas, starts = (
        torch.tensor(v, dtype=e.dtype)
        for v in ([8.0, 30, 20], [0.1, 0.5, 0.7], [0.9, 0.0, 0.99], [0.5, 0.5, 0.9])
    )

    def run(w: Any, s: Any, m: Any, b: Any, d: Any) -> Tensor:
        return ldam(
            y, COUNTS, e, w, step=6, total_steps=10, scale=s, max_margin=m, beta=b, drw_start=d
        )

    got = torch.func.vmap(run)(heads, scales, margins, betas, starts)
    for k, each in enumerate(zip(heads, scales, margins, betas, starts, strict=True)):
        torch.testing.assert_close(got[k], run(each[0], *(float(v) for v in each[1:])))
