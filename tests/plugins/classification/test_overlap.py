"""Dice, Tversky and Sørensen-Dice: overlaps of predictions and labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.overlap import self_adjusting_dice, sorensen_dice, tversky_index

Loss = Callable[..., Tensor]
ALL = [self_adjusting_dice, tversky_index, sorensen_dice]


@pytest.fixture
def z() -> Tensor:
    return 2 * torch.randn(12, 3, dtype=torch.float64, generator=torch.manual_seed(0))


@pytest.fixture
def t(z: Tensor) -> Tensor:
    return (torch.rand(z.shape, generator=torch.manual_seed(1)) < 0.4).double()


@pytest.fixture
def y() -> Tensor:
    return torch.arange(12) % 3


def counted(p: Tensor, t: Tensor, terms: Callable[[float, float], tuple[float, float]]) -> Any:
    """The two sums of a ratio, for each label (column), by a loop."""
    return [
        tuple(map(sum, zip(*map(terms, p[:, c].tolist(), t[:, c].tolist()), strict=True)))
        for c in range(p.shape[1])
    ]


def dice_by_loop(p: Tensor, t: Tensor, alpha: float, smooth: float, squared: bool) -> list[float]:
    def terms(p: float, t: float) -> tuple[float, float]:
        w = (1 - p) ** alpha * p
        return w * t, (w * w + t * t if squared else w + t)

    return [1 - (2 * i + smooth) / (s + smooth) for i, s in counted(p, t, terms)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- self_adjusting_dice


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("alpha", "smooth"), [(0.0, 1.0), (0.01, 1e-4), (0.7, 1.0), (1.0, 10.0)])
@pytest.mark.parametrize("softmax", [False, True])
def test_dice_by_a_loop(
    z: Tensor, t: Tensor, y: Tensor, alpha: float, smooth: float, squared: bool, softmax: bool
) -> None:
    targets = y if softmax else t
    p, labels = (z.softmax(1), F.one_hot(y)) if softmax else (z.sigmoid(), t)
    dice = partial(self_adjusting_dice, alpha=alpha, smooth=smooth, squared=squared)
    got = dice(z, targets, scope="batch")
    expected = mean(dice_by_loop(p, labels, alpha, smooth, squared))
    assert got.shape == () and got.item() == pytest.approx(expected, rel=1e-9)
    each = dice(z, targets, scope="sample")
    rows = [
        mean(dice_by_loop(p[i : i + 1], labels[i : i + 1], alpha, smooth, squared))
        for i in range(12)
    ]
    assert each.shape == (12,) and each.tolist() == pytest.approx(rows, rel=1e-9)


def test_dice_is_the_authors_binary_form(z: Tensor, t: Tensor) -> None:
    """DiceLoss._compute_dice_loss of ShannonAI/dice_loss_for_NLP, over one flat column."""
    p, labels = z[:, :1].sigmoid(), t[:, :1]
    w = (1 - p) ** 0.01 * p
    value = 1 - (2 * (w * labels).sum() + 1) / (w.sum() + labels.sum() + 1)
    torch.testing.assert_close(self_adjusting_dice(z[:, 0], t[:, 0], scope="batch"), value)


def test_dice_without_adjustment_is_half_half_tversky(z: Tensor, t: Tensor, y: Tensor) -> None:
    for targets in (t, y):
        for scope in ("sample", "batch"):
            dice = self_adjusting_dice(z, targets, alpha=0.0, smooth=0.6, scope=scope)
            half = tversky_index(z, targets, alpha=0.5, beta=0.5, smooth=0.3, scope=scope)
            torch.testing.assert_close(dice, half)


def test_dice_without_adjustment_is_sorensen_dice_by_class(z: Tensor, t: Tensor) -> None:
    for squared in (False, True):
        dice = self_adjusting_dice(z, t, alpha=0.0, smooth=0.6, scope="batch", squared=squared)
        by_class = sorensen_dice(z, t, eps=0.6, scope="class", squared=squared)
        torch.testing.assert_close(dice, by_class)


def test_scikit_learn_agrees_on_sure_predictions(z: Tensor, t: Tensor, y: Tensor) -> None:
    sure = torch.where(z > 0, 40.0, -40.0).double()
    f1 = f1_score(t, z > 0, average="macro")
    got = self_adjusting_dice(sure, t, alpha=0.0, smooth=1e-9, scope="batch")
    assert 1 - got.item() == pytest.approx(f1, abs=1e-7)
    jaccard = jaccard_score(t, z > 0, average="macro")
    got = tversky_index(sure, t, alpha=1.0, beta=1.0, smooth=1e-9)
    assert 1 - got.item() == pytest.approx(jaccard, abs=1e-7)
    micro = f1_score(t, z > 0, average="micro")
    got = sorensen_dice(sure, t, eps=1e-9, scope="batch")
    assert 1 - got.item() == pytest.approx(micro, abs=1e-7)
    chosen = F.one_hot(z.argmax(1), 3) * 100.0
    got = self_adjusting_dice(chosen, y, alpha=0.0, smooth=1e-9, scope="batch")
    assert 1 - got.item() == pytest.approx(f1_score(y, z.argmax(1), average="macro"), abs=1e-7)


def test_a_sure_negative_costs_nothing() -> None:
    for loss in ALL:
        value = loss(torch.tensor([-80.0]), torch.zeros(1), scope="sample")
        assert 0 <= value.item() < 1e-7


def test_easy_positives_count_less() -> None:
    """w peaks at p = 1 / (1 + alpha): a surer positive is pulled back there, not further up."""
    for alpha in (0.25, 1.0):
        p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
        value = self_adjusting_dice(p.logit(), torch.ones(99), alpha=alpha)
        (slope,) = torch.autograd.grad(value.sum(), p)
        peak = 1 / (1 + alpha)
        below, above = p.detach() < peak - 1e-9, p.detach() > peak + 1e-9
        assert (slope[below] < 0).all() and (slope[above] > 0).all()


@pytest.mark.parametrize("gap", [0.0, 5.0, 40.0, 80.0, 150.0])
def test_the_weight_is_exact_next_to_certainty(gap: float) -> None:
    """1 - p is lost to rounding in float32 past a gap of 17, and its power is far from 0."""
    row = torch.tensor([[gap, 0.0, -1.0]], requires_grad=True)
    exact = row.detach().double().requires_grad_()
    loss = partial(self_adjusting_dice, alpha=0.01, smooth=0.5)
    value, expected = loss(row, torch.tensor([0])), loss(exact, torch.tensor([0]))
    log_rest = torch.logsumexp(exact.detach()[:, 1:], 1) - torch.logsumexp(exact.detach(), 1)
    w = (0.01 * log_rest + exact.detach().log_softmax(1)[:, 0]).exp()
    others = exact.detach().softmax(1)[:, 1:]
    others = others * (1 - others) ** 0.01
    by_hand = ((1 - w) / (w + 1.5) + (others / (others + 0.5)).sum(1)) / 3
    torch.testing.assert_close(expected, by_hand)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    slope, wanted = (
        torch.autograd.grad(v.sum(), x)[0].double() for v, x in ((value, row), (expected, exact))
    )
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-7)


def test_two_classes_of_softmax_are_two_labels(z: Tensor, t: Tensor) -> None:
    """A two-class softmax on (0, z) is the sigmoid of z for one class, of -z for the other."""
    column, labels = z[:, 0], t[:, 0]
    pair = torch.stack([torch.zeros_like(column), column], 1)
    both = torch.stack([-column, column], 1)
    for loss in (self_adjusting_dice, tversky_index):
        for scope in ("sample", "batch"):
            soft = loss(pair, labels.long(), scope=scope)
            torch.testing.assert_close(
                soft, loss(both, torch.stack([1 - labels, labels], 1), scope=scope)
            )


# --- tversky_index


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (1.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("softmax", [False, True])
def test_tversky_by_a_loop(
    z: Tensor, t: Tensor, y: Tensor, alpha: float, beta: float, softmax: bool
) -> None:
    p, labels = (z.softmax(1), F.one_hot(y)) if softmax else (z.sigmoid(), t)

    def value(rows: slice) -> float:
        values = []
        for c in range(3):
            tp = fp = fn = 0.0
            for q, label in zip(p[rows, c].tolist(), labels[rows, c].tolist(), strict=True):
                tp, fp, fn = tp + q * label, fp + q * (1 - label), fn + (1 - q) * label
            values.append(1 - (tp + 0.4) / (tp + alpha * fp + beta * fn + 0.4))
        return mean(values)

    tversky = partial(tversky_index, alpha=alpha, beta=beta, smooth=0.4)
    targets = y if softmax else t
    assert tversky(z, targets).item() == pytest.approx(value(slice(None)), rel=1e-9)
    each = tversky(z, targets, scope="sample")
    assert each.tolist() == pytest.approx([value(slice(i, i + 1)) for i in range(12)], rel=1e-9)


def test_tversky_at_one_is_the_jaccard_form(z: Tensor, t: Tensor) -> None:
    p = z.sigmoid()
    both = (p * t).sum(0)
    jaccard = 1 - (both + 1) / (p.sum(0) + t.sum(0) - both + 1)
    torch.testing.assert_close(tversky_index(z, t, alpha=1.0, beta=1.0), jaccard.mean())


def test_alpha_weighs_false_positives_and_beta_false_negatives() -> None:
    wrong, labels = torch.tensor([9.0, -9.0]), torch.tensor([0.0, 1.0])
    high, low = (tversky_index(wrong[:1], labels[:1], alpha=a).item() for a in (0.9, 0.1))
    assert high > low
    high, low = (tversky_index(wrong[1:], labels[1:], beta=b).item() for b in (0.9, 0.1))
    assert high > low


# --- sorensen_dice


@pytest.mark.parametrize("squared", [False, True])
def test_sorensen_by_a_loop_over_labels_and_frames(squared: bool) -> None:
    g = torch.Generator().manual_seed(2)
    z = torch.randn(3, 4, 5, generator=g, dtype=torch.float64)
    t = (torch.rand(3, 4, 5, generator=g) < 0.3).double()
    p = z.sigmoid()

    def value(p: Tensor, t: Tensor) -> float:
        return dice_by_loop(p.reshape(-1, 1), t.reshape(-1, 1), 0.0, 0.01, squared)[0]

    loss = partial(sorensen_dice, eps=0.01, squared=squared)
    each = loss(z, t)
    assert each.shape == (3,)
    assert each.tolist() == pytest.approx([value(p[i], t[i]) for i in range(3)], rel=1e-9)
    by_class = mean([value(p[:, c], t[:, c]) for c in range(4)])
    assert loss(z, t, scope="class").item() == pytest.approx(by_class, rel=1e-9)
    assert loss(z, t, scope="batch").item() == pytest.approx(value(p, t), rel=1e-9)


def test_a_perfect_prediction_is_zero(t: Tensor) -> None:
    for scope in ("sample", "class", "batch"):
        value = sorensen_dice(80 * (2 * t - 1), t, scope=scope)
        assert value.abs().max().item() < 1e-12


def test_a_sample_without_events_tends_to_zero_through_eps() -> None:
    """With little predicted it is about sum p / eps; without eps it would stay 1."""
    t = torch.zeros(1, 4, dtype=torch.float64)
    values = [sorensen_dice(t + z, t).item() for z in (-10.0, -20.0, -30.0, -40.0)]
    assert values[0] > 0.99 and values == sorted(values, reverse=True)
    p = torch.tensor(-30.0, dtype=torch.float64).sigmoid().item()
    assert values[2] == pytest.approx(4 * p / (4 * p + 1e-7))
    assert values[3] < 1e-6


# --- all of them


def losses() -> list[tuple[Loss, dict[str, Any]]]:
    scopes = {sorensen_dice: ("sample", "class", "batch")}
    return [(loss, {"scope": s}) for loss in ALL for s in scopes.get(loss, ("sample", "batch"))]


@pytest.mark.parametrize(("loss", "params"), losses())
def test_unknown_labels(loss: Loss, params: dict[str, Any], z: Tensor, t: Tensor) -> None:
    """Of a label (a column) that nobody knows nothing is left, nor of a sample without labels."""
    t = t.clone()
    t[:, 2] = -1
    torch.testing.assert_close(loss(z, t, **params), loss(z[:, :2], t[:, :2], **params))
    t[4:] = -1
    if params["scope"] == "sample":
        assert not loss(z, t, **params)[4:].any()
    else:
        torch.testing.assert_close(loss(z, t, **params), loss(z[:4, :2], t[:4, :2], **params))
    z = z.clone().requires_grad_()
    nothing = loss(z, torch.full_like(t, -1), **params)
    (slope,) = torch.autograd.grad(nothing.sum(), z)
    assert not nothing.any() and not slope.any()


@pytest.mark.parametrize(("loss", "params"), losses())
def test_binary_shapes_agree(loss: Loss, params: dict[str, Any], z: Tensor, t: Tensor) -> None:
    flat = loss(z[:, 0], t[:, 0], **params)
    torch.testing.assert_close(loss(z[:, :1], t[:, :1], **params), flat)
    torch.testing.assert_close(loss(z[:, :1], t[:, 0].long(), **params), flat)


def test_positions_are_samples(z: Tensor, t: Tensor, y: Tensor) -> None:
    wide, maps = z.reshape(4, 3, 3).transpose(1, 2), y.reshape(4, 3)
    for loss in (self_adjusting_dice, tversky_index):
        torch.testing.assert_close(loss(wide, maps, scope="batch"), loss(z, y, scope="batch"))
        each = loss(z, y, scope="sample").reshape(4, 3).mean(1)
        torch.testing.assert_close(loss(wide, maps, scope="sample"), each)


@pytest.mark.parametrize(("loss", "params"), losses())
@pytest.mark.parametrize("softmax", [False, True])
def test_gradcheck(
    loss: Loss, params: dict[str, Any], softmax: bool, z: Tensor, t: Tensor, y: Tensor
) -> None:
    if softmax and loss is sorensen_dice:
        params = {**params, "squared": True}
    if loss is self_adjusting_dice:
        params = {**params, "alpha": 0.6}
    targets = y if softmax and loss is not sorensen_dice else t
    torch.autograd.gradcheck(
        lambda z: loss(z, targets[:5], **params), (z[:5].clone().requires_grad_(),)
    )


@pytest.mark.parametrize(("loss", "params"), losses())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softmax", [False, True])
def test_extremes(loss: Loss, params: dict[str, Any], dtype: torch.dtype, softmax: bool) -> None:
    if softmax and loss is sorensen_dice:  # it has none
        softmax, params = False, {**params, "squared": True}
    rows = [[80.0, -80.0], [-80.0, 80.0], [80.0, 80.0], [-80.0, -80.0]]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for label in (0, 1):
        targets = torch.full((4,), label) if softmax else torch.full((4, 2), float(label))
        value = loss(z, targets, **params)
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert value.dtype == torch.float32 and slope.isfinite().all()
        assert (value >= 0).all() and (value <= 1).all()


def test_what_they_return_follows_the_scope() -> None:
    for loss in ALL:
        component = component_of(loss)
        for scope, expected in (("sample", "per_sample"), ("batch", "batch")):
            assert component.returns_at(component.build(scope=scope).params) == expected
    assert component_of(self_adjusting_dice).build().params.model_dump()["scope"] == "sample"
    assert component_of(tversky_index).build().params.model_dump()["scope"] == "batch"
    assert component_of(sorensen_dice).build().params.model_dump()["scope"] == "sample"


def test_errors(z: Tensor, t: Tensor, y: Tensor) -> None:
    for loss in ALL:
        name = component_of(loss).name
        with pytest.raises(FieldError, match=f"{name}: target 2 is not 0, 1"):
            loss(z, t + 1)
        with pytest.raises(FieldError, match="targets of that shape"):
            loss(z, t[:, :2])
    for loss in (self_adjusting_dice, tversky_index):
        with pytest.raises(FieldError, match=r"target 3 is outside \[0, 3\)"):
            loss(z, y + 1)
    with pytest.raises(FieldError, match="targets of that shape"):
        sorensen_dice(z, y)
    bad: dict[str, Any]
    for loss, bad in (
        (self_adjusting_dice, {"alpha": -0.1}),
        (self_adjusting_dice, {"smooth": 0.0}),
        (self_adjusting_dice, {"scope": "class"}),
        (tversky_index, {"alpha": -1.0}),
        (tversky_index, {"beta": -1.0}),
        (tversky_index, {"smooth": 0.0}),
        (sorensen_dice, {"eps": 0.0}),
        (sorensen_dice, {"scope": "frame"}),
    ):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(loss).build(**bad)


@pytest.mark.parametrize(
    "loss",
    [
        sorensen_dice,
        partial(sorensen_dice, squared=True),
        partial(sorensen_dice, scope="batch"),
        tversky_index,
        partial(tversky_index, scope="sample"),
        partial(self_adjusting_dice, alpha=0.0),
        partial(self_adjusting_dice, alpha=0.0, scope="batch"),
    ],
)
def test_what_a_probability_lacks_of_one_is_not_lost(loss: Loss) -> None:
    kinds = (False,) if getattr(loss, "func", loss) is sorensen_dice else (False, True)
    for size, softmax in itertools.product((20.0, 40.0), kinds):
        found = []
        for dtype in (torch.float32, torch.float64):
            row = [size, 0.0] if softmax else [size, -size]
            x = torch.tensor([row], dtype=dtype, requires_grad=True)
            y = torch.tensor([0]) if softmax else torch.tensor([[1.0, 0.0]])
            value = loss(x, y).sum()
            found.append([value.item(), *torch.autograd.grad(value, x)[0][0].tolist()])
        assert found[0][0] > 0 and found[0][1] < 0
        assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-40)


def test_a_positive_that_is_surely_missed_has_its_slope() -> None:
    for loss in (sorensen_dice, tversky_index, partial(self_adjusting_dice, alpha=0.0)):
        slopes = []
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor([[-20.0, -22.0]], dtype=dtype, requires_grad=True)
            slopes += torch.autograd.grad(loss(x, torch.ones(1, 2)).sum(), x)
        torch.testing.assert_close(slopes[0].double(), slopes[1], rtol=1e-5, atol=0.0)
