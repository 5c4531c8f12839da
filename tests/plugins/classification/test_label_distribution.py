"""LDR-KL and ALDR-KL: the maximum that they are, their limits, and the memory of the second."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

import lossearch
from lossearch.errors import FieldError, ParameterError
from lossearch_classification import AldrKl, cross_entropy, ldr_kl
from lossearch_classification.hinge import multiclass_hinge

CLASSES = 4
INDEX = torch.tensor([3, 0, 7, 9, 1, 4])


@pytest.fixture
def z() -> Tensor:
    return 2 * torch.randn(6, CLASSES, dtype=torch.float64, generator=torch.manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1])


def gaps(f: Tensor, y: Tensor, margin: float) -> Tensor:
    onehot = F.one_hot(y, CLASSES)
    return margin * (1 - onehot) + f - (f * onehot).sum(1, keepdim=True)


def test_ldr_kl_by_hand() -> None:
    z, y = torch.tensor([[1.0, 3.0]]), torch.tensor([0])
    value = ldr_kl(z, y, lam=2.0, margin=1.0, normalize="none")
    assert value.item() == pytest.approx(2 * math.log((1 + math.exp(3 / 2)) / 2))
    value = ldr_kl(z, y, lam=2.0, margin=1.0, normalize="l1")  # f = 1/2, 3/2
    assert value.item() == pytest.approx(2 * math.log((1 + math.e) / 2))


def test_ldr_kl_is_the_authors_form(z: Tensor, y: Tensor) -> None:
    f = F.softplus(z) / F.softplus(z).mean(1, keepdim=True)
    expected = 0.5 * (gaps(f, y, 1.0) / 0.5).exp().mean(1).log()
    torch.testing.assert_close(ldr_kl(z, y, lam=0.5, margin=1.0), expected)


def test_softplus_of_a_row_far_below_zero_is_a_softmax(y: Tensor) -> None:
    """Where softplus is exp, and underflows, its share of the mean is C times the softmax."""
    small = 2 * torch.randn(6, CLASSES, generator=torch.manual_seed(0))
    f = CLASSES * small.double().softmax(1)
    expected = 0.5 * (gaps(f, y, 1.0) / 0.5).exp().mean(1).log()
    for low in (-60.0, -1000.0):
        z = (small + low).requires_grad_()
        value = ldr_kl(z, y, lam=0.5, margin=1.0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-3)
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert slope.isfinite().all() and (slope != 0).all()
    assert ldr_kl(torch.full((6, CLASSES), -1e4), y, margin=0.0).tolist() == [0.0] * 6


def test_ldr_kl_is_cross_entropy_less_log_c(z: Tensor, y: Tensor) -> None:
    value = ldr_kl(z, y, lam=1.0, margin=0.0, normalize="none")
    torch.testing.assert_close(value, cross_entropy(z, y) - math.log(CLASSES))


def test_ldr_kl_is_a_maximum_over_class_weightings(z: Tensor, y: Tensor) -> None:
    lam, margin = 0.7, 0.4
    g = gaps(z, y, margin)

    def objective(p: Tensor) -> Tensor:
        return (p * g - lam * p * (CLASSES * p).log()).sum(1)

    value = ldr_kl(z, y, lam=lam, margin=margin, normalize="none")
    torch.testing.assert_close(objective((g / lam).softmax(1)), value)
    for seed in range(20):
        p = torch.randn(6, CLASSES, dtype=torch.float64, generator=torch.manual_seed(seed))
        assert (objective(p.softmax(1)) <= value + 1e-12).all()


def test_ldr_kl_limits(z: Tensor, y: Tensor) -> None:
    hinge = ldr_kl(z, y, lam=1e-6, margin=0.4, normalize="none")
    highest = gaps(z, y, 0.4).amax(1)  # the 0 of c = y among them
    torch.testing.assert_close(hinge, highest, atol=1e-5, rtol=0)
    flat = ldr_kl(z, y, lam=1e6, margin=0.4, normalize="none")
    torch.testing.assert_close(flat, gaps(z, y, 0.4).mean(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalize", ["softplus_mean", "l1", "none"])
def test_ldr_kl_gradcheck(z: Tensor, y: Tensor, normalize: Any) -> None:
    z.requires_grad_()
    torch.autograd.gradcheck(
        lambda z: ldr_kl(z, y, lam=0.5, margin=1.0, normalize=normalize), (z,)
    )


def test_ldr_kl_slope_is_the_worst_weighting(z: Tensor, y: Tensor) -> None:
    z.requires_grad_()
    value = ldr_kl(z, y, lam=0.5, margin=1.0, normalize="none")
    (slope,) = torch.autograd.grad(value.sum(), z)
    worst = (gaps(z.detach(), y, 1.0) / 0.5).softmax(1)
    torch.testing.assert_close(slope, worst - F.one_hot(y, CLASSES))


def test_ldr_kl_tends_to_multiclass_hinge(z: Tensor, y: Tensor) -> None:
    value = ldr_kl(z, y, lam=1e-6, margin=0.4, normalize="none")
    torch.testing.assert_close(value, multiclass_hinge(z, y, margin=0.4), atol=1e-5, rtol=0)


def test_ldr_kl_does_not_rise_with_lambda(z: Tensor, y: Tensor) -> None:
    values = [ldr_kl(z, y, lam=lam, normalize="none") for lam in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert (torch.stack(values).diff(dim=0) <= 0).all()


def test_normalised_ldr_kl_is_blind_to_scale(y: Tensor) -> None:
    z = torch.rand(6, CLASSES, dtype=torch.float64, generator=torch.manual_seed(1)) + 0.1
    torch.testing.assert_close(
        ldr_kl(5 * z, y, normalize="l1"), ldr_kl(z, y, normalize="l1")
    )
    f = F.softplus(z)  # five times it, by the inverse of softplus
    torch.testing.assert_close(ldr_kl(torch.expm1(5 * f).log(), y), ldr_kl(z, y))


@pytest.mark.parametrize("normalize", ["softplus_mean", "l1", "none"])
@pytest.mark.parametrize("lam", [0.01, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(normalize: Any, lam: float, dtype: torch.dtype) -> None:
    rows = [[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0], [80.0] * 3, [-80.0] * 3]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for y in range(3):
        value = ldr_kl(z, torch.full((4,), y), lam=lam, margin=10.0, normalize=normalize)
        slope = torch.autograd.grad(value.sum(), z)[0]
        assert value.dtype == torch.float32
        assert value.isfinite().all() and slope.isfinite().all()


def test_members_and_hyperparameters_stack(z: Tensor, y: Tensor) -> None:
    stack, h = torch.stack([z, -z, 2 * z]), torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    for normalize in ("softplus_mean", "l1", "none"):

        def case(z: Tensor, h: Any, normalize: Any = normalize) -> Tensor:
            return ldr_kl(z, y, lam=h, margin=h, normalize=normalize)

        loop = torch.stack([case(stack[i], h[i].item()) for i in range(3)])
        torch.testing.assert_close(vmap(case)(stack, h), loop)


def authors_aldr(
    z: Tensor, y: Tensor, lam: Tensor, *, lam0: float, alpha: float, margin: float
) -> tuple[Tensor, Tensor]:
    """ALDRLoss_V1 step by step: the loss of each sample, and its new lambda."""
    f = z / z.abs().mean(1, keepdim=True)
    p = (f / lam[:, None]).softmax(1) + 1e-5
    p = F.normalize(p, p=1.0)
    kl = (p * (CLASSES * p).log()).sum(1)
    lam = (lam0 - lam0 * kl / (alpha * math.log(CLASSES))).detach()
    extra = -0.5 * alpha * math.log(CLASSES) / lam0 * (lam - lam0) ** 2
    return lam * (gaps(f, y, margin) / lam[:, None]).exp().mean(1).log() + extra, lam


def test_aldr_kl_is_the_authors_code_over_two_visits(z: Tensor, y: Tensor) -> None:
    settings: dict[str, Any] = {"lam0": 2.0, "alpha": 1.5, "margin": 1.0}
    loss = AldrKl(train_size=10, **settings).double()
    lam = torch.full((6,), 2.0, dtype=torch.float64)
    for logits in (z, 3 - z):
        value = loss(logits, y, INDEX)
        expected, lam = authors_aldr(logits, y, lam, **settings)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(loss.lam[INDEX], lam)
    untouched = [i for i in range(10) if i not in INDEX]
    assert (loss.lam[untouched] == 2.0).all()


def test_aldr_kl_lambda_is_a_constant_of_the_gradient(z: Tensor, y: Tensor) -> None:
    loss = AldrKl(train_size=10, normalize="none").double()
    value = loss(z.requires_grad_(), y, INDEX)
    slope = torch.autograd.grad(value.sum(), z)[0]
    lam = loss.lam[INDEX][:, None]
    expected = (gaps(z, y, 0.1) / lam).softmax(1) - F.one_hot(y, CLASSES)
    torch.testing.assert_close(slope, expected.detach())


def test_aldr_kl_lambda_stays_in_its_bounds(y: Tensor) -> None:
    loss = AldrKl(train_size=10, lam0=3.0, alpha=1.1, normalize="none")
    for scale in (0.0, 1.0, 80.0):
        for _ in range(3):
            loss(scale * torch.eye(CLASSES)[y], y, INDEX)
        assert (loss.lam >= 3.0 * (1 - 1 / 1.1)).all()
        assert (loss.lam <= 3.0).all()
    assert loss.lam[3] < 0.3  # sure of itself: close to the lower bound


def test_aldr_kl_of_a_uniform_row_keeps_lam0(y: Tensor) -> None:
    loss = AldrKl(train_size=10, lam0=2.0)
    value = loss(torch.full((6, CLASSES), 7.0), y, INDEX)
    torch.testing.assert_close(loss.lam, torch.full((10,), 2.0))
    expected = ldr_kl(torch.full((6, CLASSES), 7.0), y, lam=2.0, normalize="l1")
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(("ours", "theirs"), [("l1", "l1"), ("softplus_l1", "softplus_mean")])
def test_aldr_kl_at_large_alpha_is_ldr_kl(z: Tensor, y: Tensor, ours: Any, theirs: Any) -> None:
    loss = AldrKl(train_size=10, lam0=0.8, alpha=1e9, eps=1e-12, normalize=ours).double()
    torch.testing.assert_close(loss(z, y, INDEX), ldr_kl(z, y, lam=0.8, normalize=theirs))


def test_aldr_kl_in_eval_mode_reads_and_does_not_write(z: Tensor, y: Tensor) -> None:
    loss = AldrKl(train_size=10).double()
    trained = loss(z, y, INDEX)
    before = loss.lam.clone()
    torch.testing.assert_close(loss.eval()(z, y, INDEX), trained)
    loss(2 - z, y, INDEX)
    assert torch.equal(loss.lam, before)


def test_aldr_kl_state_travels(z: Tensor, y: Tensor) -> None:
    first, second = (lossearch.build("aldr_kl", train_size=10) for _ in range(2))
    batch = {"logits": z.float(), "targets": y, "index": INDEX}
    first(batch)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(batch), second(batch), atol=0, rtol=0)


@pytest.mark.parametrize("normalize", ["l1", "softplus_l1", "none"])
def test_aldr_kl_extremes_are_finite(normalize) -> None:
    rows = [[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0], [80.0] * 3, [-80.0] * 3]
    z = torch.tensor(rows, requires_grad=True)
    loss = AldrKl(train_size=4, lam0=0.1, alpha=1.1, normalize=normalize)
    for y in (0, 1, 2):
        value = loss(z, torch.full((4,), y), torch.arange(4))
        assert value.isfinite().all() and torch.autograd.grad(value.sum(), z)[0].isfinite().all()
        assert loss.lam.isfinite().all()


def test_errors(z: Tensor, y: Tensor) -> None:
    loss = AldrKl(train_size=5)
    with pytest.raises(FieldError, match="index 9 is outside the training split of 5 samples"):
        loss(z, y, INDEX)
    with pytest.raises(FieldError, match="index -1 is outside"):
        loss(z, y, torch.tensor([0, 1, 2, 3, 4, -1]))
    with pytest.raises(FieldError, match=r"targets \[6\] go with an index of that shape"):
        loss(z, y, INDEX[:3])
    assert (loss.lam == 1.0).all()
    for each in (lambda z: ldr_kl(z, y, normalize="l1"), lambda z: loss(z, y, y)):
        with pytest.raises(FieldError, match="a row of logits is all zero"):
            each(torch.zeros(6, CLASSES))
        with pytest.raises(FieldError, match="target 3 is outside"):
            each(torch.ones(6, 3))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ldr_kl", {"lam": 0.0}),
        ("ldr_kl", {"margin": -0.1}),
        ("ldr_kl", {"normalize": "l2"}),
        ("aldr_kl", {"margin": -0.1}),
        ("aldr_kl", {"normalize": "softplus_mean"}),
        ("aldr_kl", {"lam0": 0.0}),
        ("aldr_kl", {"alpha": 1.0}),
        ("aldr_kl", {"eps": 0.0}),
        ("aldr_kl", {"train_size": 0}),
    ],
)
def test_illegal_parameters_are_refused_at_construction(name: str, params: dict) -> None:
    if name == "aldr_kl":
        params = {**params, "train_size": params.get("train_size", 5)}
    with pytest.raises(ParameterError, match=f"{name}: {next(iter(params))}"):
        lossearch.build(name, **params)


def test_the_train_size_is_given_by_the_engine() -> None:
    bound = lossearch.get("aldr_kl").build(facts={"train_size": 12})
    assert isinstance(bound.module, AldrKl)
    assert bound.module.lam.shape == (12,)
    with pytest.raises(ParameterError, match="needs 'train_size'"):
        lossearch.build("aldr_kl")
