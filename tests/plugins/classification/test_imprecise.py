"""Imprecise labels by expectation-maximisation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch.testing import run_checks
from lossearch_classification.imprecise import ImpreciseLabel

C = 4


def module(**params: Any) -> ImpreciseLabel:
    made = component_of(ImpreciseLabel).build(num_classes=C, **params).module
    assert isinstance(made, ImpreciseLabel)
    return made.double()


def views(n: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a, b = 2 * torch.randn(2, n, C, generator=g, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


def ce(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


MASK = torch.tensor(
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]
)
Y = torch.tensor([0, 3, 2, 1, 1, 0])


# partial --------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["log_sum", "complement"])
def test_partial_by_a_loop(term: Any) -> None:
    a, b = views()
    p, r = a.softmax(1).tolist(), b.softmax(1).tolist()
    expected = []
    for row in range(6):
        inside = [c for c in range(C) if MASK[row, c]]
        mass = sum(p[row][c] for c in inside)
        value = -sum(p[row][c] / mass * math.log(r[row][c]) for c in inside)
        if term == "log_sum":
            value -= math.log(mass)
        else:
            value -= sum(math.log(1 - p[row][c]) for c in range(C) if c not in inside)
        expected.append(value)
    loss = module(mode="partial", candidate_term=term)
    torch.testing.assert_close(loss(a, b, MASK), torch.tensor(expected).double())
    torch.testing.assert_close(loss(a, b, MASK.bool()), loss(a, b, MASK.double()))


def test_partial_with_one_candidate_is_cross_entropy_of_both_views() -> None:
    a, b = views()
    value = module(mode="partial")(a, b, F.one_hot(Y, C))
    torch.testing.assert_close(value, ce(a, Y) + ce(b, Y))


@pytest.mark.parametrize("term", ["log_sum", "complement"])
def test_partial_with_all_candidates_is_consistency_alone(term: Any) -> None:
    a, b = views()
    value = module(mode="partial", candidate_term=term)(a, b, torch.ones(6, C))
    torch.testing.assert_close(value, F.cross_entropy(b, a.softmax(1), reduction="none"))


def test_the_posterior_is_constant() -> None:
    a, b = views()
    value = module(mode="partial")(a, b, torch.ones(6, C)).sum()
    to_weak, to_strong = torch.autograd.grad(value, (a, b))
    torch.testing.assert_close(to_weak, torch.zeros_like(a))  # only the candidate term, 0 here
    torch.testing.assert_close(to_strong, (b.softmax(1) - a.softmax(1)).detach())


@pytest.mark.parametrize("term", ["log_sum", "complement"])
def test_partial_at_extremes(term: Any) -> None:
    z = 80 * torch.tensor([[1.0, -1, -1, -1], [-1, 1, 1, -1], [-1, -1, -1, -1], [1, 1, -1, 1]])
    a, b = z.clone().requires_grad_(), (-z).requires_grad_()
    mask = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]])
    loss = component_of(ImpreciseLabel).build(
        num_classes=C, mode="partial", candidate_term=term, balance=1.0
    )
    value = loss({"logits": a, "logits_b": b, "targets": mask})
    value.sum().backward()
    assert value.isfinite().all()
    assert a.grad is not None and a.grad.isfinite().all()
    assert b.grad is not None and b.grad.isfinite().all()


def test_a_sure_wrong_class_is_pushed_down_by_the_complement() -> None:
    # p_0 rounds to 1 in float32, so log(1 - p_0) is not to be had from it: -160 + log 3.
    a = torch.tensor([[80.0, -80, -80, -80]], requires_grad=True)
    b = torch.zeros(1, C)
    loss = component_of(ImpreciseLabel).build(
        num_classes=C, mode="partial", candidate_term="complement"
    )
    value = loss({"logits": a, "logits_b": b, "targets": torch.tensor([[0, 1, 1, 1]])})
    assert value.item() == pytest.approx(160 - math.log(3) + math.log(C), rel=1e-6)
    value.sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, torch.tensor([[1, -1 / 3, -1 / 3, -1 / 3]]))


def test_partial_refuses_rows_without_a_candidate() -> None:
    a, b = views()
    mask = MASK.clone()
    mask[2] = 0
    with pytest.raises(FieldError, match="row 2 has no candidate"):
        module(mode="partial")(a, b, mask)
    with pytest.raises(FieldError, match="of 0 and 1 alone"):
        module(mode="partial")(a, b, MASK * 2)
    with pytest.raises(FieldError, match="candidate mask"):
        module(mode="partial")(a, b, Y)


# noisy ----------------------------------------------------------------------------------------


def test_noisy_by_a_loop() -> None:
    a, b = views()
    loss = module(mode="noisy")
    with torch.no_grad():
        loss.T.add_(torch.randn(C, C, generator=torch.Generator().manual_seed(1)))
    q = loss.T.softmax(1).tolist()  # row: the true class
    p, r = a.softmax(1).tolist(), b.softmax(1).tolist()
    expected = []
    for row, seen in enumerate(Y.tolist()):
        joint = [p[row][c] * q[c][seen] for c in range(C)]
        other = [r[row][c] * q[c][seen] for c in range(C)]
        value = -math.log(sum(joint))
        for c in range(C):
            value -= joint[c] / sum(joint) * math.log(other[c] / sum(other))
            value -= p[row][c] * math.log(r[row][c])
        expected.append(value)
    torch.testing.assert_close(loss(a, b, Y), torch.tensor(expected).double())


def test_noisy_starts_at_a_scaled_identity() -> None:
    torch.testing.assert_close(module(noise_scale=3.0).T.detach(), 3 * torch.eye(C).double())


def test_noisy_without_noise() -> None:
    a, b = views()
    value = module(mode="noisy", noise_scale=60.0)(a, b, Y)
    consistency = F.cross_entropy(b, a.softmax(1), reduction="none")
    torch.testing.assert_close(value, ce(a, Y) + consistency)


def test_noise_is_learned_from_the_first_term_alone() -> None:
    a, b = views()
    loss = module(mode="noisy")
    (slope,) = torch.autograd.grad(loss(a, b, Y).sum(), loss.T)
    seen = -(a.softmax(1) @ loss.T.softmax(1)).gather(1, Y[:, None]).log().sum()
    (alone,) = torch.autograd.grad(seen, loss.T)
    torch.testing.assert_close(slope, alone)
    assert slope.abs().sum() > 0


def test_noise_is_found() -> None:
    # The network is sure and right; class 0 is seen as 1 in 2 of 5 cases.
    truth = torch.arange(C).repeat(5)
    seen = torch.where((truth == 0) & (torch.arange(5 * C) < 2 * C), 1, truth)
    z = 20.0 * F.one_hot(truth, C).double()
    loss = module(mode="noisy")
    for _ in range(150):
        (slope,) = torch.autograd.grad(loss(z, z, seen).mean(), loss.T)
        loss.T.data -= 10 * slope
    found = loss.T.detach().softmax(1)
    torch.testing.assert_close(
        found[0], torch.tensor([0.6, 0.4, 0, 0]).double(), atol=0.02, rtol=0
    )
    assert (found.diag()[1:] > 0.98).all()


def test_noisy_refuses_unlabelled() -> None:
    a, b = views()
    with pytest.raises(FieldError, match="target -1"):
        module()(a, b, torch.tensor([0, 1, -1, 2, 3, 0]))


# semi -----------------------------------------------------------------------------------------

SOME = torch.tensor([0, -1, 2, -1, -1, 0])


def test_semi_by_a_loop() -> None:
    a, b = views()
    loss = module(mode="semi", average_decay=0.9)
    value = loss(a, b, SOME)
    p, r = a.softmax(1).tolist(), b.softmax(1).tolist()
    rows = [1, 3, 4]
    average = [0.9 / C + 0.1 * sum(p[i][c] for i in rows) / 3 for c in range(C)]
    torch.testing.assert_close(loss.average, torch.tensor(average).double())
    for i, y in enumerate(SOME.tolist()):
        if y >= 0:
            expected = -math.log(p[i][y])
        else:
            q = [p[i][c] / average[c] for c in range(C)]
            expected = -sum(q[c] / sum(q) * math.log(r[i][c]) for c in range(C))
        assert value[i].item() == pytest.approx(expected, rel=1e-6)


def test_semi_with_every_row_labelled_is_cross_entropy() -> None:
    a, b = views()
    loss = module(mode="semi")
    torch.testing.assert_close(loss(a, b, Y), ce(a, Y))
    torch.testing.assert_close(loss.average, torch.full((C,), 1 / C).double())


def test_semi_keeps_its_average_in_evaluation() -> None:
    a, b = views()
    loss = module(mode="semi").eval()
    loss(a, b, SOME)
    torch.testing.assert_close(loss.average, torch.full((C,), 1 / C).double())


def test_semi_survives_a_class_that_died_out() -> None:
    loss = module(mode="semi", average_decay=0.0)
    z = torch.full((2, C), -400.0, dtype=torch.float64)
    z[:, 0] = 400
    loss(z, z, torch.tensor([-1, -1]))
    assert loss.average[1] == 0
    assert loss(z, z, torch.tensor([-1, -1])).isfinite().all()


def test_semi_refuses_other_negative_targets() -> None:
    a, b = views()
    with pytest.raises(FieldError, match="target -2"):
        module(mode="semi")(a, b, torch.tensor([0, 1, -2, 2, 3, -1]))


# balance, and all -----------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "targets"), [("partial", MASK), ("noisy", Y), ("semi", SOME)])
def test_balance_comes_to_every_sample(mode: Any, targets: Tensor) -> None:
    a, b = views()
    without = module(mode=mode)(a, b, targets)
    balanced = module(mode=mode, balance=0.1)(a, b, targets)
    mean = a.softmax(1).mean(0).clamp(min=1e-6)  # as the authors write it
    torch.testing.assert_close(balanced - without, (-0.1 * mean.log().mean()).expand(6))


def test_balance_revives_a_class_that_vanished() -> None:
    a = torch.tensor([[80.0, -80, 0, 0]] * 3, requires_grad=True)
    loss = component_of(ImpreciseLabel).build(num_classes=C, balance=1.0)
    fields = {"logits": a, "logits_b": a.detach(), "targets": torch.zeros(3).long()}
    loss(fields).sum().backward()
    assert a.grad is not None and (a.grad[:, 1] < -0.1).all()


@pytest.mark.parametrize("mode", ["partial", "semi"])
def test_the_other_modes_conform(mode: Any) -> None:
    a = torch.randn(5, C)
    targets = MASK[:5] if mode == "partial" else SOME[:5]
    loss = component_of(ImpreciseLabel).build(num_classes=C, mode=mode, balance=0.1)
    fields = {"logits": a, "logits_b": a.flip(0), "targets": targets}
    value = loss(fields)
    assert value.shape == (5,) and value.dtype == torch.float32
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in fields.items()}
    assert loss(half).dtype == torch.float32
    assert loss({k: v[:0] for k, v in fields.items()}).shape == (0,)
    assert not list(loss.parameters())


def test_conformance() -> None:
    failed = [result for result in run_checks(ImpreciseLabel) if not result.ok]
    assert not failed


def test_state_travels() -> None:
    a, b = views()
    loss = module(mode="semi", average_decay=0.9)
    loss(a, b, SOME)
    other = module(mode="semi", average_decay=0.9)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(a, b, SOME), loss(a, b, SOME))


def test_refusals() -> None:
    a, b = views()
    with pytest.raises(FieldError, match="built for 4 classes"):
        module()(a[:, :3], b[:, :3], Y)
    with pytest.raises(FieldError, match="another view"):
        module()(a, b[:3], Y)
    for wrong in ({"noise_scale": 0}, {"average_decay": 1.0}, {"balance": -1}, {"mode": "x"}):
        with pytest.raises(ParameterError):
            module(**wrong)
    with pytest.raises(ParameterError, match="num_classes"):
        component_of(ImpreciseLabel).build()
