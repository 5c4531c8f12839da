"""The report's main pictures as PNG files, which MLflow shows beside a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossearch.report.text import finalists, maximizes, metric_name
from lossearch.trials.ledger import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {"winner": "#0f766e", "baseline": "#c2410c"}
_ROLES = {
    "baseline": "#c2410c",
    "given": "#0f766e",
    "reference": "#7c3aed",
    "search": "#2563eb",
}


def write_plots(
    folder: Path, state: State, shapes: Mapping[str, Any] | None = None
) -> tuple[list[Path], list[str]]:
    """Write ``search.png``, ``curves.png`` and ``loss_shape.png``, as far as there is data.

    Args:
        folder: Where they go; made if it is not there.
        state: What the ledger says.
        shapes: As for :func:`lossearch.report.write_report`.

    Returns:
        The files written, and why the others could not be.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written: list[Path] = []
    problems: list[str] = []
    for name, draw in (
        ("search.png", lambda: _search(state)),
        ("curves.png", lambda: _curves(state)),
        ("loss_shape.png", lambda: _loss_shape(shapes)),
    ):
        try:
            # a name is a name, whatever it holds: no formula, and no letter that a font must have
            with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure = draw()
                if figure is None:
                    continue
                folder.mkdir(exist_ok=True)
                FigureCanvasAgg(figure).print_png(str(folder / name))
            written.append(folder / name)
        except Exception as error:  # a picture is not worth a report
            problems.append(f"{name} could not be drawn: {type(error).__name__}: {error}")
    return written, problems


def _search(state: State) -> Figure | None:
    from matplotlib.figure import Figure

    scored = [t for t in state.trials.values() if t.score is not None]
    if not scored:
        return None
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.add_subplot()
    for role, color in _ROLES.items():
        own = [t for t in scored if t.role == role]
        points = [t.number for t in own], [t.score or 0.0 for t in own]
        axes.scatter(*points, s=14, c=color, label=role)
    best = max if maximizes(state) else min
    values = [t.score or 0.0 for t in scored if t.status == "finished"]
    numbers = [t.number for t in scored if t.status == "finished"]
    so_far = list(accumulate(values, best))
    axes.step(numbers, so_far, where="post", c="0.4", lw=1, label="best so far")
    axes.set(xlabel="trial", ylabel=f"validation {metric_name(state)}", title="search")
    axes.legend(frameon=False)
    return figure


def _curves(state: State) -> Figure | None:
    from matplotlib.figure import Figure

    winner, baseline = finalists(state)
    pair = [(k, t) for k, t in (("winner", winner), ("baseline", baseline)) if t and t.curve]
    if not pair:
        return None
    metric = metric_name(state)
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.add_subplot()
    for name, trial in pair:
        rows = [r for r in trial.curve if r.get(metric) is not None]
        axes.plot(
            [r["epoch"] for r in rows], [r[metric] for r in rows],
            c=_COLORS[name], label=f"{name}: {trial.label}"[:70],
        )  # fmt: skip
    axes.set(xlabel="epoch", ylabel=f"validation {metric}", title="winner and baseline")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _loss_shape(shapes: Mapping[str, Any] | None) -> Figure | None:
    from matplotlib.figure import Figure

    if not shapes:
        return None
    figure = Figure(figsize=(9, 4), layout="tight")
    for place, what in enumerate(("loss", "gradient"), 1):
        axes = figure.add_subplot(1, 2, place)
        for label, values in shapes[what].items():
            name = label.split(":")[0]
            axes.plot(shapes["margin"], values, c=_COLORS.get(name), label=label[:45])
        axes.set(xlabel="margin of the true class", title=what)
        axes.legend(frameon=False, fontsize=7)
    return figure
