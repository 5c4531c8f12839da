"""Likelihood of unnormalised densities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch.testing import run_checks
from lossearch_classification.density import UnnormalizedNll


def module(**params: Any) -> UnnormalizedNll:
    made = component_of(UnnormalizedNll).build(**params).module
    assert isinstance(made, UnnormalizedNll)
    return made.double()


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    f, noise, log_q, data_q = torch.randn(4, 5, generator=g, dtype=torch.float64)
    return f.requires_grad_(), noise[:4].clone().requires_grad_(), log_q[:4], data_q


def log_mean(values: list[float]) -> float:
    return math.log(sum(math.exp(v) for v in values) / len(values))


def test_meco_by_a_loop() -> None:
    loss = module(gamma=0.3)
    u = None
    for seed in range(4):
        f, noise, log_q, _ = draw(seed)
        value = loss(f, noise, log_q)
        ratio = [a - b for a, b in zip(noise.tolist(), log_q.tolist(), strict=True)]
        now = math.exp(log_mean(ratio))
        u = now if u is None else 0.7 * u + 0.3 * now
        expected = -sum(f.tolist()) / 5 + math.log(u)
        assert value.item() == pytest.approx(expected, rel=1e-12)
        # -1/B for each sample; for the noise the derivative of the estimate over u
        slopes = torch.autograd.grad(value, (f, noise))
        torch.testing.assert_close(slopes[0], torch.full((5,), -0.2).double())
        expected_noise = torch.tensor([math.exp(r) / 4 / u for r in ratio]).double()
        torch.testing.assert_close(slopes[1], expected_noise)
    assert u is not None
    assert loss.log_u.item() == pytest.approx(math.log(u), rel=1e-12)


def test_meco_at_gamma_1_is_importance_sampled_likelihood() -> None:
    loss = module(gamma=1.0)
    for seed in range(3):
        f, noise, log_q, _ = draw(seed)
        value = loss(f, noise, log_q)
        plain = -f.mean() + (noise - log_q).logsumexp(0) - math.log(4)
        torch.testing.assert_close(value, plain)
        torch.testing.assert_close(
            torch.autograd.grad(value, (f, noise)), torch.autograd.grad(plain, (f, noise))
        )


def test_a_constant_shift_is_seen_by_nce_alone() -> None:
    f, noise, log_q, data_q = draw()
    meco, nce = module(gamma=1.0), module(mode="nce")
    torch.testing.assert_close(meco(f + 3, noise + 3, log_q), meco(f, noise, log_q))
    shifted, plain = nce(f + 3, noise + 3, log_q, data_q), nce(f, noise, log_q, data_q)
    assert (shifted - plain).abs() > 0.1


def test_a_normalised_model_needs_no_correction() -> None:
    f, _, log_q, _ = draw()
    torch.testing.assert_close(module()(f, log_q, log_q), -f.mean())


def test_nce_by_a_loop() -> None:
    f, noise, log_q, data_q = draw()
    k = 4 / 5
    real = [
        math.log1p(math.exp(-(a - b - math.log(k))))
        for a, b in zip(f.tolist(), data_q.tolist(), strict=True)
    ]
    fake = [
        math.log1p(math.exp(a - b - math.log(k)))
        for a, b in zip(noise.tolist(), log_q.tolist(), strict=True)
    ]
    expected = sum(real) / 5 + k * sum(fake) / 4
    value = module(mode="nce")(f, noise, log_q, data_q)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradients_of_nce() -> None:
    f, noise, log_q, data_q = draw()
    loss = module(mode="nce")
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, log_q, data_q), (f, noise))


@pytest.mark.parametrize("mode", ["meco", "nce"])
def test_extremes(mode: Any) -> None:
    f = torch.tensor([80.0, -80], requires_grad=True)
    noise = torch.tensor([80.0, -80, 80], requires_grad=True)
    loss = component_of(UnnormalizedNll).build(mode=mode, gamma=0.05)
    for sign in (1, -1, 1):
        fields = {
            "logits": sign * f,
            "noise_scores": sign * noise,
            "noise_logq": torch.zeros(3),
            "data_logq": torch.zeros(2),
        }
        value = loss(fields)
        slopes = torch.autograd.grad(value, (f, noise))
        assert value.isfinite() and all(s.isfinite().all() for s in slopes)


def test_meco_finds_the_mean_of_a_gaussian() -> None:
    # f = -(x - m)^2 / 2 + c on data about 1.5, noise from N(0, 2): c is free, m is found.
    g = torch.Generator().manual_seed(0)
    m = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = module(gamma=0.5)
    for _ in range(200):
        x = 1.5 + torch.randn(200, generator=g, dtype=torch.float64)
        noise = 2 * torch.randn(500, generator=g, dtype=torch.float64)
        log_q = -noise.square() / 8 - math.log(2 * math.sqrt(2 * math.pi))
        value = loss(-(x - m).square() / 2, -(noise - m).square() / 2, log_q)
        m.data -= 0.1 * torch.autograd.grad(value, m)[0]
    assert m.item() == pytest.approx(1.5, abs=0.15)
    # and u is the normaliser, sqrt(2 pi)
    assert loss.log_u.item() == pytest.approx(0.5 * math.log(2 * math.pi), abs=0.1)


def test_evaluation_keeps_the_average() -> None:
    f, noise, log_q, _ = draw()
    loss = module(gamma=0.5)
    loss(f, noise, log_q)
    kept = loss.log_u.clone()
    loss.eval()(f, noise + 1, log_q)
    torch.testing.assert_close(loss.log_u, kept)


def test_a_column_of_scores_will_do() -> None:
    f, noise, log_q, _ = draw()
    torch.testing.assert_close(
        module()(f.unsqueeze(1), noise.unsqueeze(1), log_q), module()(f, noise, log_q)
    )


def test_refusals() -> None:
    f, noise, log_q, data_q = draw()
    with pytest.raises(FieldError, match="data_logq"):
        module(mode="nce")(f, noise, log_q)
    with pytest.raises(FieldError, match="data_logq"):
        module(mode="nce")(f, noise, log_q, data_q[:2])
    with pytest.raises(FieldError, match="'data_logq'"):
        component_of(UnnormalizedNll).build(mode="nce")(
            {"logits": f, "noise_scores": noise, "noise_logq": log_q}
        )
    with pytest.raises(FieldError, match="noise_logq"):
        module()(f, noise, log_q[:2])
    with pytest.raises(FieldError, match="N >= 1"):
        module()(f, noise[:0], log_q[:0])
    with pytest.raises(FieldError, match="one number a sample of logits"):
        module()(torch.zeros(3, 2), noise, log_q)
    for gamma in (0, 1.1):
        with pytest.raises(ParameterError, match="gamma"):
            module(gamma=gamma)


def test_conformance() -> None:
    assert not [r for r in run_checks(UnnormalizedNll) if not r.ok]
