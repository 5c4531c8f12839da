"""Projected gradient ascent on inputs, and the mode that the network is in meanwhile."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossearch.components.attacks import Norm, logits_of, pgd
from lossearch.components.modes import evaluating
from lossearch.errors import FieldError, ModelError

NORMS: tuple[Norm, ...] = ("linf", "l2")


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(5, 2, 3, generator=gen())
SLOPE = torch.randn(5, 2, 3, generator=gen(1))


def linear(x: Tensor) -> Tensor:
    return (x * SLOPE).flatten(1).sum(1)


def lengths(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def test_a_linear_score_is_climbed_to_the_edge_of_the_ball() -> None:
    for steps in (4, 9):  # reached with the 4th step, and not left
        found = pgd(linear, X, norm="linf", epsilon=0.2, step_size=0.05, steps=steps)
        torch.testing.assert_close(found, X + 0.2 * SLOPE.sign())
        found = pgd(linear, X, norm="l2", epsilon=0.2, step_size=0.05, steps=steps)
        torch.testing.assert_close(found, X + 0.2 * SLOPE / lengths(SLOPE)[:, None, None])


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_ball_it_goes_all_the_way(norm: Norm) -> None:
    found = pgd(linear, X, norm=norm, epsilon=math.inf, step_size=1.0, steps=7)
    unit = SLOPE.sign() if norm == "linf" else SLOPE / lengths(SLOPE)[:, None, None]
    torch.testing.assert_close(found, X + 7 * unit)


@pytest.mark.parametrize("norm", NORMS)
def test_it_stays_in_the_ball_and_in_the_clip_range(norm: Norm) -> None:
    x = X.clamp(-1, 1)

    def score(z: Tensor) -> Tensor:
        return (3 * z).sin().flatten(1).sum(1)

    found = pgd(
        score, x, norm=norm, epsilon=0.3, step_size=0.2, steps=10, clip_min=-1.0, clip_max=1.0,
        generator=gen(),
    )  # fmt: skip
    assert found.min() >= -1 and found.max() <= 1
    size = lengths(found - x) if norm == "l2" else (found - x).abs()
    assert size.max() <= 0.3 + 1e-6
    assert (score(found) > score(x)).all()
    below = pgd(score, x, norm=norm, epsilon=0.3, step_size=0.2, steps=3, clip_max=0.5)
    assert below.max() <= 0.5 and below.min() < -1


def test_one_signed_step_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0, 0.0]])
    found = pgd(lambda z: z.square().sum(1), x, norm="linf", epsilon=1, step_size=0.25, steps=1)
    assert found.tolist() == [[1.25, -2.25, 0.0]]  # where the slope is 0 nothing moves
    found = pgd(lambda z: z.square().sum(1), x, norm="l2", epsilon=9, step_size=5**0.5, steps=1)
    torch.testing.assert_close(found, torch.tensor([[2.0, -4.0, 0.0]]))


@pytest.mark.parametrize("norm", NORMS)
def test_the_random_start_is_uniform_in_the_ball(norm: Norm) -> None:
    centre = torch.full((4000, 3), 5.0)

    def start(seed: int) -> Tensor:
        found = pgd(
            linear, centre, norm=norm, epsilon=2.0, step_size=1.0, steps=0, generator=gen(seed)
        )
        return found - centre

    moved = start(0)
    size = lengths(moved) if norm == "l2" else moved.abs().amax(1)
    assert size.max() <= 2 + 1e-6
    # in 3 dimensions a fraction 1/8 lies within half the radius
    assert (size < 1).double().mean().item() == pytest.approx(0.125, abs=0.025)
    assert moved.mean(0).abs().max() < 0.1
    assert torch.equal(moved, start(0)) and not torch.equal(moved, start(1))


@pytest.mark.parametrize("norm", NORMS)
def test_no_steps_and_no_ball_are_the_inputs(norm: Norm) -> None:
    assert torch.equal(pgd(linear, X, norm=norm, epsilon=1, step_size=1, steps=0), X)
    still = pgd(linear, X, norm=norm, epsilon=0, step_size=1, steps=3, generator=gen())
    assert torch.equal(still, X)
    flat = pgd(lambda z: 0 * z.flatten(1).sum(1), X, norm=norm, epsilon=1, step_size=1, steps=3)
    assert torch.equal(flat, X)
    assert pgd(linear, X[:0], norm=norm, epsilon=1, step_size=1, steps=0).shape == (0, 2, 3)


def test_it_works_where_gradients_are_off_and_leaves_none_behind() -> None:
    net = nn.Linear(3, 2)
    inputs = X[:, 0].clone().requires_grad_()
    with torch.no_grad():
        found = pgd(lambda z: net(z)[:, 0], inputs, norm="l2", epsilon=1, step_size=0.1, steps=2)
    assert not found.requires_grad and not torch.equal(found, inputs)
    assert inputs.grad is None and all(p.grad is None for p in net.parameters())


def test_evaluating_gives_each_module_its_own_mode_back() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not any(m.training for m in net.modules())
        net(X[:, 0])
        raise ZeroDivisionError
    assert [m.training for m in net.modules()] == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with evaluating(net, nn.BatchNorm1d):
        assert [m.training for m in net.modules()] == [True, False, False, True]
    with evaluating(linear):  # a plain function has no mode
        pass


def test_logits_of_a_mapping_or_a_tensor() -> None:
    assert torch.equal(logits_of(lambda x: {"logits": 2 * x, "embeddings": x}, X), 2 * X)
    assert torch.equal(logits_of(lambda x: 2 * x, X), 2 * X)


def test_errors() -> None:
    how: dict[str, Any] = {"norm": "l2", "epsilon": 1, "step_size": 1, "steps": 1}
    with pytest.raises(FieldError, match=r"torch\.int64 cannot be moved"):
        pgd(linear, torch.zeros(2, 3, dtype=torch.long), **how)
    parameter = torch.ones(1, requires_grad=True)
    for frozen in (lambda z: z.detach().sum(1), lambda z: parameter * z.detach().sum(1)):
        with pytest.raises(ModelError, match="passes no gradient to its inputs"):
            pgd(frozen, X[:, 0], **how)
