"""Proposals: references first, the baseline's share, and the same again after a restart."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any, get_args

import numpy as np
import pytest

from lossearch.trials.ledger import Trial
from lossearch.trials.proposer import MIN_BASELINE, Proposer, SearchConfig, importance

SAMPLERS = get_args(SearchConfig.model_fields["sampler"].annotation)

Make = Callable[..., Proposer]
Drive = Callable[..., list[Trial]]


def loss_of(trial: Trial) -> str:
    return trial.objective["terms"][0]["loss"]["name"]


def finish(trial: Trial) -> None:
    """Scores best near lr 0.01."""
    trial.status, trial.epoch = "finished", 9
    score = -abs(trial.training["lr"] - 0.01)
    trial.score, trial.rungs = score, {9: score}


def mixed(trial: Trial) -> None:
    """Every fate in turn: finished, waiting, failed, rejected, pruned, running."""
    finish(trial)
    fate = trial.number % 6
    if fate == 1:
        trial.status, trial.epoch, trial.rungs = "running", 3, {3: -0.5 - trial.number}
    elif fate in (2, 3):
        trial.status = "failed" if fate == 2 else "rejected"
        trial.score, trial.rungs = None, {}
    elif fate == 4:
        trial.status, trial.rungs = "pruned", {1: -0.5, 3: -0.7}
    elif fate == 5:
        trial.status, trial.score, trial.rungs = "running", None, {}


def test_the_baseline_and_each_loss_at_its_defaults_come_first(
    make_proposer: Make, drive: Drive
) -> None:
    trials = drive(make_proposer(trials=20), finish)
    assert [t.role for t in trials[:6]] == ["baseline", *["reference"] * 3, "baseline", "baseline"]
    assert [loss_of(t) for t in trials[:4]] == [
        "cross_entropy", "cross_entropy", "focal", "poly_loss",
    ]  # fmt: skip
    for trial in trials[:4]:
        assert trial.objective["terms"] == [{"loss": {"name": loss_of(trial)}}]
        assert trial.training["lr"] == pytest.approx(3e-3)
    assert "reference" not in [t.role for t in trials[4:]]


def test_references_can_be_left_out(make_proposer: Make, drive: Drive) -> None:
    roles = {t.role for t in drive(make_proposer(trials=12, references=False), finish)}
    assert roles == {"baseline", "search"}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("budget", [2, 3, 5, 8, 15, 31])
@pytest.mark.parametrize("losses", [["focal"], ["focal", "poly_loss"], None])
def test_no_loss_gets_more_trials_than_the_baseline(
    make_proposer: Make, drive: Drive, sampler: str, budget: int, losses: Any
) -> None:
    trials = drive(make_proposer(trials=budget, sampler=sampler, losses=losses), finish)
    assert len(trials) == budget
    own = sum(t.role == "baseline" for t in trials)
    per_loss = Counter(loss_of(t) for t in trials if t.role != "baseline")
    assert own >= max(per_loss.values())
    assert own >= min(MIN_BASELINE, budget // 3)
    assert per_loss.total() >= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_the_same_proposals_and_another_others(
    make_proposer: Make, drive: Drive, sampler: str
) -> None:
    def labels(seed: int) -> list[Any]:
        trials = drive(make_proposer(seed=seed, trials=16, sampler=sampler), finish)
        return [(t.label, t.training) for t in trials]

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)
    assert len({str(x) for x in labels(1)}) > 10  # no point again and again


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsga2", "evolution"])
@pytest.mark.parametrize("cut", [1, 3, 13, 22])
def test_restored_from_the_ledger_it_goes_on_as_if_never_stopped(
    make_proposer: Make, drive: Drive, sampler: str, cut: int
) -> None:
    whole = drive(make_proposer(trials=26, sampler=sampler), mixed)
    resumed = make_proposer(trials=26, sampler=sampler)
    resumed.restore(deepcopy(whole[:cut]))
    assert resumed.left == 26 - cut
    rest = drive(resumed, mixed)
    assert [(t.role, t.params) for t in rest] == [(t.role, t.params) for t in whole[cut:]]


@pytest.mark.parametrize("maximize", [True, False])
def test_tpe_learns_towards_the_metrics_direction(
    make_proposer: Make, drive: Drive, maximize: bool
) -> None:
    def score(trial: Trial) -> None:
        finish(trial)
        trial.score = trial.training["lr"]

    proposer = make_proposer(trials=60, losses=["focal"], maximize=maximize)
    late = [t.training["lr"] for t in drive(proposer, score)[40:]]
    middle = sorted(late)[len(late) // 2]
    assert middle > 0.02 if maximize else middle < 5e-4


def test_importance_finds_the_parameter_that_matters(make_proposer: Make, drive: Drive) -> None:
    trials = drive(make_proposer(trials=30, losses=["focal"], sampler="random"), finish)
    found = importance(trials, maximize=True)
    assert next(iter(found)) == "training.lr"
    assert found["training.lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)
    assert found == importance(trials, maximize=True)
    assert importance(trials[:8], maximize=True) == {}


def test_importance_of_a_large_search_takes_a_second(
    make_proposer: Make, drive: Drive
) -> None:
    """Shares of the variance of a sum are known; as many trials take a minute by default."""
    proposer = make_proposer(trials=2000, losses=["focal", "poly_loss"], sampler="random")
    better = {"focal": 0.5, "poly_loss": -0.5}

    def score(trial: Trial) -> None:
        finish(trial)
        trial.score = better.get(loss_of(trial), 0.0) + math.log10(trial.training["lr"])

    trials = [t for t in drive(proposer, score) if t.role != "baseline"]
    began = time.process_time()
    found = importance(trials, maximize=True)
    assert time.process_time() - began < 3  # 0.3 s where nothing else runs
    rates = np.log10(np.linspace(1e-4, 1e-1, 100_000))  # fANOVA's own measure: no logarithm
    share = rates.var() / (rates.var() + 0.5**2)
    assert found["training.lr"] == pytest.approx(share, abs=0.05)
    assert found["terms.0.loss"] == pytest.approx(1 - share, abs=0.05)


def test_nothing_warns(make_proposer: Make, drive: Drive) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sampler in SAMPLERS:
            drive(make_proposer(trials=14, sampler=sampler), finish)


def test_what_preflight_refuses_is_proposed_less_and_less(
    make_proposer: Make, drive: Drive
) -> None:
    """Half of the losses, and of one more those of large gamma, are refused."""
    bad = {"poly_loss", "mse_logits", "squentropy", "ldr_kl"}
    losses = ["cross_entropy", "focal", "generalized_cross_entropy", "dual_focal", *sorted(bad)]

    def become(trial: Trial) -> None:
        finish(trial)
        gamma = trial.params.get("terms.0.loss.focal.gamma", 0.0)
        if trial.role != "baseline" and (loss_of(trial) in bad or gamma > 2.5):
            trial.status, trial.score, trial.rungs = "rejected", None, {}

    trials = drive(make_proposer(trials=240, losses=losses, references=False), become)
    refused = [t.status == "rejected" for t in trials if t.role == "search"]
    assert sum(refused[:40]) > 12
    assert sum(refused[-40:]) < 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ahead_are_those_that_come(make_proposer: Make, drive: Drive, sampler: str) -> None:
    proposer, other = (make_proposer(trials=60, sampler=sampler) for _ in range(2))
    for each in (proposer, other):
        drive(each, mixed, 40)
    ahead = proposer.ahead(8)
    came = []
    for proposal in ahead:
        came.append(other.propose())
        number = len(other._trials)
        other.register(
            Trial(number, proposal.role, proposal.objective.document(), "", proposal.training,
                  proposal.params, proposal.distributions, sampler=proposal.sampler)
        )  # fmt: skip
    assert ahead == came and len(ahead) == 8
    assert proposer.ahead(8) == ahead  # it does not know of them
    assert len(proposer.ahead(100)) == 20  # no more than the budget has
