"""What the reproductions share: their command line, and their table of means and intervals."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from lossearch.errors import LossearchError
from lossearch.study import StudyResult
from lossearch.study.compare import Row


def arguments(
    doc: str | None,
    data: str,
    *,
    several: bool = False,
    full: dict[str, int],
    quick: dict[str, int],
) -> argparse.Namespace:
    """The command line: the data's path, and sizes, which ``--quick`` makes small.

    Args:
        doc: The script's own text.
        data: What the path is to lead to.
        several: Whether there may be several paths.
        full: Each size's default.
        quick: The same with ``--quick``, which is too small to show anything.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+" if several else None, help=data)
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder for the studies")
    parser.add_argument("--executor", choices=("ray", "local"), default=None)
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it runs")
    for name, value in full.items():
        parser.add_argument(f"--{name}", type=int, help=f"{value} where left out")
    chosen = parser.parse_args()
    for name, value in (quick if chosen.quick else full).items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    chosen.executor = chosen.executor or ("local" if chosen.quick else "ray")
    return chosen


def found(result: StudyResult) -> tuple[dict[str, Any], dict[str, Any]]:
    """A search's winner, whether it is recommended or not, and its tuned baseline."""
    verdict = result.verdict or {}
    if not verdict.get("winner"):
        sys.exit(f"the search has no winner to show: {verdict.get('reason', 'it was stopped')}")
    return verdict["winner"], verdict["baseline"]


def told(result: StudyResult) -> str:
    """What the search recommends, in a line."""
    verdict = result.verdict or {}
    gain, (low, high) = verdict["difference"], verdict["interval"]
    return (
        f"the search recommends the {result.recommend}. Its winner, {verdict['winner']['label']}, "
        f"differs from the tuned baseline by {100 * gain:+.1f} points ({100 * low:+.1f} to "
        f"{100 * high:+.1f}, p = {verdict['p_value']:.2g}); {result.folder / 'report.html'}"
    )


def run(main: Callable[[], None]) -> None:
    """Run a script; what is wrong with its input is one message, not a traceback."""
    try:
        main()
    except LossearchError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def interval(values: Sequence[float]) -> str:
    """The mean in percent, and half of its 95 % interval (Student's t) over the seeds."""
    if len(values) < 2:
        return f"{100 * values[0]:.1f}" if values else "failed"
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return f"{100 * np.mean(values):.1f} ± {100 * half:.1f}"


def show(title: str, columns: Mapping[str, tuple[str, Sequence[Row]]]) -> None:
    """A table with a row for each objective.

    Args:
        title: Above it.
        columns: By heading, the metric and the rows that are measured by it.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("objective", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    names = dict.fromkeys(row.objective for _, rows in columns.values() for row in rows)
    for name in names:
        cells = []
        for metric, rows in columns.values():
            own = [row for row in rows if row.objective == name]
            cell = interval([row.test[metric] for row in own if not row.problem])
            cells.append(cell + (" *" if any(row.problem for row in own) else ""))
        table.add_row(name, *cells)
    console = Console(width=None if Console().is_terminal else 100)
    console.print(table)
    failed = [row for _, rows in columns.values() for row in rows if row.problem]
    for name, problem in sorted({(row.objective, row.problem) for row in failed}):
        console.print(f"* {name}: {problem}", markup=False)
