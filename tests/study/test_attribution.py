"""What each part of the winner brings, and what is recommended without those that do nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lossearch.registry import use
from lossearch.spec import ObjectiveSpec
from lossearch.study import read_study, resume, start
from lossearch.study.attribution import Attribution, Without, brings, gain, simpler
from lossearch.study.journal import Journal
from lossearch.study.parts import Part
from lossearch.study.setup import Setup, set_up
from lossearch.training import Job, JobResult
from lossearch.trials.comparison import Finalist, compare
from lossearch.trials.ledger import Confirmation, Ledger, State, Trial, read_ledger, replay

from .conftest import here

Write = Callable[..., Path]
StopAt = Callable[..., Any]

CE = ObjectiveSpec.parse({"task": "multiclass", "terms": [{"loss": "cross_entropy"}]})
SEEDS = [1, 2, 3, 4]
WINNER = [0.80, 0.82, 0.81, 0.83]


def finalist(validation: Sequence[float], label: str = "") -> Finalist:
    values = dict(zip(SEEDS, validation, strict=False))
    return Finalist(0, label, {}, {}, values, values)


def less(name: str, by: Sequence[float], *, baseline: bool = False) -> Without:
    """The winner without a part, whose values are lower by so much at each seed."""
    found = finalist([w - b for w, b in zip(WINNER, by, strict=False)], name)
    return Without(Part(name, (name,), CE), found, baseline)


HELPS = less("helps", [0.05, 0.06, 0.05, 0.04])  # 0.05, from 0.037 to 0.063
IDLE = less("idle", [0.01, -0.01, 0.02, -0.01])  # 0.0025, from -0.021 to 0.026
HARMS = less("harms", [-0.05, -0.06, -0.05, -0.04])
FAILED = less("failed", [0.0, 0.0])  # on two of the four seeds


def test_a_part_brings_something_where_its_interval_lies_on_the_better_side() -> None:
    found = gain(finalist(WINNER), HELPS.found, SEEDS)
    assert found is not None
    # mean 0.05, standard deviation 0.00816, t = 3.182 at three degrees of freedom
    half = 3.18245 * 0.0081650 / 2
    assert (found.low, found.high) == pytest.approx((0.05 - half, 0.05 + half), abs=1e-6)
    assert brings(found, maximize=True) and not brings(found, maximize=False)
    idle = gain(finalist(WINNER), IDLE.found, SEEDS)
    assert idle is not None and idle.low < 0 < idle.high
    assert not brings(idle, maximize=True) and not brings(idle, maximize=False)
    harms = gain(finalist(WINNER), HARMS.found, SEEDS)
    assert not brings(harms, maximize=True) and brings(harms, maximize=False)
    # the same loss at every seed has no interval: the sign test, which takes six of them
    assert not brings(compare([0.6] * 5, [0.5] * 5), maximize=True)
    assert brings(compare([0.6] * 6, [0.5] * 6), maximize=True)


def test_what_cannot_be_trained_without_a_part_says_nothing_against_it() -> None:
    assert gain(finalist(WINNER), FAILED.found, SEEDS) is None
    assert brings(None, maximize=True)


BOTH = less("both", [0.0, 0.01, -0.01, 0.0])
WORSE = less("both", [0.03, 0.04, 0.03, 0.04])


@pytest.mark.parametrize(
    ("singles", "together", "found"),
    [
        ([HELPS], None, None),
        ([FAILED], None, None),
        ([HELPS, IDLE], IDLE, "idle"),
        ([HELPS, IDLE, HARMS], BOTH, "both"),
        ([IDLE, HARMS, HELPS], WORSE, "harms"),  # its removal does best
        ([IDLE, HARMS], less("both", [0.0] * 4, baseline=True), "harms"),
        ([IDLE, HARMS], less("both", [0.0]), "harms"),  # the joint one failed
        ([less("idle", [0.0] * 4, baseline=True)], None, None),
    ],
)
def test_what_is_left(singles: list[Without], together: Without | None, found: str | None) -> None:
    chosen = simpler(finalist(WINNER), singles, together, SEEDS, True)
    assert (chosen.part.name if chosen else None) == found


def test_what_is_left_where_less_is_better() -> None:
    """A removal that raises an error is bad, and one that lowers it good."""
    chosen = simpler(finalist(WINNER), [HELPS, IDLE, HARMS], None, SEEDS, False)
    assert chosen is HELPS


# --- the phase, with invented results -------------------------------------------------------

TERM = {
    "loss": {"name": "arcface", "margin": 0.3},
    "reweighting": {"name": "inverse_frequency", "power": 2.0},
    "miner": {"name": "small_loss"},
}
REWEIGHTING, MINER = "reweighting inverse_frequency", "miner small_loss"
FRESH = [11, 12, 13, 14, 15]


@pytest.fixture
def setup(write_study: Write) -> Setup:
    return set_up(read_study(write_study(baseline={"name": "cross_entropy"})))


def study_of(
    setup: Setup, path: Path, term: dict[str, Any] = TERM, test: float = 0.2
) -> tuple[Attribution, Journal]:
    """At the attribution: a winner that is better on the test split by so much."""
    baseline = Trial(0, "baseline", CE.document(), "cross_entropy", {"lr": 0.1})
    objective = ObjectiveSpec.parse({"task": "multiclass", "terms": [term]})
    winner = Trial(1, "search", objective.document(), objective.label(), {"lr": 0.2})
    for trial, score in ((baseline, 0.5), (winner, 0.7)):
        trial.status, trial.score = "finished", score
    state = State(trials={0: baseline, 1: winner})
    for i, seed in enumerate(FRESH):
        for number, gained in ((0, 0.0), (1, test)):
            value = 0.5 + gained + 0.01 * (i % 2) * (number + 1)
            state.confirmations.append(Confirmation(number, seed, value, {"accuracy": value}))
    journal = Journal(Ledger(path / "ledger.jsonl"), state, [])
    return Attribution(setup, journal, here(setup.recipe(path))), journal


def drain(phase: Attribution, values: Callable[[Job], float | None], most: int = 4) -> list[Job]:
    """Hand out units until there are none, each reported before the next."""
    found: list[Job] = []
    while jobs := phase.jobs(most):
        assert len({job.seed for job in jobs}) == 1
        found += jobs
        for job in jobs:
            value = values(job)
            result = JobResult(job.trial, job.seed, variant=job.variant, done=True, score=value)
            result.test = {} if value is None else {"accuracy": value}
            result.reason = "diverged" if value is None else None
            phase.report(result)
    phase.end()
    return found


def lacks(job: Job, *places: str) -> bool:
    """Whether a job's objective lacks these parts, and no other."""
    term = job.objective["terms"][0]
    gone = {p for p in ("reweighting", "miner") if p not in term}
    return gone | ({"margin"} if not term["loss"]["margin"] else set()) == set(places)


def judged(journal: Journal) -> dict[str, Any]:
    verdict = journal.state.verdict
    assert verdict is not None
    return verdict


def test_two_rounds(setup: Setup, tmp_path: Path) -> None:
    """The margin helps; neither reweighting nor miner does, and together they do no more."""
    phase, journal = study_of(setup, tmp_path)
    noise = {11: 0.0, 12: 0.02, 13: -0.01, 14: 0.03, 15: 0.0}
    jobs = drain(phase, lambda j: (0.6 if lacks(j, "margin") else 0.7) + noise[j.seed])
    assert [j.variant for j in jobs] == [0, 1, 2] * 5 + [3] * 5
    assert [j.seed for j in jobs] == [s for s in FRESH for _ in range(3)] + FRESH
    assert all(j.test and j.values == {"lr": 0.2} and j.until == 3 for j in jobs)
    assert all(lacks(j, "reweighting", "miner") for j in jobs[15:])
    # every objective begins with the baseline's gradient norm
    bench = here(setup.recipe(tmp_path))
    for job in jobs[-4:]:
        bare = ObjectiveSpec.parse({**job.objective, "scale": 1.0})
        assert job.objective["scale"] == bench.look([bare])[0].factor < 0.1
    verdict = judged(journal)
    rows = {r["part"]: r for r in verdict["attribution"]}
    assert list(rows) == ["margin of arcface", REWEIGHTING, MINER, f"{REWEIGHTING} and {MINER}"]
    assert [r["kept"] for r in rows.values()] == [True, False, False, False]
    assert [r["brings"] for r in rows.values()] == [True, False, False, False]
    assert [r["together"] for r in rows.values()] == [False, False, False, True]
    # the winner's 0.70, 0.72, 0.70, 0.72, 0.70 less 0.60, 0.62, 0.59, 0.63, 0.60
    assert rows["margin of arcface"]["difference"] == pytest.approx(0.1)
    assert rows["margin of arcface"]["test"] == pytest.approx(0.608)
    winner = verdict["winner"]
    assert winner["label"] == "arcface(margin=0.3)" and winner["trial"] == 1
    assert winner["simplified_from"] == journal.state.trials[1].label
    assert winner["objective"] == jobs[-1].objective
    assert winner["values"] == [0.7 + noise[s] for s in FRESH]
    assert winner["mean"] == pytest.approx(0.708)
    assert verdict["difference"] == pytest.approx(0.708 - 0.504)
    assert verdict["recommend"] == "winner" and verdict["p_value"] < 0.001
    assert f"without {REWEIGHTING} and {MINER}, which brought nothing" in verdict["text"]


def test_after_fine_tuning_parts_train_in_full_too(write_study: Write, tmp_path: Path) -> None:
    path = write_study(
        baseline={"name": "cross_entropy"},
        model={"name": "mlp", "hidden": [8], "freeze": True},
        finetune={"top": 2, "epochs": 2, "lr": 1e-3},
    )
    phase, journal = study_of(set_up(read_study(path)), tmp_path)
    jobs = drain(phase, lambda job: 0.6 if lacks(job, "margin") else 0.7)
    assert len(jobs) == 20 and all(j.full and j.until == 2 and j.test for j in jobs)
    assert judged(journal)["winner"]["label"] == "arcface(margin=0.3)"


def test_a_kill_in_either_round_repeats_nothing(setup: Setup, tmp_path: Path) -> None:
    phase, journal = study_of(setup, tmp_path)
    whole = drain(phase, lambda j: 0.7 + 0.01 * (j.seed % 3))
    rows = list(read_ledger(tmp_path / "ledger.jsonl"))
    for cut in (0, 7, 15, 18, 20):
        (tmp_path / str(cut)).mkdir()
        _, again = study_of(setup, tmp_path / str(cut))
        for row in rows[:cut]:
            again.record(**{k: v for k, v in row.items() if k != "time"})
        attribution = Attribution(setup, again, here(setup.recipe(tmp_path)))
        resumed = drain(attribution, lambda j: 0.7 + 0.01 * (j.seed % 3))
        done = [(r["part"], r["seed"]) for r in rows[:cut]]
        assert len(resumed) == len(whole) - len(done)
        assert judged(again) == judged(journal)


def test_the_test_split_has_a_veto(setup: Setup, tmp_path: Path) -> None:
    """What is as good on validation but no better than the baseline on the test split."""
    phase, journal = study_of(setup, tmp_path)

    def report(result: JobResult) -> None:
        result.test = {"accuracy": 0.5 + 0.01 * (result.seed % 2)}
        Attribution.report(phase, result)

    phase.report = report  # type: ignore[method-assign]
    drain(phase, lambda j: 0.7 + 0.01 * (j.seed % 2))
    verdict = judged(journal)
    assert verdict["winner"]["label"] == journal.state.trials[1].label
    assert all(r["kept"] for r in verdict["attribution"])
    assert not any(r["brings"] for r in verdict["attribution"])
    assert "not proven to beat the baseline" in verdict["text"]
    assert phase.found.items() <= verdict.items()


def test_what_fails_without_a_part_keeps_it(setup: Setup, tmp_path: Path) -> None:
    phase, journal = study_of(setup, tmp_path)

    def values(job: Job) -> float | None:
        if lacks(job, "miner"):
            return None if job.seed == 13 else 0.9
        return 0.6 + 0.01 * (job.seed % 2)

    assert len(drain(phase, values)) == 15
    rows = {r["part"]: r for r in judged(journal)["attribution"]}
    miner = rows[MINER]
    assert (miner["difference"], miner["interval"], miner["test"]) == (None, None, None)
    assert miner["kept"] and miner["brings"]
    assert {a.reason for a in journal.state.ablations if a.part == MINER} == {"", "diverged"}
    assert "any one of its 3 parts it does worse" in judged(journal)["text"]


# where all classes have as many samples, this reweighting does nothing
ONES = {"reweighting": {"name": "inverse_frequency", "power": 2.0}}


def test_what_leaves_the_baseline_has_its_values(setup: Setup, tmp_path: Path) -> None:
    phase, journal = study_of(setup, tmp_path, {"loss": {"name": "cross_entropy"}, **ONES})
    assert drain(phase, lambda j: None) == []
    (row,) = judged(journal)["attribution"]
    assert row["part"] == REWEIGHTING and row["label"] == "cross_entropy"
    # the baseline's 0.50, 0.51, 0.50, 0.51, 0.50, and the winner's
    assert row["difference"] == pytest.approx(0.708 - 0.504)
    assert row["test"] == pytest.approx(0.504) and row["kept"]


def test_what_leaves_the_same_function_has_the_winner_s_values(
    setup: Setup, tmp_path: Path
) -> None:
    phase, journal = study_of(setup, tmp_path, {"loss": {"name": "focal", "gamma": 1.0}, **ONES})
    assert drain(phase, lambda j: None) == []
    verdict = judged(journal)
    (row,) = verdict["attribution"]
    assert (row["difference"], row["interval"], row["kept"]) == (0.0, [0.0, 0.0], False)
    assert verdict["winner"]["label"] == "focal(gamma=1)"
    assert verdict["winner"]["values"] == phase.found["winner"]["values"]
    assert verdict["p_value"] == phase.found["p_value"]


@pytest.mark.parametrize("test", [0.0, -0.1])
def test_a_winner_that_is_not_recommended_is_not_taken_apart(
    setup: Setup, tmp_path: Path, test: float
) -> None:
    phase, journal = study_of(setup, tmp_path, test=test)
    assert drain(phase, lambda j: None) == []
    assert "attribution" not in judged(journal)
    assert judged(journal)["recommend"] == "baseline"


def test_a_winner_of_one_part_is_not_taken_apart(setup: Setup, tmp_path: Path) -> None:
    phase, journal = study_of(setup, tmp_path, {"loss": {"name": "poly_loss"}})
    assert drain(phase, lambda j: None) == []
    assert judged(journal)["recommend"] == "winner" and "attribution" not in judged(journal)


# --- a whole study --------------------------------------------------------------------------

PLUGIN = '''
import torch
import torch.nn.functional as F
import lossearch

@lossearch.loss(task="multiclass")
def forgetful(logits, targets):
    """Cross-entropy that all but forgets the last class."""
    values = F.cross_entropy(logits, targets, reduction="none")
    return torch.where(targets == 2, 0.01 * values, values)

@lossearch.reweighting(task="multiclass")
def mends(losses, targets):
    """What the last class lost."""
    return torch.where(targets == 2, 100.0, 1.0)

@lossearch.loss(task="multiclass")
def whispers(logits):
    """Nothing worth hearing."""
    return 1e-4 * logits.square().mean(dim=1)

@lossearch.hookimpl
def register_losses():
    return [forgetful, whispers]

@lossearch.hookimpl
def register_reweightings():
    return [mends]
'''


@pytest.fixture
def mended(write_study: Write, tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(PLUGIN)
    terms = [{"loss": "forgetful", "reweighting": "mends"}, {"loss": "whispers"}]
    return write_study(
        plugins=["own.py"],
        space={"terms": terms},
        baseline="forgetful",
        metrics=[],
        search__trials=6,
        training__epochs=8,
        confirm={"top": 1, "seeds": 5},
    )


def test_a_whole_study(mended: Path, tmp_path: Path, stop_at: StopAt) -> None:
    found = start(read_study(mended))
    assert found.verdict is not None and found.recommend == "winner"
    rows = {r["part"]: (r["brings"], r["kept"]) for r in found.verdict["attribution"]}
    assert rows == {
        "term 1: forgetful": (True, True),
        "reweighting mends (term 1)": (True, True),
        "term 2: whispers": (False, False),
    }
    winner = found.verdict["winner"]
    assert winner["label"] == "forgetful · mends"
    assert winner["simplified_from"] == "forgetful · mends + whispers"
    text = (found.folder / "best.yaml").read_text()
    best = yaml.safe_load(text)
    assert best["objective"] == winner["objective"] and len(best["objective"]["terms"]) == 1
    assert best["validation"] == winner["validation"]
    assert text.splitlines()[2] == "# what is left of forgetful · mends + whispers"
    assert json.loads((found.folder / "verdict.json").read_text()) == found.verdict
    use(None)
    assert found.objective().spec.label() == "forgetful · mends"
    page = (found.folder / "report.html").read_text()
    assert "What each part brings" in page and "term 2: whispers (left out)" in page
    state = replay(read_ledger(found.folder / "ledger.jsonl"))
    assert {a.seed for a in state.ablations} == set(found.verdict["seeds"])
    assert all(a.curve for a in state.ablations)
    assert list((found.folder / "checkpoints").glob("*")) == []
    with pytest.raises(KeyboardInterrupt):
        start(read_study(mended, {"output": "stopped"}), display=stop_at("ablated", 3))
    again = resume("stopped")
    assert again.verdict == found.verdict
    assert (tmp_path / "stopped/best.yaml").read_text() == text
