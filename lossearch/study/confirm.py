"""The confirmation: the finalists and the tuned baseline again, on seeds that nobody has seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lossearch.components import Component
from lossearch.study.journal import Journal
from lossearch.study.phase import final_row, of_one_seed
from lossearch.study.setup import Setup
from lossearch.training import Job, JobResult
from lossearch.trials.comparison import Finalist, judge
from lossearch.trials.ledger import State, Trial
from lossearch.trials.pareto import order
from lossearch.trials.rank_correlation import rank_correlation

# Fresh seeds lie far from the search's own.
_OFFSET = 1_000_003
_REASONS, _DETAIL = 3, 300  # how many are told, and how much of each


class Confirmation:
    """The phase that trains them: a unit holds one seed's, which share weights and batches."""

    def __init__(self, setup: Setup, journal: Journal) -> None:
        self.journal = journal
        config, state = setup.config, journal.state
        baseline, candidates = finalists(state, setup.deciding, config.confirm.top)
        together = [baseline, *candidates] if baseline is not None and candidates else []
        have = {(c.trial, c.seed) for c in state.confirmations}
        self._waiting = [
            setup.final_job(t.number, t.objective, t.final, seed)
            for seed in confirmation_seeds(config.seed, config.confirm.seeds)
            for t in together
            if t is not None and (t.number, seed) not in have
        ]
        self._left = len(self._waiting)

    @property
    def left(self) -> int:
        return self._left

    def jobs(self, most: int) -> list[Job]:
        return of_one_seed(self._waiting, most)

    def report(self, result: JobResult) -> None:
        self._left -= 1
        self.journal.record("confirmed", **final_row(result))

    def end(self) -> None:
        """Nothing is left to do."""


def confirmation_seeds(seed: int, count: int) -> list[int]:
    """The seeds of the confirmation, none of which the search trained with."""
    return fresh_seeds(seed, count, _OFFSET)


def fresh_seeds(seed: int, count: int, offset: int) -> list[int]:
    """Seeds in a row, so far from a study's own."""
    return [(seed + offset + i) % 2**31 for i in range(count)]


def best_first(trials: Iterable[Trial], metrics: Sequence[Component]) -> list[Trial]:
    """Finished trials, the best validation score first; the earlier one where they tie.

    Several metrics are ranked as trade-offs (:func:`lossearch.trials.pareto.order`).
    """
    return _ordered([(t, t.values()) for t in trials if t.status == "finished"], metrics)


def _ranked(state: State, metrics: Sequence[Component], stage: int) -> list[Trial]:
    """Trials that got to the end of a stage, the best first; of the first where it is the only."""
    full = [(t, t.full) for t in state.trials.values() if t.full is not None]
    if stage == 1 or not full:
        return best_first(state.trials.values(), metrics)
    return _ordered([(t, tuple(f["metrics"][m.name] for m in metrics)) for t, f in full], metrics)


def _ordered(
    valued: Iterable[tuple[Trial, tuple[float, ...]]], metrics: Sequence[Component]
) -> list[Trial]:
    whole = sorted(
        ((t, v) for t, v in valued if len(v) == len(metrics)), key=lambda pair: pair[0].number
    )
    if not whole:
        return []
    ranks = order(np.array([v for _, v in whole]), [m.maximize for m in metrics])
    return [whole[i][0] for i in ranks]


def finalists(
    state: State, metrics: Sequence[Component], top: int, stage: int = 2
) -> tuple[Trial | None, list[Trial]]:
    """The tuned baseline, and the best trial of each of the ``top`` best structures.

    One trial a structure (the names of its components), because near copies of one objective
    would fill all places and make the correction for their number pointless. A trial of the
    search whose objective is the baseline's, in whatever guise, counts as the baseline.

    Args:
        state: The study.
        metrics: The metrics that decide.
        top: How many structures.
        stage: 2 to rank by what fine-tuning gave, where there was such a stage.
    """
    ranked = _ranked(state, metrics, stage)
    same = _baselines(state)
    baseline = next((t for t in ranked if _is_baseline(t, same)), None)
    chosen: dict[str, Trial] = {}
    for trial in ranked:
        if not _is_baseline(trial, same):
            chosen.setdefault(_structure(trial.objective), trial)
    return baseline, list(chosen.values())[:top]


def next_in_line(state: State, metric: Component) -> Trial | None:
    """The best trial that waits at a rung and could be a finalist: the highest rung's best."""
    same, sign = _baselines(state), 1 if metric.maximize else -1
    waiting = [
        t
        for t in state.trials.values()
        if t.status == "running" and t.epoch in t.rungs and not _is_baseline(t, same)
    ]
    return max(waiting, key=lambda t: (t.epoch, sign * t.rungs[t.epoch]), default=None)


def _baselines(state: State) -> list[dict[str, Any]]:
    return [_plain(t.objective) for t in state.trials.values() if t.role == "baseline"]


def _is_baseline(trial: Trial, same: list[dict[str, Any]]) -> bool:
    return trial.plays_baseline or _plain(trial.objective) in same


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
    state: State,
    baseline: Trial | None,
    candidates: list[Trial],
    metrics: Sequence[Component],
) -> dict[str, Any]:
    """The content of ``verdict.json``; of several metrics, the first one leads.

    A candidate that failed on one of the fresh seeds is out: what breaks on one seed in five is
    no objective to recommend. Without a candidate left, the baseline is kept. Where not even the
    baseline could be trained, the study has failed: ``recommend`` is ``None``. The ``reason`` of
    either is in the words of the trainings that failed first.
    """
    metric = metrics[0]
    left = {c.number: _finalist(state, c, metric.name) for c in candidates}
    base = _finalist(state, baseline, metric.name) if baseline is not None else None
    seeds = len(base.test) if base is not None else 0
    tried = {c.seed for c in state.confirmations}
    whole = [f for f in left.values() if len(f.test) == len(tried)]
    dropped = [f.label for f in left.values() if f not in whole]
    if base is None or seeds < 2 or not whole:
        found: dict[str, Any] = {
            "metric": metric.name,
            "maximize": metric.maximize,
            "recommend": None if base is None or (left and not seeds) else "baseline",
            "reason": _why_not(state, baseline, candidates, seeds),
            "baseline": base.summary(sorted(base.test)) if base is not None and seeds else None,
            "winner": None,
            "difference": None,
            "interval": None,
            "p_value": None,
            "seeds": sorted(base.test) if base is not None else [],
            "candidates": [],
        }
    else:
        directions = {m.name: m.maximize for m in metrics}
        found = judge(base, whole, directions)
    found |= {"dropped": dropped, "counts": state.counts()}
    return found if not state.finetuned else {**found, "stages": stages(state)}


def _why_not(state: State, baseline: Trial | None, candidates: list[Trial], seeds: int) -> str:
    """Why nothing could be compared, and what the first trainings at fault say."""
    same = _baselines(state)
    trials = state.trials.values()
    if baseline is None and not candidates:
        ended = _first_words([(t, t.reason, t.detail) for t in trials])
        return f"no trial finished{ended or _stopped(state)}"
    if baseline is None:
        own = [(t, t.reason, t.detail) for t in trials if _is_baseline(t, same)]
        what = "no trial of the baseline finished, so nothing can be compared with it"
        return f"{what}{_first_words(own) or _stopped(state)}"
    if not candidates:
        others = [(t, t.reason, t.detail) for t in trials if not _is_baseline(t, same)]
        return f"no other objective finished{_first_words(others) or _stopped(state)}"
    own = [c for c in state.confirmations if c.trial == baseline.number]
    others = [c for c in state.confirmations if c.trial != baseline.number]
    if seeds:
        what = "the baseline did not finish on two fresh seeds"
    else:
        what = "the baseline did not finish on any fresh seed"
    if seeds > 1:
        what, own = "no candidate finished on every fresh seed", others
    return what + _first_words([(state.trials[c.trial], c.reason, c.detail) for c in own])


def _first_words(ended: Iterable[tuple[Trial, str, str]]) -> str:
    """The first reasons, each with its first training and their number; empty without any."""
    groups: dict[str, list[tuple[Trial, str]]] = {}
    for trial, reason, detail in ended:
        if reason:
            groups.setdefault(reason, []).append((trial, detail))
    told = []
    for reason, each in list(groups.items())[:_REASONS]:
        trial, detail = each[0]
        line = next(iter(detail.splitlines()), "").rstrip(".")[:_DETAIL]
        more = f" (and {len(each) - 1} more)" if len(each) > 1 else ""
        told.append(f"trial {trial.number}, {trial.label}: {reason}, {line}".rstrip(", ") + more)
    return f": {'; '.join(told)}" if told else ""


def _stopped(state: State) -> str:
    return f": {state.stopped}" if state.stopped else ""


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
        trial.final,
        {c.seed: c.validation for c in rows if c.validation is not None},
        {c.seed: c.test[metric] for c in rows},
        {c.seed: c.test for c in rows},
    )


def stages(state: State) -> dict[str, Any]:
    """How well the search on embeddings ranked what the whole network then showed."""
    both = [t for t in state.trials.values() if t.full is not None and t.score is not None]
    cheap = [t.score or 0.0 for t in both]
    found = rank_correlation(cheap, [t.full["score"] for t in both if t.full is not None])
    failed = {row["trial"] for row in state.finetuned} - {t.number for t in both}
    return {**asdict(found), "sentence": found.sentence, "failed": sorted(failed)}
