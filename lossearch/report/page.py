"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lossearch.documents import without_password
from lossearch.report import charts, text
from lossearch.report.charts import Dot, Line
from lossearch.report.data import columns_of, data_lines
from lossearch.trials.ledger import State, Trial

Shapes = Mapping[str, Any]  # margin: [...], loss: {label: [...]}, gradient: {label: [...]}


def write_report(
    folder: Path,
    state: State,
    *,
    shapes: Shapes | None = None,
    importance: Mapping[str, float] | None = None,
    note: str = "",
) -> Path:
    """Write ``report.html`` into ``folder``; a study that has not ended has one too.

    Args:
        folder: The study's folder.
        state: What its ledger says.
        shapes: The winning loss beside the baseline's: ``margin``, and ``loss`` and ``gradient``
            with one series a label, each as long as ``margin``; the labels start with ``winner``
            and ``baseline``.
        importance: How much of the score's variation each searched parameter explains.
        note: Why shapes are missing.

    Returns:
        The path of the page.
    """
    path = folder / "report.html"
    draft = path.with_suffix(".tmp")
    page = render(state, shapes=shapes, importance=importance, note=note)
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path


def render(
    state: State,
    *,
    shapes: Shapes | None = None,
    importance: Mapping[str, float] | None = None,
    note: str = "",
) -> str:
    """The page as text; see :func:`write_report`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number,
        "signed": lambda v: text.number(v, sign=True),
        "duration": text.duration,
        "p": text.p_text,
        "yaml": _yaml,
        "prose": _prose,
    }
    winner, baseline = text.finalists(state)
    fresh_seconds = sum(c.seconds for c in (*state.confirmations, *state.ablations))
    return environment.get_template("template.html").render(
        study=state.study,
        name=state.study.get("name") or "A study",
        state=state,
        metric=text.metric_name(state),
        maximize=text.maximizes(state),
        subtitle=_subtitle(state),
        verdict=state.verdict,
        compared=text.compared(state.verdict),
        headline=text.headline(state),
        explanation=_explanation(state),
        evidence=_evidence(state),
        brought=_brought(state),
        board=text.leaderboard(state),
        trades=text.trade_offs(state),
        best=_best(state, winner, baseline),
        curves=_curves(state, winner, baseline),
        shapes=_shapes(shapes) if shapes else [],
        note=note,
        progress=_progress(state),
        importance=_bars(importance or {}),
        casualties=text.casualties(state),
        left_out=_by_reason(state.study.get("left_out") or []),
        facts=_facts(state),
        read=_read(state.study.get("data") or {}),
        trained=sum(t.seconds for t in state.trials.values()) + fresh_seconds,
        span=max((t.ended for t in state.trials.values()), default=0.0)
        - state.study.get("time", 0.0),
    )


def _explanation(state: State) -> str:
    if not state.verdict:
        return text.summary(state)
    sentence = text.explanation(state.verdict)
    return sentence[0].upper() + sentence[1:]


def _prose(sentence: str) -> Markup:
    """Words between backticks as code; a p-value is kept on one line."""
    parts = sentence.replace("p = ", "p\u00a0=\u00a0").split("`")
    return Markup("").join(
        Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(parts)
    )


def _subtitle(state: State) -> str:
    config = state.study.get("config") or {}
    words = f"A search over loss functions for {text.metric_name(state)}"
    for joint, part in (("on", "data"), ("with", "model")):
        given = config.get(part)
        name = given.get("name") if isinstance(given, Mapping) else given
        words += f" {joint} {name}" if name else ""
    return words


def _best(state: State, winner: Trial | None, baseline: Trial | None) -> Mapping[str, Any] | None:
    """Label, objective and training of what to use: the verdict's, else the best trial's."""
    verdict = state.verdict
    if text.failed(verdict):
        return None
    if verdict and verdict.get(verdict["recommend"]):
        return verdict[verdict["recommend"]]
    trial = winner if verdict is None or text.for_winner(verdict) else baseline
    if trial is None:
        return None
    return {"label": trial.label, "objective": trial.objective, "training": trial.final}


def _yaml(value: Any) -> str:
    shown = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
    return without_password(shown)


def _evidence(state: State) -> list[Markup]:
    """The test values by seed, and every candidate's difference from the baseline."""
    verdict = state.verdict
    if not verdict or not text.compared(verdict):
        return []
    winner, base, metric = verdict["winner"], verdict["baseline"], verdict["metric"]
    seeds = verdict["seeds"]
    sides = [
        (f"tuned baseline: {base['label']}", "baseline", base["values"]),
        (f"best found: {winner['label']}", "winner", winner["values"]),
    ]
    candidates = [c for c in verdict.get("candidates") or [] if c.get("interval")]
    if winner.get("simplified_from"):
        shown = {k: verdict[k] for k in ("difference", "interval")}
        candidates = [{**winner, **shown}, *candidates]
    differences = [
        (
            c["label"],
            "winner" if c["label"] == winner["label"] else "extra",
            c["difference"],
            *c["interval"],
        )
        for c in candidates
    ]
    note = "Above zero is better." if text.maximizes(state) else "Below zero is better."
    return [
        charts.pairs(f"{metric} on the test split, seed by seed", metric, sides, seeds),
        charts.intervals(
            "Difference from the tuned baseline",
            f"difference in {metric}",
            differences,
            f"{note} The line is the 95 % interval of one comparison, not corrected for the "
            "number of candidates; the p-value is.",
        )
        if differences
        else Markup(""),
    ]


def _brought(state: State) -> Markup:
    """What the winner's parts bring on the validation split."""
    rows = [r for r in (state.verdict or {}).get("attribution") or [] if r["interval"]]
    if not rows:
        return Markup("")
    metric = text.metric_name(state)
    better = "Above" if text.maximizes(state) else "Below"
    return charts.intervals(
        f"What it adds to {metric} on the validation split",
        f"difference in {metric}",
        [
            (
                r["part"] if r["kept"] else f"{r['part']} (left out)",
                "winner" if r["kept"] else "extra",
                r["difference"],
                *r["interval"],
            )
            for r in rows
        ],
        f"{better} zero the part helps. The line is the 95 % interval over the seeds; a part "
        "whose interval holds zero brings nothing that this study can show.",
    )


def _curves(state: State, winner: Trial | None, baseline: Trial | None) -> list[Markup]:
    """Validation metric and training loss by epoch: the mean over seeds, and each seed thin."""
    scores: list[Line] = []
    losses: list[Line] = []
    metric = text.metric_name(state)
    simpler = ((state.verdict or {}).get("winner") or {}).get("objective")
    for trial, style in ((baseline, "baseline"), (winner, "winner")):
        if trial is None:
            continue
        runs = [c.curve for c in state.confirmations if c.trial == trial.number and c.curve]
        label = trial.label
        if style == "winner" and any(a.objective == simpler for a in state.ablations):
            runs = [a.curve for a in state.ablations if a.objective == simpler and a.curve]
            label = (state.verdict or {})["winner"]["label"]
        for lines, key in ((scores, metric), (losses, "train_loss")):
            series = [s for r in runs or [trial.curve] if (s := _series(r, key))]
            if len(series) > 1:
                lines += [Line("", s, style, thin=True) for s in series]
            lines.append(Line(label, _mean(series), style))
    return [
        charts.lines(f"{metric} on the validation split", scores, "epoch"),
        charts.lines(
            "Training loss, relative to its first epoch",
            [Line(c.label, _relative(c.points), c.style, c.thin) for c in losses],
            "epoch",
            "Losses have scales of their own: compare the shapes, not the heights.",
        ),
    ]


def _series(curve: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """One value an epoch; an epoch trained twice, before and after a kill, counts once."""
    return sorted({row["epoch"]: row.get(key) for row in curve}.items())


def _mean(series: Sequence[Sequence[tuple[float, float | None]]]) -> list[tuple[float, float]]:
    values: defaultdict[float, list[float]] = defaultdict(list)
    for epoch, value in (p for s in series for p in s):
        if value is not None:
            values[epoch].append(value)
    return [(epoch, sum(v) / len(v)) for epoch, v in sorted(values.items())]


def _relative(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    first = next((y for _, y in points if y is not None), None)
    if not first or first < 0:
        return list(points)
    return [(x, None if y is None else y / first) for x, y in points]


def _shapes(shapes: Shapes) -> list[Markup]:
    figures: list[Markup] = []
    for key, title in (("loss", "The loss"), ("gradient", "Its gradient")):
        curves = [
            Line(label, list(zip(shapes["margin"], values, strict=True)), _role(label))
            for label, values in (shapes.get(key) or {}).items()
        ]
        axis = "margin: logit of the true class less the highest other"
        figures.append(charts.lines(title, curves, axis))
    return figures


def _role(label: str) -> str:
    return next((role for role in ("winner", "baseline") if label.startswith(role)), "extra")


def _progress(state: State) -> Markup:
    sign = 1 if text.maximizes(state) else -1
    dots: list[Dot] = []
    lost: list[Dot] = []
    best: list[tuple[float, float]] = []
    for trial in sorted(state.trials.values(), key=lambda t: t.number):
        what = f"trial {trial.number}, {trial.label}: "
        if trial.score is None:
            why = f"{trial.status} {trial.reason}".strip()
            lost.append(Dot(trial.number, 0.0, trial.role, what + why))
            continue
        status = "" if trial.status == "finished" else f" ({trial.status})"
        style = f"{trial.role}{'' if trial.status == 'finished' else ' hollow'}"
        title = f"{what}{text.number(trial.score)}{status}"
        dots.append(Dot(trial.number, trial.score, style, title))
        if trial.status == "finished" and (not best or sign * trial.score > sign * best[-1][1]):
            best.append((trial.number, trial.score))
    legend = [
        ("baseline, its own search", "baseline"),
        ("reference, at the paper's values", "reference"),
        ("searched", "search"),
        ("best so far", "best"),
    ]
    return charts.scatter(
        f"{text.metric_name(state)} on the validation split, by trial",
        dots,
        best,
        legend,
        ("trial", "Hollow: stopped early. A cross on the floor: no score."),
        lost,
    )


def _bars(importance: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Name, share and width in percent of the largest; the most important first."""
    top = max(importance.values(), default=0.0) or 1.0
    order = sorted(importance.items(), key=lambda item: -item[1])[:15]
    return [(name, share, round(100 * max(share, 0.0) / top, 1)) for name, share in order]


def _by_reason(left_out: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for row in left_out:
        groups[str(row["why"])].append(str(row["what"]))
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _read(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What was read of the data; nothing where the ledger is too old to say it."""
    if not {"notes", "input_shape"} <= data.keys():
        return None
    return {
        "lines": [text for word, text in data_lines(data) if word != "notes"],
        "notes": data["notes"],
        "columns": columns_of(data),
    }


def _facts(state: State) -> list[tuple[str, str]]:
    """What someone needs to run the study again, in rows."""
    study = state.study
    shown = dict(study)
    if isinstance(study.get("data"), Mapping):  # what was read has a section of its own
        shown["data"] = {k: v for k, v in study["data"].items() if k not in ("reading", "notes")}
    rows = [(part, _inline(shown.get(part))) for part in ("data", "model", "versions", "plugins")]
    seeds = sorted({c.seed for c in state.confirmations})
    if seeds:
        rows.append(("seeds of the comparison", ", ".join(map(str, seeds))))
    counts = ", ".join(f"{n} {status}" for status, n in state.counts().items() if n)
    rows.append(("trials", counts or "none"))
    if state.confirmations:
        rows.append(("trainings on fresh seeds", str(len(state.confirmations))))
    return [(name, value) for name, value in rows if value]


def _inline(value: Any) -> str:
    """Nested data on one line: ``name fashion, sizes (train 48000, test 10000)``."""
    if isinstance(value, Mapping):
        parts = [
            f"{k} ({_inline(v)})" if isinstance(v, (Mapping, list)) else f"{k} {v}"
            for k, v in value.items()
            if v not in (None, "", [], {})
        ]
        return ", ".join(parts)
    if isinstance(value, (list, tuple)):
        shown = "; ".join(_inline(v) for v in value[:12])
        return shown + (f"; … ({len(value)} in all)" if len(value) > 12 else "")
    return "" if value is None else str(value)
