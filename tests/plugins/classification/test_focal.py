"""Focal, poly and dual focal losses: their limits, gradients, and public implementations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torchvision.ops import sigmoid_focal_loss

import lossearch
from lossearch.errors import FieldError, ParameterError
from lossearch_classification import (
    asymmetric,
    binary_cross_entropy,
    cross_entropy,
    dual_focal,
    focal,
    poly_loss,
)

CLASSES = 5
ALPHAS = [0.5, 1.0, 2.0, 0.0, 3.0]


def target_probability(z: Tensor, y: Tensor) -> Tensor:
    return z.softmax(1).gather(1, y[:, None])[:, 0]


def test_focal_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0)]])  # p = 1/4, 3/4
    value = focal(z, torch.tensor([0]), gamma=2.0, alpha=[0.5, 1.0])
    assert value.item() == pytest.approx(0.5 * 0.75**2 * math.log(4))
    value = focal(z[:, 1], torch.tensor([0.0]), gamma=2.0, alpha=0.3, mode="sigmoid")
    assert value.item() == pytest.approx(0.7 * 0.75**2 * math.log(4))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 5.0])
def test_focal_softmax_is_the_definition(z: Tensor, y: Tensor, gamma: float) -> None:
    p = target_probability(z, y)
    plain = -((1 - p) ** gamma) * p.log()
    torch.testing.assert_close(focal(z, y, gamma=gamma), plain)
    weights = torch.tensor(ALPHAS, dtype=torch.float64)[y]
    torch.testing.assert_close(focal(z, y, gamma=gamma, alpha=ALPHAS), weights * plain)
    torch.testing.assert_close(focal(z, y, gamma=gamma, alpha=0.3), 0.3 * plain)


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_sigmoid_is_torchvisions(z: Tensor, t: Tensor, alpha: float | None) -> None:
    expected = sigmoid_focal_loss(z, t, alpha=-1 if alpha is None else alpha, gamma=1.5)
    value = focal(z, t, gamma=1.5, alpha=alpha, mode="sigmoid")
    torch.testing.assert_close(value, expected.mean(1))
    value = focal(z, t, gamma=1.5, alpha=alpha, mode="sigmoid", label_reduction="sum")
    torch.testing.assert_close(value, expected.sum(1))


def test_focal_without_focus_is_cross_entropy(z: Tensor, y: Tensor, t: Tensor) -> None:
    torch.testing.assert_close(focal(z, y, gamma=0.0), cross_entropy(z, y))
    value = focal(z, t, gamma=0.0, mode="sigmoid")
    torch.testing.assert_close(value, binary_cross_entropy(z, t))


def test_focal_is_never_above_cross_entropy(z: Tensor, y: Tensor, t: Tensor) -> None:
    for gamma in (0.1, 1.0, 5.0):
        assert (focal(z, y, gamma=gamma) <= cross_entropy(z, y)).all()
        assert (focal(z, t, gamma=gamma, mode="sigmoid") <= binary_cross_entropy(z, t)).all()


def test_focal_sigmoid_is_symmetric_asl(z: Tensor, t: Tensor) -> None:
    expected = asymmetric(z, t, gamma_neg=3.0, gamma_pos=3.0, clip=0.0, detach_weight=False)
    value = focal(z, t, gamma=3.0, mode="sigmoid", label_reduction="sum")
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    "loss", [focal, poly_loss, lambda *a, **k: poly_loss(*a, base="focal", **k)]
)
def test_two_classes_are_one_logit(loss, z: Tensor, t: Tensor) -> None:
    score, target = z[:, 0], t[:, 0]
    pair = torch.stack([torch.zeros_like(score), score], 1)
    torch.testing.assert_close(
        loss(pair, target.long(), mode="softmax"), loss(score, target, mode="sigmoid")
    )


def test_sure_and_right_keeps_its_tiny_value_and_slope() -> None:
    z = torch.tensor([[40.0, 0.0]], requires_grad=True)  # 1 - p = e^-40, lost in 1 - softmax
    value = focal(z, torch.tensor([0]), gamma=0.5)
    assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()
    value = poly_loss(z[:, 0], torch.ones(1), mode="sigmoid", base="focal", gamma=0.5)
    torch.testing.assert_close(value, torch.tensor([2 * math.exp(-60.0)]), rtol=1e-5, atol=0)


def test_poly_by_hand() -> None:
    z, y = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([0])
    value = poly_loss(z, y, epsilon=[2.0, -0.5])
    assert value.item() == pytest.approx(math.log(4) + 2 * 0.75 - 0.5 * 0.75**2)
    value = poly_loss(z, y, epsilon=[2.0, -0.5], base="focal", gamma=2.0, alpha=[0.1, 1.0])
    expected = 0.1 * 0.75**2 * math.log(4) + 2 * 0.75**3 - 0.5 * 0.75**4
    assert value.item() == pytest.approx(expected)
    value = poly_loss(z, y, epsilon=[2.0, 1.0], label_smoothing=0.2)  # q = 0.9, 0.1
    miss = 0.9 * 0.75 + 0.1 * 0.25
    nll = -0.9 * math.log(0.25) - 0.1 * math.log(0.75)
    assert value.item() == pytest.approx(nll + 2 * miss + miss**2)


def test_poly_without_epsilon_is_its_base(z: Tensor, y: Tensor, t: Tensor) -> None:
    for epsilon in (0.0, [0.0, 0.0]):
        value = poly_loss(z, y, epsilon=epsilon, label_smoothing=0.1)
        torch.testing.assert_close(value, cross_entropy(z, y, label_smoothing=0.1))
        value = poly_loss(z, t, epsilon=epsilon, mode="sigmoid")
        torch.testing.assert_close(value, binary_cross_entropy(z, t))
        value = poly_loss(z, y, epsilon=epsilon, base="focal", gamma=3.0, alpha=ALPHAS)
        torch.testing.assert_close(value, focal(z, y, gamma=3.0, alpha=ALPHAS))
        value = poly_loss(z, t, epsilon=epsilon, base="focal", alpha=0.3, mode="sigmoid")
        torch.testing.assert_close(value, focal(z, t, alpha=0.3, mode="sigmoid"))


def test_poly_list_of_one_is_the_number(z: Tensor, y: Tensor, t: Tensor) -> None:
    torch.testing.assert_close(poly_loss(z, y, epsilon=[2.0]), poly_loss(z, y, epsilon=2.0))
    for base in ("cross_entropy", "focal"):
        one = poly_loss(z, t, epsilon=[2.0], base=base, mode="sigmoid")
        torch.testing.assert_close(one, poly_loss(z, t, epsilon=2.0, base=base, mode="sigmoid"))


def test_poly_sigmoid_is_the_public_code(z: Tensor, t: Tensor) -> None:
    miss = (z.sigmoid() - t).abs()
    expected = sigmoid_focal_loss(z, t, alpha=0.25, gamma=2.0) + 1.5 * miss**3
    value = poly_loss(z, t, epsilon=1.5, base="focal", gamma=2.0, alpha=0.25, mode="sigmoid")
    torch.testing.assert_close(value, expected.mean(1))


def test_poly1_gradient(z: Tensor, y: Tensor) -> None:
    slope = grad(lambda z: poly_loss(z, y, epsilon=2.0).sum())(z)
    p = target_probability(z, y)[:, None]
    torch.testing.assert_close(slope, (1 + 2 * p) * (z.softmax(1) - F.one_hot(y, CLASSES)))


def test_poly_that_drops_terms_leaves_the_rest_of_the_series(y: Tensor) -> None:
    z = torch.zeros(8, CLASSES, dtype=torch.float64)  # 1 - p = 0.8
    values = [poly_loss(z, y, epsilon=[-1 / j for j in range(1, n + 1)]) for n in range(1, 6)]
    for n, value in enumerate(values, start=1):
        tail = sum(0.8**j / j for j in range(n + 1, 400))
        torch.testing.assert_close(value, torch.full_like(value, tail))
    assert (torch.stack(values).diff(dim=0) < 0).all()


def test_poly_epsilon_is_checked() -> None:
    for legal in (-1.0, [-1.0, -0.5, -1 / 3, -0.25, -0.2], [6.0]):
        assert lossearch.build("poly_loss", epsilon=legal).params.model_dump()["epsilon"] == legal
    with pytest.raises(ParameterError, match=r"coefficient 1 must be >= -1/1 = -1, not -1\.1"):
        lossearch.build("poly_loss", epsilon=-1.1)
    with pytest.raises(ParameterError, match=r"coefficient 2 must be >= -1/2 = -0\.5, not -0\.6"):
        lossearch.build("poly_loss", epsilon=[0.0, -0.6])
    for wrong in ([], [0.0] * 6):
        with pytest.raises(ParameterError, match=f"1 to 5 coefficients, not {len(wrong)}"):
            lossearch.build("poly_loss", epsilon=wrong)


def dual_focal_loop(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    values = []
    for row, target in zip(z, y, strict=True):
        p = row.softmax(0)
        below = [each for each in p if each < p[target]]
        runner = max(below) if below else torch.zeros(())
        values.append(-((1 - p[target] + runner) ** gamma) * p[target].log())
    return torch.stack(values)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
def test_dual_focal_is_the_authors_rule(z: Tensor, y: Tensor, gamma: float) -> None:
    z = z.requires_grad_()
    value, expected = dual_focal(z, y, gamma=gamma), dual_focal_loop(z, y, gamma)
    torch.testing.assert_close(value, expected)
    slope = torch.autograd.grad(value.sum(), z)[0]
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), z)[0])


def test_dual_focal_special_cases(z: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(dual_focal(z, y, gamma=0.0), cross_entropy(z, y))
    assert (dual_focal(z, y, gamma=3.0) >= focal(z, y, gamma=3.0)).all()
    lowest = z.argmin(1)
    torch.testing.assert_close(dual_focal(z, lowest, gamma=3.0), focal(z, lowest, gamma=3.0))


def test_dual_focal_does_not_count_a_tie() -> None:
    z = torch.tensor([[1.0, 1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    p = z[0].softmax(0)
    value = dual_focal(z, torch.tensor([0]), gamma=2.0)
    torch.testing.assert_close(value[0], -((1 - p[0] + p[2]) ** 2) * p[0].log())
    value = dual_focal(torch.zeros(1, 3), torch.tensor([0]), gamma=2.0)  # nothing below
    assert value.item() == pytest.approx(4 / 9 * math.log(3))


@pytest.mark.parametrize("loss", [focal, poly_loss, dual_focal])
def test_dense_is_the_mean_over_positions(loss) -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(2))
    y = torch.randint(3, (2, 4, 5), generator=torch.manual_seed(3))
    flat = loss(z.movedim(1, -1).reshape(-1, 3), y.reshape(-1))
    torch.testing.assert_close(loss(z, y), flat.reshape(2, -1).mean(1))


@pytest.mark.parametrize("loss", [focal, poly_loss])
def test_dense_sigmoid_and_unknown_labels(loss, z: Tensor, t: Tensor) -> None:
    dense = loss(z.reshape(2, 4, 5)[:, None], t.reshape(2, 4, 5), mode="sigmoid")
    flat = loss(z.reshape(2, 20), t.reshape(2, 20), mode="sigmoid")
    torch.testing.assert_close(dense, flat)
    unknown = t.clone()
    unknown[0], unknown[1, 2:] = -1, -1
    value = loss(z, unknown, mode="sigmoid")
    assert value[0] == 0
    torch.testing.assert_close(value[1:2], loss(z[1:2, :2], t[1:2, :2], mode="sigmoid"))


CASES = {
    "focal": lambda z, y: focal(z, y, gamma=0.5),
    "focal 0": lambda z, y: focal(z, y, gamma=0.0),
    "poly": lambda z, y: poly_loss(z, y, epsilon=[-1.0, 2.0], label_smoothing=0.1),
    "poly focal": lambda z, y: poly_loss(z, y, base="focal", gamma=0.5),
    "dual": lambda z, y: dual_focal(z, y, gamma=0.5),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(case, dtype: torch.dtype) -> None:
    rows = [[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0], [80.0, 80.0, 80.0]]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for y in range(3):
        value = case(z, torch.full((3,), y))
        slope = torch.autograd.grad(value.sum(), z)[0]
        assert value.dtype == torch.float32
        assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("loss", [focal, poly_loss])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_sigmoid_extremes_are_finite(loss, gamma: float) -> None:
    z = torch.tensor([80.0, -80.0, 0.0], requires_grad=True)
    for base in ({}, {"base": "focal"}) if loss is poly_loss else ({},):
        for target in (0.0, 1.0):
            value = loss(z, torch.full((3,), target), gamma=gamma, mode="sigmoid", **base)
            slope = torch.autograd.grad(value.sum(), z)[0]
            assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_slopes_are_those_of_differences(case, z: Tensor, y: Tensor) -> None:
    assert torch.autograd.gradcheck(lambda z: case(z, y), z.requires_grad_())


def test_members_and_hyperparameters_stack(z: Tensor, y: Tensor, t: Tensor) -> None:
    stack, h = torch.stack([z, -z, 2 * z]), torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)
    cases = [
        lambda z, h: focal(z, y, gamma=h, alpha=h),
        lambda z, h: focal(z, y, gamma=h, alpha=ALPHAS),
        lambda z, h: focal(z, t, gamma=h, alpha=h, mode="sigmoid"),
        lambda z, h: poly_loss(z, y, epsilon=h, label_smoothing=h),
        lambda z, h: poly_loss(z, y, epsilon=h, gamma=h, base="focal"),
        lambda z, h: poly_loss(z, t, epsilon=h, gamma=h, alpha=h, base="focal", mode="sigmoid"),
        lambda z, h: dual_focal(z, y, gamma=h),
    ]
    for case in cases:
        loop = torch.stack([case(stack[i], h[i].item()) for i in range(3)])
        torch.testing.assert_close(vmap(case)(stack, h), loop)
        slopes = vmap(grad(lambda z, h, case=case: case(z, h).sum()))(stack, h)
        assert slopes.isfinite().all()


def test_a_smoothed_poly_is_the_sum_over_classes(z: Tensor, y: Tensor) -> None:
    q = 0.7 * F.one_hot(y, CLASSES) + 0.3 / CLASSES
    p = z.softmax(1)
    miss = (q * (1 - p)).sum(1)
    value = poly_loss(z, y, epsilon=[2.0, -0.5], label_smoothing=0.3)
    torch.testing.assert_close(value, -(q * p.log()).sum(1) + 2 * miss - 0.5 * miss**2)


def test_alpha_is_searched_where_it_balances(z: Tensor) -> None:
    signature = lossearch.get("focal").signature
    assert signature.domains["alpha"] == lossearch.Range(0.05, 0.95)
    assert signature.conditions["alpha"] == {"mode": ("sigmoid",)}
    assert "alpha" not in lossearch.get("poly_loss").signature.domains


@pytest.mark.parametrize("name", ["focal", "poly_loss"])
def test_the_task_decides_the_mode(name: str) -> None:
    component = lossearch.get(name)
    modes = {"multiclass": "softmax", "binary": "sigmoid", "multilabel": "sigmoid"}
    for task, mode in modes.items():
        assert component.complete({}, task=task).model_dump()["mode"] == mode


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("focal", {"gamma": -0.1}),
        ("focal", {"alpha": 1.1}),
        ("focal", {"alpha": [1.0, -1.0]}),
        ("focal", {"mode": "tanh"}),
        ("poly_loss", {"base": "hinge"}),
        ("poly_loss", {"label_smoothing": 1.0}),
        ("dual_focal", {"gamma": -1.0}),
    ],
)
def test_illegal_parameters_are_refused_at_construction(name: str, params: dict) -> None:
    with pytest.raises(ParameterError, match=f"{name}: {next(iter(params))}"):
        lossearch.build(name, **params)


def test_fields_are_checked(z: Tensor, y: Tensor, t: Tensor) -> None:
    for loss in (focal, poly_loss, dual_focal):
        with pytest.raises(FieldError, match="target 5 is outside"):
            loss(z, y + 1)
    for name, loss in {"focal": focal, "poly_loss": poly_loss}.items():
        with pytest.raises(FieldError, match=r"target 0\.5 is not 0, 1, or -1"):
            loss(z, t / 2, mode="sigmoid")
        extra = {"base": "focal"} if loss is poly_loss else {}
        with pytest.raises(ParameterError, match=f"{name}: alpha is one number"):
            loss(z, t, mode="sigmoid", alpha=ALPHAS, **extra)
        with pytest.raises(ParameterError, match="alpha has 2 values for 5 classes"):
            loss(z, y, alpha=[1.0, 1.0], **extra)
