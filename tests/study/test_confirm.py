"""Who is confirmed, and what the verdict says when some of it failed."""

from __future__ import annotations

from typing import Any

import pytest

from lossearch.registry import current
from lossearch.study.confirm import confirmation_seeds, finalists, next_in_line, verdict
from lossearch.trials.ledger import Confirmation, State, Trial

CE: dict[str, Any] = {"loss": {"name": "cross_entropy"}}
NONE = {"reweighting": {"name": "none"}}


def trial(number: int, score: float | None, terms: Any, role: Any = "search") -> Trial:
    listed = terms if isinstance(terms, list) else [terms]
    objective = {"task": "multiclass", "terms": listed}
    made = Trial(number, role, objective, f"t{number}", {"lr": 0.1}, score=score)
    made.status = "failed" if score is None else "finished"
    return made


def loss(name: str, **params: Any) -> dict[str, Any]:
    return {"loss": {"name": name, **params}}


def state_of(*trials: Trial) -> State:
    return State(trials={t.number: t for t in trials})


def chosen(state: State, top: int = 3, metric: str = "accuracy") -> tuple[int | None, list[int]]:
    baseline, found = finalists(state, (current().get(metric),), top)
    return baseline.number if baseline else None, [t.number for t in found]


def test_the_best_of_each_structure() -> None:
    state = state_of(
        trial(0, 0.5, CE, "baseline"),
        trial(1, 0.8, loss("focal", gamma=1)),
        trial(2, 0.9, loss("focal", gamma=2)),
        trial(3, 0.7, {**loss("focal"), "reweighting": {"name": "class_balanced"}}),
        trial(4, 0.6, loss("poly_loss")),
        trial(5, None, loss("squentropy")),
        trial(6, 0.55, [loss("focal"), loss("orthogonal_projection")]),
    )
    assert chosen(state, 10) == (0, [2, 3, 4, 6])
    assert chosen(state, 2) == (0, [2, 3])
    assert chosen(state, 10, "nll") == (0, [6, 4, 3, 1])  # less is better


def test_a_reweighting_that_does_nothing_is_no_structure() -> None:
    state = state_of(
        trial(0, 0.5, CE, "baseline"),
        trial(1, 0.8, loss("focal") | NONE),
        trial(2, 0.7, loss("focal")),
    )
    assert chosen(state) == (0, [1])


@pytest.mark.parametrize("same", [CE, CE | NONE])
def test_what_equals_the_baseline_counts_as_it(same: dict[str, Any]) -> None:
    state = state_of(
        trial(0, 0.5, CE, "baseline"),
        trial(1, 0.9, same, "reference"),
        trial(2, 0.6, loss("cross_entropy", label_smoothing=0.1)),
    )
    assert chosen(state) == (1, [2])


def test_ties_go_to_the_earlier_trial() -> None:
    state = state_of(
        trial(3, 0.5, CE, "baseline"),
        trial(2, 0.8, loss("focal", gamma=2)),
        trial(1, 0.8, loss("focal", gamma=1)),
        trial(0, 0.5, CE, "baseline"),
        trial(4, 0.8, loss("poly_loss")),
    )
    assert chosen(state) == (0, [1, 4])


def test_nothing_to_confirm() -> None:
    assert chosen(state_of()) == (None, [])
    assert chosen(state_of(trial(0, None, CE, "baseline"), trial(1, 0.5, loss("focal")))) == (
        None,
        [1],
    )


def test_who_goes_on_where_no_other_objective_finished() -> None:
    metric = current().get("accuracy")
    trials = [trial(0, 0.9, CE, "baseline"), *(trial(n, 0.5, loss("focal")) for n in (1, 2, 3, 4))]
    trials.append(trial(5, 0.9, CE | NONE))
    for waits, rungs in zip(
        trials[1:], ({1: 0.9}, {1: 0.3, 3: 0.4}, {1: 0.1, 3: 0.5}, {}, {3: 0.99}), strict=True
    ):
        waits.status, waits.rungs, waits.epoch = "running", rungs, max(rungs, default=0)
    found = next_in_line(state_of(*trials), metric)
    assert found is not None and found.number == 3
    assert next_in_line(state_of(trials[0], trials[4], trials[5]), metric) is None


def test_seeds_are_fresh_and_far() -> None:
    seeds = confirmation_seeds(0, 8)
    assert len(set(seeds)) == 8 and 0 not in seeds
    assert not set(seeds) & set(confirmation_seeds(100, 8))
    assert all(0 <= s < 2**31 for s in confirmation_seeds(2**31 - 1, 8))


def confirmed(state: State, values: dict[int, list[float | None]]) -> State:
    """Test values by seed 7, 8, ...; None where the retraining failed."""
    for number, each in values.items():
        for seed, value in enumerate(each, 7):
            test = {} if value is None else {"accuracy": value, "nll": 0.1}
            state.confirmations.append(Confirmation(number, seed, value, test))
    return state


def judged(values: dict[int, list[float | None]]) -> dict[str, Any]:
    trials = [trial(0, 0.5, CE, "baseline"), trial(1, 0.6, loss("focal")),
              trial(2, 0.7, loss("poly_loss"))]  # fmt: skip
    state = confirmed(state_of(*trials), values)
    return verdict(state, trials[0], trials[1:], (current().get("accuracy"),))


def test_a_candidate_that_failed_on_a_seed_is_dropped() -> None:
    found = judged({0: [0.5, 0.5, 0.51], 1: [0.6, 0.6, 0.62], 2: [0.9, None, 0.9]})
    assert found["winner"]["trial"] == 1 and found["dropped"] == ["t2"]
    assert [c["trial"] for c in found["candidates"]] == [1]
    assert found["counts"]["finished"] == 3


def test_a_seed_on_which_the_baseline_failed_is_left_out_for_all() -> None:
    found = judged({0: [0.5, None, 0.51], 1: [0.6, 0.6, 0.62], 2: [0.5, 0.5, 0.5]})
    assert found["seeds"] == [7, 9] and found["dropped"] == []
    assert found["winner"]["values"] == [0.6, 0.62]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({0: [0.5, None], 1: [0.6, 0.6], 2: [0.5, 0.5]}, "the baseline did not finish on two"),
        ({0: [0.5, 0.5], 1: [0.6, None], 2: [None, 0.5]}, "no candidate finished on every fresh"),
    ],
)
def test_without_two_sides_the_baseline_is_kept(
    values: dict[int, list[float | None]], reason: str
) -> None:
    found = judged(values)
    assert found["recommend"] == "baseline" and found["winner"] is None
    assert found["reason"].startswith(reason)
    assert found["baseline"]["trial"] == 0
    assert {"metric", "difference", "interval", "p_value", "seeds", "counts"} <= set(found)
