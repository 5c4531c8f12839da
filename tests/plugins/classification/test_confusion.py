"""AnyLoss: one minus a smooth confusion-matrix metric."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, fbeta_score
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.confusion import any_loss

METRICS = ["accuracy", "f_beta", "g_mean", "balanced_accuracy"]


def make(n: int = 40, labels: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n, labels, generator=g, dtype=torch.float64)
    return z, (torch.rand(n, labels, generator=g) < 0.3).double()


def oracle(z: Tensor, t: Tensor, metric: str, amplify: float, beta: float) -> float:
    """One label, as in the authors' code."""
    tp = fn = fp = tn = 0.0
    for logit, label in zip(z.tolist(), t.tolist(), strict=True):
        y = 1 / (1 + math.exp(-amplify * (1 / (1 + math.exp(-logit)) - 0.5)))
        tp, fn = tp + label * y, fn + label * (1 - y)
        fp, tn = fp + (1 - label) * y, tn + (1 - label) * (1 - y)
    value = {
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "f_beta": (1 + beta**2) * tp / (beta**2 * (tp + fn) + tp + fp),
        "g_mean": math.sqrt(tp / (tp + fn) * tn / (tn + fp)),
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
    }
    return 1 - value[metric]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("amplify", "beta"), [(5.0, 1.0), (73.0, 0.3), (20.0, 2.0)])
def test_by_a_loop(metric: str, amplify: float, beta: float) -> None:
    z, t = make(labels=3)
    got = component_of(any_loss).build(metric=metric, L=amplify, beta=beta)(
        {"logits": z, "targets": t}
    )
    expected = sum(oracle(z[:, c], t[:, c], metric, amplify, beta) for c in range(3)) / 3
    assert got.shape == () and got.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("f_beta", 1 / 3),
        ("accuracy", 2 / 5),
        ("g_mean", 1 - math.sqrt(1 / 3)),
        ("balanced_accuracy", 1 - (2 / 3 + 1 / 2) / 2),
    ],
)
def test_confident_logits_give_the_hard_metric(metric: Any, expected: float) -> None:
    logits = torch.tensor([9.0, 9, -9, 9, -9], dtype=torch.float64)  # 2 TP, 1 FN, 1 FP, 1 TN
    targets = torch.tensor([1.0, 1, 1, 0, 0])
    assert any_loss(logits, targets, metric=metric).item() == pytest.approx(expected, abs=1e-6)


def test_scikit_learn_agrees_at_a_large_amplification() -> None:
    z, t = make(60)
    hard, true = (z[:, 0] > 0).int(), t[:, 0].int()
    sure = 50 * z.sign() * z.abs().clamp(min=0.2)
    for metric, expected in {
        "accuracy": accuracy_score(true, hard),
        "balanced_accuracy": balanced_accuracy_score(true, hard),
        "f_beta": fbeta_score(true, hard, beta=0.5),
    }.items():
        got = any_loss(sure, t, metric=metric, beta=0.5)  # type: ignore[arg-type]
        assert 1 - got.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_samples_does_not_matter(metric: Any) -> None:
    z, t = make(labels=2)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        any_loss(z[order], t[order], metric=metric), any_loss(z, t, metric=metric)
    )


@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck(metric: Any) -> None:
    z, t = make(8, 2)
    z.requires_grad_()
    torch.autograd.gradcheck(lambda z: any_loss(z, t, metric=metric, L=10.0), (z,))


def test_the_gradient_vanishes_far_from_one_half() -> None:
    z = torch.tensor([3.0, 0.01], requires_grad=True)
    any_loss(z, torch.tensor([0.0, 1.0])).backward()
    assert z.grad is not None
    assert abs(z.grad[0].item()) < 1e-6 < 1e-2 < abs(z.grad[1].item())


@pytest.mark.parametrize(
    ("metric", "all_positive", "all_negative"),
    [("accuracy", 0, 0), ("f_beta", 0, 1), ("g_mean", 0, 0), ("balanced_accuracy", 0, 0)],
)
def test_one_class_batches(metric: Any, all_positive: float, all_negative: float) -> None:
    """Everything predicted right: the absent class's rate is left out, f_beta is then 0."""
    for sign, expected in ((1.0, all_positive), (-1.0, all_negative)):
        z = torch.full((6,), 9.0 * sign, requires_grad=True)
        value = any_loss(z, torch.full((6,), (1 + sign) / 2), metric=metric)
        value.backward()
        assert value.item() == pytest.approx(expected, abs=1e-6)
        assert z.grad is not None and z.grad.isfinite().all()


def test_a_lone_rate_is_that_rate() -> None:
    """The geometric mean of one rate is the rate, not its root."""
    logits = torch.tensor([9.0, -9, -9, -9], dtype=torch.float64)
    for metric in ("g_mean", "balanced_accuracy"):
        value = any_loss(logits, torch.ones(4), metric=metric)  # type: ignore[arg-type]
        assert value.item() == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_unknown_labels(metric: Any) -> None:
    z, t = make(labels=2)
    t[:, 1] = -1
    t[:5, 0] = -1
    got = any_loss(z, t, metric=metric)
    assert got.item() == pytest.approx(any_loss(z[5:, 0], t[5:, 0], metric=metric).item())
    z.requires_grad_()
    nothing = any_loss(z, torch.full_like(t, -1), metric=metric)
    nothing.backward()
    assert nothing.item() == 0 and z.grad is not None and not z.grad.any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("amplify", [5.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes(metric: Any, amplify: float, dtype: torch.dtype) -> None:
    """All wrong at once: the rates are 0, and the root's slope there is infinite."""
    z = torch.tensor([80.0, -80.0, 80.0, -80.0], dtype=dtype, requires_grad=True)
    value = any_loss(z, torch.tensor([0.0, 1.0, 0.0, 1.0]), metric=metric, L=amplify)
    value.backward()
    assert value.dtype == torch.float32 and 0.9 < value.item() <= 1
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
def test_vmap(metric: Any) -> None:
    z, t = make(labels=2)
    stack = torch.stack([z, -z])
    amplify, beta = torch.tensor([10.0, 40.0]), torch.tensor([0.5, 2.0])
    got = torch.func.vmap(lambda z, a, b: any_loss(z, t, metric=metric, L=a, beta=b))(
        stack, amplify, beta
    )
    for k in range(2):
        alone = any_loss(stack[k], t, metric=metric, L=float(amplify[k]), beta=float(beta[k]))
        torch.testing.assert_close(got[k], alone)


def test_beta_is_searched_where_it_counts() -> None:
    component = component_of(any_loss)
    assert component.signature.conditions == {"beta": {"metric": ("f_beta",)}}
    z, t = make()
    for metric in METRICS:
        same = any_loss(z, t, metric=metric, beta=0.5) == any_loss(z, t, metric=metric, beta=2.0)  # type: ignore[arg-type]
        assert bool(same) == (metric != "f_beta")


def test_f_beta_weighs_recall_by_beta() -> None:
    """Precision 1, recall 1/2: F_beta is (1 + b^2) / (2 b^2 + 1) for b = beta."""
    z, t = torch.tensor([9.0, -9, -9], dtype=torch.float64), torch.tensor([1.0, 1, 0])
    for beta in (0.25, 1.0, 4.0):
        expected = (1 + beta**2) / (1 + 2 * beta**2)
        assert 1 - any_loss(z, t, beta=beta).item() == pytest.approx(expected, abs=1e-6)


def test_errors() -> None:
    z, t = make()
    with pytest.raises(FieldError, match="target 2 is not"):
        any_loss(z, t + 1)
    with pytest.raises(FieldError, match="targets of that shape"):
        any_loss(z, t[:3])
    bad: dict[str, Any]
    for bad in ({"L": 0.0}, {"beta": -1.0}, {"metric": "f1"}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component_of(any_loss).build(**bad)
    assert component_of(any_loss).returns == "batch"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("amplify", [5.0, 73.0])
@pytest.mark.parametrize("size", [2.0, 18.0, 40.0])
@pytest.mark.parametrize("turned", [False, True])
def test_what_a_metric_lacks_of_one_is_not_lost(
    metric: Any, amplify: float, size: float, turned: bool
) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([size, -size, size, -size], dtype=dtype, requires_grad=True)
        t = torch.tensor([1.0, 0.0, 1.0, 0.0])
        value = any_loss(x, 1 - t if turned else t, metric=metric, L=amplify)
        found.append([value.item(), *torch.autograd.grad(value, x)[0].tolist()])
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-12 if turned else 1e-40)
    assert found[0][0] > 0 and any(found[0][1:])
