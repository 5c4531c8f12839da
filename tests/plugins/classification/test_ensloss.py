"""EnsLoss: random calibrated slopes."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import Bound, component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.ensloss import EnsLoss


def build(**params: Any) -> Bound:
    return component_of(EnsLoss).build(**params)


def module(**params: Any) -> EnsLoss:
    made = build(**params).module
    assert isinstance(made, EnsLoss)
    return made


def make(n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(n, generator=g, dtype=torch.float64)
    return z, torch.randint(0, 2, (n,), generator=g).double(), torch.randn(n, generator=g).double()


def oracle(z: list[float], t: list[float], r: list[float], lam: float) -> list[float]:
    """The slopes, as in the author's code, with loops."""
    s = [(2 * label - 1) * logit for logit, label in zip(z, t, strict=True)]
    slopes = []
    for draw in r:
        base = 1 + lam * draw
        if lam == 0:
            slopes.append(-math.exp(draw))
        elif base > 0:
            slopes.append(-(base ** (1 / lam)))
        else:
            slopes.append(0.0 if lam > 0 else -math.inf)
    slopes = [max(v, -1.0) for v in sorted(slopes)]
    out = [0.0] * len(s)
    for rank, i in enumerate(sorted(range(len(s)), key=lambda i: s[i])):
        out[i] = (slopes[rank] / s[i] if s[i] > 1 else slopes[rank]) - 1e-6
    return out


@pytest.mark.parametrize("lam", [-1.0, -0.3, 0.0, 0.5, 1.0])
def test_by_a_loop(lam: float) -> None:
    z, t, r = make()
    z.requires_grad_()
    value = build(lam_init=lam)({"logits": z, "targets": t, "draws": r})
    slopes = torch.tensor(oracle(z.tolist(), t.tolist(), r.tolist(), lam), dtype=z.dtype)
    torch.testing.assert_close(value, slopes * (2 * t - 1) * z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    exact = module(lam_init=lam).slopes(((2 * t - 1) * z).detach(), r)
    assert torch.equal(slope, exact * (2 * t - 1))


def test_by_hand() -> None:
    logits = torch.tensor([2.0, 0.5, 3.0], requires_grad=True)  # margins 2, 0.5, -3
    draws = torch.tensor([-1.0, 1.0, -2.0])  # slopes -e^-1, -1 (floored), -e^-2
    value = build()({"logits": logits, "targets": torch.tensor([1.0, 1, 0]), "draws": draws})
    value.sum().backward()
    shift, half = 1e-6, math.exp(-1)
    expected = [-math.exp(-2) / 2 - shift, -half - shift, 1 + shift]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor(expected))


@pytest.mark.parametrize("lam", [-1.0, -0.5, 0.0, 1e-9, 0.7, 1.0])
@pytest.mark.parametrize("tail", ["superlinear", "none"])
def test_slopes_are_those_of_a_convex_calibrated_loss(lam: float, tail: str) -> None:
    ens = module(lam_init=lam, tail=tail)
    for _ in range(20):
        margins = 3 * torch.randn(50, generator=ens.generator)
        slopes = ens.slopes(margins)
        assert (slopes[margins.argsort()].diff() >= 0).all()
        assert (slopes < 0).all() and (slopes >= -1 - 1.1e-6).all()


def test_a_tiny_lambda_is_the_limit() -> None:
    draws, margins = torch.linspace(-3, 0, 7), torch.linspace(-2, 0, 7)
    torch.testing.assert_close(
        module(lam_init=1e-9).slopes(margins, draws), module().slopes(margins, draws)
    )


def test_the_floor_and_the_shift() -> None:
    draws, margins = torch.tensor([3.0, -20.0]), torch.tensor([-1.0, 0.0])
    got = module(floor=0.25, floor_shift=0.5).slopes(margins, draws)
    torch.testing.assert_close(got, torch.tensor([-0.75, -0.5]), atol=1e-6, rtol=0)


def test_equal_margins_get_adjacent_ranks_in_their_order() -> None:
    draws = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    got = module(floor_shift=0.0).slopes(torch.tensor([0.5, -1.0, 0.5, 0.5]), draws)
    torch.testing.assert_close(got, -torch.tensor([-2.0, -1.0, -3.0, -4.0]).exp())


def test_the_slope_is_by_the_margin_alone() -> None:
    """Nothing is differentiated through the ranks or the tail."""
    z = torch.tensor([5.0, 10.0], requires_grad=True)
    fields = {"logits": z, "targets": torch.ones(2), "draws": torch.zeros(2)}
    build()(fields).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.tensor([-0.2 - 1e-6, -0.1 - 1e-6]))


# --- state


def test_the_same_seed_draws_alike_and_another_does_not() -> None:
    z, t, _ = make()
    batch = {"logits": z, "targets": t}
    first, again, other = build(seed=3), build(seed=3), build(seed=4)
    values = [first(batch), first(batch)]
    assert not torch.equal(*values)  # every batch has its own loss
    assert torch.equal(values[0], again(batch)) and torch.equal(values[1], again(batch))
    assert not torch.equal(values[0], other(batch))


def test_the_global_generator_is_left_alone() -> None:
    z, t, _ = make()
    before = torch.get_rng_state()
    build()({"logits": z, "targets": t})
    assert torch.equal(before, torch.get_rng_state())


def test_a_checkpoint_in_the_middle_goes_on_alike() -> None:
    z, t, _ = make()
    batch = {"logits": z, "targets": t}
    ens = build(period=2, seed=5)
    ens.start_epoch(1)
    ens(batch)
    file = io.BytesIO()
    torch.save(ens.state_dict(), file)
    file.seek(0)
    resumed = build(period=2, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.start_epoch(1)  # the interrupted epoch begins again: lambda stays
    twin = copy.deepcopy(ens)
    expected = ens(batch)
    assert torch.equal(expected, resumed(batch)) and torch.equal(expected, twin(batch))


def test_lambda_is_drawn_every_period_epochs() -> None:
    ens = module(period=3, lam_init=0.25)
    seen = []
    for epoch in range(9):
        ens.start_epoch(epoch)
        seen.append(ens.lam)
    assert seen[:2] == [0.25, 0.25] and len({*seen[2:]}) == 3
    assert seen[2] == seen[3] == seen[4] != seen[5] == seen[6] == seen[7] != seen[8]
    assert all(-1 <= lam <= 1 for lam in seen)
    fixed = module(lam_init=0.25)
    fixed.start_epoch(0)
    assert fixed.lam == 0.25


def test_lambda_may_follow_a_schedule_as_long_as_none_is_drawn() -> None:
    z, t, r = make()
    bound = build(lam_init={"schedule": "linear", "start": -1.0, "end": 1.0})
    batch = {"logits": z, "targets": t, "draws": r, "step": 9, "total_steps": 10}
    late = build(lam_init=bound.schedules["lam_init"].value(9, 10))
    assert torch.equal(bound(batch), late(batch))
    assert not torch.equal(bound(batch), build(lam_init=-1.0)(batch))
    drawing = module(period=1, lam_init=0.25)
    drawing.start_epoch(0)
    drawing.lam_init = -0.25
    assert drawing.lam == drawing.drawn != -0.25


def test_a_drawn_lambda_is_from_minus_one_to_one_evenly() -> None:
    ens, seen = module(period=1), []
    for epoch in range(2000):
        ens.start_epoch(epoch)
        seen.append(ens.lam)
    lam = torch.tensor(seen)
    assert lam.abs().max() <= 1 and abs(lam.mean()) < 0.06
    assert abs(lam.std() - 3**-0.5) < 0.03


def test_sample_weights_scale_the_slopes() -> None:
    z, t, r = make()
    z.requires_grad_()
    weights = torch.linspace(0, 2, len(z)).double()
    batch = {"logits": z, "targets": t, "draws": r}
    (plain,) = torch.autograd.grad(build()(batch).sum(), z)
    (weighed,) = torch.autograd.grad((weights * build()(batch)).sum(), z)
    torch.testing.assert_close(weighed, weights * plain)


def test_evaluation_shows_a_loss_that_means_something_and_touches_nothing() -> None:
    z, t, r = make()
    ens = build().eval()
    before = ens.state_dict()
    shown = ens({"logits": z, "targets": t})
    expected = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    torch.testing.assert_close(shown, expected)
    logits, classes = z.reshape(4, 3), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(
        ens({"logits": logits, "targets": classes}),
        F.cross_entropy(logits, classes, reduction="none"),
    )
    after = ens.state_dict()
    key = "module._extra_state"
    assert torch.equal(before[key]["generator"], after[key]["generator"])
    drawn = {"logits": z, "targets": t, "draws": r}
    assert torch.equal(ens(drawn), build()(drawn))


# --- layouts


def test_multilabel_ranks_all_known_labels_together() -> None:
    z, t, r = make()
    t[3] = t[7] = -1
    known = t >= 0
    flat = build()({"logits": z[known], "targets": t[known], "draws": r[:10]})
    wide = build()({"logits": z.reshape(4, 3), "targets": t.reshape(4, 3), "draws": r[:10]})
    terms = torch.zeros(12, dtype=z.dtype).masked_scatter(known, flat).reshape(4, 3)
    torch.testing.assert_close(wide, terms.sum(1) / known.reshape(4, 3).sum(1))


def test_nothing_known_is_zero() -> None:
    z = torch.randn(3, 2, requires_grad=True)
    value = build()({"logits": z, "targets": torch.full((3, 2), -1.0)})
    value.sum().backward()
    assert not value.any() and z.grad is not None and not z.grad.any()


def test_binary_shapes_agree() -> None:
    z, t, r = make()
    flat = build()({"logits": z, "targets": t, "draws": r})
    for targets in (t, t[:, None], t.long()):
        assert torch.equal(build()({"logits": z[:, None], "targets": targets, "draws": r}), flat)


def test_one_vs_rest_is_multilabel_on_the_one_hot_targets() -> None:
    z, y = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    draws = torch.randn(15)
    ours = build()({"logits": z, "targets": y, "draws": draws})
    onehot = F.one_hot(y, 3).float()
    assert torch.equal(ours, build()({"logits": z, "targets": onehot, "draws": draws}))


def test_the_multiclass_margin_is_over_the_best_other_class() -> None:
    z = torch.tensor([[1.0, 3.0, 0.5], [2.0, 1.0, -1.0]], requires_grad=True)
    ens = build(multiclass="margin", floor_shift=0.0)
    value = ens(
        {"logits": z, "targets": torch.tensor([0, 0]), "draws": torch.tensor([-1.0, -2.0])}
    )
    steep, flat = math.exp(-1), math.exp(-2)
    torch.testing.assert_close(value, torch.tensor([2 * steep, -flat]))
    value.sum().backward()
    expected = torch.tensor([[-steep, steep, 0.0], [-flat, flat, 0.0]])
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lam", [-1.0, 0.0, 1.0])
def test_extremes(dtype: torch.dtype, lam: float) -> None:
    z = torch.tensor([80.0, -80.0, 80.0, -80.0], dtype=dtype, requires_grad=True)
    t = torch.tensor([1.0, 1.0, 0.0, 0.0])
    value = build(lam_init=lam)({"logits": z, "targets": t})
    value.sum().backward()
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert z.grad is not None and z.grad.isfinite().all()
    shown = build().eval()({"logits": z, "targets": t})
    assert shown.tolist() == pytest.approx([0, 80, 80, 0])


def test_following_the_slopes_learns() -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    t = (x[:, 0] - x[:, 1] > 0).float()
    w = torch.zeros(3, requires_grad=True)
    ens = build(period=1)
    for step in range(100):
        ens.start_epoch(step // 10)
        (slope,) = torch.autograd.grad(ens({"logits": x @ w, "targets": t}).mean(), w)
        w = (w - slope).detach().requires_grad_()
    assert ((x @ w > 0) == (t == 1)).float().mean() > 0.95


def test_errors() -> None:
    z, t, r = make()
    ens = build()
    with pytest.raises(FieldError, match="one draw for each known margin: 12, not 5"):
        ens({"logits": z, "targets": t, "draws": r[:5]})
    with pytest.raises(FieldError, match="target 2 is not"):
        ens({"logits": z, "targets": t + 1})
    with pytest.raises(FieldError, match=r"target 3 is outside \[0, 3\)"):
        ens({"logits": z.reshape(4, 3), "targets": torch.tensor([0, 1, 2, 3])})
    bad: dict[str, Any]
    for bad in (
        *({"period": 0}, {"period": -2}, {"lam_init": 1.5}, {"floor": 0.0}, {"tail": "x"}),
        *({"floor_shift": -1e-6}, {"multiclass": "ovr"}),
    ):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            build(**bad)
