"""Dual adversarial training of a joint classifier and energy model."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from lossearch.components import component_of
from lossearch.errors import FieldError, ModelError, ParameterError
from lossearch_classification import energy
from lossearch_classification.energy import JemDatBce

B, N, C, E = 6, 8, 4, 5


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


Z, Z_B = torch.randn(2, B, C, generator=gen(1))
Z_ADV = torch.randn(N, C, generator=gen(2))
Y = torch.arange(B) % C
X = torch.randn(B, E, generator=gen(3))
OUT = 2 * torch.randn(N, E, generator=gen(4))


def network(*before: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*before, nn.Linear(E, 8), nn.Tanh(), nn.Linear(8, C))


def own(made: JemDatBce, net: Any, z: Tensor | None = None) -> Tensor:
    return made(net(X) if z is None else z, Y, model=net, inputs=X, features=OUT)


def test_values_by_a_loop() -> None:
    made = JemDatBce(bce_weight=0.3, ce_weight=2.0)
    total = 0.0
    for row in Z.tolist():
        total += math.log1p(math.exp(-math.log(sum(map(math.exp, row)))))
    for row in Z_ADV.tolist():
        total += math.log1p(math.exp(math.log(sum(map(math.exp, row)))))
    ce = F.cross_entropy(Z_B, Y).item()
    found = made(Z, Y, Z_B, Z_ADV).item()
    assert found == pytest.approx(0.3 * total / (B + N) + 2 * ce, rel=1e-5)


def test_where_g_is_0_the_bce_is_log_2() -> None:
    flat = torch.full((B, C), -math.log(C))
    found = JemDatBce(ce_weight=0.0)(flat, Y, Z_B, flat)
    assert found.item() == pytest.approx(math.log(2), rel=1e-6)


def test_without_bce_it_is_cross_entropy_of_the_attacked() -> None:
    found = JemDatBce(bce_weight=0.0)(Z, Y, Z_B, Z_ADV)
    torch.testing.assert_close(found, F.cross_entropy(Z_B, Y))


def test_the_slope_of_the_bce_is_p_minus_label() -> None:
    z, contrast = Z.clone().requires_grad_(), Z_ADV.clone().requires_grad_()
    JemDatBce()(z, Y, Z_B, contrast).backward()
    g = Z.logsumexp(1, keepdim=True)
    torch.testing.assert_close(z.grad, (g.sigmoid() - 1) * Z.softmax(1) / (B + N))
    g = Z_ADV.logsumexp(1, keepdim=True)
    torch.testing.assert_close(contrast.grad, g.sigmoid() * Z_ADV.softmax(1) / (B + N))


def test_with_both_given_no_model_is_called() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError

    made = JemDatBce()
    found = made(Z, Y, Z_B, Z_ADV, never, X, OUT)
    assert torch.equal(found, made(Z, Y, Z_B, Z_ADV))


def test_contrast_inputs_climb_g_by_the_steps_reached() -> None:
    net, made = network(), JemDatBce(contrast_step_size=0.2)
    assert torch.equal(made.contrast_inputs(net, OUT), OUT)
    made.steps = 7
    found = made.contrast_inputs(net, OUT)
    assert (net(found).logsumexp(1) > net(OUT).logsumexp(1)).all()
    length = (found - OUT).norm(dim=1)
    assert length.max() <= 7 * 0.2 + 1e-5 and length.max() > 1.0  # no ball


def test_attacked_inputs_raise_cross_entropy_in_a_ball_of_a_half() -> None:
    net = network()
    found = JemDatBce().attacked_inputs(net, X, Y)
    assert (found - X).norm(dim=1).max() <= 0.5 + 1e-6
    before = F.cross_entropy(net(X), Y, reduction="none")
    assert (F.cross_entropy(net(found), Y, reduction="none") > before).all()


def test_it_makes_what_is_not_given() -> None:
    net, made = network(), JemDatBce()
    made.steps = 3
    contrast = net(made.contrast_inputs(net, OUT))
    attacked = net(made.attacked_inputs(net, X, Y))
    expected = made(net(X), Y, attacked, contrast)
    torch.testing.assert_close(own(made, net), expected)
    torch.testing.assert_close(made(net(X), Y, attacked, None, net, X, OUT), expected)
    torch.testing.assert_close(made(net(X), Y, None, contrast, net, X), expected)
    grads = [torch.autograd.grad(v, list(net.parameters())) for v in (own(made, net), expected)]
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)
    assert all(p.grad is None for p in net.parameters())


def test_batch_norms_are_held_and_each_mode_is_given_back() -> None:
    net, made = network(nn.BatchNorm1d(E), nn.Dropout(0.0)), JemDatBce()
    made.steps = 2
    z = net(X)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    value = own(made, net, z)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())
    # real and contrast inputs alike are seen through the running statistics
    net.eval()
    torch.testing.assert_close(value, own(made, net))


def test_r1_is_half_the_mean_squared_slope() -> None:
    net, r1 = network().double(), 0.7
    x = X.double()
    value = JemDatBce(r1=r1)(net(x), Y, Z_B.double(), Z_ADV.double(), net, x)
    plain = JemDatBce()(net(x), Y, Z_B.double(), Z_ADV.double())
    total, h = 0.0, 1e-6
    with torch.no_grad():
        for i in range(B):
            for e in range(E):
                step = torch.zeros(E, dtype=torch.double)
                step[e] = h
                up, down = (net(x[i] + s * step).logsumexp(0).item() for s in (1, -1))
                total += ((up - down) / (2 * h)) ** 2
    assert (value - plain).item() == pytest.approx(r1 * total / (2 * B), rel=1e-6)
    value.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    with torch.no_grad():
        again = JemDatBce(r1=r1)(net(x), Y, Z_B.double(), Z_ADV.double(), net, x)
    torch.testing.assert_close(again, value)


def test_auc_is_that_of_sklearn_with_ties() -> None:
    for seed in range(5):
        one = torch.randint(0, 6, (17,), generator=gen(seed)).float()
        two = torch.randint(0, 5, (9,), generator=gen(seed + 9)).float()
        labels = [1] * 17 + [0] * 9
        expected = roc_auc_score(labels, torch.cat([one, two]))
        assert energy._auc(one, two) == pytest.approx(expected)


def test_the_attack_grows_when_a_thousand_inputs_are_told_apart() -> None:
    high, low, n = torch.full((250, C), 5.0), torch.full((250, C), -5.0), 250
    y = torch.zeros(n, dtype=torch.long)
    made = JemDatBce(contrast_steps=2)
    steps = []
    for _ in range(12):
        made(high, y, high, low)
        steps.append(made.steps)
    assert steps == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]  # never beyond contrast_steps
    made = JemDatBce()
    for _ in range(6):
        made(low, y, high, high)
    assert made.steps == 0 and sum(k for _, k in made.window) == 1000  # the last thousand
    for _ in range(4):  # 3 good of 4 are an AUC of 0.75 on average, 4 are 1
        assert made.steps == 0
        made(high, y, high, low)
    assert made.steps == 1 and made.window == []
    made.eval()
    for _ in range(8):
        made(high, y, high, low)
    assert made.steps == 1


def test_a_checkpoint_goes_on_alike() -> None:
    made = JemDatBce()
    made.steps = 3
    made(Z, Y, Z_B, Z_ADV)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    resumed = JemDatBce()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.steps == 3 and resumed.window == made.window and len(made.window) == 1


def test_extremes_and_an_empty_batch_are_finite() -> None:
    sign = torch.randn(B, C, generator=gen(9)).sign()
    z = (80 * sign).requires_grad_()
    value = JemDatBce()(z, Y, z, -z)
    (slope,) = torch.autograd.grad(value, z)
    assert value.isfinite() and slope.isfinite().all()
    assert JemDatBce()(Z[:0], Y[:0], Z_B[:0], Z_ADV[:0]).item() == 0
    half = JemDatBce()(Z.bfloat16(), Y, Z_B.bfloat16(), Z_ADV.bfloat16())
    assert half.dtype == torch.float32


def test_errors() -> None:
    made = JemDatBce()
    with pytest.raises(FieldError, match="lacks 'model'"):
        made(Z, Y)
    with pytest.raises(FieldError, match="lacks 'inputs'"):
        made(Z, Y, Z_B, None, network())
    with pytest.raises(FieldError, match="lacks 'features'"):
        made(Z, Y, Z_B, None, network(), X)
    with pytest.raises(FieldError, match=r"each of shape \[5\] as 'inputs' are, not \[3\]"):
        made(Z, Y, Z_B, None, network(), X, OUT[:, :3])
    with pytest.raises(FieldError, match="r1 > 0 it needs 'model' and 'inputs' always"):
        JemDatBce(r1=1.0)(Z, Y, Z_B, Z_ADV)
    with pytest.raises(FieldError, match="jem_dat_bce: target 9"):
        made(Z, torch.full_like(Y, 9), Z_B, Z_ADV)
    with pytest.raises(ModelError, match="passes no gradient to its inputs"):
        own(made, lambda x: x.detach()[:, :C], Z)
    component = component_of(JemDatBce)
    bad: list[dict[str, Any]] = [
        {"bce_weight": -1}, {"ce_weight": -1}, {"r1": -1}, {"contrast_steps": -1},
        {"contrast_step_size": 0},
    ]  # fmt: skip
    for params in bad:
        with pytest.raises(ParameterError, match=next(iter(params))):
            component.build(**params)
