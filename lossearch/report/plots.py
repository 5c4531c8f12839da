"""The report's main pictures as PNG files, which MLflow shows beside a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lossearch.report.text import finalists, maximizes, metric_name
from lossearch.trials.ledger import State

_COLORS = {"winner": "#0f766e", "baseline": "#c2410c"}
_ROLES = {
    "baseline": "#c2410c",
    "given": "#0f766e",
    "reference": "#7c3aed",
    "search": "#2563eb",
}


def write_plots(folder: Path, state: State, shapes: Mapping[str, Any] | None = None) -> list[Path]:
    """Write ``search.png``, ``curves.png`` and ``loss_shape.png``, as far as there is data.

    Args:
        folder: Where they go; made if it is not there.
        state: What the ledger says.
        shapes: As for :func:`lossearch.report.write_report`.

    Returns:
        The files written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written: list[Path] = []

    def save(figure: Any, name: str) -> None:
        folder.mkdir(exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(folder / name))
        written.append(folder / name)

    scored = [t for t in state.trials.values() if t.score is not None]
    metric = metric_name(state)
    if scored:
        figure = Figure(figsize=(7, 4), layout="tight")
        axes = figure.add_subplot()
        for role, color in _ROLES.items():
            own = [t for t in scored if t.role == role]
            points = [t.number for t in own], [t.score or 0.0 for t in own]
            axes.scatter(*points, s=14, c=color, label=role)
        best = max if maximizes(state) else min
        values = [t.score or 0.0 for t in scored if t.status == "finished"]
        numbers = [t.number for t in scored if t.status == "finished"]
        so_far = [best(values[: i + 1]) for i in range(len(values))]
        axes.step(numbers, so_far, where="post", c="0.4", lw=1, label="best so far")
        axes.set(xlabel="trial", ylabel=f"validation {metric}", title="search")
        axes.legend(frameon=False)
        save(figure, "search.png")
    winner, baseline = finalists(state)
    pair = [(k, t) for k, t in (("winner", winner), ("baseline", baseline)) if t and t.curve]
    if pair:
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
        save(figure, "curves.png")
    if shapes:
        figure = Figure(figsize=(9, 4), layout="tight")
        for place, what in enumerate(("loss", "gradient"), 1):
            axes = figure.add_subplot(1, 2, place)
            for label, values in shapes[what].items():
                name = label.split(":")[0]
                axes.plot(shapes["margin"], values, c=_COLORS.get(name), label=label[:45])
            axes.set(xlabel="margin of the true class", title=what)
            axes.legend(frameon=False, fontsize=7)
        save(figure, "loss_shape.png")
    return written
