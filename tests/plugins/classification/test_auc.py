"""AUC margin and Mann-Whitney: pairs of positives and negatives, and what stands for them."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lossearch import Bound
from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification import auc, binary_cross_entropy
from lossearch_classification.auc import AucMargin, mann_whitney

MINMAX: tuple[Literal["minmax"], Literal["minmax_prior"]] = ("minmax", "minmax_prior")


def make(n: int = 30, share: float = 0.3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, generator=g, dtype=torch.float64)
    return z, (torch.rand(n, generator=g) < share).double()


def filled(made: AucMargin, a: float, b: float, alpha: float) -> AucMargin:
    made.double()
    with torch.no_grad():
        for parameter, value in ((made.a, a), (made.b, b), (made.alpha, alpha)):
            parameter.fill_(value)
    return made


# --- auc_margin


def test_auc_margin_by_hand() -> None:
    """h 0.5 and 0.9 for positives, 0.2 and 0.4 for negatives: variances 0.04, 0.01, gap 0.6."""
    h = torch.tensor([0.5, 0.9, 0.2, 0.4], dtype=torch.float64)
    t = torch.tensor([1.0, 1, 0, 0])
    assert AucMargin(activation="none")(h, t).item() == pytest.approx(0.04 + 0.01 + 0.36)
    assert AucMargin()(h.logit(), t).item() == pytest.approx(0.41)
    assert AucMargin(margin=0.3)(h.logit(), t).item() == pytest.approx(0.05)  # apart enough


def libauc_v1(h: Tensor, t: Tensor, a: float, b: float, alpha: float, p: float) -> float:
    """The documented formula, sample by sample."""
    total = 0.0
    for x, label in zip(h.tolist(), t.tolist(), strict=True):
        total += (1 - p) * (x - a) ** 2 if label else p * (x - b) ** 2
        total += 2 * alpha * (p * (1 - p) * 0.7 + (-(1 - p) * x if label else p * x))
    return total / len(h) - p * (1 - p) * alpha**2


@pytest.mark.parametrize("prior", [None, 0.1])
def test_minmax_prior_by_a_loop(prior: float | None) -> None:
    z, t = make()
    made = filled(AucMargin(margin=0.7, mode="minmax_prior", prior=prior), 0.4, -0.2, 0.3)
    p = t.mean().item() if prior is None else prior
    expected = libauc_v1(z.sigmoid(), t, 0.4, -0.2, 0.3, p)
    assert made(z, t).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_minmax_at_its_optimum_is_closed_form(activation: Any) -> None:
    z, t = make()
    h = z.sigmoid() if activation == "sigmoid" else z
    a, b = h[t == 1].mean().item(), h[t == 0].mean().item()
    for margin in (0.1, 1.0, 5.0):
        made = AucMargin(mode="minmax", margin=margin, activation=activation)
        filled(made, a, b, max(margin + b - a, 0.0))
        closed = AucMargin(margin=margin, activation=activation)
        torch.testing.assert_close(made(z, t), closed(z, t), rtol=1e-6, atol=1e-7)


def test_minmax_prior_with_the_batchs_share_is_minmax_weighed() -> None:
    z, t = make()
    p = t.mean()
    one, other = (filled(AucMargin(mode=mode), 0.6, 0.3, 0.8) for mode in MINMAX)
    torch.testing.assert_close(other(z, t), p * (1 - p) * one(z, t))


@pytest.mark.parametrize("mode", MINMAX)
def test_a_and_b_descend_and_alpha_ascends(mode: Any) -> None:
    z, t = make()
    made = filled(AucMargin(mode=mode), 0.6, 0.3, 0.8)
    slopes = torch.autograd.grad(made(z, t), [made.a, made.b, made.alpha])
    step = 1e-6
    for at, slope in enumerate(slopes):
        values = []
        for sign in (1, -1):
            where = [0.6, 0.3, 0.8]
            where[at] += sign * step
            values.append(filled(copy.deepcopy(made), *where)(z, t).item())
        by_difference = (values[0] - values[1]) / (2 * step)
        sign = -1 if at == 2 else 1
        assert slope.item() == pytest.approx(sign * by_difference, rel=1e-4, abs=1e-8)


def test_an_ordinary_optimizer_finds_the_saddle_point() -> None:
    z, t = make()
    h = z.sigmoid()
    made = AucMargin(mode="minmax").double()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        made(z, t).backward()
        optimizer.step()
        made.after_step()
    a, b = h[t == 1].mean(), h[t == 0].mean()
    torch.testing.assert_close(made.a.detach(), a)
    torch.testing.assert_close(made.b.detach(), b)
    torch.testing.assert_close(made.alpha.detach(), 1 + b - a)


def test_alpha_is_projected_after_the_step() -> None:
    bound = component_of(AucMargin).build(mode="minmax")
    assert isinstance(bound.module, AucMargin)
    filled(bound.module, 0.5, 0.5, -0.7)
    bound.after_step()
    assert bound.module.alpha.item() == 0 and bound.module.a.item() == 0.5
    AucMargin().after_step()  # closed_form has nothing to bring back


def test_only_minmax_has_parameters_and_they_travel() -> None:
    assert not list(AucMargin().parameters())
    made = filled(AucMargin(mode="minmax"), 0.1, 0.2, 0.3)
    other = AucMargin(mode="minmax").double()
    other.load_state_dict(made.state_dict())
    assert [p.item() for p in other.parameters()] == pytest.approx([0.1, 0.2, 0.3])
    assert [n for n, _ in AucMargin(mode="minmax_prior").named_parameters()] == ["a", "b", "alpha"]


@pytest.mark.parametrize("mode", ["closed_form", *MINMAX])
def test_one_class_gives_zero_and_warns_once(mode: Any) -> None:
    z = torch.randn(5, requires_grad=True)
    made = AucMargin(mode=mode)
    with pytest.warns(UserWarning, match="without both classes") as seen:
        for t in (torch.ones(5), torch.zeros(5), torch.full((5,), -1.0)):
            value = made(z, t)
            (slope,) = torch.autograd.grad(value, z)
            assert value.item() == 0 and not slope.any()
    assert len(seen) == 1


@pytest.mark.parametrize("mode", ["closed_form", *MINMAX])
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auc_margin_extremes(mode: Any, activation: Any, dtype: torch.dtype) -> None:
    z = torch.tensor([80.0, -80.0, 80.0, -80.0], dtype=dtype, requires_grad=True)
    made = AucMargin(mode=mode, activation=activation)
    value = made(z, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["closed_form", *MINMAX])
def test_auc_margin_gradcheck(mode: Any) -> None:
    z, t = make(8, 0.5)
    made = AucMargin(mode=mode, activation="none").double()
    torch.autograd.gradcheck(lambda z: made(z, t), (z.requires_grad_(),))


@pytest.mark.parametrize("mode", ["closed_form", *MINMAX])
def test_auc_margin_leaves_unknown_labels_out(mode: Any) -> None:
    z, t = make()
    t[:6] = -1
    made = AucMargin(mode=mode).double()
    torch.testing.assert_close(made(z, t), made(z[6:], t[6:]))
    torch.testing.assert_close(made(z[:, None], t[:, None]), made(z, t))


def test_a_margin_that_is_changed_during_training_counts() -> None:
    z, t = make()
    made = AucMargin(margin=0.1)
    made.margin = 0.9
    assert made(z, t).item() == AucMargin(margin=0.9)(z, t).item()


def test_auc_margin_errors() -> None:
    z, t = make()
    with pytest.raises(FieldError, match="auc_margin: target 2 is not"):
        AucMargin()(z, t + 1)
    with pytest.raises(FieldError, match="targets of that shape"):
        AucMargin()(z, t[:3])
    bad: dict[str, Any]
    for bad in ({"margin": 0.0}, {"mode": "saddle"}, {"activation": "tanh"}, {"prior": 1.0}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(AucMargin).build(**bad)
    assert component_of(AucMargin).returns == "batch"


# --- mann_whitney


def oracle(pos: list[float], neg: list[float], temperature: float) -> float:
    terms = [math.log1p(math.exp((n - p) / temperature)) for p in pos for n in neg]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 18])
def test_mann_whitney_by_a_loop(
    temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auc, "_PAIRS", chunk)
    z, t = make()
    z.requires_grad_()
    value = mann_whitney(z, t, temperature=temperature)
    expected = oracle(z[t == 1].tolist(), z[t == 0].tolist(), temperature)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    (slope,) = torch.autograd.grad(3 * value, z)
    gaps = (z[t == 0] - z[t == 1][:, None]) / temperature
    (wanted,) = torch.autograd.grad(3 * F.softplus(gaps, threshold=1e3).mean(), z)
    torch.testing.assert_close(slope, wanted)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("chunk", [1, 1 << 18])
def test_retrieval_by_a_loop(
    temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auc, "_PAIRS", chunk)
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    got = mann_whitney(None, None, a, b, form="retrieval", temperature=temperature)
    s = F.cosine_similarity(a[:, None], b[None], dim=2)
    pos = [s[i, i].item() for i in range(6)]
    neg = [s[i, j].item() for i in range(6) for j in range(6) if i != j]
    assert got.item() == pytest.approx(oracle(pos, neg, temperature), rel=1e-9)


def test_one_pair_is_binary_cross_entropy_on_the_difference() -> None:
    z = torch.tensor([0.3, -1.2], dtype=torch.float64)
    value = mann_whitney(z, torch.tensor([1.0, 0.0]))
    expected = binary_cross_entropy(z[:1] - z[1:], torch.ones(1))
    torch.testing.assert_close(value, expected[0])


@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0])
def test_it_bounds_the_area_over_the_curve(temperature: float) -> None:
    z, t = make(60)
    z = (2 * z).round()  # with ties
    gaps = z[t == 0] - z[t == 1][:, None]
    value = mann_whitney(z, t, temperature=temperature).item()
    share = (gaps >= 0).double().mean().item()
    assert value / math.log(2) >= share >= 1 - roc_auc_score(t, z)


def test_at_a_low_temperature_it_is_the_mean_hinge_of_the_gaps() -> None:
    z, t = make()
    hinge = (z[t == 0] - z[t == 1][:, None]).clamp(min=0).mean()
    value = 1e-4 * mann_whitney(z, t, temperature=1e-4)
    torch.testing.assert_close(value, hinge, rtol=1e-4, atol=0)


def test_a_shift_of_all_scores_changes_nothing() -> None:
    z, t = make()
    torch.testing.assert_close(mann_whitney(z + 7, t), mann_whitney(z, t))


def test_retrieval_compares_across_queries() -> None:
    """A constant for one query's scores is nothing to a contrastive loss, and much to this."""
    a = torch.eye(4, dtype=torch.float64)[:2]
    b = torch.tensor([[0.9, 0.1, 0, 0.4], [0.8, 0.9, 0, 0]], dtype=torch.float64)
    cosines = F.normalize(a) @ F.normalize(b).T
    moved = cosines - torch.tensor([[0.0], [0.5]])
    contrast = [F.cross_entropy(s / 0.1, torch.arange(2)) for s in (cosines, moved)]
    torch.testing.assert_close(*contrast)
    diagonal = torch.eye(2).flatten()
    here, there = (mann_whitney(s.flatten(), diagonal, temperature=0.1) for s in (cosines, moved))
    assert there > here + 0.5
    retrieved = mann_whitney(None, None, a, b, form="retrieval", temperature=0.1)
    torch.testing.assert_close(retrieved, here)


def test_no_positive_or_no_negative_is_zero() -> None:
    z = torch.randn(4, requires_grad=True)
    for t in (torch.ones(4), torch.zeros(4), torch.full((4,), -1.0)):
        for pairs in (None, 5):
            value = mann_whitney(z, t, max_pairs=pairs)
            (slope,) = torch.autograd.grad(value, z)
            assert value.item() == 0 and not slope.any()
    row = torch.randn(1, 3, requires_grad=True)
    for rows in (row, row[:0]):
        for pairs in (None, 5):
            alone = mann_whitney(None, None, rows, rows, form="retrieval", max_pairs=pairs)
            (slope,) = torch.autograd.grad(alone, row)
            assert alone.item() == 0 and not slope.any()


def test_unknown_labels_are_in_no_pair() -> None:
    z, t = make()
    t[:6] = -1
    torch.testing.assert_close(mann_whitney(z, t), mann_whitney(z[6:], t[6:]))
    torch.testing.assert_close(mann_whitney(z[:, None], t[:, None]), mann_whitney(z, t))
    drawn = [mann_whitney(z, t, step=k, max_pairs=400) for k in range(20)]
    torch.testing.assert_close(torch.stack(drawn).mean(), mann_whitney(z, t), atol=0.03, rtol=0)


def test_drawn_pairs_are_fair() -> None:
    z, t = make()
    full = mann_whitney(z, t, temperature=0.5)
    drawn = [mann_whitney(z, t, step=k, temperature=0.5, max_pairs=200) for k in range(100)]
    torch.testing.assert_close(torch.stack(drawn).mean(), full, rtol=0.03, atol=0)
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    full = mann_whitney(None, None, a, b, form="retrieval")
    drawn = [
        mann_whitney(None, None, a, b, k, form="retrieval", max_pairs=200) for k in range(100)
    ]
    torch.testing.assert_close(torch.stack(drawn).mean(), full, rtol=0.03, atol=0)


def test_the_seed_and_the_step_decide_the_draws() -> None:
    z, t = make()
    before = torch.get_rng_state()
    values = {
        (seed, step): mann_whitney(z, t, step=step, max_pairs=8, seed=seed).item()
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert len(set(values.values())) == 4
    assert mann_whitney(z, t, step=1, max_pairs=8, seed=1).item() == values[1, 1]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("max_pairs", [None, 40])
def test_drawn_and_full_pairs_stack(max_pairs: int | None) -> None:
    z, t = make()
    stack = torch.stack([z, -z, 2 * z])
    temperatures = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)

    def one(z: Tensor, t: Tensor, temperature: Any) -> Tensor:
        return mann_whitney(z, t, temperature=temperature, max_pairs=max_pairs)

    expected = torch.stack([one(stack[k], t, temperatures[k].item()) for k in range(3)])
    got = torch.func.vmap(one, in_dims=(0, None, 0))(stack, t, temperatures)
    torch.testing.assert_close(got, expected)
    each = torch.func.vmap(one)(stack, t.expand(3, -1), temperatures)  # counts are tensors then
    torch.testing.assert_close(each, expected)


def test_the_memory_of_a_backward_pass_is_linear() -> None:
    z = torch.randn(400, requires_grad=True)
    t = (torch.arange(400) % 2).float()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        mann_whitney(z, t).backward()
    assert max(kept) <= 400


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mann_whitney_extremes(temperature: float, dtype: torch.dtype) -> None:
    z = torch.tensor([80.0, -80.0, 80.0, -80.0], dtype=dtype, requires_grad=True)
    value = mann_whitney(z, torch.tensor([0.0, 1.0, 1.0, 0.0]), temperature=temperature)
    value.backward()
    assert value.dtype == torch.float32
    log2 = math.log(2)
    assert value.item() == pytest.approx((160 / temperature + 2 * log2) / 4, rel=1e-5)
    assert z.grad is not None and z.grad.isfinite().all()


def test_mann_whitney_gradcheck() -> None:
    z, t = make(8, 0.5)
    torch.autograd.gradcheck(lambda z: mann_whitney(z, t, temperature=0.5), (z.requires_grad_(),))
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 4, 3, generator=g, dtype=torch.float64)
    for pairs in (None, 7):
        torch.autograd.gradcheck(
            lambda a, b, n=pairs: mann_whitney(None, None, a, b, form="retrieval", max_pairs=n),
            (a.requires_grad_(), b.requires_grad_()),
        )


def test_mann_whitney_reads_what_its_form_needs() -> None:
    def reads(**params: Any) -> frozenset[str]:
        bound: Bound = component_of(mann_whitney).build(**params)
        return component_of(mann_whitney).reads(bound.params)

    assert reads() == {"logits", "targets"}
    assert reads(max_pairs=5) == {"logits", "targets", "step"}
    assert reads(form="retrieval") == {"embeddings", "embeddings_b"}
    assert reads(form="retrieval", max_pairs=5) == {"embeddings", "embeddings_b", "step"}
    with pytest.raises(FieldError, match="mann_whitney reads 'embeddings'"):
        component_of(mann_whitney).build(form="retrieval")({"embeddings_b": torch.ones(2, 2)})


def test_mann_whitney_errors() -> None:
    z, t = make()
    with pytest.raises(FieldError, match="form 'binary' reads 'logits' and 'targets'"):
        mann_whitney(z)
    with pytest.raises(FieldError, match="form 'retrieval' reads 'embeddings'"):
        mann_whitney(z, t, form="retrieval")
    with pytest.raises(FieldError, match=r"embeddings_b \[B, E\] of that shape, not \[3, 2\]"):
        mann_whitney(None, None, torch.ones(2, 2), torch.ones(3, 2), form="retrieval")
    with pytest.raises(FieldError, match="target 2 is not"):
        mann_whitney(z, t + 1)
    bad: dict[str, Any]
    for bad in ({"temperature": 0.0}, {"max_pairs": 0}, {"form": "rows"}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(mann_whitney).build(**bad)


def test_a_batch_with_both_classes_is_not_warned_of() -> None:
    z, t = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AucMargin()(z, t)


def test_autocast_does_not_round_the_pairs() -> None:
    g = torch.Generator().manual_seed(7)
    z, y = torch.randn(40, generator=g), (torch.rand(40, generator=g) < 0.4).float()
    a, b = torch.randn(2, 8, 5, generator=g)
    runs = (
        lambda x: mann_whitney(x, y, temperature=0.05),
        lambda x: torch.func.vmap(lambda x: mann_whitney(x, y, temperature=0.05))(x[None])[0],
        lambda x: mann_whitney(
            embeddings=x[:5] * a, embeddings_b=b, temperature=0.05, form="retrieval"
        ),
    )
    for run in runs:
        x = z.clone().requires_grad_()
        plain = run(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = run(x)
        torch.testing.assert_close(cast, plain)
        slopes = [torch.autograd.grad(value, x)[0] for value in (cast, plain)]
        torch.testing.assert_close(*slopes)
