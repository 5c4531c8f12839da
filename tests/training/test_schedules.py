"""Schedules and hooks in training: alone, in a stack, and over a rung."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lossearch
from lossearch.objective import Objective
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.training import Job, Recipe, TrainingConfig, Unit, Workbench
from lossearch.training.groups import Group, Slice, signature, stack_problem
from lossearch.training.trainer import Trainer


def linear(start: float, end: float, **more: float) -> dict[str, Any]:
    return {"schedule": "linear", "start": start, "end": end, **more}


def job(trial: int, *terms: Any) -> Job:
    document = {
        "task": "multiclass",
        "terms": [t if isinstance(t, dict) and "loss" in t else {"loss": t} for t in terms],
    }
    return Job(trial, document, {"lr": 0.02 + 0.01 * trial, "weight_decay": 0.0}, 0, 4)


LATE = {"name": "class_balanced", "beta": {"schedule": "deferred", "start": 0, "end": 0.99}}
PROJECTED = {"loss": "orthogonal_projection", "weight": linear(0, 0.5, until=0.5)}
JOBS = [
    job(0, {"name": "focal", "gamma": linear(0, 4)}),
    job(1, {"name": "focal", "gamma": linear(4, 0)}),
    job(2, {"name": "focal", "gamma": 2.0}),
    job(3, {"name": "focal", "gamma": {"schedule": "cosine", "start": 0, "end": 5}}),
    job(4, {"loss": "cross_entropy", "reweighting": LATE}),
    job(5, "cross_entropy", PROJECTED),
    job(6, "cross_entropy", {**PROJECTED, "weight": 0.3}),
    job(7, {"name": "cosface", "scale": 8.0, "margin": linear(0, 0.4)}),
    job(8, {"loss": "cross_entropy", "miner": {"name": "ohem", "keep_ratio": linear(1, 0.5)}}),
]


@pytest.fixture
def bench(make_bench: Callable[..., Workbench]) -> Callable[[str], Workbench]:
    def make(folder: str) -> Workbench:
        bench = make_bench(folder)
        bench.choice.gain = lambda size: 9.0
        return bench

    return make


def test_members_with_schedules_end_as_they_would_alone(bench: Callable[[str], Workbench]) -> None:
    together = bench("a").run(Unit(1, tuple(JOBS))).jobs
    lone = [bench("b").run(Unit(1, (each,))).jobs[0] for each in JOBS]
    for one, other in zip(together, lone, strict=True):
        assert one.reason is None and one.done
        for a, b in zip(one.curve, other.curve, strict=True):
            assert a == pytest.approx(b, rel=2e-5, abs=2e-5), one.trial
    losses = {r.trial: [row["train_loss"] for row in r.curve] for r in together}
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_a_schedule_goes_on_over_a_rung(bench: Callable[[str], Workbench]) -> None:
    whole = bench("a").run(Unit(1, tuple(JOBS))).jobs
    halves = bench("b")
    halves.run(Unit(1, tuple(replace(j, until=2) for j in JOBS)))
    rest = halves.run(Unit(2, tuple(JOBS))).jobs
    for one, other in zip(whole, rest, strict=True):
        for a, b in zip(one.curve, other.curve, strict=True):
            assert a == pytest.approx(b, rel=1e-6, abs=1e-6), one.trial


def test_numbers_that_move_share_a_call_with_those_that_do_not(registry: Registry) -> None:
    def objective(*terms: Any) -> Objective:
        return Objective(ObjectiveSpec.parse(job(0, *terms).objective), registry)

    ones = [objective(*[t]) for t in ({"name": "focal", "gamma": linear(0, 4)}, "focal")]
    assert signature(ones[0]) == signature(ones[1])
    group = Group(ones, torch.device("cpu"))
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    for step in (0, 1, 2, 3, 0):  # the third call is the recorded one
        batch = {"targets": torch.tensor([0, 1, 2, 1, 0]), "step": step, "total_steps": 4}
        part = group(batch, {"logits": logits})
        for row, each in enumerate(ones):
            single = Slice(each)(batch, {"logits": logits[row : row + 1]})
            torch.testing.assert_close(part.values[row], single.values[0])
            torch.testing.assert_close(
                part.gradients["logits"][row], single.gradients["logits"][0]
            )


# --- hooks of stateful components ----------------------------------------------------------------


@lossearch.loss(name="hooked", task="multiclass")
class Hooked(torch.nn.Module):
    """Cross-entropy of logits plus a learned shift, which never goes below zero."""

    def __init__(self, *, lr_factor: float = 3.0) -> None:
        super().__init__()
        self.lr_factor = lr_factor
        self.shift = torch.nn.Parameter(torch.zeros(3))
        self.free = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("stepped", torch.zeros(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits + self.shift + 0 * self.free, targets, reduction="none")

    def after_step(self) -> None:
        with torch.no_grad():
            self.shift.clamp_(min=0.0)
            self.stepped += 1

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.shift], "weight_decay": 0.1, "lr_factor": self.lr_factor}]

    def predictions(self, fields: dict[str, Tensor]) -> Tensor:
        assert not self.training
        slope = torch.zeros((), requires_grad=True)
        with torch.enable_grad():  # as a rule does that is a gradient itself
            one = torch.autograd.grad(2 * slope, slope)[0]
        return (one - 3) * fields["logits"] + self.shift


@pytest.fixture
def hooked(registry: Registry) -> Registry:
    registry.add(lossearch.components.component_of(Hooked), "test")
    return registry


def test_parameter_groups_have_their_own_decay_and_rate(
    hooked: Registry, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer("hooked", epochs=2, schedule="constant", lr=0.05)
    network, rest, own = trainer.optimizer.param_groups
    assert [g["lr"] for g in (network, rest, own)] == pytest.approx([0.05, 0.05, 0.15])
    assert [g["weight_decay"] for g in (network, rest, own)] == [0.01, 0.0, 0.1]
    assert [len(g["params"]) for g in (rest, own)] == [1, 1]


def test_after_step_is_told_after_each_step_and_predictions_are_its_own(
    hooked: Registry, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer("hooked")
    for _ in range(4):
        trainer.run_epoch()
    module: Any = trainer.objective.terms[0].loss.module
    assert module.stepped.item() == trainer.total_steps
    assert (module.shift >= 0).all() and (module.shift > 0).any()
    turned = trainer.measure("validation", {"accuracy": trainer.metric})["accuracy"]
    plain = make_trainer("cross_entropy")
    plain.network.load_state_dict(trainer.network.state_dict())
    assert turned < 0.5 < plain.measure("validation", {"accuracy": plain.metric})["accuracy"]
    why = stack_problem(trainer.objective)
    assert why is not None and "predicts by a rule of its own" in why


def test_in_a_cohort_hooks_are_told_too(
    hooked: Registry, blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Hooked, "predictions")
    jobs = [job(0, "hooked"), job(1, {"name": "hooked", "lr_factor": 1.0}), job(2, "focal")]

    def run(folder: str, units: list[list[Job]]) -> list[Any]:
        recipe = Recipe(
            data=blobs,
            model=lossearch.models.ModelConfig.model_validate({"name": "mlp", "hidden": [8]}),
            training=TrainingConfig(epochs=4, batch_size=32, device="cpu"),
            metrics=(ComponentSpec(name="accuracy"),),
            checkpoints=tmp_path / folder,
        )
        bench = Workbench(recipe, hooked)
        bench.choice.gain = lambda size: 9.0
        return [r for i, u in enumerate(units) for r in bench.run(Unit(i, tuple(u))).jobs]

    together = run("a", [[replace(j, until=2) for j in jobs], jobs])[3:]
    lone = run("b", [[j] for j in jobs])
    for one, other in zip(together, lone, strict=True):
        assert one.reason is None, one.detail
        for a, b in zip(one.curve, other.curve, strict=True):
            assert a == pytest.approx(b, rel=1e-5, abs=1e-5), one.trial
