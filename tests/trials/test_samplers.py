"""What samplers are told of a ledger's trials, in every fate and with several metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.trial import TrialState

from lossearch.errors import StudyError
from lossearch.trials import samplers
from lossearch.trials.ledger import Trial
from lossearch.trials.proposer import Proposer
from lossearch.trials.samplers import History, fate
from lossearch.trials.tpe import FINISHED, PENDING, REFUSED

Make = Callable[..., Proposer]
Drive = Callable[..., list[Trial]]
RANGE = distribution_to_json(FloatDistribution(0.0, 2.0))


def trial(number: int = 0, **changes: Any) -> Trial:
    made = Trial(number, "search", {"terms": [{"loss": {"name": "focal"}}]}, "", {})
    made.params, made.distributions = {"x": number / 100}, {"x": RANGE}
    for name, value in changes.items():
        setattr(made, name, value)
    return made


SCORES: dict[str, Any] = {"accuracy": 0.7, "ece": 0.1}
FATES = [
    (trial(), PENDING, ()),
    (trial(rungs={3: 0.5}), 3, (0.5,)),
    (trial(rungs={3: 0.5, 9: 0.6}, status="pruned"), 9, (0.6,)),
    (trial(rungs={9: 0.6}, status="finished", score=0.7), FINISHED, (0.7,)),
    (trial(status="finished", score=None), REFUSED, ()),
    (trial(rungs={3: 0.5}, status="failed", reason="diverged"), REFUSED, ()),
    (trial(status="rejected", reason="wrong_sign"), REFUSED, ()),
    # it was alone when it took its process down: it is at fault
    (trial(status="failed", reason="worker_died"), REFUSED, ()),
]


@pytest.mark.parametrize(("known", "level", "values"), FATES)
def test_how_far_a_trial_got(known: Trial, level: float, values: tuple[float, ...]) -> None:
    assert fate(known, 1) == (level, values)


def test_before_its_first_rung_a_pruned_trial_says_nothing() -> None:
    assert math.isnan(fate(trial(status="pruned"), 1)[0])


def test_several_metrics_at_once() -> None:
    rung = trial(rungs={3: 0.7}, rung_scores={3: SCORES})
    assert fate(rung, 2) == (3, (0.7, 0.1))
    done = trial(status="finished", score=0.7, scores=SCORES)
    assert fate(done, 2) == (FINISHED, (0.7, 0.1))
    lacks = trial(status="finished", score=0.7, scores={"accuracy": 0.7, "ece": None})
    assert fate(lacks, 2) == (REFUSED, ())


def held(sampler: Any, trials: list[Trial], maximize: tuple[bool, ...]) -> list[Any]:
    history = History(sampler, maximize, 50)
    for each in trials:
        history.add(each, each)
    return history.study(0).get_trials()


def test_optuna_holds_each_trial_once_with_what_became_of_it() -> None:
    found = held("gp", [known for known, *_ in FATES], (True,))
    state = TrialState
    assert [t.state for t in found] == [
        state.RUNNING, state.PRUNED, state.PRUNED, state.COMPLETE, state.FAIL, state.FAIL,
        state.FAIL, state.FAIL,
    ]  # fmt: skip
    assert [t.intermediate_values for t in found[:4]] == [k.rungs for k, *_ in FATES[:4]]
    assert found[3].value == 0.7
    assert len({t.number for t in found} | {0}) == len(found) + 1  # 0 is the one asked for


def test_values_of_a_rung_never_pass_for_final_ones() -> None:
    paused = trial(1, rungs={3: 0.9}, rung_scores={3: {"accuracy": 0.9, "ece": 0.0}})
    done = trial(2, status="finished", score=0.7, scores=SCORES)
    pruned, complete = held("gp", [paused, done], (True, False))
    assert pruned.state is TrialState.PRUNED and pruned.values is None
    assert complete.values == [0.7, 0.1]
    # NSGA-II learns from both, in their order: the one that got to the end comes first
    last, first = held("nsga2", [paused, done], (True, False))
    assert (first.value, last.value) == (0.0, 1.0)
    assert first.state is last.state is TrialState.COMPLETE


def test_a_trial_that_goes_on_from_its_rung_is_no_longer_pruned() -> None:
    history, known = History("gp", (True,), 50), trial()
    history.add(known, known)
    states: list[str] = []
    for epoch in (0, 3, 9):
        if epoch:
            known.rungs[epoch], known.epoch = 0.5, epoch
        states.append(history.study(0).get_trials()[0].state.name)
    known.status, known.score = "finished", 0.6
    states += [t.state.name for t in history.study(0).get_trials()]
    assert states == ["RUNNING", "PRUNED", "PRUNED", "COMPLETE"]


def test_a_learning_rate_that_was_changed_by_a_probe_is_learned_as_it_was_trained() -> None:
    history, known = History("tpe", (True,), 50), trial()
    history.add(known, known)
    known.params = {"x": 2.0}
    known.rungs, known.epoch = {3: 0.5}, 3
    history.study(0)
    assert history._arrays._params[0, 0] == 1.0


def test_what_repeats_a_trial_has_its_fate() -> None:
    history = History("gp", (True,), 50)
    first, again = trial(0), trial(1, status="rejected", equals=0)
    history.add(first, first)
    history.add(again, first)
    assert [t.state.name for t in history.study(0).get_trials()] == ["RUNNING"] * 2
    first.status, first.score, first.epoch = "finished", 0.4, 9
    found = history.study(0).get_trials()
    assert [t.value for t in found] == [0.4, 0.4]
    assert [t.params["x"] for t in found] == [0.0, 0.01]


def test_a_float_that_json_wrote_as_an_int_stays_a_float() -> None:
    (found,) = held("gp", [trial(params={"x": 1})], (True,))
    assert isinstance(found.params["x"], float)


def test_cmaes_says_what_it_needs(
    make_proposer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudyError, match="for one metric, not several; take tpe"):
        make_proposer(trials=9, sampler="cmaes", maximize=(True, False))
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match="pip install cmaes"):
        make_proposer(trials=9, sampler="cmaes")


@pytest.mark.parametrize(("sampler", "key"), [("cmaes", "cma"), ("nsga2", "generation")])
def test_what_a_sampler_keeps_with_its_trials_goes_through_the_ledger(
    make_proposer: Make, drive: Drive, sampler: str, key: str
) -> None:
    def finish(each: Trial) -> None:
        each.status, each.score = "finished", -each.training["lr"]

    trials = drive(make_proposer(trials=40, losses=["focal"], sampler=sampler), finish)
    assert any(key in name for t in trials for name in t.sampler)
    resumed = make_proposer(trials=41, losses=["focal"], sampler=sampler)
    resumed.restore(deepcopy(trials))
    kept = resumed._history.study(0).get_trials()
    assert any(key in name for t in kept for name in t.system_attrs)
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "evolution", "random"])
def test_every_sampler_serves_two_metrics(
    make_proposer: Make, drive: Drive, sampler: str
) -> None:
    def become(each: Trial) -> None:
        lr = math.log10(each.training["lr"])
        scores = {"accuracy": -abs(lr + 3), "ece": abs(lr + 2)}
        each.rungs, each.rung_scores = {3: scores["accuracy"]}, {3: scores}
        each.epoch = 3
        if -3.3 < lr < -1.7 or each.number % 3 == 0:  # what is poor is seldom promoted
            each.status, each.score, each.scores = "finished", scores["accuracy"], scores

    count = 100 if sampler == "tpe" else 30
    proposer = make_proposer(
        trials=count, sampler=sampler, losses=["focal"], maximize=(True, False)
    )
    rates = [math.log10(t.training["lr"]) for t in drive(proposer, become)]
    assert len({round(r, 6) for r in rates}) > count / 2
    if sampler == "tpe":  # the front lies between the two best learning rates, on half the range
        assert sum(-3.1 < r < -1.9 for r in rates[50:]) > 35
