"""The confirmation: the finalists and the tuned baseline again, on seeds that nobody has seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lossearch.components import Component
from lossearch.trials.comparison import Finalist, judge
from lossearch.trials.ledger import State, Trial

# Fresh seeds lie far from the search's own.
_OFFSET = 1_000_003


def confirmation_seeds(seed: int, count: int) -> list[int]:
    """The seeds of the confirmation, none of which the search trained with."""
    return [(seed + _OFFSET + i) % 2**31 for i in range(count)]


def best_first(trials: Iterable[Trial], metric: Component) -> list[Trial]:
    """Finished trials, the best validation score first; the earlier one where they tie."""
    scored = [t for t in trials if t.status == "finished" and t.score is not None]
    sign = -1 if metric.maximize else 1
    return sorted(scored, key=lambda t: (sign * (t.score or 0.0), t.number))


def finalists(state: State, metric: Component, top: int) -> tuple[Trial | None, list[Trial]]:
    """The tuned baseline, and the best trial of each of the ``top`` best structures.

    One trial a structure (the names of its components), because near copies of one objective
    would fill all places and make the correction for their number pointless. A trial of the
    search whose objective is the baseline's counts as the baseline.
    """
    ranked = best_first(state.trials.values(), metric)
    same = _baselines(state)
    baseline = next((t for t in ranked if _plain(t.objective) in same), None)
    chosen: dict[str, Trial] = {}
    for trial in ranked:
        if _plain(trial.objective) not in same:
            chosen.setdefault(_structure(trial.objective), trial)
    return baseline, list(chosen.values())[:top]


def next_in_line(state: State, metric: Component) -> Trial | None:
    """The best trial that waits at a rung and could be a finalist: the highest rung's best."""
    same, sign = _baselines(state), 1 if metric.maximize else -1
    waiting = [
        t
        for t in state.trials.values()
        if t.status == "running" and t.epoch in t.rungs and _plain(t.objective) not in same
    ]
    return max(waiting, key=lambda t: (t.epoch, sign * t.rungs[t.epoch]), default=None)


def _baselines(state: State) -> list[dict[str, Any]]:
    return [_plain(t.objective) for t in state.trials.values() if t.role == "baseline"]


def _plain(objective: dict[str, Any]) -> dict[str, Any]:
    """The objective without reweightings that do nothing."""
    terms = [
        {k: v for k, v in term.items() if k != "reweighting" or v["name"] != "none"}
        for term in objective["terms"]
    ]
    return {**objective, "terms": terms}


def _structure(objective: dict[str, Any]) -> str:
    names = [
        f"{place}={term[place]['name']}"
        for term in _plain(objective)["terms"]
        for place in ("loss", "reweighting", "miner")
        if place in term
    ]
    balancer = objective.get("balancer")
    return " ".join(names + ([f"balancer={balancer['name']}"] if balancer else []))


def verdict(
    state: State, baseline: Trial | None, candidates: list[Trial], metric: Component
) -> dict[str, Any]:
    """The content of ``verdict.json``.

    A candidate that failed on one of the fresh seeds is out: what breaks on one seed in five is
    no objective to recommend. Without a baseline or a candidate left, the baseline is kept.
    """
    left = {c.number: _finalist(state, c, metric.name) for c in candidates}
    base = _finalist(state, baseline, metric.name) if baseline is not None else None
    seeds = len(base.test) if base is not None else 0
    tried = {c.seed for c in state.confirmations}
    whole = [f for f in left.values() if len(f.test) == len(tried)]
    dropped = [f.label for f in left.values() if f not in whole]
    if base is None or seeds < 2 or not whole:
        if base is None:
            why = "no trial of the baseline finished"
        elif not left:
            why = "no other objective finished"
        elif seeds < 2:
            why = "the baseline did not finish on two fresh seeds"
        else:
            why = "no candidate finished on every fresh seed"
        found: dict[str, Any] = {
            "metric": metric.name,
            "maximize": metric.maximize,
            "recommend": "baseline",
            "reason": why,
            "baseline": base.summary(sorted(base.test)) if base is not None and seeds else None,
            "winner": None,
            "difference": None,
            "interval": None,
            "p_value": None,
            "seeds": sorted(base.test) if base is not None else [],
            "candidates": [],
        }
    else:
        found = judge(base, whole, metric=metric.name, maximize=metric.maximize)
    return {**found, "dropped": dropped, "counts": state.counts()}


def _finalist(state: State, trial: Trial, metric: str) -> Finalist:
    rows = [
        c
        for c in state.confirmations
        if c.trial == trial.number and metric in c.test and c.validation is not None
    ]
    return Finalist(
        trial.number,
        trial.label,
        trial.objective,
        trial.training,
        {c.seed: c.validation for c in rows if c.validation is not None},
        {c.seed: c.test[metric] for c in rows},
    )
