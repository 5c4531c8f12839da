"""MLCD, the decoupled softmax and the soft top-k."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.label_ranking import DecoupledSoftmax, Mlcd, SoftTopK

B, C = 6, 7


def make() -> tuple[Tensor, Tensor]:
    """Logits, and targets with 0 to 4 positives and some unknown labels."""
    g = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(B, C, generator=g, dtype=torch.float64)
    t = torch.zeros(B, C, dtype=torch.float64)
    for i in range(B):
        t[i, torch.randperm(C, generator=g)[: min(i, 4)]] = 1.0
    t[1:, 6] = -1.0
    return z, t


def one_positive(z: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.arange(len(z)) % z.shape[1]
    return y, F.one_hot(y, z.shape[1]).to(z.dtype)


# MLCD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_mlcd_is_its_formula(joint: bool, scale: float | None, margin: float) -> None:
    z, t = make()
    got = Mlcd(joint=joint, scale=scale, margin=margin)(t, z)
    factor = scale or 1.0
    for i in range(B):
        high = sum(math.exp(factor * z[i, c]) for c in range(C) if t[i, c] == 0)
        low = sum(math.exp(-factor * (z[i, c] - margin)) for c in range(C) if t[i, c] == 1)
        value = math.log1p(high * low) if joint else math.log1p(high) + math.log1p(low)
        assert got[i].item() == pytest.approx(value)


def test_mlcd_by_hand() -> None:
    z, t = torch.tensor([[math.log(3.0), -math.log(2.0)]]), torch.tensor([[0.0, 1.0]])
    assert Mlcd()(t, z).item() == pytest.approx(math.log(4) + math.log(3))
    assert Mlcd(joint=True)(t, z).item() == pytest.approx(math.log(7))


def test_mlcd_apart_is_the_joint_argument_plus_both_sums() -> None:
    z, t = make()
    apart, joint = Mlcd()(t, z), Mlcd(joint=True)(t, z)
    high = torch.where(t == 0, z.exp(), 0.0).sum(1)
    low = torch.where(t == 1, (-z).exp(), 0.0).sum(1)
    torch.testing.assert_close(apart.exp(), joint.exp() + high + low)
    assert (apart >= joint).all()


def test_joint_mlcd_of_one_positive_is_cross_entropy() -> None:
    z, _ = make()
    y, t = one_positive(z)
    torch.testing.assert_close(Mlcd(joint=True)(t, z), F.cross_entropy(z, y, reduction="none"))


def test_mlcd_slope_at_a_negative_ignores_the_positives() -> None:
    z, t = make()
    z.requires_grad_()
    (slope,) = torch.autograd.grad(Mlcd()(t, z).sum(), z)
    high = torch.where(t == 0, z.exp(), 0.0)
    negative = high / (1 + high.sum(1, keepdim=True))
    torch.testing.assert_close(slope[t == 0], negative[t == 0])
    assert torch.equal(slope[t == -1], torch.zeros_like(slope[t == -1]))
    lower = torch.where(t == 1, z - 3, z).detach().requires_grad_()
    (again,) = torch.autograd.grad(Mlcd()(t, lower).sum(), lower)
    torch.testing.assert_close(again[t == 0], slope[t == 0])


def test_mlcd_of_one_side_only() -> None:
    z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    for value in (0.0, 1.0, -1.0):
        t = torch.full_like(z, value)
        joint, apart = Mlcd(joint=True)(t, z), Mlcd()(t, z)
        (slope,) = torch.autograd.grad((joint + apart).sum(), z)
        assert joint.item() == 0.0 and slope.isfinite().all()
        assert apart.item() == pytest.approx(
            {0.0: math.log1p(math.e + math.e**2), 1.0: math.log1p(1 / math.e + math.e**-2)}.get(
                value, 0.0
            )
        )


def test_mlcd_from_cosines_is_mlcd_of_scaled_cosines() -> None:
    g = torch.Generator().manual_seed(2)
    e, w = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (B, C))
    _, t = make()
    cos = F.cosine_similarity(e[:, None], w[None], dim=2)
    for scale in (None, 16.0):
        got = Mlcd(cosine=True, scale=scale, margin=0.2)(t, embeddings=e, weight=w)
        expected = Mlcd(scale=scale or 64.0, margin=0.2)(t, cos)
        torch.testing.assert_close(got, expected)
    component = component_of(Mlcd)
    assert component.reads(component.complete({})) == {"logits", "targets"}
    assert component.reads(component.complete({"cosine": True})) == {
        "embeddings",
        "weight",
        "targets",
    }


@pytest.mark.parametrize("cosine", [False, True])
def test_mlcd_draws_its_negatives(cosine: bool) -> None:
    g = torch.Generator().manual_seed(3)
    e, w = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (B, C))
    z, t = make()
    loss = Mlcd(cosine=cosine, negative_rate=0.4)  # 3 of 7
    fields = {"embeddings": e, "weight": w} if cosine else {"logits": z}
    draws = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.6])
    kept = t.clone()
    kept[:, [1, 3, 5, 6]] = torch.where(t == 1, t, -torch.ones_like(t))[:, [1, 3, 5, 6]]
    expected = Mlcd(cosine=cosine)(kept, **fields)
    torch.testing.assert_close(loss(t, **fields, draws=draws), expected)
    # of its own: other classes in other steps, all of them in evaluation
    assert not torch.equal(loss(t, **fields), loss(t, **fields))
    state = loss.eval().get_extra_state()["generator"]
    torch.testing.assert_close(loss(t, **fields), Mlcd(cosine=cosine)(t, **fields))
    assert torch.equal(loss.get_extra_state()["generator"], state)


def test_each_sample_keeps_a_negative_that_mlcd_draws() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, -2.0, 0.5, 0.0, 0.0], [0.3] * 5])
    t = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, -1.0, 0.0], [1.0] * 5])
    # negative for any sample: classes 2, 3 and 4, of which one third is one class, here 4
    draws = torch.tensor([0.0, 0.1, 0.9, 0.8, 0.2])
    got = Mlcd(negative_rate=0.3)(t, z, draws=draws)
    kept = torch.tensor([[1.0, 1.0, -1.0, 0.0, 1.0], [1.0, 1.0, 1.0, -1.0, 0.0], [1.0] * 5])
    torch.testing.assert_close(got, Mlcd()(kept, z))
    # over the classes no sample has as a negative the rate has no say
    loss = Mlcd(negative_rate=0.01, seed=1)
    assert all((loss(t, z)[:2] > Mlcd()(t.where(t == 1, -1.0), z)[:2]).all() for _ in range(20))


def test_mlcd_errors() -> None:
    z, t = make()
    with pytest.raises(FieldError, match="reads 'logits'"):
        Mlcd()(t)
    with pytest.raises(FieldError, match="reads 'weight'"):
        Mlcd(cosine=True)(t, embeddings=z)
    with pytest.raises(FieldError, match=r"weight \[C, E\]"):
        Mlcd(cosine=True)(t, embeddings=z, weight=z[:, 1:])
    with pytest.raises(FieldError, match=r"of shape \[7\]"):
        Mlcd(negative_rate=0.5)(t, z, draws=torch.zeros(2))
    bad: dict[str, Any]
    for bad in ({"scale": 0.0}, {"margin": -0.1}, {"negative_rate": 0.0}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(Mlcd).build(**bad)


# Decoupled softmax ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_decoupled_softmax_is_its_formula(temperature: float) -> None:
    z, t = make()
    got = DecoupledSoftmax(temperature=temperature)(z, t)
    for i in range(B):
        s = [v / temperature for v in z[i].tolist()]
        rivals = [s[c] for c in range(C) if t[i, c] == 0]
        each = [
            torch.tensor([s[c], *rivals], dtype=torch.float64).logsumexp(0).item() - s[c]
            for c in range(C)
            if t[i, c] == 1
        ]
        assert got[i].item() == pytest.approx(sum(each) / max(len(each), 1), abs=1e-12)
    assert got[0].item() == 0.0


def test_decoupled_softmax_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0), 0.0]])
    value = DecoupledSoftmax()(z, torch.tensor([[1.0, 1.0, 0.0]]))
    assert value.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_decoupled_softmax_of_one_positive_is_cross_entropy() -> None:
    z, _ = make()
    y, t = one_positive(z)
    t[:, 6] = -1.0
    y, z, t = y[:6], z[:6], t[:6]
    expected = F.cross_entropy(z[:, :6], y, reduction="none")
    torch.testing.assert_close(DecoupledSoftmax()(z, t), expected)


def test_positives_do_not_compete_in_the_decoupled_softmax() -> None:
    z = torch.tensor([[1.0, 0.5, 0.2, -1.0]], dtype=torch.float64)
    t = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    raised = z + torch.tensor([2.0, 0.0, 0.0, 0.0])
    rivals = z[0, 2:].logsumexp(0)
    change = (DecoupledSoftmax()(raised, t) - DecoupledSoftmax()(z, t)).item()
    alone = (F.softplus(rivals - 3.0) - F.softplus(rivals - 1.0)).item() / 2
    assert change == pytest.approx(alone)


def test_decoupled_softmax_is_never_above_the_plain_one() -> None:
    z, t = make()
    t = t.clamp(min=0)
    count = t.sum(1)
    plain = -(t * z.log_softmax(1)).sum(1) / count.clamp(min=1)
    ours = DecoupledSoftmax()(z, t)
    assert (ours[count > 0] <= plain[count > 0] + 1e-12).all()
    assert (ours[count > 1] < plain[count > 1]).all()


def test_decoupled_softmax_without_a_negative_is_zero() -> None:
    z = torch.tensor([[1.0, -2.0]], requires_grad=True)
    value = DecoupledSoftmax()(z, torch.ones(1, 2))
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.item() == 0.0 and torch.equal(slope, torch.zeros(1, 2))


def test_decoupled_softmax_takes_one_positive_at_random() -> None:
    z, t = make()
    loss = DecoupledSoftmax(sample_positive=True)
    places = (t[4] == 1).nonzero()[:, 0]
    for n, place in enumerate(places):  # four of them: one for each quarter of [0, 1)
        alone = torch.where(t == 1, -1.0, t)
        alone[4, place] = 1.0
        got = loss(z, t, torch.full((B,), (n + 0.5) / 4))
        torch.testing.assert_close(got[4], DecoupledSoftmax()(z, alone)[4])
    many = loss(z[4].expand(4000, C), t[4].expand(4000, C)).mean()
    torch.testing.assert_close(many, DecoupledSoftmax()(z, t)[4], rtol=0.05, atol=0.0)
    torch.testing.assert_close(loss.eval()(z, t), DecoupledSoftmax()(z, t))


# Soft top-k -----------------------------------------------------------------------------------


def top_probabilities(z: Tensor, **options: Any) -> Tensor:
    """sigma(alpha (s_c + t)) of each label, from the loss with that label as the only positive."""
    loss = SoftTopK(**options)
    eye = torch.eye(z.shape[1], dtype=z.dtype)
    return torch.stack([(-loss(z, e.expand_as(z))).exp() for e in eye], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_soft_top_k_is_k_labels_in_all(dtype: torch.dtype, alpha: float, k: int) -> None:
    z = make()[0].to(dtype)
    for temperature in (0.1, 1.0):
        total = top_probabilities(z, k=k, alpha=alpha, temperature=temperature).sum(1)
        torch.testing.assert_close(total, torch.full_like(total, k), atol=1e-5, rtol=0)


def test_soft_top_k_finds_the_threshold_of_very_many_labels() -> None:
    z = torch.zeros(1, 100_000, dtype=torch.float64)
    t = torch.zeros_like(z)
    t[0, 7] = 1.0  # all equal: each of 100,000 has 5 / 100,000 of the top
    assert SoftTopK()(z, t).item() == pytest.approx(math.log(20_000), rel=1e-9)


@pytest.mark.parametrize("iterations", [16, 64])
def test_soft_top_k_threshold_is_that_of_a_root_finder(iterations: int) -> None:
    z, t = make()
    got = SoftTopK(k=2, alpha=1.5, temperature=0.5, iterations=iterations)(z, t)
    for i in range(1, B):
        s = z[i][t[i] >= 0] / 0.5
        total = lambda u, s=s: (1.5 * (s + u)).sigmoid().sum().item() - 2  # noqa: E731
        root = float(brentq(total, -99, 99))  # pyright: ignore[reportArgumentType]
        positives = z[i][t[i] == 1] / 0.5
        expected = -F.logsigmoid(1.5 * (positives + root)).mean()
        assert got[i].item() == pytest.approx(expected.item(), rel=1e-6)


def exact_top_k(
    x: list[float], t: list[int], k: int, sharpness: float
) -> tuple[float, list[float]]:
    """Value and slope in 60 digits, in which k - sum p does not cancel."""
    with localcontext() as context:
        context.prec = 60
        s = [Decimal(v) * Decimal(sharpness) for v in x]
        low, high = -max(s) - 10, -min(s) + 10
        for _ in range(220):
            m = (low + high) / 2
            short = sum(1 / (1 + (-v - m).exp()) for v in s) < k
            low, high = (m, high) if short else (low, m)
        p = [1 / (1 + (-v - low).exp()) for v in s]
        v = [a / (1 + (b + low).exp()) for a, b in zip(p, s, strict=True)]
        own = [i for i in range(len(x)) if t[i]]
        value = -sum(p[i].ln() for i in own) / len(own)
        lack = [Decimal(sharpness) * (1 - a) / len(own) for a in p]
        onto = sum(lack[i] for i in own)
        slope = [onto * v[j] / sum(v) - (lack[j] if t[j] else 0) for j in range(len(x))]
        return float(value), [float(a) for a in slope]


WIDE: list[tuple[list[float], list[int], int, float, float]] = [
    ([30, 12, -12, -13], [0, 0, 1, 0], 2, 2.0, 1.0),
    ([0.9, 0.8, 0.75, -0.1, -0.15], [1, 1, 0, 1, 0], 3, 2.0, 0.05),
    ([0.9, 0.8, 0.75, -0.1, -0.15], [1, 1, 0, 1, 0], 3, 20.0, 1.0),
    ([0.9, 0.8, 0.75, 0.72, -0.15], [1, 1, 0, 1, 0], 3, 20.0, 0.2),
    ([3, 2.5, 2.5, -2, -2.5], [0, 0, 1, 1, 0], 2, 10.0, 1.0),
    ([6, 6, 6, -6, -6, -6, -6, -6], [1, 0, 0, 1, 0, 1, 0, 0], 3, 6.0, 1.0),
    ([6, 6, 6, -6, -6], [1, 1, 0, 1, 0], 2, 6.0, 1.0),
]


@pytest.mark.parametrize(("z", "t", "k", "alpha", "temperature"), WIDE)
@pytest.mark.parametrize("iterations", [16, 32])
def test_a_wide_gap_at_rank_k_does_not_cancel(
    z: list[float], t: list[int], k: int, alpha: float, temperature: float, iterations: int
) -> None:
    x = torch.tensor([z], dtype=torch.float32, requires_grad=True)
    loss = SoftTopK(k=k, alpha=alpha, temperature=temperature, iterations=iterations)
    value = loss(x, torch.tensor([t]).float())
    (slope,) = torch.autograd.grad(value.sum(), x)
    expected, slopes = exact_top_k(x[0].tolist(), t, k, alpha / temperature)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert slope[0].tolist() == pytest.approx(slopes, rel=1e-4, abs=1e-5 * max(map(abs, slopes)))


def test_at_the_utmost_sharpness_the_threshold_is_about_midway() -> None:
    x = torch.tensor([[80.0, 80.0, -80.0, -80.0, -80.0, -80.0]]).requires_grad_()
    t = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    value = SoftTopK(k=2, alpha=20.0, temperature=0.01)(x, t)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert value.item() == pytest.approx((160_000 + math.log(2) / 2) / 3, rel=1e-7)
    share = torch.tensor([[1 / 4, 1 / 4, *[1 / 8] * 4]])  # half of it on either side
    own = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(slope, -2000 / 3 * (own - share))


def test_soft_top_k_is_shift_invariant() -> None:
    z, t = make()
    loss = SoftTopK(k=2)
    torch.testing.assert_close(loss(z + 5, t.clamp(min=0)), loss(z, t.clamp(min=0)))


def test_soft_top_k_slope_is_the_difference_and_the_implicit_function() -> None:
    z, t = make()
    z.requires_grad_()
    loss = SoftTopK(k=3)
    torch.autograd.gradcheck(lambda z: loss(z, t), (z,))
    alone = torch.zeros_like(t)
    alone[:, 0] = 1.0
    (slope,) = torch.autograd.grad(loss(z, alone).sum(), z)
    p = top_probabilities(z.detach(), k=3)
    share = p * (1 - p) / (p * (1 - p)).sum(1, keepdim=True)
    onto = torch.zeros_like(t)
    onto[:, 0] = 1.0
    torch.testing.assert_close(slope, -2.0 * (1 - p[:, :1]) * (onto - share))


def test_positives_that_lead_cost_nearly_nothing() -> None:
    t = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    z = torch.where(t == 1, 15.0, -15.0).requires_grad_()
    value = SoftTopK(k=2)(z, t)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert 0 <= value.item() < 1e-6 and slope.abs().max().item() < 1e-5
    more = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])  # three do not fit into two places
    assert SoftTopK(k=2)(torch.where(more == 1, 15.0, -15.0), more).item() > 0.4


def test_rows_that_fit_whole_cost_nothing() -> None:
    z = torch.tensor([[1.0, -3.0, 0.5, 2.0]], requires_grad=True)
    loss = SoftTopK(k=2)
    for t in ([1.0, 0.0, -1.0, -1.0], [1.0, -1.0, -1.0, -1.0], [-1.0] * 4, [0.0] * 4):
        value = loss(z, torch.tensor([t]))
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert value.item() == 0.0 and torch.equal(slope, torch.zeros(1, 4))


def test_k_is_less_than_the_number_of_labels() -> None:
    z, t = make()
    torch.testing.assert_close(SoftTopK(k=50)(z, t), SoftTopK(k=C - 1)(z, t))
    with pytest.raises(FieldError, match="C >= 2"):
        SoftTopK()(z[:, :1], t[:, :1].clamp(min=0))
    bad: dict[str, Any]
    for bad in ({"k": 0}, {"alpha": 0.0}, {"temperature": 0.0}, {"iterations": 0}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(SoftTopK).build(**bad)


def test_soft_top_k_draws_k_of_the_positives() -> None:
    z, t = make()
    loss = SoftTopK(k=2, sample_positives=True)
    draws = torch.rand(B, C, generator=torch.Generator().manual_seed(5))
    kept = t.clone()
    for i in range(B):
        places = [c for c in range(C) if t[i, c] == 1]
        for c in sorted(places, key=lambda c: draws[i, c].item())[2:]:
            kept[i, c] = -1.0
    torch.testing.assert_close(loss(z, t, draws), SoftTopK(k=2)(z, kept))
    few = t.sum(1).lt(3) & (t == 1).sum(1).le(2)
    torch.testing.assert_close(loss(z, t)[few], SoftTopK(k=2)(z, t)[few])
    values = torch.stack([loss(z, t) for _ in range(20)])
    assert (values[:, 5].max() - values[:, 5].min()).item() > 1e-3
    torch.testing.assert_close(loss.eval()(z, t), SoftTopK(k=2)(z, t))


@pytest.mark.parametrize("loss", [DecoupledSoftmax(), SoftTopK(k=2), SoftTopK(k=2, alpha=20.0)])
def test_vmap_over_models(loss: Any) -> None:
    z, t = make()
    stack = torch.stack([z, -z, 40 * z]).requires_grad_()
    got = torch.func.vmap(lambda z: loss(z, t))(stack)
    torch.testing.assert_close(got, torch.stack([loss(z, t) for z in stack]))
    slopes = torch.func.vmap(torch.func.grad(lambda z: loss(z, t).sum()))(stack.detach())
    (expected,) = torch.autograd.grad(got.sum(), stack)
    torch.testing.assert_close(slopes, expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "loss",
    [
        Mlcd(joint=True),
        Mlcd(scale=128.0, margin=0.5, negative_rate=0.3),
        Mlcd(cosine=True, scale=128.0, negative_rate=0.3),
        DecoupledSoftmax(temperature=0.01, sample_positive=True),
        SoftTopK(k=2, alpha=20.0, temperature=0.01, sample_positives=True),
        SoftTopK(k=1, alpha=0.5, temperature=10.0, iterations=16),
    ],
)
def test_finite_at_extreme_outputs(loss: Any, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(4)
    t = torch.randint(-1, 2, (32, C), generator=g).float()
    names = ("embeddings", "weight") if getattr(loss, "cosine", False) else ("logits",)
    for spread in (0.0, 1.0):  # all alike, and mixed
        signs = {n: spread * torch.randint(0, 2, (32, C), generator=g) * 2 - 1 for n in names}
        if "weight" in names:
            signs["weight"] = signs["weight"][:C]
        leaves = {n: (80 * s).to(dtype).requires_grad_() for n, s in signs.items()}
        value = loss(targets=t, **leaves)
        assert value.dtype == torch.float32 and value.isfinite().all() and (value >= 0).all()
        for slope in torch.autograd.grad(value.sum(), list(leaves.values())):
            assert slope.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        Mlcd(negative_rate=0.5, seed=3),
        DecoupledSoftmax(sample_positive=True, seed=3),
        SoftTopK(k=1, sample_positives=True, seed=3),
    ],
)
def test_draws_go_on_after_a_checkpoint(loss: Any) -> None:
    z, t = make()
    fields = {"logits": z, "targets": t}
    loss(**fields)
    resumed = type(loss)(**{**_options(loss), "seed": 9})
    resumed.load_state_dict(loss.state_dict())
    for _ in range(3):
        torch.testing.assert_close(resumed(**fields), loss(**fields))


def _options(loss: Any) -> dict[str, Any]:
    names = component_of(type(loss)).Params.model_fields
    return {n: getattr(loss, n) for n in names if n != "seed"}
