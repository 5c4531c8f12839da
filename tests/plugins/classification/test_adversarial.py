"""The smooth adversarial comp-sum loss."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossearch.components import component_of
from lossearch.errors import FieldError, ModelError, ParameterError
from lossearch_classification.adversarial import SmoothAdversarialCompSum
from lossearch_classification.robust import comp_sum

B, C, E = 6, 4, 5


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


Z = torch.randn(B, C, generator=gen(1))
Z_ADV = Z + 0.5 * torch.randn(B, C, generator=gen(2))
Y = torch.arange(B) % C
X = torch.randn(B, E, generator=gen(3))


def network(*before: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*before, nn.Linear(E, 8), nn.Tanh(), nn.Linear(8, C))


def margins(z: Tensor, y: int) -> list[float]:
    return [(z[y] - z[c]).item() for c in range(C) if c != y]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_values_by_a_loop(tau: float) -> None:
    rho, nu = 0.7, 0.3
    made = SmoothAdversarialCompSum(tau=tau, rho=rho, nu=nu)
    found = made(Z.double(), Y, logits_adv=Z_ADV.double())
    for i in range(B):
        clean, moved = margins(Z[i].double(), int(Y[i])), margins(Z_ADV[i].double(), int(Y[i]))
        u = sum(math.exp(-d / rho) for d in clean)
        phi = math.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
        shift = math.sqrt(sum((a - b) ** 2 for a, b in zip(moved, clean, strict=True)))
        assert found[i].item() == pytest.approx(phi + nu * shift, rel=1e-5)


def test_without_nu_it_is_comp_sum() -> None:
    for tau in (0.0, 1.0, 1.7):
        found = SmoothAdversarialCompSum(tau=tau, nu=0.0)(Z, Y, logits_adv=Z_ADV)
        torch.testing.assert_close(found, comp_sum(Z, Y, tau=tau))


def test_what_has_not_moved_costs_nothing_and_has_a_finite_slope() -> None:
    made = SmoothAdversarialCompSum(rho=2.0)
    still = Z.clone().requires_grad_()
    found = made(Z, Y, logits_adv=still)
    assert torch.equal(found, comp_sum(Z / 2.0, Y, tau=1.0))
    (slope,) = torch.autograd.grad(found.sum(), still)
    assert slope.isfinite().all()
    shifted = made(Z, Y, logits_adv=Z + 3.0)  # margins do not see a shift of a row
    torch.testing.assert_close(shifted, found.detach(), atol=1e-5, rtol=0)


def test_without_a_ball_it_is_the_first_term() -> None:
    net = network()
    z = net(X)
    for norm in ("linf", "l2"):
        made = SmoothAdversarialCompSum(norm=norm, epsilon=0.0)
        torch.testing.assert_close(made(z, Y, net, X), comp_sum(z, Y, tau=1.0))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_a_large_nu_bounds_the_adversarial_margin_loss(tau: float) -> None:
    rho = 0.8
    made = SmoothAdversarialCompSum(tau=tau, rho=rho, nu=math.sqrt(C - 1) / rho)
    worst = 0.0
    for seed in range(50):
        z = torch.randn(B, C, generator=gen(seed)).double() * 2
        z_adv = z + torch.randn(B, C, generator=gen(seed + 100)) * 2
        gaps = z_adv.gather(1, Y[:, None]) - z_adv
        ramp = (1 - gaps / rho).clamp(0, 1).scatter(1, Y[:, None], 0.0).sum(1)
        loss = ramp.log1p() if tau == 1 else ((1 + ramp) ** (1 - tau) - 1) / (1 - tau)
        bound = made(z, Y, logits_adv=z_adv)
        assert (loss <= bound).all()
        worst = max(worst, float((loss / bound).max()))
    assert worst > 0.05  # and not by far


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_moves_the_margins_within_the_ball(norm: Any) -> None:
    net = network()
    made = SmoothAdversarialCompSum(norm=norm, epsilon=0.3, clip_min=-1.0, clip_max=1.0)
    x = X.clamp(-1, 1)
    found = made.attack(net, x, Y)
    size = (found - x).abs().amax(1) if norm == "linf" else (found - x).norm(dim=1)
    assert size.max() <= 0.3 + 1e-6 and found.abs().max() <= 1

    def moved(other: Tensor) -> Tensor:
        shift = net(other) - net(x)
        return (shift.gather(1, Y[:, None]) - shift).norm(dim=1)

    tries = [x + 0.3 * F.normalize(torch.randn(x.shape, generator=gen(s))) for s in range(20)]
    assert (moved(found) > torch.stack([moved(t.clamp(-1, 1)) for t in tries]).mean(0)).all()


def test_both_terms_teach_the_network_and_the_attack_leaves_no_gradient() -> None:
    net = network()
    made = SmoothAdversarialCompSum(epsilon=0.2)
    z = net(X)
    value = made(z, Y, net, X)
    assert all(p.grad is None for p in net.parameters())
    twin = copy.deepcopy(made)
    twin.generator.manual_seed(0)
    x_adv = twin.attack(net, X, Y)
    torch.testing.assert_close(value, made(z, Y, logits_adv=net(x_adv)))
    value.sum().backward()
    second = copy.deepcopy(net)
    second.zero_grad()
    made(second(X), Y, logits_adv=second(x_adv)).sum().backward()
    for one, two in zip(net.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_the_attack_runs_in_evaluation_mode_and_the_forward_in_the_networks_own() -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(nn.BatchNorm1d(E))
            self.modes: list[bool] = []

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.modes.append(self.training)
            return {"logits": self.inner(x)}

    net = Watched()
    z = net(X)["logits"]
    SmoothAdversarialCompSum(steps=3)(z, Y, net, X)
    assert net.modes == [True, False, False, False, False, True]
    assert all(m.training for m in net.modules())
    norm = net.inner[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert int(norm.num_batches_tracked or 0) == 2  # the clean and the attacked inputs


def test_with_logits_adv_no_model_is_called() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError

    made = SmoothAdversarialCompSum()
    assert torch.equal(made(Z, Y, never, X, Z_ADV), made(Z, Y, logits_adv=Z_ADV))


def test_the_start_is_random_in_training_and_the_same_in_evaluation() -> None:
    net = network().eval()
    made = SmoothAdversarialCompSum(epsilon=0.5, steps=1, seed=3)
    first, second = made.attack(net, X, Y), made.attack(net, X, Y)
    assert not torch.equal(first, second)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    again = SmoothAdversarialCompSum(epsilon=0.5, steps=1, seed=8)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(made.attack(net, X, Y), again.attack(net, X, Y))
    made.eval()
    before = made.get_extra_state()["generator"]
    assert torch.equal(made.attack(net, X, Y), made.attack(net, X, Y))
    assert torch.equal(before, made.get_extra_state()["generator"])


def test_a_step_is_a_quarter_of_the_ball_unless_it_is_given() -> None:
    net = network()
    made, given = (
        SmoothAdversarialCompSum(epsilon=0.4, steps=3),
        SmoothAdversarialCompSum(epsilon=0.4, steps=3, step_size=0.1),
    )
    assert torch.equal(made.attack(net, X, Y), given.attack(net, X, Y))


def test_training_by_it_makes_a_network_robust() -> None:
    x = torch.randn(100, E, generator=gen(5))
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()

    def trained(nu: float) -> float:
        net, made = network(), SmoothAdversarialCompSum(nu=nu, epsilon=0.3, steps=2)
        optimizer = torch.optim.Adam(net.parameters(), 0.05)
        for _ in range(25):
            optimizer.zero_grad()
            made(net(x), y, net, x).mean().backward()
            optimizer.step()
        with torch.no_grad():
            shift = net(made.attack(net, x, y)) - net(x)
        return (shift.gather(1, y[:, None]) - shift).norm(dim=1).mean().item()

    assert trained(1.0) < 0.5 * trained(0.0)


def test_errors() -> None:
    made = SmoothAdversarialCompSum()
    with pytest.raises(FieldError, match=r"'model' and 'inputs'.*'logits_adv' in their place"):
        made(Z, Y)
    with pytest.raises(FieldError, match="logits_adv of that shape"):
        made(Z, Y, logits_adv=Z_ADV[1:])
    with pytest.raises(FieldError, match=r"smooth_adversarial_comp_sum: target 9 is outside"):
        made(Z, torch.full_like(Y, 9), logits_adv=Z_ADV)
    with pytest.raises(ModelError, match="passes no gradient to its inputs"):
        made(Z, Y, lambda x: Z * 1.0, X)
    component = component_of(SmoothAdversarialCompSum)
    bad: list[dict[str, Any]] = [
        {"tau": -0.1}, {"rho": 0}, {"nu": -1}, {"epsilon": -1}, {"steps": 0}, {"norm": "l1"},
    ]  # fmt: skip
    for params in bad:
        with pytest.raises(ParameterError, match=next(iter(params))):
            component.build(**params)


def test_no_input_would_be_legal() -> None:
    component = component_of(SmoothAdversarialCompSum)
    with pytest.raises(ParameterError, match="clip_min = 1 is above clip_max = 0"):
        component.build(clip_min=1.0, clip_max=0.0)
    component.build(clip_min=0.0, clip_max=0.0)
    component.build(clip_min=1.0)
