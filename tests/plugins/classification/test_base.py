"""Cross-entropy, binary cross-entropy and the square losses against torch, loops and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

import lossearch
from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification import (
    binary_cross_entropy,
    cross_entropy,
    mse_logits,
    squentropy,
)
from lossearch_classification.hinge import binary_margin, multiclass_hinge
from lossearch_classification.robust import comp_sum, probability_mae
from lossearch_classification.spherical import log_z_penalty, z_loss

CLASSES = 5
MULTICLASS = [cross_entropy, mse_logits, squentropy]


def onehot(y: Tensor) -> Tensor:
    return F.one_hot(y, CLASSES).double()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [0.5, 0.0, 2.0, 1.0, 3.0]])
def test_cross_entropy_is_torchs(
    z: Tensor, y: Tensor, smoothing: float, weights: list[float] | None
) -> None:
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    for targets in (y, z.flip(0).softmax(1)):
        expected = F.cross_entropy(
            z / 0.5, targets, weight, reduction="none", label_smoothing=smoothing
        )
        value = cross_entropy(
            z, targets, label_smoothing=smoothing, class_weights=weights, temperature=0.5
        )
        torch.testing.assert_close(value, expected)


def test_cross_entropy_of_one_hot_targets_is_that_of_indices(z: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(cross_entropy(z, onehot(y)), cross_entropy(z, y))


def test_cross_entropy_gradient_is_p_minus_onehot_over_temperature(z: Tensor, y: Tensor) -> None:
    slope = grad(lambda z: cross_entropy(z, y, temperature=4.0).sum())(z)
    torch.testing.assert_close(slope, ((z / 4).softmax(1) - onehot(y)) / 4)


def test_cross_entropy_is_shift_invariant(z: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(cross_entropy(z + 17, y), cross_entropy(z, y))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_of_uniform_logits_is_log_c(y: Tensor, smoothing: float) -> None:
    value = cross_entropy(torch.full((8, CLASSES), 2.0), y, label_smoothing=smoothing)
    torch.testing.assert_close(value, torch.full((8,), math.log(CLASSES)))


def test_cross_entropy_far_off_is_exact() -> None:
    assert cross_entropy(torch.tensor([[80.0, -80.0]]), torch.tensor([1])).item() == 160.0


def test_binary_cross_entropy_is_torchs(z: Tensor, t: Tensor) -> None:
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    for targets in (t, z.flip(0).sigmoid()):
        expected = F.binary_cross_entropy_with_logits(
            z, targets, pos_weight=weights, reduction="none"
        )
        value = binary_cross_entropy(z, targets, pos_weight=weights.tolist())
        torch.testing.assert_close(value, expected.mean(1))
        value = binary_cross_entropy(
            z, targets, pos_weight=weights.tolist(), label_reduction="sum"
        )
        torch.testing.assert_close(value, expected.sum(1))


def test_binary_cross_entropy_smoothing_moves_targets_to_one_half(z: Tensor, t: Tensor) -> None:
    expected = binary_cross_entropy(z, 0.8 * t + 0.1)
    torch.testing.assert_close(binary_cross_entropy(z, t, label_smoothing=0.2), expected)


def test_binary_cross_entropy_gradient_is_sigma_minus_t(z: Tensor, t: Tensor) -> None:
    slope = grad(lambda z: binary_cross_entropy(z, t, label_reduction="sum").sum())(z)
    torch.testing.assert_close(slope, z.sigmoid() - t)


def test_binary_cross_entropy_far_off_is_exact() -> None:
    assert binary_cross_entropy(torch.tensor([-80.0]), torch.tensor([1.0])).item() == 80.0


def test_binary_layouts_agree(z: Tensor, t: Tensor) -> None:
    logits, targets = z[:, 0], t[:, 0]
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    for a in (logits, logits[:, None]):
        for b in (targets, targets[:, None], targets.long()):
            torch.testing.assert_close(binary_cross_entropy(a, b), expected)


def test_unknown_labels_are_left_out() -> None:
    z = torch.tensor([[1.0, -2.0, 3.0], [1.0, 1.0, 1.0]], requires_grad=True)
    t = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    first, second = math.log1p(math.exp(-1)), math.log1p(math.exp(3))
    mean = binary_cross_entropy(z, t)
    torch.testing.assert_close(mean, torch.tensor([(first + second) / 2, 0.0]))
    total = binary_cross_entropy(z, t, label_reduction="sum")
    torch.testing.assert_close(total, torch.tensor([first + second, 0.0]))
    mean.sum().backward()
    assert z.grad is not None
    assert (z.grad[t == -1] == 0).all()


def test_mse_logits_by_hand() -> None:
    z, y = torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([1])
    assert mse_logits(z, y).item() == pytest.approx((1 + 1 + 9) / 3)
    assert mse_logits(z, y, k=2.0, M=5.0).item() == pytest.approx((1 + 2 * 9 + 9) / 3)


def test_mse_logits_is_the_weighted_square_loss(z: Tensor, y: Tensor) -> None:
    weighted = (z - 30 * onehot(y)).square() * (14 * onehot(y) + 1)  # the authors' form
    torch.testing.assert_close(mse_logits(z, y, k=15.0, M=30.0), weighted.mean(1))


def test_mse_logits_gradient_and_zero(z: Tensor, y: Tensor) -> None:
    slope = grad(lambda z: mse_logits(z, y, k=3.0, M=2.0).sum())(z)
    expected = torch.where(onehot(y) == 1, 3 * (z - 2), z) * 2 / CLASSES
    torch.testing.assert_close(slope, expected)
    assert (mse_logits(2 * onehot(y), y, k=3.0, M=2.0) == 0).all()


@pytest.mark.parametrize("loss", [mse_logits, squentropy])
def test_square_losses_are_not_shift_invariant(loss, z: Tensor, y: Tensor) -> None:
    assert ((loss(z + 1, y) - loss(z, y)).abs() > 1e-3).all()


def test_squentropy_by_hand() -> None:
    z, y = torch.tensor([[1.0, 2.0, -3.0]]), torch.tensor([1])
    nll = math.log(math.exp(1) + math.exp(2) + math.exp(-3)) - 2
    assert squentropy(z, y, alpha=0.5).item() == pytest.approx(nll + 0.5 * (1 + 9) / 2)


def test_squentropy_without_squares_is_cross_entropy(z: Tensor, y: Tensor) -> None:
    torch.testing.assert_close(squentropy(z, y, alpha=0.0), cross_entropy(z, y))


def test_squentropy_gradient_and_origin(z: Tensor, y: Tensor) -> None:
    slope = grad(lambda z: squentropy(z, y, alpha=0.7).sum())(z)
    squares = torch.where(onehot(y) == 1, 0.0, 1.4 * z / (CLASSES - 1))
    torch.testing.assert_close(slope, z.softmax(1) - onehot(y) + squares)
    zero = squentropy(torch.zeros(8, CLASSES), y)
    torch.testing.assert_close(zero, torch.full((8,), math.log(CLASSES)))


@pytest.mark.parametrize("loss", MULTICLASS)
def test_dense_is_the_mean_over_positions(loss) -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(2))
    y = torch.randint(3, (2, 4, 5), generator=torch.manual_seed(3))
    flat = loss(z.movedim(1, -1).reshape(-1, 3), y.reshape(-1))
    torch.testing.assert_close(loss(z, y), flat.reshape(2, -1).mean(1))


def test_dense_soft_and_binary_targets() -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(2))
    soft = z.flip(0).softmax(1)
    expected = F.cross_entropy(z, soft, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(cross_entropy(z, soft), expected)
    expected = F.binary_cross_entropy_with_logits(z, soft, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(binary_cross_entropy(z, soft), expected)
    torch.testing.assert_close(
        binary_cross_entropy(z[:, :1], soft[:, 0]), binary_cross_entropy(z[:, :1], soft[:, :1])
    )


@pytest.mark.parametrize("loss", MULTICLASS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extremes_are_finite(loss, dtype: torch.dtype) -> None:
    z = torch.tensor([[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0], [80.0, 80.0, 80.0]], dtype=dtype)
    for y in range(3):
        value, slope = value_and_slope(loss, z, torch.full((3,), y))
        assert value.dtype == torch.float32
        assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_binary_extremes_are_finite(target: float) -> None:
    z = torch.tensor([80.0, -80.0, 0.0])
    value, slope = value_and_slope(binary_cross_entropy, z, torch.full((3,), target))
    torch.testing.assert_close(slope, z.sigmoid() - target)
    assert value.isfinite().all()


def value_and_slope(loss, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    value = loss(z, y)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def test_members_and_hyperparameters_stack(z: Tensor, y: Tensor, t: Tensor) -> None:
    stack, h = torch.stack([z, -z, 2 * z]), torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    cases = [
        lambda z, h: cross_entropy(z, y, label_smoothing=h, temperature=h + 1),
        lambda z, h: cross_entropy(z, z.detach().softmax(1), label_smoothing=h),
        lambda z, h: binary_cross_entropy(z, t, label_smoothing=h, pos_weight=h + 1),
        lambda z, h: mse_logits(z, y, k=h + 1, M=h + 1),
        lambda z, h: squentropy(z, y, alpha=h),
    ]
    for case in cases:
        loop = torch.stack([case(stack[i], h[i].item()) for i in range(3)])
        torch.testing.assert_close(vmap(case)(stack, h), loop)


@pytest.mark.parametrize("loss", MULTICLASS)
def test_multiclass_fields_are_checked(loss) -> None:
    z = torch.zeros(2, 3)
    with pytest.raises(FieldError, match=r"target 3 is outside \[0, 3\)"):
        loss(z, torch.tensor([0, 3]))
    with pytest.raises(FieldError, match="target -1 is outside"):
        loss(z, torch.tensor([-1, 2]))
    with pytest.raises(FieldError, match=r"targets \[2\], not \[3\]"):
        loss(z, torch.tensor([0, 1, 2]))
    with pytest.raises(FieldError, match="C >= 2"):
        loss(z[:, :1], torch.tensor([0, 0]))
    assert loss(z[:0], torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("loss", [mse_logits, squentropy])
def test_float_targets_are_refused(loss) -> None:
    with pytest.raises(FieldError, match="class indices"):
        loss(torch.zeros(2, 3), torch.full((2, 3), 1 / 3))


def test_soft_targets_are_checked() -> None:
    z = torch.zeros(2, 3)
    with pytest.raises(FieldError, match=r"a sum is 0\.9"):
        cross_entropy(z, torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.4]]))
    with pytest.raises(FieldError, match=r"the least is -0\.5"):
        cross_entropy(z, torch.tensor([[1.0, 0.5, -0.5], [0.2, 0.3, 0.5]]))
    with pytest.raises(FieldError, match="shape of the logits"):
        cross_entropy(z, torch.tensor([0.0, 1.0]))


def test_binary_fields_are_checked() -> None:
    with pytest.raises(FieldError, match=r"target 2 is not in \[0, 1\], or -1"):
        binary_cross_entropy(torch.zeros(2), torch.tensor([0.0, 2.0]))
    with pytest.raises(FieldError, match=r"not \[3\]"):
        binary_cross_entropy(torch.zeros(2), torch.zeros(3))
    with pytest.raises(FieldError, match="single number"):
        binary_cross_entropy(torch.tensor(0.0), torch.tensor(0.0))
    assert binary_cross_entropy(torch.zeros(0), torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("cross_entropy", {"label_smoothing": 1.0}),
        ("cross_entropy", {"temperature": 0.0}),
        ("cross_entropy", {"class_weights": [1.0, -1.0]}),
        ("cross_entropy", {"class_weights": []}),
        ("binary_cross_entropy", {"pos_weight": 0.0}),
        ("binary_cross_entropy", {"pos_weight": [1.0, 0.0]}),
        ("binary_cross_entropy", {"label_reduction": "max"}),
        ("mse_logits", {"k": 0.0}),
        ("mse_logits", {"M": 0.0}),
        ("squentropy", {"alpha": -0.1}),
    ],
)
def test_illegal_parameters_are_refused_at_construction(name: str, params: dict) -> None:
    with pytest.raises(ParameterError, match=f"{name}: {next(iter(params))}"):
        lossearch.build(name, **params)


def test_a_wrong_number_of_class_weights_is_refused() -> None:
    with pytest.raises(ParameterError, match="class_weights has 2 values for 3 classes"):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), class_weights=[1.0, 2.0])
    with pytest.raises(ParameterError, match="pos_weight has 2 values for 3 classes"):
        binary_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), pos_weight=[1.0, 2.0])


@pytest.mark.parametrize(
    "name",
    [
        *("cross_entropy", "mse_logits", "squentropy", "generalized_cross_entropy", "dual_focal"),
        *("symmetric_cross_entropy", "logit_adjusted", "focal", "poly_loss", "ldr_kl", "aldr_kl"),
    ],
)
def test_checks_read_no_value_off_the_device(name: str) -> None:
    batch = {
        "logits": torch.zeros(2, 3, device="meta"),  # reading one of its values raises
        "targets": torch.zeros(2, dtype=torch.long, device="meta"),
        "index": torch.zeros(2, dtype=torch.long, device="meta"),
        "class_counts": torch.zeros(3, dtype=torch.long, device="meta"),
    }
    bound = lossearch.get(name).build(facts={"train_size": 2}).to("meta")
    assert bound(batch).shape == (2,)


@pytest.mark.parametrize(
    "loss", [probability_mae, comp_sum, multiclass_hinge, z_loss, log_z_penalty]
)
def test_plain_functions_read_no_value_off_the_device(loss) -> None:
    batch = {
        "logits": torch.zeros(2, 3, device="meta"),
        "targets": torch.zeros(2, dtype=torch.long, device="meta"),
    }
    assert component_of(loss).build()(batch).shape == (2,)


def test_binary_checks_read_no_value_off_the_device() -> None:
    z = torch.zeros(2, device="meta")
    assert binary_cross_entropy(z, z, pos_weight=2.0).shape == (2,)
    assert binary_margin(z, z).shape == (2,)
