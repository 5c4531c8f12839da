from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_dynamics.class_weights import class_balanced, inverse_frequency

COUNTS = torch.tensor([90, 9, 1])
TARGETS = torch.tensor([0, 1, 2, 0])

# inverse_frequency


def test_inverse_frequency_by_hand() -> None:
    # 1/90, 1/9, 1 sum to 1.12222...; times 3 classes
    scale = 3 / (1 / 90 + 1 / 9 + 1)
    expected = torch.tensor([scale / 90, scale / 9, scale, scale / 90])
    torch.testing.assert_close(inverse_frequency(TARGETS, COUNTS), expected)
    raw = inverse_frequency(TARGETS, COUNTS, power=0.5, normalize="none")
    torch.testing.assert_close(raw, torch.tensor([90.0, 9, 1, 90]) ** -0.5)


def test_inverse_frequency_with_samples_is_sklearns_balanced() -> None:
    y = np.repeat([0, 1, 2], COUNTS.numpy())
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=y)
    got = inverse_frequency(torch.arange(3), COUNTS, normalize="samples")
    np.testing.assert_allclose(got.numpy(), balanced, rtol=1e-6)
    over_samples = inverse_frequency(torch.from_numpy(y), COUNTS, power=0.7, normalize="samples")
    assert float(over_samples.mean()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("normalize", ["classes", "samples", "none"])
def test_inverse_frequency_of_power_0_is_none(normalize: str) -> None:
    counts = torch.tensor([90, 9, 0, 1])
    weights = inverse_frequency(torch.tensor([0, 1, 3]), counts, power=0.0, normalize=normalize)
    assert torch.equal(weights, torch.ones(3))


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_inverse_frequency_ignores_the_scale_of_the_counts(power: float) -> None:
    for normalize in ("classes", "samples"):
        a = inverse_frequency(TARGETS, COUNTS, power=power, normalize=normalize)
        b = inverse_frequency(TARGETS, COUNTS * 7, power=power, normalize=normalize)
        torch.testing.assert_close(a, b)


def test_class_weights_leave_empty_classes_out_of_the_mean() -> None:
    counts = torch.tensor([90, 9, 0, 1])
    targets = torch.tensor([0, 1, 3])
    for weigh in (inverse_frequency, class_balanced):
        without = weigh(torch.arange(3), COUNTS)
        torch.testing.assert_close(weigh(targets, counts), without)
        assert float(without.mean()) == pytest.approx(1, abs=1e-6)


def test_binary_and_multilabel_targets() -> None:
    binary = inverse_frequency(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([30, 10]))
    torch.testing.assert_close(binary, torch.tensor([0.5, 1.5, 1.5]))
    column = inverse_frequency(torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([30, 10]))
    torch.testing.assert_close(column, binary)
    # label weights 0.5 and 1.5 for positives, 1 for negatives; the mean over known labels
    targets = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    multilabel = inverse_frequency(targets, torch.tensor([30, 10]))
    torch.testing.assert_close(multilabel, torch.tensor([1.0, 0.75, 1.0, 1.5, 1.0]))


@pytest.mark.parametrize("weigh", [inverse_frequency, class_balanced])
def test_an_unknown_binary_label_is_neither_side(weigh: Any) -> None:
    counts = torch.tensor([30, 10])
    negative, positive = weigh(torch.tensor([0.0, 1.0]), counts).tolist()
    assert negative < 1 < positive
    targets = torch.tensor([1.0, -1.0, 0.0, -1.0])
    for shaped in (targets, targets[:, None], targets.double()):
        found = weigh(shaped, counts)
        assert found.tolist() == pytest.approx([positive, 1, negative, 1], abs=1e-6)
    assert weigh(torch.full((3,), -1.0), counts).tolist() == [1, 1, 1]


@pytest.mark.parametrize("weigh", [inverse_frequency, class_balanced])
def test_class_weights_are_as_precise_as_the_losses(weigh: Any) -> None:
    losses = torch.rand(4)
    single = weigh(TARGETS, COUNTS, losses)
    assert single.dtype == torch.float32 and torch.equal(single, weigh(TARGETS, COUNTS))
    assert weigh(TARGETS, COUNTS, losses.bfloat16()).dtype == torch.float32
    double = weigh(TARGETS, COUNTS, losses.double())
    assert double.dtype == weigh(TARGETS, COUNTS.double()).dtype == torch.float64
    torch.testing.assert_close(double.float(), single)


def test_class_weights_in_float64_by_hand() -> None:
    losses = torch.rand(3, dtype=torch.float64)
    raw = [n**-0.7 for n in COUNTS.tolist()]
    found = inverse_frequency(torch.arange(3), COUNTS, losses, power=0.7)
    assert found.tolist() == pytest.approx([3 * r / sum(raw) for r in raw], rel=1e-12)
    raw = [(1 - 0.9) / (1 - 0.9**n) for n in COUNTS.tolist()]
    found = class_balanced(torch.arange(3), COUNTS, losses, beta=0.9)
    assert found.tolist() == pytest.approx([3 * r / sum(raw) for r in raw], rel=1e-12)


def test_class_weights_run_under_vmap_over_their_parameter() -> None:
    powers = torch.tensor([0.0, 0.5, 1.5])
    stacked = torch.func.vmap(lambda p: inverse_frequency(TARGETS, COUNTS, power=p))(powers)
    betas = torch.tensor([0.0, 0.9, 0.999])
    balanced = torch.func.vmap(lambda b: class_balanced(TARGETS, COUNTS, beta=b))(betas)
    for i in range(3):
        torch.testing.assert_close(
            stacked[i], inverse_frequency(TARGETS, COUNTS, power=float(powers[i]))
        )
        torch.testing.assert_close(
            balanced[i], class_balanced(TARGETS, COUNTS, beta=float(betas[i])), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize("weigh", [inverse_frequency, class_balanced])
def test_class_weight_errors(weigh) -> None:
    with pytest.raises(FieldError, match="all class_counts are 0"):
        weigh(TARGETS, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(FieldError, match="of class 2, whose class_counts is 0"):
        weigh(TARGETS, torch.tensor([5, 5, 0]))
    with pytest.raises(FieldError, match=r"target 3 is outside \[0, 3\)"):
        weigh(torch.tensor([3]), COUNTS)
    with pytest.raises(FieldError, match="do not go with"):
        weigh(torch.zeros(4, 2), COUNTS)
    with pytest.raises(FieldError, match="of class 1, whose"):
        weigh(torch.tensor([0.0, 1.0]), torch.tensor([4, 0]))
    with pytest.raises(FieldError, match=r"class_counts \[C\]"):
        weigh(TARGETS, COUNTS[None])


# class_balanced


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.9999, 0.99999])
def test_class_balanced_against_a_loop(beta: float) -> None:
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS.tolist()]
    expected = torch.tensor([3 * r / sum(raw) for r in raw])
    torch.testing.assert_close(class_balanced(torch.arange(3), COUNTS, beta=beta), expected)


def test_class_balanced_limits() -> None:
    assert torch.equal(class_balanced(TARGETS, COUNTS, beta=0.0), torch.ones(4))
    limit = inverse_frequency(TARGETS, COUNTS)
    torch.testing.assert_close(class_balanced(TARGETS, COUNTS, beta=1.0), limit)
    torch.testing.assert_close(
        class_balanced(TARGETS, COUNTS, beta=1 - 1e-6), limit, rtol=1e-4, atol=0
    )
    one_each = class_balanced(TARGETS, torch.ones(3, dtype=torch.int64), beta=0.99)
    torch.testing.assert_close(one_each, torch.ones(4))


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_class_balanced_refuses_other_betas(beta: float) -> None:
    with pytest.raises(ParameterError, match="beta"):
        component_of(class_balanced).build(beta=beta)
