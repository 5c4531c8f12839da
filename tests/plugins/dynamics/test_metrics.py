from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError
from lossearch_dynamics.metrics import (
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    macro_f1,
    nll,
)

MULTICLASS = (accuracy, balanced_accuracy, macro_f1, auroc, average_precision, nll)


def _split(task: str, seed: int = 0, n: int = 60, classes: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    if task == "multiclass":
        targets = torch.randint(classes, (n,), generator=g)
        logits = torch.randn(n, classes, generator=g, dtype=torch.float64)
        return logits + torch.nn.functional.one_hot(targets, classes), targets
    shape = (n,) if task == "binary" else (n, classes)
    targets = torch.randint(2, shape, generator=g).double()
    return torch.randn(shape, generator=g, dtype=torch.float64) + targets, targets


def _auroc(scores: list[float], positive: list[bool]) -> float:
    """The share of pairs in the right order, ties half."""
    pairs = [
        (p > n) + 0.5 * (p == n)
        for p, a in zip(scores, positive, strict=True) if a
        for n, b in zip(scores, positive, strict=True) if not b
    ]  # fmt: skip
    return sum(pairs) / len(pairs)


def _average_precision(scores: list[float], positive: list[bool]) -> float:
    """Precision at each distinct score, by the step of recall that it makes."""
    total, before, all_of_them = 0.0, 0, sum(positive)
    for cut in sorted(set(scores), reverse=True):
        chosen = [y for s, y in zip(scores, positive, strict=True) if s >= cut]
        total += sum(chosen) / len(chosen) * (sum(chosen) - before) / all_of_them
        before = sum(chosen)
    return total


# values


@pytest.mark.parametrize("seed", range(3))
def test_multiclass_values_against_scikit_learn_and_loops(seed: int) -> None:
    logits, targets = _split("multiclass", seed)
    y, p = targets.numpy(), logits.argmax(1).numpy()
    assert accuracy(logits, targets) == pytest.approx(sklearn.metrics.accuracy_score(y, p))
    assert balanced_accuracy(logits, targets) == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(y, p)
    )
    assert macro_f1(logits, targets) == pytest.approx(
        sklearn.metrics.f1_score(y, p, average="macro")
    )
    probabilities = logits.softmax(1)
    assert nll(logits, targets) == pytest.approx(
        sklearn.metrics.log_loss(y, probabilities.numpy(), labels=range(4))
    )
    columns = [(probabilities[:, c].tolist(), (targets == c).tolist()) for c in range(4)]
    assert auroc(logits, targets) == pytest.approx(np.mean([_auroc(*c) for c in columns]))
    assert average_precision(logits, targets) == pytest.approx(
        np.mean([_average_precision(*c) for c in columns])
    )


@pytest.mark.parametrize("seed", range(3))
def test_binary_values_against_scikit_learn_and_loops(seed: int) -> None:
    logits, targets = _split("binary", seed)
    logits = (2 * logits).round() / 2 + 0.1  # ties
    y, p = targets.numpy(), (logits > 0).numpy().astype(float)
    expected = {
        accuracy: sklearn.metrics.accuracy_score(y, p),
        balanced_accuracy: sklearn.metrics.balanced_accuracy_score(y, p),
        macro_f1: sklearn.metrics.f1_score(y, p, average="macro"),
        nll: sklearn.metrics.log_loss(y, logits.sigmoid().numpy()),
        auroc: _auroc(logits.tolist(), (targets > 0).tolist()),
        average_precision: _average_precision(logits.tolist(), (targets > 0).tolist()),
    }
    for metric, value in expected.items():
        assert metric(logits, targets) == pytest.approx(value), metric
        assert metric(logits[:, None], targets[:, None]) == metric(logits, targets)


def test_multilabel_values_against_scikit_learn_and_loops() -> None:
    logits, targets = _split("multilabel")
    y, p = targets.numpy(), (logits > 0).numpy().astype(float)
    assert accuracy(logits, targets) == pytest.approx(float((y == p).mean()))
    assert macro_f1(logits, targets) == pytest.approx(
        sklearn.metrics.f1_score(y, p, average="macro")
    )
    losses = [sklearn.metrics.log_loss(y[:, c], logits[:, c].sigmoid().numpy()) for c in range(4)]
    assert nll(logits, targets) == pytest.approx(np.mean(losses))
    columns = [(logits[:, c].tolist(), (targets[:, c] > 0).tolist()) for c in range(4)]
    assert auroc(logits, targets) == pytest.approx(np.mean([_auroc(*c) for c in columns]))
    assert average_precision(logits, targets) == pytest.approx(
        np.mean([_average_precision(*c) for c in columns])
    )


def test_values_by_hand() -> None:
    # predictions 0 0 1 2 1, of the classes 0 0 0 1 1
    logits = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2, 1]]
    targets = torch.tensor([0, 0, 0, 1, 1])
    assert accuracy(logits, targets) == 0.6
    assert balanced_accuracy(logits, targets) == pytest.approx((2 / 3 + 1 / 2) / 2)
    # F1: 4/5, 2/4, and 0 for class 2, which is predicted but not there
    assert macro_f1(logits, targets) == pytest.approx((0.8 + 0.5 + 0) / 3)
    rest = math.log(math.e + 2)
    assert nll(logits, targets) == pytest.approx((3 * (rest - 1) + 2 * rest) / 5)
    scores = torch.tensor([0.1, 0.4, 0.35, 0.8])
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auroc(scores, labels) == 0.75
    assert average_precision(scores, labels) == pytest.approx(0.5 + 0.5 * 2 / 3)


# properties


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_perfect_and_permuted(task: str) -> None:
    logits, targets = _split(task)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    for metric in MULTICLASS:
        if task not in component_of(metric).tasks:
            continue
        value = metric(logits, targets)
        assert isinstance(value, float)
        assert metric(logits[order], targets[order]) == pytest.approx(value, rel=1e-12)
        sure = torch.nn.functional.one_hot(targets, 4) if task == "multiclass" else targets
        perfect = metric(1000.0 * (2 * sure - 1), targets)
        assert perfect == pytest.approx(0.0 if metric is nll else 1.0)


def test_unknown_labels_are_left_out() -> None:
    for metric in MULTICLASS:
        logits, targets = _split("binary")
        hidden = targets.clone()
        hidden[:20] = -1
        assert metric(logits, hidden) == metric(logits[20:], targets[20:])
    logits, targets = _split("multilabel")
    targets[:20, 1:] = -1
    known = targets >= 0
    p = logits > 0
    assert accuracy(logits, targets) == pytest.approx(
        float((p[known] == (targets[known] > 0)).double().mean())
    )
    for metric in (auroc, average_precision):
        each = [metric(logits[20:, c], targets[20:, c]) for c in (1, 2, 3)]
        each.append(metric(logits[:, 0], targets[:, 0]))
        assert metric(logits, targets) == pytest.approx(np.mean(each))
    each = [
        sklearn.metrics.f1_score((targets[known[:, c], c] > 0), p[known[:, c], c])
        for c in range(4)
    ]
    assert macro_f1(logits, targets) == pytest.approx(np.mean(each))


def test_classes_that_the_split_lacks_are_left_out() -> None:
    logits, targets = _split("multiclass", classes=4)
    keep = targets < 3
    logits, targets = logits[keep], targets[keep]
    p = logits.softmax(1)
    columns = [(p[:, c].tolist(), (targets == c).tolist()) for c in range(3)]
    assert auroc(logits, targets) == pytest.approx(np.mean([_auroc(*c) for c in columns]))
    recalls = [
        float((logits.argmax(1) == targets)[targets == c].double().mean()) for c in range(3)
    ]
    assert balanced_accuracy(logits, targets) == pytest.approx(np.mean(recalls))
    # neither there nor predicted: class 3 has no F1
    none = logits.clone()
    none[:, 3] = -50
    assert macro_f1(none, targets) == pytest.approx(
        sklearn.metrics.f1_score(targets, none.argmax(1), average="macro")
    )


def test_ranking_survives_probabilities_that_round_to_1() -> None:
    # p_0 is 1 in float64 for all four, and still in order: negatives below positives
    logits = torch.tensor([[50.0, 0.0], [60.0, 0.0], [70.0, 0.0], [80.0, 0.0]])
    targets = torch.tensor([1, 1, 0, 0])
    assert (logits.double().softmax(1)[:, 0] == 1).all()
    assert auroc(logits, targets) == 1
    assert auroc(logits, 1 - targets) == 0
    assert nll(torch.tensor([[80.0, -80.0]]), torch.tensor([1])) == pytest.approx(160)
    assert nll(torch.tensor([-800.0]), torch.tensor([1.0])) == 800


# errors


@pytest.mark.parametrize("metric", MULTICLASS)
def test_fields_that_are_refused(metric) -> None:
    name = metric.__name__
    with pytest.raises(FieldError, match=f"{name}: 1 of 6 logits are not finite"):
        metric(torch.tensor([[0.0, 1, math.nan], [0, 1, 2]]), torch.tensor([0, 1]))
    with pytest.raises(FieldError, match=f"{name}: 1 of 2 logits are not finite"):
        metric(torch.tensor([0.0, math.inf]), torch.tensor([0.0, 1.0]))
    with pytest.raises(FieldError, match=f"{name} is undefined without samples"):
        metric(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(FieldError, match="do not go together"):
        metric(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(FieldError, match="do not go together"):
        metric(torch.zeros(3), torch.zeros(4))
    with pytest.raises(FieldError, match=r"target 2 is outside \[0, 2\)"):
        metric(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(FieldError, match="no target is known"):
        metric(torch.zeros(2), torch.tensor([-1.0, -1.0]))


@pytest.mark.parametrize("metric", [auroc, average_precision])
def test_rankings_of_one_class_are_undefined(metric) -> None:
    for logits, targets in [
        (torch.randn(5), torch.ones(5)),
        (torch.randn(5), torch.zeros(5)),
        (torch.randn(5, 3), torch.full((5,), 2)),
        (torch.randn(5, 2), torch.tensor([[1.0, 0.0]] * 5)),
    ]:
        with pytest.raises(FieldError, match="one class only"):
            metric(logits, targets)


def test_macro_f1_without_any_positive_is_undefined() -> None:
    with pytest.raises(FieldError, match="no label is positive"):
        macro_f1(torch.full((3, 2), -1.0), torch.zeros(3, 2))
    assert macro_f1(torch.full((3,), -1.0), torch.zeros(3)) == 1  # binary: class 0 is right


def test_directions() -> None:
    assert not component_of(nll).maximize
    assert all(component_of(m).maximize for m in MULTICLASS if m is not nll)
    assert "multilabel" not in component_of(balanced_accuracy).tasks
