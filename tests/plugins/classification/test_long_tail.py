"""The multi-grained focal loss with its label correction, and the hybrid multilabel loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.base import binary_cross_entropy
from lossearch_classification.long_tail import MultiFocalModifier, hybrid_multilabel
from lossearch_classification.multilabel import asymmetric

B, C, E = 7, 5, 4
COUNTS = torch.tensor([400, 100, 40, 10, 2])
EQUAL = torch.full((C,), 30)


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(B, C, generator=g, dtype=dtype)
    t = torch.randint(0, 2, (B, C), generator=g).to(dtype)
    t[0] = 0
    return z, t, torch.randn(B, E, generator=g, dtype=dtype)


# multi_focal_modifier -------------------------------------------------------------------------


def label(z: float, t: float, w: float, gammas: tuple[float, float], clip: float) -> float:
    """One label as in the authors' code, without its clamp of the logarithm."""
    p = 1 / (1 + math.exp(-z))
    if t == 1:
        return w * (1 - p) ** gammas[1] * -math.log(p)
    rest = min(1 - p + clip, 1.0)
    return w * (1 - rest) ** (gammas[0] + w) * -math.log(rest)


def weights(counts: list[int], exponent: float) -> list[float]:
    return [(1 - math.log(n / max(counts))) ** exponent for n in counts]


@pytest.mark.parametrize("gammas", [(4.0, 0.0), (3.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("exponent", [0.0, 1 / 6, 1.0])
def test_the_authors_formula(gammas: tuple[float, float], clip: float, exponent: float) -> None:
    z, t, _ = make()
    t[1, 2] = -1
    loss = MultiFocalModifier(
        gamma_neg=gammas[0], gamma_pos=gammas[1], clip=clip, exponent=exponent
    )
    got = loss(z, t, COUNTS)
    w = weights(COUNTS.tolist(), exponent)
    for i in range(B):
        each = [
            label(float(z[i, c]), float(t[i, c]), w[c], gammas, clip)
            for c in range(C)
            if t[i, c] >= 0
        ]
        assert got[i].item() == pytest.approx(sum(each), rel=1e-6, abs=1e-9)
    loss.label_reduction = "mean"
    torch.testing.assert_close(loss(z, t, COUNTS), got / (t >= 0).sum(1))


def test_multi_focal_modifier_by_hand() -> None:
    # counts e : 1, so w = 1 and 2; p = 1/2 everywhere
    counts = torch.tensor([math.e, 1.0])
    loss = MultiFocalModifier(gamma_neg=1.0, gamma_pos=1.0, clip=0.0, exponent=1.0)
    z = torch.zeros(2, 2)
    got = loss(z, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), counts)
    expected = [0.5 + 2 * 0.5**3, 0.5**2 + 2 * 0.5]
    torch.testing.assert_close(got, math.log(2) * torch.tensor(expected))


@pytest.mark.parametrize("exponent", [1 / 6, 1.0])
@pytest.mark.parametrize("detach", [True, False])
def test_equal_counts_are_asymmetric_with_one_more_power(exponent: float, detach: bool) -> None:
    z, t, _ = make()
    z.requires_grad_()
    ours = MultiFocalModifier(gamma_neg=3.0, exponent=exponent, detach_weight=detach)(z, t, EQUAL)
    theirs = asymmetric(z, t, gamma_neg=4.0, gamma_pos=0.0, detach_weight=detach)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), z)[0] for v in (ours, theirs)))


def test_rare_classes_weigh_more() -> None:
    alone = torch.eye(C, dtype=torch.float64)
    z = torch.where(alone == 1, 0.0, -80.0).double()
    values = MultiFocalModifier()(z, alone, COUNTS) / math.log(2)
    assert values[0].item() == pytest.approx(1.0)
    assert (values.diff() > 0).all()


def test_gradcheck_of_the_differentiated_weight() -> None:
    z, t, _ = make()
    z.requires_grad_()
    loss = MultiFocalModifier(gamma_pos=1.5, detach_weight=False)
    torch.autograd.gradcheck(lambda z: loss(z, t, COUNTS), (z,))


def corrector(**options: Any) -> MultiFocalModifier:
    return MultiFocalModifier(correct=True, threshold=0.7, margin=1.0, **options)


RECALL = torch.tensor([[3.0, -1.0], [3.0, 2.0], [-3.0, 3.0]], dtype=torch.float64)
GIVEN = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)


def test_before_its_epoch_the_corrector_only_lowers_positives() -> None:
    loss, counts = corrector(), torch.tensor([8, 8])
    expected = MultiFocalModifier()(RECALL - (GIVEN == 1).double(), GIVEN, counts)
    torch.testing.assert_close(loss(RECALL, GIVEN, counts), expected)
    assert loss.recalled is None


def test_recalled_labels_count_as_positives_and_raise_the_counts() -> None:
    loss, counts = corrector(), torch.tensor([8, 4])
    loss.start_epoch(1)
    # row 1: sigma(3) and sigma(2) are above 0.7 and above their classes' means
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    lowered = RECALL - (GIVEN == 1).double()
    for times in (1, 2):
        expected = MultiFocalModifier()(lowered, labels, counts + times)
        torch.testing.assert_close(loss(RECALL, GIVEN, counts), expected)
        assert loss.recalled is not None and loss.recalled.tolist() == [times, times]
    loss.start_epoch(1)  # a resumed epoch forgets nothing
    assert loss.recalled is not None
    loss.start_epoch(2)
    torch.testing.assert_close(
        loss(RECALL, GIVEN, counts), MultiFocalModifier()(lowered, labels, counts + 1)
    )


def test_a_label_below_the_threshold_or_the_mean_is_not_recalled() -> None:
    loss, counts = corrector(from_epoch=0), torch.tensor([8])
    z = torch.tensor([[0.8], [4.0], [1.0], [4.0]], dtype=torch.float64)  # mean above sigma(1)
    t = torch.zeros(4, 1, dtype=torch.float64)
    labels = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        loss(z, t, counts), MultiFocalModifier()(z, labels, counts)
    )  # one class, so the raised count has no effect on w
    assert loss.recalled is not None and loss.recalled.tolist() == [2]


def test_evaluation_recalls_but_remembers_nothing() -> None:
    loss, counts = corrector(from_epoch=0).eval(), torch.tensor([8, 4])
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    lowered = RECALL - (GIVEN == 1).double()
    expected = MultiFocalModifier()(lowered, labels, counts)
    torch.testing.assert_close(loss(RECALL, GIVEN, counts), expected)
    assert loss.recalled is None


def test_the_corrector_goes_on_after_a_checkpoint() -> None:
    loss, counts = corrector(), torch.tensor([8, 4])
    loss.start_epoch(1)
    loss(RECALL, GIVEN, counts)
    resumed = corrector()
    resumed.load_state_dict(loss.state_dict())
    for _ in range(2):
        torch.testing.assert_close(resumed(RECALL, GIVEN, counts), loss(RECALL, GIVEN, counts))


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 4.0])
def test_multi_focal_modifier_at_extreme_logits(correct: bool, gamma: float) -> None:
    z = torch.tensor([[80.0, -80.0, 80.0, -80.0]], requires_grad=True)
    t = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    loss = MultiFocalModifier(
        gamma_neg=gamma, gamma_pos=gamma, clip=0.0, correct=correct, from_epoch=9
    )
    value = loss(z, t, EQUAL[:4])
    value.sum().backward()
    assert value.item() == pytest.approx(160.0 + correct)
    assert z.grad is not None and z.grad.isfinite().all()


def test_multi_focal_modifier_errors() -> None:
    z, t, _ = make()
    loss = MultiFocalModifier()
    with pytest.raises(FieldError, match="class 4 has no positive"):
        loss(z, t, torch.tensor([1, 2, 3, 4, 0]))
    with pytest.raises(FieldError, match=r"go with class_counts \[5\], not \[3\]"):
        loss(z, t, COUNTS[:3])
    with pytest.raises(FieldError, match="target 2 is not 0, 1"):
        loss(z, t + 1, COUNTS)
    bad: dict[str, Any]
    for bad in ({"clip": 1.0}, {"threshold": 1.0}, {"margin": -1.0}, {"exponent": -1.0}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(MultiFocalModifier).build(**bad)


# hybrid_multilabel ----------------------------------------------------------------------------


def hybrid_oracle(
    z: Tensor,
    t: Tensor,
    e: Tensor,
    counts: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    margin: float,
    given: list[list[float]] | None = None,
) -> list[float]:
    p = z.sigmoid()
    values = []
    unit = e / e.norm(dim=1, keepdim=True)
    for i in range(len(z)):
        known = [c for c in range(z.shape[1]) if t[i, c] >= 0]
        cross = agree = contrast = 0.0
        for c in known:
            hit = p[i, c] if t[i, c] == 1 else 1 - p[i, c]
            w = counts.sum().item() / (len(counts) * counts[c].item())
            cross -= w * math.log(hit) / len(known)
        for j in known:
            for k in known:
                both = ((t[:, j] == 1) & (t[:, k] == 1)).sum().item()
                root = math.sqrt((t[:, j] == 1).sum().item() * (t[:, k] == 1).sum().item())
                r = given[j][k] if given is not None else both / root if root else 0.0
                if j != k:
                    agree += r * (p[i, j] - p[i, k]).item() ** 2 / (len(known) * (len(known) - 1))
        for k in range(len(z)):
            if k != i:
                d = (unit[i] - unit[k]).norm().item()
                shared = bool(((t[i] == 1) & (t[k] == 1)).any())
                contrast += (d * d if shared else max(margin - d, 0) ** 2) / (len(z) - 1)
        values.append(alpha * cross + beta * agree + gamma * contrast)
    return values


@pytest.mark.parametrize("alpha,beta,gamma", [(1.0, 0.5, 0.1), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("size", [B, 3])  # fewer samples than labels: R is not formed
def test_hybrid_is_its_formula(alpha: float, beta: float, gamma: float, size: int) -> None:
    z, t, e = (x[:size] for x in make())
    t[1, 3] = -1
    for margin in (0.5, 1.5):
        got = hybrid_multilabel(
            z, t, COUNTS, e, alpha=alpha, beta=beta, gamma=gamma, margin=margin
        )
        expected = hybrid_oracle(z, t, e, COUNTS, alpha, beta, gamma, margin)
        assert got.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_hybrid_with_a_given_correlation() -> None:
    z, t, e = make()
    given = torch.rand(C, C, generator=torch.Generator().manual_seed(1)).double().tolist()
    got = hybrid_multilabel(z, t, COUNTS, e, correlation=given)
    expected = hybrid_oracle(z, t, e, COUNTS, 1.0, 0.5, 0.1, 1.0, given)
    assert got.tolist() == pytest.approx(expected, rel=1e-6)


def test_hybrid_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])  # p = 1/2, 3/4
    t = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    e = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    got = hybrid_multilabel(z, t, torch.tensor([1, 3]), e, alpha=1.0, beta=1.0, gamma=1.0)
    cross = (2 * math.log(2) + 2 / 3 * math.log(4 / 3)) / 2
    agree = 1 / math.sqrt(2) / 16  # N = 2, 1 and together once; twice over two ordered pairs
    assert got[0].item() == pytest.approx(cross + agree + 2.0, rel=1e-5)


def test_hybrid_of_the_first_term_alone_is_binary_cross_entropy() -> None:
    z, t, e = make()
    t[1, 3] = -1
    got = hybrid_multilabel(z, t, EQUAL, e, alpha=1.0, beta=0.0, gamma=0.0)
    torch.testing.assert_close(got, binary_cross_entropy(z, t))


def test_without_correlation_the_second_term_is_zero() -> None:
    z, t, e = make()
    zero = [[0.0] * C for _ in range(C)]
    got = hybrid_multilabel(z, t, COUNTS, e, alpha=0.0, beta=2.0, gamma=0.0, correlation=zero)
    assert torch.equal(got, torch.zeros(B, dtype=got.dtype))
    single = torch.eye(C, dtype=z.dtype)  # no two labels are ever positive together
    got = hybrid_multilabel(z[:C], single, COUNTS, e[:C], alpha=0.0, beta=2.0, gamma=0.0)
    torch.testing.assert_close(got, torch.zeros(C, dtype=got.dtype))


def test_the_third_term_of_one_sample_is_zero() -> None:
    z, t, e = (x[:1] for x in make())
    got = hybrid_multilabel(z, t, COUNTS, e, alpha=0.0, beta=0.0, gamma=2.0)
    assert got.item() == 0.0


def test_hybrid_where_two_embeddings_are_equal() -> None:
    z, t, e = make(torch.float32)
    e = torch.cat([e[:1], e[:1], 2 * e[:1], -e[:1]])
    e.requires_grad_()
    t = torch.eye(C)[:4]
    value = hybrid_multilabel(z[:4], t, COUNTS, e, alpha=0.0, beta=0.0, gamma=1.0)
    (slope,) = torch.autograd.grad(value.sum(), e)
    assert value[0].item() == pytest.approx(2 / 3, abs=1e-3) and value[3].item() == 0.0
    assert slope.isfinite().all() and slope.abs().max().item() < 1e-2


def test_hybrid_errors() -> None:
    z, t, e = make()
    with pytest.raises(FieldError, match=r"embeddings \[7, E\]"):
        hybrid_multilabel(z, t, COUNTS, e[:3])
    with pytest.raises(FieldError, match="class 0 has no positive"):
        hybrid_multilabel(z, t, COUNTS * 0, e)
    with pytest.raises(ParameterError, match="correlation is of 2 labels"):
        hybrid_multilabel(z, t, COUNTS, e, correlation=[[1.0, 0.5], [0.5, 1.0]])
    bad: dict[str, Any]
    for bad in ({"margin": 0.0}, {"beta": -0.1}, {"correlation": [[1.0, 0.0]]}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(hybrid_multilabel).build(**bad)


@pytest.mark.parametrize("size", [B, 3])
@pytest.mark.parametrize("given", [False, True])
def test_autocast_does_not_round_the_hybrid(size: int, given: bool) -> None:
    z, t, e = (x[:size] for x in make(torch.float32))
    correlation = torch.rand(C, C, generator=torch.Generator().manual_seed(1)).tolist()
    params: dict[str, Any] = {"beta": 2.0, "gamma": 2.0}
    params["correlation"] = correlation if given else None
    plain = hybrid_multilabel(z, t, COUNTS, e, **params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = hybrid_multilabel(z, t, COUNTS, e, **params)
    torch.testing.assert_close(cast, plain)


def test_a_sample_without_a_known_label_is_in_no_pair_of_the_hybrid() -> None:
    z, t, e = make()
    t[[2, 4]] = -1
    e.requires_grad_()
    got = hybrid_multilabel(z, t, COUNTS, e, gamma=1.0)
    assert got[[2, 4]].tolist() == [0.0, 0.0]
    (slope,) = torch.autograd.grad(got.sum(), e)
    assert not slope[[2, 4]].any() and slope[0].any()
    rest = [0, 1, 3, 5, 6]
    alone = hybrid_multilabel(z[rest], t[rest], COUNTS, e[rest], gamma=1.0)
    torch.testing.assert_close(got[rest], alone)
    nobody = hybrid_multilabel(z, torch.full_like(t, -1), COUNTS, e, gamma=1.0)
    assert torch.equal(nobody, torch.zeros_like(nobody))
