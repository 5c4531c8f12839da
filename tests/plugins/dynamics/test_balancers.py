from __future__ import annotations

import math

import pytest
import torch
import torchjd.scalarization

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_dynamics.balancers import DynamicWeightAverage, Uncertainty, fixed_weights

# fixed_weights


def test_fixed_weights_by_hand() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0])
    assert float(fixed_weights(losses)) == 7
    assert float(fixed_weights(losses, weights=[2.0, 0.0, 0.5])) == 4
    scaled = fixed_weights(losses, weights=[2.0, 1.0, 1.0], normalize="sum_to_k")
    assert float(scaled) == 0.75 * (2 + 2 + 4)


def test_fixed_weights_is_linear_and_plain_for_one_term() -> None:
    a, b = torch.rand(2, 3, dtype=torch.float64)
    w = [0.3, 2.0, 5.0]
    torch.testing.assert_close(
        fixed_weights(2 * a + b, weights=w),
        2 * fixed_weights(a, weights=w) + fixed_weights(b, weights=w),
    )
    losses = torch.tensor([0.7], requires_grad=True)
    (slope,) = torch.autograd.grad(fixed_weights(losses), losses)
    assert float(slope) == 1
    stacked = torch.func.vmap(lambda each: fixed_weights(each, weights=w))(torch.stack([a, b]))
    torch.testing.assert_close(stacked[1], fixed_weights(b, weights=w))


def test_fixed_weights_errors() -> None:
    with pytest.raises(ParameterError, match="3 terms need as many"):
        fixed_weights(torch.ones(3), weights=[1.0, 2.0])
    with pytest.raises(ParameterError, match="at least one must be above 0"):
        fixed_weights(torch.ones(2), weights=[0.0, 0.0], normalize="sum_to_k")
    with pytest.raises(ParameterError, match="weights"):
        component_of(fixed_weights).build(weights=[-1.0])


# uncertainty


def test_uncertainty_by_hand_and_its_gradient() -> None:
    balancer = Uncertainty(init=-0.5, num_terms=2)
    losses = torch.tensor([3.0, 0.2], requires_grad=True)
    value = balancer(losses)
    e = math.exp(0.5)
    assert value.item() == pytest.approx(0.5 * e * 3.2 - 0.5, rel=1e-6)
    value.backward()
    assert losses.grad is not None
    torch.testing.assert_close(losses.grad, torch.full((2,), 0.5 * e))
    (parameter,) = balancer.parameters()
    torch.testing.assert_close(parameter.grad, torch.tensor([0.5 - 1.5 * e, 0.5 - 0.1 * e]))


def test_uncertainty_settles_where_each_weighted_loss_is_a_half() -> None:
    balancer = Uncertainty(num_terms=3)
    (s,) = balancer.parameters()
    losses = torch.tensor([5.0, 1.0, 0.1])
    optimizer = torch.optim.LBFGS([s], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = balancer(losses)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(s.detach(), losses.log(), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        0.5 * (-s.detach()).exp() * losses, torch.full((3,), 0.5), atol=1e-4, rtol=0
    )


def test_uncertainty_errors_and_state() -> None:
    balancer = Uncertainty(num_terms=2)
    with pytest.raises(FieldError, match=r"the loss of term 1 is -0\.5"):
        balancer(torch.tensor([1.0, -0.5]))
    with pytest.raises(FieldError, match="made for 2 terms"):
        balancer(torch.ones(3))
    with pytest.raises(ParameterError, match="num_terms"):
        component_of(Uncertainty).build()
    bound = component_of(Uncertainty).build(facts={"num_terms": 2}, init=0.3)
    fresh = component_of(Uncertainty).build(facts={"num_terms": 2})
    fresh.load_state_dict(bound.state_dict())
    losses = torch.tensor([1.0, 2.0])
    assert torch.equal(fresh({"losses": losses}), bound({"losses": losses}))
    assert balancer(losses.bfloat16()).dtype == torch.float32


# dwa


def _epochs(number: int, batches: int = 3, terms: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(number, batches, terms, generator=generator) + 0.1


def test_dwa_is_torchjds() -> None:
    ours, theirs = (
        DynamicWeightAverage(temperature=0.7, num_terms=3),
        torchjd.scalarization.DWA(0.7),
    )
    for number, epoch in enumerate(_epochs(5)):
        for losses in epoch:
            torch.testing.assert_close(ours(losses), theirs(losses))
        ours.end_epoch(number)
        theirs.step()


def test_dwa_weights_by_hand() -> None:
    balancer = DynamicWeightAverage(temperature=2.0, num_terms=2)
    batches = [[(1.0, 2.0), (3.0, 2.0)], [(1.0, 1.0), (2.0, 1.0)]]  # means 2, 2 then 1.5, 1
    for number, epoch in enumerate(batches):
        for losses in epoch:
            assert float(balancer(torch.tensor(losses))) == sum(losses)  # still weights of 1
        balancer.end_epoch(number)
    e = [math.exp(0.75 / 2), math.exp(0.5 / 2)]
    losses = torch.tensor([1.0, 10.0], requires_grad=True)
    value = balancer(losses)
    assert value.item() == pytest.approx(2 * (e[0] + 10 * e[1]) / sum(e))
    (slopes,) = torch.autograd.grad(value, losses)
    assert float(slopes.sum()) == pytest.approx(2)
    assert balancer.training


def test_dwa_of_equal_rates_is_the_sum_and_one_term_is_plain() -> None:
    balancer = DynamicWeightAverage(num_terms=2)
    alone = DynamicWeightAverage(num_terms=1)
    for number, value in enumerate([8.0, 4.0, 2.0]):
        balancer(torch.tensor([value, 3 * value]))
        alone(torch.tensor([value]))
        balancer.end_epoch(number)
        alone.end_epoch(number)
    assert float(balancer(torch.tensor([1.0, 10.0]))) == 11
    assert float(alone(torch.tensor([0.7]))) == pytest.approx(0.7)


def test_dwa_ignores_evaluation_and_empty_epochs() -> None:
    ours, kept = DynamicWeightAverage(num_terms=3), DynamicWeightAverage(num_terms=3)
    for number, epoch in enumerate(_epochs(3)):
        for losses in epoch:
            ours(losses)
            kept(losses)
        ours.eval()
        ours(torch.full((3,), 1e6))
        ours.train()
        for balancer in (ours, kept):
            balancer.end_epoch(number)
        ours.end_epoch(number)  # nothing was seen since: no second roll
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), kept.buffers(), strict=True))


def test_dwa_resumes_in_the_middle_of_an_epoch() -> None:
    whole, first, second = (DynamicWeightAverage(num_terms=3) for _ in range(3))
    values: list[torch.Tensor] = []
    for number, epoch in enumerate(_epochs(4)):
        for i, losses in enumerate(epoch):
            values.append(whole(losses))
            if (number, i) == (2, 1):
                second.load_state_dict(first.state_dict())
            used = first if (number, i) < (2, 1) else second
            assert torch.equal(used(losses), values[-1])
        whole.end_epoch(number)
        (first if number < 2 else second).end_epoch(number)


def test_dwa_errors() -> None:
    for before, after in [(0.0, 1.0), (1.0, -1.0), (1.0, 0.0)]:
        balancer = DynamicWeightAverage(num_terms=2)
        balancer(torch.tensor([1.0, before]))
        balancer.end_epoch(0)
        balancer(torch.tensor([1.0, after]))
        with pytest.raises(FieldError, match=f"term 1 went from {before:g} to {after:g}"):
            balancer.end_epoch(1)
    with pytest.raises(FieldError, match="made for 2 terms"):
        DynamicWeightAverage(num_terms=2)(torch.ones(3))
    with pytest.raises(ParameterError, match="temperature"):
        component_of(DynamicWeightAverage).build(temperature=0.0, num_terms=2)
