from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_dynamics.reweighting import dynamic_loss, focal_weight, none

STRATEGIES = ("linupper", "quadratic", "extremes", "uniform")


def test_none_changes_no_bit() -> None:
    logits = torch.randn(8, 3, requires_grad=True)
    losses = F.cross_entropy(logits, torch.randint(3, (8,)), reduction="none")
    (plain,) = torch.autograd.grad(losses.mean(), logits, retain_graph=True)
    (weighted,) = torch.autograd.grad((losses * none(losses.detach())).mean(), logits)
    assert torch.equal(plain, weighted)


# focal_weight


def test_focal_weight_against_float64() -> None:
    logits = torch.randn(16, 5)
    targets = torch.randint(5, (16,))
    p = logits.double().softmax(1)
    expected = [(1 - p[i, y]) ** 1.5 for i, y in enumerate(targets.tolist())]
    got = focal_weight(logits, targets, gamma=1.5)
    torch.testing.assert_close(got.double(), torch.stack(expected), rtol=1e-5, atol=1e-7)
    alpha = [0.1, 0.2, 0.3, 0.4, 0.5]
    torch.testing.assert_close(
        focal_weight(logits, targets, gamma=1.5, alpha=alpha), got * torch.tensor(alpha)[targets]
    )


def test_focal_weight_of_binary_and_multilabel() -> None:
    z = torch.tensor([2.0, -1.0, 0.5])
    t = torch.tensor([1.0, 0.0, 1.0])
    p = [1 / (1 + math.exp(-2)), 1 - 1 / (1 + math.e), 1 / (1 + math.exp(-0.5))]
    expected = torch.tensor([(1 - q) ** 2 for q in p])
    torch.testing.assert_close(focal_weight(z, t), expected)
    torch.testing.assert_close(focal_weight(z[:, None], t[:, None]), expected)
    positives_first = torch.tensor([0.25, 0.75, 0.25])
    torch.testing.assert_close(focal_weight(z, t, alpha=0.25), expected * positives_first)
    labels = torch.tensor([[1.0, 0.0, -1.0]])
    torch.testing.assert_close(focal_weight(z[None], labels), expected[:2].mean()[None])


def test_focal_weight_of_gamma_0_is_none() -> None:
    logits = torch.tensor([[1e4, 0.0], [0.0, 80.0], [-80.0, 80.0]])  # p_y of exactly 1 too
    for targets in (torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0], [0, 1], [0, 1]])):
        assert torch.equal(focal_weight(logits, targets, gamma=0.0), torch.ones(3))


def test_focal_weight_is_not_the_focal_loss() -> None:
    logits = torch.randn(6, 4, requires_grad=True, dtype=torch.float64)
    targets = torch.randint(4, (6,))
    losses = F.cross_entropy(logits, targets, reduction="none")
    weights = focal_weight(logits, targets)
    assert not weights.requires_grad
    (weighted,) = torch.autograd.grad((weights * losses).sum(), logits, retain_graph=True)
    focal = ((1 - (-losses).exp()) ** 2 * losses).sum()  # the same value
    assert focal.item() == pytest.approx((weights * losses).sum().item())
    (differentiated,) = torch.autograd.grad(focal, logits, retain_graph=True)
    (plain,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(weighted, plain * weights[:, None])
    assert float((weighted - differentiated).abs().max()) > 1e-3


def test_focal_weight_normalized_has_mean_1_even_where_all_are_certain() -> None:
    logits = torch.randn(9, 3)
    targets = torch.randint(3, (9,))
    weights = focal_weight(logits, targets, normalize=True)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6)
    plain = focal_weight(logits, targets)
    torch.testing.assert_close(weights, plain / plain.mean())
    certain = torch.tensor([[1e4, 0.0], [1e4, 0.0]])
    assert torch.equal(focal_weight(certain, torch.tensor([0, 0]), normalize=True), torch.ones(2))


def test_focal_weight_at_extremes_and_in_half_precision() -> None:
    logits = torch.tensor([[80.0, -80.0], [80.0, -80.0]])
    weights = focal_weight(logits, torch.tensor([0, 1]))
    assert weights.isfinite().all() and float(weights[1]) == 1
    assert focal_weight(logits.bfloat16(), torch.tensor([0, 1])).dtype == torch.float32
    # 1 - p_y is summed, not subtracted: it survives where p_y rounds to 1
    faint = focal_weight(torch.tensor([[30.0, 0.0]]), torch.tensor([0]), gamma=1.0)
    assert float(faint) == pytest.approx(math.exp(-30), rel=1e-4)


def test_focal_weight_errors() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ParameterError, match="list of 3 factors"):
        focal_weight(logits, torch.tensor([0, 1]), alpha=0.25)
    with pytest.raises(ParameterError, match="list of 3 factors"):
        focal_weight(logits, torch.tensor([0, 1]), alpha=[0.1, 0.2])
    with pytest.raises(ParameterError, match="one number"):
        focal_weight(logits, torch.zeros(2, 3), alpha=[0.1, 0.2, 0.3])
    with pytest.raises(FieldError, match="do not go with"):
        focal_weight(logits, torch.zeros(2))
    with pytest.raises(FieldError, match="do not go with"):
        focal_weight(logits, torch.tensor([0, 1, 2]))


# focal_weight from losses alone


def test_focal_weight_from_losses_alone_takes_exp_of_them_for_the_probability() -> None:
    losses = torch.tensor([0.0, 0.1, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    got = component_of(focal_weight).build(gamma=1.5)({"losses": losses})
    assert not got.requires_grad and got.dtype == torch.float64
    assert got.tolist() == pytest.approx([(1 - math.exp(-x)) ** 1.5 for x in losses.tolist()])
    scaled = focal_weight(losses=losses, gamma=1.5, normalize=True)
    assert torch.allclose(scaled, got / got.mean())
    assert torch.equal(focal_weight(losses=losses, gamma=0.0), torch.ones_like(losses))
    assert focal_weight(losses=losses.detach().bfloat16()).dtype == torch.float32
    tiny = focal_weight(losses=torch.tensor([1e-12]), gamma=1.0)
    assert float(tiny) == pytest.approx(1e-12)  # 1 - exp(-l) would be 0


def test_focal_weight_of_cross_entropies_is_that_of_their_logits() -> None:
    logits = torch.randn(16, 5)
    targets = torch.randint(5, (16,))
    losses = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(focal_weight(losses=losses), focal_weight(logits, targets))
    z, t = torch.randn(9), torch.randint(2, (9,)).float()
    binary = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    torch.testing.assert_close(focal_weight(losses=binary), focal_weight(z, t))
    # beside logits, losses are not read
    torch.testing.assert_close(
        focal_weight(z, t, torch.full((9,), 99.0)), focal_weight(z, t), rtol=0, atol=0
    )


def test_focal_weight_from_losses_alone_refuses_what_is_no_cross_entropy() -> None:
    with pytest.raises(FieldError, match=r"a loss is -0\.5, and exp\(-loss\) is no probability"):
        focal_weight(losses=torch.tensor([1.0, -0.5]))
    with pytest.raises(FieldError, match="reads 'logits' and 'targets', or 'losses'"):
        component_of(focal_weight).build()({"epoch": 3})
    with pytest.raises(FieldError, match="with 'logits' reads 'targets' too"):
        focal_weight(torch.zeros(2, 3), losses=torch.ones(2))
    with pytest.raises(ParameterError, match="does not tell its class"):
        focal_weight(losses=torch.ones(2), alpha=[0.1, 0.2])
    unseen = torch.func.vmap(lambda x: focal_weight(losses=x))(torch.tensor([[1.0, -0.5]]))
    assert unseen.isnan().tolist() == [[False, True]]


def test_focal_weight_normalizes_over_the_samples_with_a_known_label() -> None:
    z, t = torch.randn(6), torch.tensor([1.0, -1.0, 0.0, 0.0, -1.0, 1.0])
    known = t >= 0
    got = focal_weight(z, t, normalize=True)
    torch.testing.assert_close(got[known], focal_weight(z[known], t[known], normalize=True))
    assert got[~known].tolist() == [1.0, 1.0] and float(got.mean()) == pytest.approx(1)


def test_focal_weight_refuses_a_class_that_is_none() -> None:
    with pytest.raises(FieldError, match=r"target 3 is outside \[0, 3\), the logits"):
        focal_weight(torch.zeros(2, 3), torch.tensor([0, 3]))


# dynamic_loss


def _by_loop(losses: list[float], strategy: str, r: float, delta: float = 1.0) -> list[float]:
    low, high = min(losses), max(losses)
    f = []
    for loss in losses:
        h = delta * (2 * (loss - low) / (high - low) - 1)
        f.append(
            {
                "linupper": min(h + delta, delta),
                "quadratic": 1 - h**2 / delta**2,
                "extremes": abs(h),
                "uniform": 0.0,
            }[strategy]
        )
    e = [math.exp(x / r) for x in f]
    return [len(losses) * x / sum(e) for x in e]


def test_dynamic_loss_by_hand() -> None:
    weights = dynamic_loss(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    expected = torch.tensor([1, math.e, math.e], dtype=torch.float64) * 3 / (1 + 2 * math.e)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("r", [0.1, 1.0, 10.0])
def test_dynamic_loss_against_a_loop(strategy: str, r: float) -> None:
    losses = torch.rand(17, dtype=torch.float64) * 5
    got = dynamic_loss(losses, strategy=strategy, temperature=r, delta=0.7)
    expected = torch.tensor(_by_loop(losses.tolist(), strategy, r, 0.7), dtype=torch.float64)
    torch.testing.assert_close(got, expected)
    assert float(got.sum()) == pytest.approx(17)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dynamic_loss_facts(strategy: str) -> None:
    losses = torch.rand(13, dtype=torch.float64)
    weights = dynamic_loss(losses, strategy=strategy, temperature=0.3)
    torch.testing.assert_close(
        dynamic_loss(4 * losses - 7, strategy=strategy, temperature=0.3), weights
    )
    top = math.exp(1 / 0.3)
    assert float(weights.max()) <= 13 * top / (top + 12) + 1e-12
    assert torch.equal(dynamic_loss(torch.full((49,), 0.3), strategy=strategy), torch.ones(49))
    assert torch.equal(dynamic_loss(torch.tensor([2.5]), strategy=strategy), torch.ones(1))
    level = dynamic_loss(losses, strategy=strategy, temperature=1e9)
    torch.testing.assert_close(level, torch.ones_like(losses))
    huge = dynamic_loss(torch.tensor([-1e30, 0.0, 1e30]), strategy=strategy, temperature=0.1)
    assert huge.isfinite().all()


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_dynamic_loss_anneals_the_temperature(anneal: str) -> None:
    losses = torch.rand(6, dtype=torch.float64)

    def weights(step: int) -> Tensor:
        return dynamic_loss(losses, step, 100, temperature=0.5, anneal=anneal, anneal_fraction=0.2)

    half = 10 + (0.5 - 10) * 0.5  # both schedules cross in the middle
    for step, r in [(0, 10.0), (10, half), (20, 0.5), (99, 0.5)]:
        torch.testing.assert_close(weights(step), dynamic_loss(losses, temperature=r))
    quarter = {"linear": 0.25, "cosine": (1 - math.cos(math.pi / 4)) / 2}[anneal]
    torch.testing.assert_close(weights(5), dynamic_loss(losses, temperature=10 - 9.5 * quarter))
    at_once = dynamic_loss(losses, 0, 100, anneal=anneal, anneal_fraction=0.0)
    torch.testing.assert_close(at_once, dynamic_loss(losses))


def test_dynamic_loss_runs_under_vmap() -> None:
    losses = torch.rand(3, 7)
    r = torch.tensor([0.2, 1.0, 5.0])
    stacked = torch.func.vmap(
        lambda x, t: dynamic_loss(x, 3, 10, temperature=t, anneal="cosine", anneal_fraction=0.5)
    )(losses, r)
    for i in range(3):
        single = dynamic_loss(
            losses[i], 3, 10, temperature=float(r[i]), anneal="cosine", anneal_fraction=0.5
        )
        torch.testing.assert_close(stacked[i], single)


def test_dynamic_loss_errors() -> None:
    with pytest.raises(FieldError, match="reads 'step' and 'total_steps'"):
        dynamic_loss(torch.rand(3), anneal="linear")
    with pytest.raises(ParameterError, match="temperature"):
        component_of(dynamic_loss).build(temperature=0.0)
    with pytest.raises(ParameterError, match="strategy"):
        component_of(dynamic_loss).build(strategy="linuper")


def test_focal_weight_runs_under_vmap() -> None:
    logits, gamma = torch.randn(3, 6, 4), torch.tensor([0.0, 0.5, 5.0])
    for targets in (torch.randint(4, (6,)), torch.randint(2, (6, 4)).float()):
        stacked = torch.func.vmap(
            lambda z, g, t=targets: focal_weight(z, t, gamma=g, normalize=True)
        )(logits, gamma)
        for i in range(3):
            torch.testing.assert_close(
                stacked[i],
                focal_weight(logits[i], targets, gamma=float(gamma[i]), normalize=True),
            )


def test_weights_are_detached_and_no_half() -> None:
    losses = torch.rand(5, requires_grad=True)
    for weights in (none(losses), dynamic_loss(losses)):
        assert not weights.requires_grad
    assert dynamic_loss(losses.detach().bfloat16()).dtype == torch.float32
