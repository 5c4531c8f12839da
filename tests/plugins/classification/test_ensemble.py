"""A loss made of losses."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossearch
from lossearch import Bound, ByTask, Given, registry
from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError, UnknownNameError
from lossearch_classification.ensemble import LossEnsemble


@lossearch.loss(task=("multiclass", "binary"))
def plain(
    logits: Tensor,
    targets: Tensor,
    *,
    by: Annotated[float, ByTask(binary=3.0)] = 1.0,
) -> Tensor:
    """Cross-entropy, times a number."""
    return by * F.cross_entropy(logits, targets, reduction="none")


@lossearch.loss(task="multiclass")
def spread(logits: Tensor, *, by: float = 1.0) -> Tensor:
    """The sum of squared logits."""
    return by * logits.square().sum(1)


@lossearch.loss(task="multiclass", returns="batch")
def pulled(embeddings: Tensor) -> Tensor:
    """A batch loss of another field."""
    return embeddings.mean()


@lossearch.loss(name="noisy", task="multiclass")
class Noisy(nn.Module):
    """A random, counting loss."""

    calls: Tensor

    def __init__(
        self,
        *,
        seed: Annotated[int, Given("seed")] = 0,
        train_size: Annotated[int, Given("train_size")] = 1,
    ) -> None:
        super().__init__()
        self.seed, self.train_size = seed, train_size
        self.generator = torch.Generator().manual_seed(seed)
        self.epochs: list[int] = []
        self.steps = 0
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, logits: Tensor) -> Tensor:
        self.calls += 1
        return logits.sum(1) + torch.rand(len(logits), generator=self.generator)

    def start_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def after_step(self) -> None:
        self.steps += 1

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state)


@lossearch.loss(name="ruled", task="multiclass")
class Ruled(nn.Module):
    """A loss with a prediction rule of its own."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, logits: Tensor) -> Tensor:
        return logits.sum(1)

    def predictions(self, fields: dict[str, Tensor]) -> Tensor:
        return -fields["logits"]


@lossearch.metric(task="multiclass")
def score(logits: Tensor) -> Tensor:
    """Not a loss."""
    return logits.mean()


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    made = registry.Registry()
    for target in (plain, spread, pulled, Noisy, Ruled, score, LossEnsemble):
        made.add(component_of(target), "test")
    registry.use(made)
    yield
    registry.use(None)


BATCH = {
    "logits": torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
    "targets": torch.tensor([0, 1, 2, 0, 1, 2]),
    "embeddings": torch.arange(12.0).reshape(6, 2),
}
PLAIN = plain(BATCH["logits"], BATCH["targets"])
SPREAD = spread(BATCH["logits"])


def build(*members: Any, **params: Any) -> Bound:
    return lossearch.build("loss_ensemble", members=members, **params)


def inside(bound: Bound) -> LossEnsemble:
    assert isinstance(bound.module, LossEnsemble)
    return bound.module


@pytest.mark.parametrize("mode", ["draw", "mean"])
@pytest.mark.parametrize("draw_every", ["step", "epoch"])
def test_all_the_weight_on_one_member_is_that_member(mode: str, draw_every: str) -> None:
    for weights, expected in (((2.0, 0.0), PLAIN), ((0.0, 0.1), SPREAD)):
        bound = build("plain", "spread", weights=weights, mode=mode, draw_every=draw_every)
        for step in range(5):
            bound.start_epoch(step)
            torch.testing.assert_close(bound(BATCH), expected)


def test_mode_mean_is_the_weighted_mean() -> None:
    torch.testing.assert_close(build("plain", "spread", mode="mean")(BATCH), (PLAIN + SPREAD) / 2)
    weighted = build("plain", {"name": "spread", "by": 2.0}, mode="mean", weights=[3.0, 1.0])
    torch.testing.assert_close(weighted(BATCH), 0.75 * PLAIN + 0.25 * 2 * SPREAD)


def test_a_draw_serves_the_whole_batch_at_the_odds_of_the_weights() -> None:
    bound = build("plain", "spread", weights=[3.0, 1.0])
    hits = 0
    for _ in range(400):
        value = bound(BATCH)
        first = torch.equal(value, PLAIN)
        assert first or torch.equal(value, SPREAD)
        hits += first
    assert 265 < hits < 335  # 300, four standard deviations


def test_the_mean_gradient_of_many_draws_is_that_of_mode_mean() -> None:
    logits = BATCH["logits"].clone().requires_grad_()
    batch = {**BATCH, "logits": logits}
    (expected,) = torch.autograd.grad(
        build("plain", "spread", weights=[1, 2], mode="mean")(batch).sum(), logits
    )
    bound, total = build("plain", "spread", weights=[1, 2]), torch.zeros_like(logits)
    for _ in range(300):
        total += torch.autograd.grad(bound(batch).sum(), logits)[0]
    torch.testing.assert_close(total / 300, expected, atol=0.35, rtol=0.05)


def test_evaluation_is_the_mean_and_draws_nothing() -> None:
    bound = build("plain", "spread", normalize=True).eval()
    before = copy.deepcopy(bound.state_dict())
    torch.testing.assert_close(bound(BATCH), (PLAIN + SPREAD) / 2)
    after = bound.state_dict()
    key = "module._extra_state"
    assert torch.equal(before[key]["generator"], after[key]["generator"])
    assert torch.equal(before["module.running"], after["module.running"])


def test_an_epochs_member_stays_for_the_epoch() -> None:
    bound = build("plain", "spread", draw_every="epoch", seed=1)
    drawn = []
    for epoch in range(30):
        bound.start_epoch(epoch)
        values = [bound(BATCH) for _ in range(3)]
        assert torch.equal(values[0], values[1]) and torch.equal(values[1], values[2])
        drawn.append(torch.equal(values[0], PLAIN))
    assert 5 < sum(drawn) < 25


def test_without_a_start_of_epoch_one_member_is_drawn_all_the_same() -> None:
    bound = build("plain", "spread", draw_every="epoch")
    first = bound(BATCH)
    assert all(torch.equal(bound(BATCH), first) for _ in range(10))


@pytest.mark.parametrize("draw_every", ["step", "epoch"])
def test_a_checkpoint_in_the_middle_goes_on_alike(draw_every: str) -> None:
    params: dict[str, Any] = {"draw_every": draw_every, "normalize": True}
    bound = build("plain", "noisy", seed=3, **params)
    for epoch in range(4):
        bound.start_epoch(epoch)
        bound(BATCH)
    file = io.BytesIO()
    torch.save(bound.state_dict(), file)
    file.seek(0)
    resumed = build("plain", "noisy", seed=8, **params)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.start_epoch(3)  # the interrupted epoch begins again: no new draw
    for epoch in range(4, 12):
        assert torch.equal(bound(BATCH), resumed(BATCH))
        bound.start_epoch(epoch)
        resumed.start_epoch(epoch)
    assert torch.equal(
        bound.state_dict()["module.running"], resumed.state_dict()["module.running"]
    )


def test_normalize_divides_by_the_running_mean_of_the_absolute_value() -> None:
    bound = build("plain", "spread", mode="mean", weights=[1, 0], normalize=True)
    running = PLAIN.mean()
    torch.testing.assert_close(bound(BATCH), PLAIN / running)
    doubled = {**BATCH, "logits": 2 * BATCH["logits"]}
    value = plain(doubled["logits"], BATCH["targets"])
    running = 0.99 * running + 0.01 * value.abs().mean()
    torch.testing.assert_close(bound(doubled), value / running)
    assert inside(bound).running[1] == 0  # renewed only where it is used
    logits = BATCH["logits"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(bound.eval()({**BATCH, "logits": logits}).sum(), logits)
    (raw,) = torch.autograd.grad(plain(logits, BATCH["targets"]).sum(), logits)
    torch.testing.assert_close(slope, raw / running)  # the running mean is a constant


def test_normalize_makes_scales_alike_and_survives_zeros() -> None:
    bound = build("plain", {"name": "plain", "by": 1000.0}, normalize=True)
    for _ in range(8):
        torch.testing.assert_close(bound(BATCH), PLAIN / PLAIN.mean())
    zeros = build({"name": "spread", "by": 0.0}, {"name": "spread", "by": 0.0}, normalize=True)
    assert torch.equal(zeros(BATCH), torch.zeros(6))


def test_a_batch_member_makes_it_a_batch_loss() -> None:
    component = component_of(LossEnsemble)
    bound = build("plain", "pulled", mode="mean")
    assert component.returns_at(bound.params) == "batch"
    torch.testing.assert_close(bound(BATCH), (PLAIN.mean() + 5.5) / 2)
    assert component.returns_at(build("plain", "spread").params) == "per_sample"


def test_it_reads_what_its_members_read() -> None:
    component = component_of(LossEnsemble)
    assert component.fields == ()
    assert component.reads(build("plain", "pulled").params) == {"logits", "targets", "embeddings"}
    assert component.reads(build("spread", "noisy").params) == {"logits"}
    lacking = {k: v for k, v in BATCH.items() if k != "embeddings"}
    with pytest.raises(FieldError, match="loss_ensemble reads 'embeddings'"):
        build("plain", "pulled", weights=[1, 0])(lacking)


def test_a_members_schedule_is_followed() -> None:
    rising = {"name": "spread", "by": {"schedule": "linear", "start": 1.0, "end": 3.0}}
    bound = build(rising, "plain", weights=[1, 0], mode="mean")
    clock = {"step", "total_steps"}
    assert component_of(LossEnsemble).reads(bound.params) == {"logits", "targets", *clock}
    torch.testing.assert_close(bound({**BATCH, "step": 5, "total_steps": 10}), 2 * SPREAD)
    with pytest.raises(FieldError, match="loss_ensemble reads 'step'"):
        bound(BATCH)


def test_weights_left_out_are_even() -> None:
    for weights in (None, (1.0, 1.0), (5.0, 5.0)):
        bound = build("plain", "spread", mode="mean", weights=weights)
        torch.testing.assert_close(bound(BATCH), (PLAIN + SPREAD) / 2)


def test_six_members_are_as_many_as_there_may_be() -> None:
    bound = build(*[{"name": "spread", "by": float(k)} for k in range(6)], mode="mean")
    torch.testing.assert_close(bound(BATCH), 2.5 * SPREAD)


def test_an_ensemble_may_hold_an_ensemble() -> None:
    nested = {"name": "loss_ensemble", "members": ["plain", "spread"], "mode": "mean"}
    bound = build(nested, "plain", mode="mean")
    torch.testing.assert_close(bound(BATCH), (PLAIN + SPREAD) / 4 + PLAIN / 2)
    assert component_of(LossEnsemble).reads(bound.params) == {"logits", "targets"}


def test_members_get_the_task_and_the_facts() -> None:
    component = component_of(LossEnsemble)
    facts = {"seed": 10, "train_size": 77}
    members = ["noisy", "noisy", {"name": "noisy", "seed": 4}]
    bound = component.build(task="multiclass", facts=facts, members=members)
    made: list[Any] = [member.module for member in inside(bound).members]  # type: ignore[union-attr]
    assert [m.seed for m in made] == [11, 12, 4]
    assert [m.train_size for m in made] == [77, 77, 77]
    bound.start_epoch(5)
    bound.after_step()
    assert [m.epochs for m in made] == [[5], [5], [5]] and [m.steps for m in made] == [1, 1, 1]
    binary = component.build(task="binary", members=["plain", "plain"], mode="mean")
    torch.testing.assert_close(binary(BATCH), 3 * PLAIN)


def test_only_the_drawn_member_runs() -> None:
    bound = build("noisy", "plain", weights=[0, 1])
    bound(BATCH)
    assert bound.state_dict()["module.members.0.module.calls"] == 0


def test_params_round_trip_as_json() -> None:
    params = build({"name": "spread", "by": 2.0}, "plain", weights=[1, 2]).params
    assert type(params).model_validate_json(params.model_dump_json()) == params


def test_errors() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'plain'"):
        build("plane", "spread")
    with pytest.raises(ParameterError, match="spread has no parameter 'bye'; did you mean 'by'"):
        build("plain", {"name": "spread", "bye": 1})
    with pytest.raises(ParameterError, match="'score' is a metric"):
        build("plain", "score")
    with pytest.raises(ParameterError, match="has no 'name'"):
        build("plain", {"by": 2})
    with pytest.raises(ParameterError, match="'spread' serves multiclass, not binary"):
        component_of(LossEnsemble).build(task="binary", members=["plain", "spread"])
    for weights in ([1.0], [0.0, 0.0], [1, 1, 1]):
        with pytest.raises(ParameterError, match="one number for each of the 2 members"):
            build("plain", "spread", weights=weights)
    with pytest.raises(ParameterError, match="weights"):
        build("plain", "spread", weights=[-1, 2])
    for members in (["plain"], ["plain"] * 7):
        with pytest.raises(ParameterError, match="members"):
            build(*members)
    with pytest.raises(ParameterError, match="mode"):
        build("plain", "spread", mode="sum")


def test_a_member_with_a_prediction_rule_is_refused() -> None:
    with pytest.raises(ParameterError, match="loss_ensemble: 'ruled' has a prediction rule"):
        build("plain", "ruled")
    nested = {"name": "loss_ensemble", "members": ["plain", "ruled"]}
    with pytest.raises(ParameterError, match="'ruled' has a prediction rule of its own"):
        build(nested, "plain")
