"""What a study found, in plain words and in rows: shared by the command line and the page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossearch.trials.ledger import State, Trial
from lossearch.trials.pareto import front


@dataclass(frozen=True)
class LeaderRow:
    """A finished trial in the order of the validation score.

    Attributes:
        rank: 1 for the best.
        mark: ``winner`` or ``tuned baseline`` where the verdict names the trial, else empty.
    """

    rank: int
    trial: int
    label: str
    role: str
    score: float
    epochs: int
    seconds: float
    lr: float | None
    objective: dict[str, Any]
    mark: str


@dataclass(frozen=True)
class Casualties:
    """Trials that did not finish, of one status and reason, with some of them as examples."""

    status: str
    reason: str
    count: int
    examples: list[tuple[int, str, str]]  # trial, label, detail


def maximizes(state: State) -> bool:
    """Whether more of the study's metric is better."""
    return bool((state.verdict or state.study).get("maximize", True))


def metric_name(state: State) -> str:
    """The metric that the study serves."""
    given = (state.verdict or state.study).get("metric") or state.study.get("config", {}).get(
        "metric"
    )
    return str(given.get("name") if isinstance(given, Mapping) else given or "score")


def ranked(state: State) -> list[Trial]:
    """Finished trials, the best first; of two equal ones the earlier."""
    sign = -1 if maximizes(state) else 1
    return sorted(state.finished(), key=lambda t: (sign * (t.score or 0.0), t.number))


def finalists(state: State) -> tuple[Trial | None, Trial | None]:
    """The winner and the tuned baseline: the verdict's, or the best so far where it has none."""
    order = ranked(state)
    best = next((t for t in order if t.role != "baseline"), None)
    base = next((t for t in order if t.role == "baseline"), None)
    judged = state.verdict or {}
    return (
        state.trials[judged["winner"]["trial"]] if judged.get("winner") else best,
        state.trials[judged["baseline"]["trial"]] if judged.get("baseline") else base,
    )


def leaderboard(state: State, n: int = 20) -> list[LeaderRow]:
    """The ``n`` best finished trials and, further down, the winner and the tuned baseline."""
    winner, baseline = finalists(state)
    marks = {t.number: m for t, m in ((winner, "winner"), (baseline, "tuned baseline")) if t}
    if not compared(state.verdict):
        marks = {k: m for k, m in marks.items() if m != "winner"}
    return [
        LeaderRow(
            rank=rank,
            trial=t.number,
            label=t.label,
            role=t.role,
            score=t.score if t.score is not None else math.nan,
            epochs=t.epoch,
            seconds=t.seconds,
            lr=t.tuned.get("lr"),
            objective=t.objective,
            mark=marks.get(t.number, ""),
        )
        for rank, t in enumerate(ranked(state), 1)
        if rank <= n or t.number in marks
    ]


def casualties(state: State, examples: int = 3) -> list[Casualties]:
    """What was rejected, pruned or failed, by reason; the most frequent first."""
    groups: defaultdict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in state.trials.values():
        if trial.status in ("rejected", "pruned", "failed"):
            reason = trial.reason or ("behind the others at a rung" * (trial.status == "pruned"))
            groups[trial.status, reason].append(trial)
    rows = [
        Casualties(status, reason, len(ts), [(t.number, t.label, _fate(t)) for t in ts[:examples]])
        for (status, reason), ts in groups.items()
    ]
    return sorted(rows, key=lambda r: -r.count)


def _fate(trial: Trial) -> str:
    if trial.status == "pruned" and not trial.detail:
        return f"score {number(trial.score)} at epoch {trial.epoch}"
    return trial.detail


def headline(state: State) -> str:
    """The verdict in three words."""
    if state.verdict:
        return _advice(state.verdict)
    return "No verdict" if state.ended == "complete" else "No verdict yet"


def summary(state: State) -> str:
    """The verdict in plain words, or why there is none."""
    if state.verdict:
        return verdict_text(state.verdict)
    done = sum(1 for _ in state.finished())
    so_far = f"{done} of {len(state.trials)} trials have a final score"
    if state.ended == "complete":
        return (
            f"The study has ended without a verdict: {so_far}, and no objective was compared with "
            "the baseline on fresh seeds. Scores below are validation scores of single trainings; "
            "the best of many looks better than it is."
        )
    how = "was interrupted" if state.ended == "interrupted" else "has not ended"
    return f"The study {how}: {so_far}. Nothing here is final; `lossearch resume` goes on with it."


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """A verdict as a few sentences: the advice, the numbers and how far they can be trusted."""
    return f"{_advice(verdict)}: {explanation(verdict)}"


def _advice(verdict: Mapping[str, Any]) -> str:
    if failed(verdict):
        return "The study failed"
    return "Use the winner" if for_winner(verdict) else "Keep the baseline"


def explanation(verdict: Mapping[str, Any]) -> str:
    """What speaks for a verdict, without the advice itself."""
    if failed(verdict):
        return f"{verdict['reason']}. Nothing can be recommended."
    if not compared(verdict):
        why = verdict.get("reason") or "no objective was trained on fresh seeds beside it"
        return f"nothing was found to be better, since {why}. This is no comparison."
    winner, baseline = verdict["winner"], verdict["baseline"]
    metric, n = verdict["metric"], len(verdict["seeds"])
    tried = len(verdict.get("candidates") or [winner])
    maximize = verdict.get("maximize", True)
    gain = verdict["difference"] if maximize else -verdict["difference"]
    low, high = verdict["interval"]
    lower = "" if maximize else " (lower is better)"
    corrected = f", corrected for {tried} candidates" if tried > 1 else ""
    interval = f"its 95 % interval {number(low, sign=True)} to {number(high, sign=True)}"
    if low == high:
        interval = "the same at every seed, so that no interval can be given"
    numbers = (
        f"On the test split {metric}{lower} is {number(winner['mean'])} with {winner['label']} "
        f"and {number(baseline['mean'])} with the tuned baseline {baseline['label']}. The "
        f"difference is {number(verdict['difference'], sign=True)}, {interval} (paired over {n} "
        "fresh seeds; "
        f"{p_text(verdict['p_value'])}{corrected})."
    )
    others = verdict.get("metrics") or {}
    if others:
        numbers += f" {_others(others, metric)}"
    if for_winner(verdict) and others:
        ahead = _listed([m for m, found in others.items() if found["ahead"]])
        text = f"the best trade-off found beats the tuned baseline in {ahead}, and is behind in "
        text += f"none of the metrics that decide. {numbers}"
    elif for_winner(verdict):
        text = f"the best objective found beats the tuned baseline. {numbers}"
    elif gain > 0:
        text = (
            "the best objective found is ahead of it, but by no more than chance can give. "
            f"{numbers} That does not prove that there is no gain; this study does not show one."
        )
    else:
        worse = "worse than it" if verdict["p_value"] < 0.05 else "no better than it"
        text = (
            f"the best objective found is {worse} on data that the search did not see. {numbers}"
        )
    if verdict.get("attribution"):
        text += f" {attribution_text(verdict)}"
    if verdict.get("stages"):
        text += f" {verdict['stages']['sentence']}"
    return text + (f" With only {n} seeds the interval is rough." if n < 5 else "")


def _others(metrics: Mapping[str, Mapping[str, Any]], first: str) -> str:
    """The metrics that decide beside the first one."""
    parts = [
        f"{name} is {number(found['mean'])} and {number(found['baseline'])} "
        f"({number(found['difference'], sign=True)}, {number(found['interval'][0], sign=True)} to "
        f"{number(found['interval'][1], sign=True)}; {p_text(found['p_value'])})"
        for name, found in metrics.items()
        if name != first
    ]
    return f"Beside it, {_listed(parts)}."


def trade_offs(state: State) -> tuple[list[str], list[tuple[Trial, list[float]]]]:
    """Where several metrics decide: their names, and the trials that no other one beats."""
    deciding: dict[str, bool] = state.study.get("deciding") or {}
    if len(deciding) < 2:
        return [], []
    unbeaten = front(state.trials.values(), tuple(deciding.values()))
    return list(deciding), [(t, list(t.values())) for t in unbeaten]


def attribution_text(verdict: Mapping[str, Any]) -> str:
    """Which parts of the winner were left out, and why the others were not."""
    rows = [r for r in verdict["attribution"] if not r["together"]]
    # what goes only because its term does, such as a balancer of one term, needs no word
    left_out = [r["part"] for r in rows if not r["kept"] and not r["brings"]]
    idle = [r["part"] for r in rows if r["kept"] and not r["brings"]]
    if left_out:
        text = (
            f"That objective is {verdict['winner']['simplified_from']} without "
            f"{_listed(left_out)}, which brought nothing to be seen on the validation split."
        )
        if idle:
            text += f" {_listed(idle)} brought no more alone, but had to stay without the rest."
        return text
    if idle:
        it = "it" if len(idle) == 1 else "them"
        return (
            f"Of its parts, {_listed(idle)} brought nothing to be seen on the validation split, "
            f"but stayed: without {it}, the objective is not proven to beat the baseline."
        )
    if len(rows) == 1:
        return f"Without {rows[0]['part']} it does worse on the validation split."
    return f"Without any one of its {len(rows)} parts it does worse on the validation split."


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def compared(verdict: Mapping[str, Any] | None) -> bool:
    """Whether a verdict rests on a comparison, or only says that there could be none."""
    return bool(verdict and verdict.get("winner") and verdict.get("baseline"))


def failed(verdict: Mapping[str, Any] | None) -> bool:
    """Whether a study has ended with nothing that it could recommend."""
    return verdict is not None and verdict.get("recommend", "baseline") is None


def for_winner(verdict: Mapping[str, Any]) -> bool:
    return verdict["recommend"] == "winner"


def number(value: float | None, *, sign: bool = False) -> str:
    """A value with the digits that a reader can use: ``0.7421``, ``+0.0004``, ``1.2e-05``."""
    if value is None or not math.isfinite(value):
        return "–"
    plus = "+" if sign else ""
    if value == 0 or 1e-3 <= abs(value) < 100:
        return f"{value:{plus}.4f}"
    return f"{value:{plus}.3g}"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
