"""Entropy and a prior on the proportions, without labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch.testing import run_checks
from lossearch_classification.source_free import source_free_entropy_prior

PRIOR = [0.5, 0.3, 0.2]


def dense() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return 2 * torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64)


def oracle(p: list[list[float]], prior: list[float], weight: float, inverse: bool) -> float:
    """Over rows of probabilities, the positions of one image or a batch."""
    tau = [t / sum(prior) for t in prior]
    nu = [1 / t / sum(1 / s for s in tau) for t in tau] if inverse else [1.0] * len(tau)
    entropy = -sum(n * x * math.log(x + 1e-10) for row in p for n, x in zip(nu, row, strict=True))
    mean = [sum(row[c] for row in p) / len(p) for c in range(len(tau))]
    kl = sum(
        m * (math.log(m + 1e-10) - math.log(t + 1e-10)) for m, t in zip(mean, tau, strict=True)
    )
    return entropy / len(p) + weight * kl


@pytest.mark.parametrize("weighting", ["none", "inverse_prior"])
def test_by_a_loop(weighting: Any) -> None:
    z = dense()
    found = source_free_entropy_prior(
        z, prior=[5.0, 3.0, 2.0], prior_weight=0.7, class_weighting=weighting
    )
    images = z.softmax(1).flatten(2).transpose(1, 2).tolist()
    expected = [oracle(p, PRIOR, 0.7, weighting == "inverse_prior") for p in images]
    torch.testing.assert_close(found, torch.tensor(expected).double())
    rows = z.movedim(1, -1).reshape(-1, 3)
    batch = source_free_entropy_prior(
        rows, prior=PRIOR, prior_weight=0.7, class_weighting=weighting
    )
    expected = oracle(rows.softmax(1).tolist(), PRIOR, 0.7, weighting == "inverse_prior")
    assert batch.item() == pytest.approx(expected, rel=1e-12)


def test_one_image_is_a_batch_of_its_positions() -> None:
    z = dense()[:1]
    rows = z.movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(
        source_free_entropy_prior(z, prior=PRIOR)[0], source_free_entropy_prior(rows, prior=PRIOR)
    )


def test_right_proportions_leave_the_entropy() -> None:
    z = torch.tensor(PRIOR).double().log().expand(4, 3)
    value = source_free_entropy_prior(z, prior=PRIOR, prior_weight=10.0)
    assert value.item() == pytest.approx(-sum(t * math.log(t) for t in PRIOR))


def test_sure_predictions_without_a_prior_are_0() -> None:
    z = 80.0 * torch.eye(3)
    assert source_free_entropy_prior(z, prior=PRIOR, prior_weight=0.0).abs().item() < 1e-6


def test_the_divergence_is_of_the_predicted_from_the_prior() -> None:
    # Sure of class 0 alone: KL(predicted || prior) = log 1/0.5; the other way it is infinite.
    z = torch.tensor([[80.0, -80, -80]] * 4)
    value = source_free_entropy_prior(z, prior=PRIOR)
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)


def test_class_counts_are_a_prior() -> None:
    z = dense()
    counts = torch.tensor([50, 30, 20])
    torch.testing.assert_close(
        source_free_entropy_prior(z, counts), source_free_entropy_prior(z, prior=PRIOR)
    )
    component = component_of(source_free_entropy_prior)
    assert component.reads(component.complete({})) == {"logits", "class_counts"}
    assert component.reads(component.complete({"prior": PRIOR})) == {"logits"}


def test_gradients_and_extremes() -> None:
    z = dense().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: source_free_entropy_prior(x, prior=PRIOR, class_weighting="inverse_prior"), z
    )
    z = (80.0 * torch.tensor([[1, -1, -1], [1, 1, -1], [-1, -1, -1]])).requires_grad_()
    value = source_free_entropy_prior(z, prior=PRIOR)
    value.backward()
    assert value.isfinite()
    assert z.grad is not None and z.grad.isfinite().all()


def test_it_takes_volumes_and_empty_batches() -> None:
    assert source_free_entropy_prior(torch.zeros(2, 3, 2, 2, 2), prior=PRIOR).shape == (2,)
    assert source_free_entropy_prior(torch.zeros(0, 3, 2, 2), prior=PRIOR).shape == (0,)
    assert source_free_entropy_prior(torch.zeros(0, 3), prior=PRIOR).isfinite()


def test_refusals() -> None:
    z = dense()
    component = component_of(source_free_entropy_prior)
    for wrong in ([0.5, 0.0, 0.5], [1.0, -1.0, 1.0], [1.0]):
        with pytest.raises(ParameterError, match="prior"):
            component.build(prior=wrong)
    with pytest.raises(ParameterError, match="prior has 2 values for 3 classes"):
        source_free_entropy_prior(z, prior=[0.5, 0.5])
    with pytest.raises(FieldError, match="needs the parameter 'prior'"):
        source_free_entropy_prior(z)
    with pytest.raises(FieldError, match="class 1 has no sample"):
        source_free_entropy_prior(z, torch.tensor([5, 0, 5]))
    with pytest.raises(FieldError, match="go with class_counts"):
        source_free_entropy_prior(z, torch.tensor([5, 5]))
    with pytest.raises(FieldError, match="C >= 2"):
        source_free_entropy_prior(torch.zeros(3, 1), prior=PRIOR)


def test_conformance() -> None:
    assert not [r for r in run_checks(source_free_entropy_prior) if not r.ok]
