"""Naive Bayes fitted in closed form."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.naive_bayes import GaussianNB
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ModelError, ParameterError
from lossearch.testing import run_checks
from lossearch_classification.naive_bayes import NaiveBayesHead

C, E = 3, 4


def head(**params: Any) -> NaiveBayesHead:
    made = component_of(NaiveBayesHead).build(**{"num_classes": C, **params}).module
    assert isinstance(made, NaiveBayesHead)
    return made


def data(n: int = 60) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, C, (n,), generator=g)
    centre = 2 * torch.randn(C, E, generator=g, dtype=torch.float64)
    x = centre[y] + torch.randn(n, E, generator=g, dtype=torch.float64) + 5
    return x, y


def formula(x: Tensor, y: Tensor, new: Tensor, eps: float) -> Tensor:
    """Log prior plus Gaussian log-likelihood up to a constant, by loops."""
    variance = torch.full((E,), eps, dtype=torch.float64)
    for k in range(C):
        some = x[y == k]
        variance += len(some) / len(x) * some.var(0, correction=0)
    rows = []
    for each in new:
        row = []
        for k in range(C):
            some = x[y == k]
            distance = ((each - some.mean(0)) ** 2 / variance).sum().item()
            row.append(math.log(len(some) / len(x)) - distance / 2)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("eps", [1e-9, 0.1])
def test_by_a_loop(eps: float) -> None:
    x, y = data()
    fitted = head(var_epsilon=eps)
    value = fitted(x, y)
    expected = formula(x, y, x, eps)
    found = fitted.predict(x)
    torch.testing.assert_close(found.log_softmax(1), expected.log_softmax(1))
    gap = expected - found  # what is common to all classes
    torch.testing.assert_close(gap, gap[:, :1].expand(-1, C))
    torch.testing.assert_close(value, F.cross_entropy(expected, y, reduction="none"))


def test_by_hand() -> None:
    # Means 0 and 4, variances 1 and 1, priors 1/2: even at 2, and e^4 to 1 at 3.
    x, y = torch.tensor([[-1.0], [1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1, 1])
    fitted = head(num_classes=2)
    fitted(x, y)
    logits = fitted.predict(torch.tensor([[2.0], [3.0]]))
    torch.testing.assert_close((logits[:, 1] - logits[:, 0]), torch.tensor([0.0, 4.0]))


def test_it_is_sklearns_where_classes_vary_alike() -> None:
    # The second class is the first one moved, so a variance for each is the shared one.
    x = data()[0][:20]
    both, y = torch.cat([x, x + 1.5]), torch.arange(2).repeat_interleave(20)
    fitted = head(num_classes=2)
    fitted(both, y)
    sklearn = GaussianNB(var_smoothing=0.0).fit(both.numpy(), y.numpy())
    torch.testing.assert_close(
        fitted.predict(both).softmax(1), torch.from_numpy(sklearn.predict_proba(both.numpy()))
    )


@pytest.mark.parametrize("sizes", [[30, 30], [1, 59], [7] * 8 + [4], [1] * 60])
def test_any_split_gives_the_same_state(sizes: list[int]) -> None:
    x, y = data()
    whole, parts = head(), head()
    whole(x, y)
    for some, labels in zip(x.split(sizes), y.split(sizes), strict=True):
        parts(some, labels)
    for name, state in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], state, rtol=1e-9, atol=1e-9)


def test_another_pass_changes_nothing() -> None:
    x, y = data()
    fitted = head()
    fitted(x, y)
    once = fitted.predict(x)
    fitted(x, y)
    torch.testing.assert_close(fitted.predict(x), once)


def test_it_is_linear() -> None:
    x, y = data()
    fitted = head()
    fitted(x, y)
    a, b = x[:5], x[5:10]
    torch.testing.assert_close(
        fitted.predict(0.3 * a + 0.7 * b), 0.3 * fitted.predict(a) + 0.7 * fitted.predict(b)
    )


def test_a_feature_that_never_varied_does_not_drown_the_others() -> None:
    # var_epsilon divides the square of 0.5: 1e8 for each class, a float32 step of 8.
    x, y = data()
    dead = torch.cat([x, torch.zeros(60, 1)], 1).float()
    new = torch.cat([x, torch.full((60, 1), 0.5)], 1).float()
    fitted, without = head(), head()
    fitted(dead, y)
    without(x.float(), y)
    torch.testing.assert_close(
        fitted.predict(new).softmax(1), without.predict(x.float()).softmax(1),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_a_class_never_seen() -> None:
    x, y = data()
    fitted = head(num_classes=C + 1)
    fitted(x, y)
    logits = fitted.predict(x)
    assert (logits[:, C] == -math.inf).all() and logits[:, :C].isfinite().all()
    fitted.eval()
    assert fitted(x[:1], torch.tensor([C])).item() == math.inf


def test_predictions_are_of_the_embeddings() -> None:
    x, y = data()
    fitted = head()
    fitted(x, y)
    fields = {"logits": torch.zeros(60, C), "embeddings": x}
    torch.testing.assert_close(fitted.predictions(fields), fitted.predict(x))


def test_only_training_learns() -> None:
    x, y = data()
    fitted = head()
    fitted(x, y)
    before = {k: v.clone() for k, v in fitted.state_dict().items()}
    fitted.eval()(x[:7] + 1, y[:7])
    torch.testing.assert_close(dict(fitted.state_dict()), before)


def test_no_prediction_before_any_data() -> None:
    with pytest.raises(ModelError, match="before it has seen data"):
        head().eval()(*data())
    with pytest.raises(ModelError, match="before it has seen data"):
        head().predict(data()[0])


def test_the_slope_is_0_unless_differentiable() -> None:
    x, y = data()
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(head()(x, y).sum(), x)
    assert not slope.any()
    fitted = head(differentiable=True)
    (slope,) = torch.autograd.grad(fitted(x, y).sum(), x)
    value = F.cross_entropy(fitted.predict(x), y, reduction="sum")
    torch.testing.assert_close(slope, torch.autograd.grad(value, x)[0])
    fitted.eval()
    assert torch.autograd.gradcheck(lambda e: fitted(e, y[:5]), x[:5].detach().requires_grad_())


def test_state_travels_to_a_head_that_has_seen_nothing() -> None:
    x, y = data()
    fitted, other = head(), head()
    fitted(x, y)
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.predict(x), fitted.predict(x))
    other(x[:3], y[:3])  # and it goes on
    fitted(x[:3], y[:3])
    torch.testing.assert_close(other.predict(x), fitted.predict(x))


def test_an_empty_batch_is_no_data() -> None:
    fitted = head()
    assert fitted(torch.zeros(0, E), torch.zeros(0).long()).shape == (0,)
    with pytest.raises(ModelError):
        fitted.predict(torch.zeros(1, E))


def test_refusals() -> None:
    x, y = data()
    fitted = head()
    fitted(x, y)
    with pytest.raises(FieldError, match=r"\[B, 4\]"):
        fitted(x[:, :2], y)
    with pytest.raises(FieldError, match=r"\[B, 4\]"):
        fitted.predict(x[:, :2])
    with pytest.raises(FieldError, match="target 3 is outside"):
        fitted(x, y + 1)
    with pytest.raises(FieldError, match="target -1 is outside"):
        fitted(x, y - 1)
    with pytest.raises(FieldError, match="class indices"):
        fitted(x, y[:3])
    with pytest.raises(FieldError, match="class indices"):
        fitted(x, y.float())
    with pytest.raises(ParameterError, match="var_epsilon"):
        head(var_epsilon=0.0)


def test_conformance() -> None:
    assert not [r for r in run_checks(NaiveBayesHead) if not r.ok]
