from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch.feasibility import objective_problems
from lossearch.registry import current
from lossearch.spec import ObjectiveSpec
from lossearch_dynamics.miners import ohem, small_loss


def _largest(losses: list[float], k: int) -> Tensor:
    order = sorted(range(len(losses)), key=lambda i: (-losses[i], i))[:k]
    return torch.tensor([i in order for i in range(len(losses))])


def test_ohem_by_hand() -> None:
    losses = torch.tensor([0.1, 3.0, 0.2, 2.0, 0.3])
    assert ohem(losses, keep_ratio=0.4).tolist() == [False, True, False, True, False]
    assert ohem(losses, keep_ratio=0.41).tolist() == [False, True, False, True, True]  # ceil
    assert ohem(losses, threshold=0.25).tolist() == [False, True, False, True, True]
    assert ohem(losses, threshold=9.0, min_kept=2).tolist() == [False, True, False, True, False]
    assert ohem(losses, keep_ratio=0.1, min_kept=3).sum() == 3
    assert ohem(losses, min_kept=64).all()


@pytest.mark.parametrize("size", [1, 2, 7, 10, 30, 64])
@pytest.mark.parametrize("keep_ratio", [0.1, 0.3, 0.7, 0.9, 1.0])
def test_ohem_against_a_loop(size: int, keep_ratio: float) -> None:
    losses = torch.randint(5, (size,)).float()  # many ties
    k = max(1, math.ceil(round(keep_ratio * size, 9)))  # 0.1 * 30 is 3, not 3.0000000000000004
    assert torch.equal(ohem(losses, keep_ratio=keep_ratio), _largest(losses.tolist(), k))


def test_ohem_of_keep_ratio_1_is_none_and_ties_go_by_index() -> None:
    assert ohem(torch.randn(9), keep_ratio=1.0).all()
    assert ohem(torch.ones(4), keep_ratio=0.5).tolist() == [True, True, False, False]
    assert small_loss(torch.ones(4), 99, forget_rate=0.5).tolist() == [True, True, False, False]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("num_gradual", [1, 5, 10])
def test_small_loss_follows_the_schedule(exponent: float, num_gradual: int) -> None:
    losses = torch.rand(40)
    schedule = torch.linspace(0, 0.3**exponent, num_gradual, dtype=torch.float64).tolist()
    for epoch in range(12):
        rate = schedule[epoch] if epoch < num_gradual else 0.3
        k = math.floor(round((1 - rate) * 40, 6))
        mask = small_loss(
            losses, epoch, forget_rate=0.3, num_gradual=num_gradual, exponent=exponent
        )
        assert torch.equal(mask, _largest((-losses).tolist(), k)), epoch


def test_small_loss_facts() -> None:
    assert small_loss(torch.rand(8), 0, forget_rate=0.6).all()  # epoch 0 keeps all
    assert small_loss(torch.tensor([5.0]), 50, forget_rate=0.6).tolist() == [True]
    assert small_loss(torch.rand(5), 50, forget_rate=0.4).sum() == 3  # 0.6 * 5 is not 2.9999
    assert small_loss(torch.rand(10), 50, forget_rate=0.2).sum() == 8


def test_miners_run_under_vmap_over_their_parameter() -> None:
    losses = torch.rand(3, 30)
    ratio = torch.tensor([0.1, 0.5, 1.0])
    kept = torch.func.vmap(lambda x, k: ohem(x, keep_ratio=k))(losses, ratio)
    assert kept.sum(1).tolist() == [3, 15, 30]
    rate = torch.tensor([0.0, 0.2, 0.6])
    kept = torch.func.vmap(lambda x, r: small_loss(x, 20, forget_rate=r))(losses, rate)
    assert kept.sum(1).tolist() == [30, 24, 12]
    for i in range(3):
        assert torch.equal(kept[i], small_loss(losses[i], 20, forget_rate=float(rate[i])))


def test_miners_take_half_precision_and_losses_with_a_gradient() -> None:
    losses = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    assert ohem(losses, keep_ratio=0.3).tolist() == [False, True, False]
    assert ohem(losses.bfloat16(), keep_ratio=0.3).tolist() == [False, True, False]


def test_miner_errors() -> None:
    with pytest.raises(ParameterError, match="keep_ratio"):
        component_of(ohem).build(keep_ratio=0.0)
    with pytest.raises(ParameterError, match="min_kept"):
        component_of(ohem).build(min_kept=0)
    with pytest.raises(ParameterError, match="forget_rate"):
        component_of(small_loss).build(forget_rate=1.0)
    with pytest.raises(ParameterError, match="peers = 3"):
        component_of(small_loss).build(peers=3)


# two peers


def test_each_of_two_peers_learns_from_what_the_other_keeps() -> None:
    losses = torch.arange(10.0)
    batch = {"losses": losses, "losses_b": -losses, "epoch": 50}
    first, second = component_of(small_loss).build(peers=2, forget_rate=0.3)(batch)
    assert first.tolist() == [False] * 3 + [True] * 7  # what is small for the second
    assert second.tolist() == [True] * 7 + [False] * 3
    assert torch.equal(second, small_loss(losses, 50, forget_rate=0.3))
    assert torch.equal(first, small_loss(-losses, 50, forget_rate=0.3))
    start = small_loss(losses, 0, -losses, forget_rate=0.3, peers=2)
    assert start.shape == (2, 10) and start.all()  # epoch 0 keeps all


def test_two_peers_need_the_losses_of_both_and_no_study_has_them() -> None:
    with pytest.raises(FieldError, match=r"reads 'losses_b'.*\[4\]; given: none"):
        small_loss(torch.rand(4), 0, peers=2)
    with pytest.raises(FieldError, match=r"given: \[3\]"):
        small_loss(torch.rand(4), 0, torch.rand(3), peers=2)
    with pytest.raises(FieldError, match="small_loss reads 'losses_b', which the batch lacks"):
        component_of(small_loss).build(peers=2)({"losses": torch.rand(4), "epoch": 0})
    spec = ObjectiveSpec.parse(
        {
            "task": "multiclass",
            "terms": [{"loss": "cross_entropy", "miner": {"name": "small_loss", "peers": 2}}],
        }
    )
    fields = frozenset({"logits", "targets", "epoch"})
    (problem,) = objective_problems(spec, current(), fields)
    assert problem.startswith("small_loss reads 'losses_b'")
    assert problem.endswith("which nothing here provides")
