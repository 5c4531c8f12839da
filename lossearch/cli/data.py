"""``lossearch data``: what is read of a study's data, without training."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lossearch.cli import app
from lossearch.cli.study import Study

if TYPE_CHECKING:
    from rich.console import Console

    from lossearch.data import Data


@app.command()
def data(
    study: Study,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is read of a study's data: columns, classes, splits, and what was dropped."""
    from lossearch import registry
    from lossearch.data import prepare
    from lossearch.errors import StudyError
    from lossearch.plugins import load_plugins, read_plugin_files
    from lossearch.study import read_study

    config = read_study(study)
    if config.data.name == "user":
        raise StudyError(f"the data of {study} were given from Python; there is no file to read")
    plugins = load_plugins(read_plugin_files(config.plugins), strict_files=True)
    registry.use(plugins.registry)
    read = prepare(config.data, plugins.registry, seed=config.seed)
    facts = {"name": config.data.name, **dataclasses.asdict(read.info), "counts": _counts(read)}
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(facts)


def _counts(read: Data) -> dict[str, list[int]]:
    """Samples of each class in each split; for multilabel ones the positives of each label."""
    info = read.info
    counts = {"training": list(info.class_counts)}
    for name, split in (("validation", read.validation), ("test", read.test)):
        targets = split.targets
        if not info.class_counts:
            found = []
        elif targets.ndim == 2:
            found = (targets * (targets > 0)).sum(dim=0).round().int().tolist()
        else:
            known = targets[targets >= 0].long()
            found = known.bincount(minlength=info.num_classes).tolist()
        counts[name] = found
    return counts


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console

    from lossearch.display import print_data
    from lossearch.report.data import columns_of

    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    print_data(out, {**facts, "notes": ()})
    for note in facts["notes"]:
        out.print(f"note   {note}", markup=False, soft_wrap=True)
    counts = facts["counts"]
    if counts["training"]:
        numbers = [map(str, column) for column in counts.values()]
        classes = zip(facts["class_names"], *numbers, strict=True)
        _print_table(out, ["class", *counts], [list(row) for row in classes])
    columns = columns_of(facts)
    if columns:
        _print_table(out, [*columns[0]], [[*row.values()] for row in columns])


def _print_table(out: Console, head: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in head:
        numeric = name in ("missing", "values", "training", "validation", "test")
        table.add_column(name, overflow="fold", justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    out.print()
    out.print(table)
