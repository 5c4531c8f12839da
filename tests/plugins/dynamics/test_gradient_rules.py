from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_dynamics.gradient_rules import EncodecBalancer, PCGrad

# pcgrad


def _surgery(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Algorithm 1 as a plain loop, its orders from the generator."""
    total = torch.zeros_like(rows[0])
    for i, g in enumerate(rows):
        v = g.clone()
        for j in torch.randperm(len(rows), generator=generator).tolist():
            if j != i and float(v @ rows[j]) < 0:
                v = v - (v @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        total = total + v
    return total


def test_pcgrad_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(PCGrad()(rows), torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("terms", [2, 3, 5])
def test_pcgrad_against_a_loop(terms: int) -> None:
    balancer = PCGrad(seed=3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        rows = torch.randn(terms, 4, dtype=torch.float64)
        torch.testing.assert_close(balancer(rows), _surgery(rows, generator))


def test_pcgrad_without_a_conflict_is_the_sum() -> None:
    rows = torch.rand(4, 7)
    torch.testing.assert_close(PCGrad()(rows), rows.sum(0))
    assert torch.equal(PCGrad()(rows[:1]), rows[0])
    torch.testing.assert_close(PCGrad()(rows[:1].expand(3, 7)), 3 * rows[0])


def test_pcgrad_of_two_does_not_conflict_with_either() -> None:
    for _ in range(20):
        rows = torch.randn(2, 5, dtype=torch.float64)
        assert (rows @ PCGrad()(rows) >= -1e-9).all()


def test_pcgrad_takes_zero_and_vanishing_gradients() -> None:
    rows = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    torch.testing.assert_close(PCGrad()(rows), rows[0])
    assert torch.equal(PCGrad()(torch.zeros(3, 2)), torch.zeros(2))
    faint = torch.tensor([[1.0, 2.0], [-1e-30, 0.0]])  # its squared norm is 0 in float32
    torch.testing.assert_close(PCGrad()(faint), rows[0])


def test_pcgrad_at_the_output_is_pcgrad_of_the_flat_rows() -> None:
    rows = torch.randn(3, 4, 5)
    got = PCGrad(at="output", seed=1)(rows)
    assert got.shape == (4, 5)
    torch.testing.assert_close(got.flatten(), PCGrad(seed=1)(rows.flatten(1)))


def test_pcgrad_owns_its_randomness() -> None:
    rows = torch.randn(5, 3)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    balancer = PCGrad(seed=4)
    drawn = [balancer(rows) for _ in range(6)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = PCGrad(seed=4)
    assert all(torch.equal(again(rows), each) for each in drawn)
    assert any(not torch.equal(each, drawn[0]) for each in drawn[1:])  # the orders differ


def test_pcgrad_resumes_copies_and_does_not_move_on_in_eval() -> None:
    rows = torch.randn(6, 3)
    balancer = PCGrad(seed=4)
    balancer(rows)
    resumed = PCGrad()
    resumed.load_state_dict(balancer.state_dict())
    copied = copy.deepcopy(balancer)
    balancer.eval()
    peeked = balancer(rows)
    assert torch.equal(balancer(rows), peeked)
    balancer.train()
    for _ in range(3):
        following = balancer(rows)
        assert torch.equal(resumed(rows), following)
        assert torch.equal(copied(rows), following)


def test_pcgrad_in_half_precision_and_errors() -> None:
    assert PCGrad()(torch.randn(2, 3).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(FieldError, match="reads gradients"):
        PCGrad()(torch.randn(3))
    with pytest.raises(ParameterError, match="at = 'outputs'"):
        component_of(PCGrad).build(at="outputs")


# encodec_balancer


class _Published:
    """The authors' algorithm as a float64 loop over dictionaries' worth of terms."""

    def __init__(self, weights: list[float], total_norm: float, decay: float, per_item: bool):
        self.weights, self.total_norm, self.decay, self.per_item = (
            weights, total_norm, decay, per_item,
        )  # fmt: skip
        self.total = [0.0] * len(weights)
        self.fix = 0.0

    def __call__(self, rows: Tensor) -> Tensor:
        out = torch.zeros_like(rows[0])
        self.fix = self.fix * self.decay + 1
        for k, g in enumerate(rows):
            items = [float(each.norm()) for each in g]
            norm = sum(items) / len(items) if self.per_item else float(g.norm())
            self.total[k] = self.total[k] * self.decay + norm
            share = self.weights[k] / sum(self.weights)
            out = out + g * share * self.total_norm / (1e-12 + self.total[k] / self.fix)
        return out


@pytest.mark.parametrize("per_item", [True, False])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3)])
def test_encodec_against_a_loop(per_item: bool, shape: tuple[int, ...]) -> None:
    w = [1.0, 4.0, 0.5]
    ours = EncodecBalancer(
        weights=w, total_norm=2.0, ema_decay=0.9, per_batch_item=per_item, num_terms=3
    )
    theirs = _Published(w, 2.0, 0.9, per_item)
    for _ in range(5):
        rows = torch.randn(3, *shape, dtype=torch.float64)
        torch.testing.assert_close(ours(rows), theirs(rows), rtol=1e-6, atol=1e-7)


def test_encodec_ignores_the_scale_of_a_loss() -> None:
    one, other = EncodecBalancer(num_terms=2), EncodecBalancer(num_terms=2)
    scale = torch.tensor([1.0, 1e4])[:, None, None]
    for _ in range(4):
        rows = torch.randn(2, 5, 3)
        torch.testing.assert_close(one(rows), other(rows * scale))


def test_encodec_cancels_opposite_losses_as_the_authors_test_does() -> None:
    x = torch.zeros(1, 1, requires_grad=True)
    one = torch.ones_like(x)
    terms = [F.l1_loss(x, one), 100 * F.l1_loss(x, -one)]
    rows = torch.stack([torch.autograd.grad(t, x)[0] for t in terms])
    assert float(EncodecBalancer(num_terms=2)(rows)) == 0
    assert float(EncodecBalancer(rescale=False, num_terms=2)(rows)) == 99


def test_encodec_without_rescaling_is_the_weighted_sum() -> None:
    rows = torch.randn(3, 4, 2)
    w = [2.0, 3.0, 0.5]
    got = EncodecBalancer(weights=w, rescale=False, num_terms=3)(rows)
    torch.testing.assert_close(got, 2 * rows[0] + 3 * rows[1] + 0.5 * rows[2])


def test_encodec_brings_each_term_to_its_share() -> None:
    balancer = EncodecBalancer(weights=[1.0, 3.0], total_norm=0.5, num_terms=2)
    rows = torch.stack([torch.randn(8, 4), torch.zeros(8, 4)])
    out = balancer(rows)  # the zero gradient gives no NaN
    assert float(out.norm(dim=1).mean()) == pytest.approx(0.5 / 4, rel=1e-5)
    assert torch.equal(EncodecBalancer(num_terms=2)(torch.zeros(2, 3)), torch.zeros(3))


def test_encodec_takes_the_terms_weights_from_the_engine() -> None:
    facts = {"num_terms": 2, "term_weights": [1.0, 3.0]}
    bound = component_of(EncodecBalancer).build(facts=facts)
    rows = torch.randn(2, 5, 3)
    expected = EncodecBalancer(weights=[1.0, 3.0], num_terms=2)(rows)
    assert torch.equal(bound({"gradients": rows}), expected)


def test_encodec_state_resumes_and_rests_in_eval() -> None:
    balancer = EncodecBalancer(num_terms=2)
    balancer(torch.randn(2, 5, 3))
    balancer.eval()
    state = {k: v.clone() for k, v in balancer.state_dict().items()}
    balancer(torch.randn(2, 5, 3))
    assert all(torch.equal(v, state[k]) for k, v in balancer.state_dict().items())
    resumed = EncodecBalancer(num_terms=2)
    resumed.load_state_dict(balancer.train().state_dict())
    for _ in range(3):
        rows = torch.randn(2, 5, 3)
        assert torch.equal(resumed(rows), balancer(rows))
    assert balancer(rows.bfloat16()).dtype == torch.bfloat16


def test_encodec_errors() -> None:
    with pytest.raises(ParameterError, match="2 terms need as many weights"):
        EncodecBalancer(weights=[1.0], num_terms=2)
    with pytest.raises(ParameterError, match="one of them above 0"):
        EncodecBalancer(weights=[0.0, 0.0], num_terms=2)
    with pytest.raises(FieldError, match="made for 2 terms"):
        EncodecBalancer(num_terms=2)(torch.randn(3, 4))
    with pytest.raises(ParameterError, match="at"):
        component_of(EncodecBalancer).build(at="parameters", num_terms=2)
