"""Objectives of several terms: the balanced value or gradient, against what is worked out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossearch.errors import SpecError
from tests.toys import (
    BATCH,
    EMBEDDINGS,
    LOGITS,
    NORM,
    POWER,
    TARGETS,
    ToyWeights,
)
from tests.toys import toy_objective as objective


def value(*terms: Any, **more: Any) -> float:
    return float(objective(*terms, **more)(BATCH))


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


# Balancers of values --------------------------------------------------------------------------


def test_a_balancer_takes_the_weighted_values() -> None:
    terms = [{"loss": "toy_power", "weight": 0.1}, {"loss": "toy_norm", "weight": 2}]
    assert value(*terms, balancer="toy_max") == pytest.approx(2 * sum(NORM) / 3)


def test_a_balancer_that_takes_the_weights_gets_plain_values() -> None:
    terms = [{"loss": "toy_power", "weight": 0.1}, {"loss": "toy_norm", "weight": 2}]
    built = objective(*terms, balancer="toy_weights")
    assert built.balancer is not None and isinstance(built.balancer.module, ToyWeights)
    assert built.balancer.module.weights == (0.1, 2.0)
    expected = 0.1 * sum(POWER) / 3 + 2 * sum(NORM) / 3
    assert float(built(BATCH)) == pytest.approx(expected), "each weight counts once"


# Balancers at the output ----------------------------------------------------------------------


def _unit(gradient: Tensor) -> Tensor:
    return gradient / gradient.norm()


def test_at_the_output_the_value_is_the_sum_and_the_gradient_the_balanced_one() -> None:
    terms = [{"loss": "toy_ce", "weight": 3}, "toy_power"]
    built = objective(*terms, balancer="toy_normalised")
    assert built.at == "output"
    logits = LOGITS.clone().requires_grad_()
    found = built(logits=logits, targets=TARGETS)
    found.backward()
    assert found.item() == pytest.approx(value(*terms))
    ce = (LOGITS.softmax(1) - F.one_hot(TARGETS, 3)) / 3
    assert torch.allclose(_grad(logits), _unit(ce) + _unit(2 * LOGITS / 3))


def test_the_balanced_gradient_reaches_the_model() -> None:
    head = nn.Linear(2, 3, dtype=torch.float64)
    built = objective("toy_ce", "toy_power", balancer="toy_normalised")
    logits = head(EMBEDDINGS)
    built(logits=logits, targets=TARGETS).backward()
    ce = (logits.softmax(1) - F.one_hot(TARGETS, 3)) / 3
    at_output = (_unit(ce) + _unit(2 * logits / 3)).detach()
    assert torch.allclose(_grad(head.weight), at_output.T @ EMBEDDINGS)


def test_it_acts_where_most_terms_meet() -> None:
    """A term on logits and one on embeddings meet at the embeddings, not at the logits."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    weight.requires_grad_()
    embeddings = EMBEDDINGS.clone().requires_grad_()
    logits = embeddings @ weight.T
    built = objective("toy_power", "toy_norm", balancer="toy_normalised")
    built(logits=logits, embeddings=embeddings).backward()
    power = 2 * logits.detach() @ weight.detach() / 3
    norm = 2 * EMBEDDINGS / 3
    assert torch.allclose(_grad(embeddings), _unit(power) + _unit(norm))
    plain = (2 * logits.detach() / 3).T @ EMBEDDINGS
    assert torch.allclose(_grad(weight), plain), "the head has only its own loss, and that plain"


def test_terms_that_meet_at_the_logits_are_balanced_there() -> None:
    embeddings = EMBEDDINGS.clone().requires_grad_()
    logits = embeddings @ torch.eye(3, 2, dtype=torch.float64).T
    built = objective("toy_power", "toy_ce", balancer="toy_normalised")
    built({"logits": logits, "embeddings": embeddings, "targets": TARGETS}).backward()
    z = logits.detach()
    at_logits = _unit(2 * z / 3) + _unit((z.softmax(1) - F.one_hot(TARGETS, 3)) / 3)
    assert torch.allclose(_grad(embeddings), at_logits @ torch.eye(3, 2, dtype=torch.float64))


def test_without_gradients_the_value_is_still_there() -> None:
    built = objective("toy_ce", "toy_power", balancer="toy_normalised")
    with torch.no_grad():
        assert float(built(BATCH)) == pytest.approx(value("toy_ce", "toy_power"))


# Balancers at the parameters ------------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 1.0]], dtype=torch.float64))
        self.head = nn.Parameter(torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        embeddings = x @ self.trunk
        return {"embeddings": embeddings, "logits": embeddings @ self.head}


def test_at_the_parameters_shared_ones_get_the_combined_gradient() -> None:
    model = TwoHeads()
    terms = [{"loss": "toy_power", "weight": 0.5}, "toy_norm"]
    built = objective(*terms, balancer={"name": "toy_normalised", "at": "parameters"})
    assert built.at == "parameters"
    found = built.backward(model(EMBEDDINGS), model.parameters())

    outputs = model(EMBEDDINGS)
    power = 0.5 * outputs["logits"].pow(2).sum(1).mean()
    norm = (outputs["embeddings"].pow(2).sum(1) - 1).abs().mean()
    first = torch.autograd.grad(power, [model.trunk, model.head], retain_graph=True)
    (second,) = torch.autograd.grad(norm, model.trunk)
    assert found.item() == pytest.approx((power + norm).item()) and not found.requires_grad
    assert torch.allclose(_grad(model.trunk), _unit(first[0]) + _unit(second))
    assert torch.allclose(_grad(model.head), first[1]), "one term's own: its plain gradient"
    assert model.unused.grad is None


def test_at_the_parameters_gradients_add_up_like_any_others() -> None:
    model = TwoHeads()
    built = objective("toy_power", "toy_norm", balancer="toy_mean_gradient")
    built.backward(model(EMBEDDINGS), model.parameters())
    once = _grad(model.trunk).clone()
    built.backward(model(EMBEDDINGS), model.parameters())
    assert torch.allclose(_grad(model.trunk), 2 * once)
    plain = objective("toy_power", "toy_norm")
    model.zero_grad()
    plain(model(EMBEDDINGS)).backward()
    assert torch.allclose(_grad(model.trunk), 2 * once), "a mean of two is half their sum"


@pytest.mark.parametrize("balancer", ["toy_normalised", "toy_mean_gradient"])
def test_a_term_that_nothing_trained_reaches_is_no_obstacle(balancer: str) -> None:
    logits = nn.Parameter(LOGITS.clone())
    built = objective("toy_power", "toy_norm", balancer=balancer)
    found = built.backward({"logits": logits, "embeddings": EMBEDDINGS}, [logits])
    assert found.item() == pytest.approx(sum(POWER) / 3 + sum(NORM) / 3)
    assert _unit(_grad(logits)).allclose(_unit(LOGITS)), "the other term's gradient alone"


def test_frozen_parameters_are_left_alone() -> None:
    model = TwoHeads()
    model.trunk.requires_grad_(False)
    built = objective("toy_power", "toy_ce", balancer="toy_mean_gradient")
    built.backward({**model(EMBEDDINGS), "targets": TARGETS % 2}, model.parameters())
    assert model.trunk.grad is None and _grad(model.head).any()


def test_forward_refuses_what_needs_the_parameters() -> None:
    built = objective("toy_ce", "toy_power", balancer="toy_mean_gradient")
    with pytest.raises(SpecError) as caught:
        built(BATCH)
    assert str(caught.value) == (
        "toy_mean_gradient combines the gradients of the parameters: call "
        "objective.backward(batch, model.parameters()) in place of objective(batch).backward()"
    )


@pytest.mark.parametrize("balancer", [None, "toy_max", "toy_uncertainty", "toy_normalised"])
def test_backward_serves_every_objective(balancer: str | None) -> None:
    def gradients(way: str) -> list[Tensor]:
        model, built = TwoHeads(), objective("toy_power", "toy_norm", balancer=balancer)
        if way == "backward":
            assert not built.backward(model(EMBEDDINGS), model.parameters()).requires_grad
        else:
            built(model(EMBEDDINGS)).backward()
        return [_grad(p) for p in (model.trunk, model.head, *built.parameters())]

    for one, other in zip(gradients("backward"), gradients("forward"), strict=True):
        assert torch.allclose(one, other)
