"""A cohort: each member ends as it would alone, whatever its companions do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossearch.data import Data, Dataset, prepare_dataset
from lossearch.models import ModelConfig
from lossearch.objective import Objective
from lossearch.registry import Registry, current
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.training import Job, JobResult, Recipe, TrainingConfig, Unit, Workbench
from lossearch.training.groups import Group, Slice, signature, stack_problem

MLP: dict[str, Any] = {"name": "mlp", "hidden": [16]}
Make = Callable[..., Workbench]


@pytest.fixture
def make(blobs: Data, registry: Registry, tmp_path: Path) -> Make:
    """A workbench that stacks whatever it can."""

    def make(
        folder: str = "a",
        model: Any = MLP,
        data: Data = blobs,
        providers: tuple[str, ...] = (),
        **training: Any,
    ) -> Workbench:
        recipe = Recipe(
            data=data,
            model=model if isinstance(model, nn.Module) else ModelConfig.model_validate(model),
            training=TrainingConfig(
                **{"epochs": 4, "batch_size": 32, "device": "cpu", **training}
            ),
            metrics=(ComponentSpec(name="accuracy"), ComponentSpec(name="nll")),
            checkpoints=tmp_path / folder,
            providers=tuple(ComponentSpec(name=p) for p in providers),
        )
        bench = Workbench(recipe, registry)
        bench.choice.gain = lambda size: 9.0
        return bench

    return make


@pytest.fixture(scope="session")
def pictures() -> Data:
    """80 pictures of 32 x 32 pixels in three colours, which are their classes."""
    current()
    draw = np.random.default_rng(0)
    targets = np.arange(80) % 3
    pixels = draw.integers(0, 160, (80, 3, 32, 32))
    pixels[np.arange(80), targets] += 60
    return prepare_dataset(Dataset(torch.tensor(pixels.astype(np.uint8)), targets))


def job(trial: int, *terms: Any, until: int = 4, balancer: Any = None, **changes: Any) -> Job:
    document: dict[str, Any] = {
        "task": "multiclass",
        "terms": [t if isinstance(t, dict) and "loss" in t else {"loss": t} for t in terms],
    }
    if balancer is not None:
        document["balancer"] = balancer
    values = {"lr": 0.01 * (1 + trial % 5), "weight_decay": 0.01 * (trial % 3)}
    return replace(Job(trial, document, values, 0, until), **changes)


POLY = [job(i, {"name": "poly_loss", "epsilon": float(i - 1)}) for i in range(4)]
MIXED = [
    *POLY,
    job(10, "cross_entropy"),
    job(11, "ensloss"),
    job(12, "aldr_kl"),
    job(13, "cross_entropy", "focal", balancer="uncertainty"),
    job(14, "cross_entropy", "focal", balancer="dwa"),
    job(15, "cross_entropy", "focal", balancer="encodec_balancer"),
    job(16, {"name": "cosface", "scale": 8.0}),
    job(17, {"name": "cosface", "scale": 12.0}),
    job(18, "arcface"),
    job(19, "orthogonal_projection"),
    job(20, "cross_entropy", {"loss": "orthogonal_projection", "weight": 0.3}),
    job(21, "cross_entropy", {"loss": "orthogonal_projection", "weight": 0.6}),
    job(22, {"loss": "cross_entropy", "reweighting": "class_balanced"}),
    job(23, {"loss": "cross_entropy", "reweighting": {"name": "class_balanced", "beta": 0.9}}),
    job(24, {"loss": "cross_entropy", "miner": {"name": "ohem", "keep_ratio": 0.5}}),
    job(25, {"loss": "cross_entropy", "miner": {"name": "ohem", "keep_ratio": 0.8}}),
    job(26, "tempered"),
    job(27, "focal", test=True),
]  # fmt: skip


def together(bench: Workbench, jobs: list[Job]) -> list[JobResult]:
    """Run as cohorts; fail if anything trained alone without need."""
    ran: list[int] = []
    original = bench._run

    def run(job: Job) -> JobResult:
        ran.append(job.trial)
        return original(job)

    bench._run = run
    results = bench.run(Unit(1, tuple(jobs))).jobs
    assert bench.choice.problem is None and ran == []
    return results


def alone(bench: Workbench, jobs: list[Job]) -> list[JobResult]:
    return [bench.run(Unit(1, (each,))).jobs[0] for each in jobs]


def assert_equal_results(some: list[JobResult], other: list[JobResult], rel: float = 0.0) -> None:
    """The same, in every number within ``rel``."""
    assert len(some) == len(other)
    for a, b in zip(some, other, strict=True):
        for name in ("trial", "seed", "epoch", "done", "reason", "detail"):
            assert getattr(a, name) == getattr(b, name), (a.trial, name)
        assert len(a.curve) == len(b.curve)
        rows = [*zip(a.curve, b.curve, strict=True), (a.metrics, b.metrics), (a.test, b.test)]
        for one, two in rows:
            assert one.keys() == two.keys()
            for key in one:
                assert one[key] == pytest.approx(two[key], rel=rel, abs=rel), (a.trial, key)
        assert (a.score is None) == (b.score is None)
        assert a.score is None or a.score == pytest.approx(b.score, rel=rel)


def weights(folder: Path, job: Job) -> dict[str, Any]:
    return torch.load(folder / f"{job.name}.pt", weights_only=True)


def assert_close(one: Any, other: Any, tolerance: float, where: str = "") -> None:
    """Alike at any depth; tensors within a tolerance of their largest value."""
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        gap = (one.double() - other.double()).abs().max().item() if one.numel() else 0.0
        assert gap <= tolerance * max(1.0, other.double().abs().max().item()), (where, gap)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_close(one[key], other[key], tolerance, f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_close(a, b, tolerance, f"{where}.{i}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=max(tolerance, 1e-12), abs=tolerance), where
    else:
        assert one == other, where


# --- the same as alone -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"optimizer": "adam", "warmup": 0.3, "schedule": "linear"},
        {"optimizer": "sgd", "clip_norm": 0.3},
        {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant"},
    ],
)
def test_members_end_as_they_would_alone(make: Make, training: dict[str, Any]) -> None:
    found = together(make("a", **training), MIXED)
    assert_equal_results(found, alone(make("b", **training), MIXED), rel=2e-5)
    assert all(r.done and r.reason is None and r.seconds > 0 for r in found)
    assert found[-1].test.keys() == {"accuracy", "nll"} and found[0].test == {}


def test_an_mlps_checkpoint_is_bit_equal(make: Make, tmp_path: Path) -> None:
    jobs = [replace(j, until=3) for j in MIXED if j.trial not in (16, 17, 18)]  # cosine heads
    together(make("a"), jobs)
    alone(make("b"), jobs)
    for each in jobs:
        assert_close(weights(tmp_path / "a", each), weights(tmp_path / "b", each), 0.0)


@pytest.mark.parametrize(
    ("model", "tolerance"),
    [
        ({"name": "mlp", "hidden": [8], "dropout": 0.3, "batch_norm": True}, 1e-5),
        ({"name": "test_resnet"}, 1e-4),
        ({"name": "test_vit"}, 1e-4),
    ],
    ids=lambda v: v["name"] if isinstance(v, dict) else "",
)
def test_batch_norm_dropout_and_attention(
    make: Make, pictures: Data, blobs: Data, tmp_path: Path, model: Any, tolerance: float
) -> None:
    data = blobs if model["name"] == "mlp" else pictures
    jobs = [replace(j, until=2) for j in (*POLY[1:], MIXED[7])]
    for each in jobs:
        each.values["lr"] = 1e-3
    settings: dict[str, Any] = {
        "model": model, "data": data, "optimizer": "sgd", "batch_size": 16,
    }  # fmt: skip
    some = together(make("a", **settings), jobs)
    assert_equal_results(some, alone(make("b", **settings), jobs), rel=10 * tolerance)
    for each in jobs:
        one, other = weights(tmp_path / "a", each), weights(tmp_path / "b", each)
        assert_close(one["fields"], other["fields"], tolerance)
        assert torch.equal(one["random"], other["random"])


def test_in_float64_a_convolutional_member_is_the_lone_one(make: Make, tmp_path: Path) -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten())
            self.fc = nn.Linear(8, 3)
            self.double()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc(self.body(inputs[:, None].double()))

    torch.manual_seed(0)
    model = Double()
    jobs = [replace(j, until=3) for j in MIXED if j.trial not in (16, 17, 18, 19, 20, 21)]
    together(make("a", model=model, optimizer="sgd"), jobs)
    alone(make("b", model=model, optimizer="sgd"), jobs)
    for each in jobs:
        one, other = weights(tmp_path / "a", each), weights(tmp_path / "b", each)
        assert one["fields"]["network.head.weight"].dtype is torch.float64
        assert_close(one["fields"], other["fields"], 1e-12)


@pytest.mark.parametrize("terms", [("cross_entropy",), ("cross_entropy", "focal")])
def test_scaled_objectives(make: Make, tmp_path: Path, terms: tuple[str, ...]) -> None:
    settings: dict[str, Any] = {"optimizer": "sgd"}  # which the scale matters for
    jobs = [job(i, *terms, until=3) for i in range(4)] + [job(4, "ensloss", until=3)]
    for each, scale in zip(jobs, (1.0, 0.3, 7.0, 7.0, 2.0), strict=True):
        each.objective["scale"] = scale
    together(make("a", **settings), jobs)
    alone(make("b", **settings), jobs)
    # softplus, in focal, rounds by where in a vector register a number stands
    tolerance = 1e-6 if "focal" in terms else 0.0
    for each in jobs:
        assert_close(weights(tmp_path / "a", each), weights(tmp_path / "b", each), tolerance)


def test_bfloat16(make: Make) -> None:
    found = together(make("a", precision="bfloat16"), POLY)
    assert_equal_results(found, alone(make("b", precision="bfloat16"), POLY), rel=0.05)


def test_a_frozen_backbone_stands_once_in_the_stack(make: Make, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    jobs = [replace(j, until=2) for j in POLY]
    together(make("a", model=model), jobs)
    alone(make("b", model=model), jobs)
    for each in jobs:
        one, other = weights(tmp_path / "a", each), weights(tmp_path / "b", each)
        assert_close(one, other, 1e-6)


# --- companions --------------------------------------------------------------------------------


def test_companions_that_fail_leave_the_others_untouched(make: Make) -> None:
    bad = [
        job(30, "turns_nan"),
        job(31, {"name": "turns_nan", "at": 2}),
        job(32, "raises_later"),
        job(33, {"name": "raises_later", "at": 2}),
        job(34, "wrong_shapes"),
        job(35, "out_of_range"),
        job(36, {"name": "poly_loss", "epsilon": 2.0}, values={"lr": 1e38, "weight_decay": 0.0}),
    ]
    jobs = [bad[0], POLY[0], *bad[1:], *POLY[1:], MIXED[5]]
    found = together(make("a"), jobs)
    assert_equal_results(found, alone(make("b"), jobs), rel=2e-5)
    reasons = {r.trial: r.reason for r in found}
    assert [reasons[j.trial] for j in bad] == [
        "diverged", "diverged", "error", "error", "error", "infeasible", "diverged",
    ]  # fmt: skip
    assert {r.trial: r.epoch for r in found}[33] == 2
    clean = together(make("c"), [*POLY, MIXED[5]])
    by_trial = {r.trial: r for r in found}
    assert_equal_results([by_trial[r.trial] for r in clean], clean)


def test_one_that_raises_within_a_vmapped_group_leaves_alone(make: Make, registry: Registry):
    same = [job(i, {"name": "raises_later", "at": 1}) for i in (0, 1)]
    found = together(make("a"), [*same, *POLY[:2]])
    assert [r.reason for r in found] == ["error", "error", None, None]
    assert [r.epoch for r in found] == [1, 1, 4, 4]
    assert "tired (toys.py, line 11)" in found[0].detail


@pytest.mark.parametrize("acting", [{"miner": "small_loss"}, {"reweighting": "focal_weight"}])
def test_an_infinite_loss_ends_a_member_as_it_does_alone(
    make: Make, acting: dict[str, str]
) -> None:
    jobs = [
        job(i, {"loss": {"name": "overflows", "scale": s}, **acting})
        for i, s in enumerate((1.0, 2.0))
    ]
    for found in (together(make("a"), jobs), alone(make("b"), jobs)):
        assert [(r.reason, r.epoch) for r in found] == [("diverged", 1)] * 2


def test_a_whole_cohort_may_fail(make: Make, tmp_path: Path) -> None:
    jobs = [job(1, "turns_nan"), job(2, "raises_later")]
    found = together(make("a"), jobs)
    assert [r.reason for r in found] == ["diverged", "error"]
    assert not list((tmp_path / "a").glob("*"))


def test_early_stop_by_member(make: Make) -> None:
    settings: dict[str, Any] = {"epochs": 15, "early_stop": 2, "schedule": "constant"}
    jobs = [replace(j, until=15) for j in (*MIXED[:8], MIXED[-1])]
    found = together(make("a", **settings), jobs)
    assert_equal_results(found, alone(make("b", **settings), jobs), rel=2e-5)
    assert len({r.epoch for r in found}) > 1
    for result in found:
        assert result.score == max(row["accuracy"] for row in result.curve)


def test_seeds_epochs_and_heads_are_stacks_of_their_own(make: Make) -> None:
    jobs = [replace(j, seed=seed) for j in (POLY[0], POLY[1], MIXED[10]) for seed in (0, 1)]
    jobs += [replace(POLY[2], until=2), replace(POLY[3], until=2)]
    bench = make("a")
    found = bench.run(Unit(1, tuple(jobs))).jobs
    assert_equal_results(found, alone(make("b"), jobs), rel=2e-5)
    assert found[0].curve != found[1].curve


# --- checkpoints -------------------------------------------------------------------------------


def test_checkpoints_of_cohorts_and_lone_members_are_interchangeable(
    make: Make, tmp_path: Path
) -> None:
    jobs = [j for j in MIXED if j.trial not in (16, 17, 18)]
    whole = alone(make("whole", early_stop=9), jobs)
    bench = make("b", early_stop=9)
    together(bench, [replace(j, until=1) for j in jobs])
    alone(bench, [replace(j, until=2) for j in jobs])
    paused = together(bench, [replace(j, until=3) for j in reversed(jobs)])
    assert not any(r.done for r in paused)
    again = together(bench, [replace(j, until=3) for j in jobs])  # killed before it was recorded
    assert_equal_results(again, paused[::-1])
    assert_equal_results(together(bench, jobs), whole, rel=2e-5)
    assert not list((tmp_path / "b").glob("*"))


def test_members_from_different_rungs(make: Make) -> None:
    bench = make("a")
    together(bench, [replace(j, until=2) for j in POLY[:2]])
    assert_equal_results(together(bench, POLY), alone(make("b"), POLY), rel=2e-5)


# --- what does not stack -----------------------------------------------------------------------


def problem(registry: Registry, each: Job, provided: frozenset[str] = frozenset()) -> str | None:
    spec = ObjectiveSpec.parse(each.objective)
    facts = {"train_size": 90, "num_classes": 3, "class_counts": [30] * 3, "total_steps": 12}
    return stack_problem(Objective(spec, registry, facts), provided)


def test_what_cannot_be_stacked_says_why(registry: Registry) -> None:
    two: Any = ("cross_entropy", "focal")
    assert "parameters" in (problem(registry, job(0, *two, balancer="pcgrad")) or "")
    far = job(0, "cross_entropy", "orthogonal_projection", balancer="encodec_balancer")
    assert "through the head" in (problem(registry, far) or "")
    reads = job(0, "reads_energy")
    assert "'energy'" in (problem(registry, reads, frozenset(("energy", "tripled"))) or "")
    assert all(problem(registry, each) is None for each in MIXED)


def test_what_cannot_be_stacked_trains_alone_beside_the_cohort(make: Make) -> None:
    providers = ("energy", "triple")
    jobs = [
        *POLY[:2],
        job(40, "cross_entropy", "focal", balancer="pcgrad"),
        job(41, "reads_energy"),
        job(42, "no_such_loss"),
    ]
    found = make("a", providers=providers).run(Unit(1, tuple(jobs))).jobs
    apart = alone(make("b", providers=providers), jobs)
    assert_equal_results(found, apart, rel=2e-5)
    assert found[-1].reason == "infeasible" and found[3].reason is None


def test_a_model_that_vmap_cannot_follow_trains_alone(make: Make) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            out = self.layer(inputs).relu()
            return out if out.sum() > 0 else -out

    model = Branches()
    for measured in (True, False):
        bench = make(f"a{measured}", model=model)
        if measured:
            del bench.choice.gain  # the instance's; the method measures
        assert_equal_results(
            bench.run(Unit(1, tuple(POLY))).jobs, alone(make("b", model=model), POLY)
        )
        assert "cannot be stacked" in (bench.choice.problem or "")
        assert bench.preferred_size(8) == 1 or not measured


def test_a_buffer_that_is_replaced_is_a_reason(make: Make) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                self.seen = self.seen + 1
            return self.layer(inputs).relu()

    bench = make("a", model=Counts())
    del bench.choice.gain
    assert bench.preferred_size(8) == 1
    assert "'backbone.seen'" in (bench.stack_problem(POLY[0]) or "")


# --- groups ------------------------------------------------------------------------------------


def test_members_that_differ_in_numbers_share_a_call(registry: Registry) -> None:
    def objective(*terms: Any) -> Objective:
        return Objective(ObjectiveSpec.parse(job(0, *terms).objective), registry)

    def of(name: str, **params: Any) -> Any:
        return signature(objective({"name": name, **params}))

    assert of("focal", gamma=1.0) == of("focal", gamma=2.0)
    assert of("focal") != of("cross_entropy")
    assert of("ensloss") is None
    weighted = [{"loss": "focal", "weight": w} for w in (0.5, 1.0)]
    ones = [objective("cross_entropy", w) for w in weighted]
    assert signature(ones[0]) == signature(ones[1])
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    batch = {"targets": torch.tensor([0, 1, 2, 1, 0])}
    part = Group(ones, torch.device("cpu"))(batch, {"logits": logits})
    for row, each in enumerate(ones):
        single = Slice(copy.deepcopy(each))(batch, {"logits": logits[row : row + 1]})
        assert torch.equal(part.values[row], single.values[0])
        assert torch.equal(part.gradients["logits"][row], single.gradients["logits"][0])


# --- memory and choice ---------------------------------------------------------------------------


def test_out_of_memory_halves_the_cohort(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from lossearch.training.cohort import Cohort

    tried: list[int] = []
    original = Cohort._learn

    def learn(self: Cohort, *arguments: Any) -> Tensor:
        if self.epoch == 1 and len(self.members) > 2:
            tried.append(len(self.members))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return original(self, *arguments)

    monkeypatch.setattr(Cohort, "_learn", learn)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    jobs = [*POLY, MIXED[4], MIXED[5], MIXED[6], MIXED[-1]]
    bench = make("a")
    found = together(bench, jobs)
    assert tried == [8, 4] and bench.choice.most == 2
    assert bench.preferred_size(8) <= 2
    monkeypatch.undo()
    assert_equal_results(found, alone(make("b"), jobs), rel=2e-5)


def test_whether_to_stack_is_measured_once(make: Make) -> None:
    bench = make("a")
    del bench.choice.gain
    torch.manual_seed(5)
    size = bench.preferred_size(20)
    assert size in (1, 20) and bench.choice.problem is None
    state = torch.get_rng_state()
    assert torch.equal(state, torch.manual_seed(5).get_state())
    gains = dict(bench.choice._gains)
    assert bench.preferred_size(20) == size and bench.choice._gains == gains
    assert bench.preferred_size(1) == 1
    assert bench.choice.gain(5) == bench.choice.gain(4)


def test_where_it_does_not_pay_jobs_train_one_by_one(make: Make) -> None:
    bench = make("a")
    bench.choice.gain = lambda size: 0.5

    def refuse(*_: Any) -> None:
        raise AssertionError("stacked")

    bench._run_cohort = refuse
    assert bench.preferred_size(8) == 1
    assert all(r.done and r.reason is None for r in bench.run(Unit(1, tuple(POLY))).jobs)


def test_the_callers_random_state_is_left_alone(make: Make) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    together(make("a"), POLY)
    assert torch.equal(before, torch.get_rng_state())
