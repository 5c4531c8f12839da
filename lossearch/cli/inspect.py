"""``lossearch doctor`` and ``lossearch space show``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lossearch.cli import app

space_app = typer.Typer(no_args_is_help=True, help="Look at search spaces.")
app.add_typer(space_app, name="space")


@app.command()
def doctor() -> None:
    """Versions, devices, and plugins that did not load; exit code 1 where one did not."""
    import platform

    import torch

    from lossearch.plugins import load_plugins
    from lossearch.study.setup import versions

    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for package, found in versions().items():
        typer.echo(f"{package} {found}")
    typer.echo(f"CPU threads: {torch.get_num_threads()}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            typer.echo(f"GPU {i}: {torch.cuda.get_device_name(i)}")
    else:
        typer.echo("GPU: none that torch can use")
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        typer.secho(
            f"torchvision does not fit torch {torch.__version__}: {error}. Install the pair that "
            "constraints.txt names",
            fg="red",
        )
    plugins = load_plugins()
    for info in plugins.loaded:
        typer.echo(f"plugin {info.name}: {info.distribution} {info.version}")
    for name, error in plugins.errors.items():
        typer.secho(f"plugin {name} did not load: {error}", fg="red")
    if plugins.errors:
        sys.exit(1)


@space_app.command("list")
def list_spaces() -> None:
    """The search spaces, each with the first line of its header."""
    from lossearch.registry import current

    for name, text in sorted(current().spaces.items()):
        first = text.splitlines()[0].lstrip("# ").removeprefix(f"{name}: ")
        typer.echo(f"{name:20} {first}")


@space_app.command("show")
def show_space(
    space: Annotated[str, typer.Argument(help="A space's name, or a .yaml file.")],
    task: Annotated[str | None, typer.Option(help="Expand it for this task.")] = None,
) -> None:
    """A space expanded: every choice and range, and what does not fit the task."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from lossearch.cli.text import plain
    from lossearch.components import TASKS
    from lossearch.documents import parse_yaml
    from lossearch.errors import UnknownNameError, unknown
    from lossearch.registry import current
    from lossearch.space import Space
    from lossearch.study.setup import space_document
    from lossearch.training.providers import available_fields

    if task is not None and task not in TASKS:
        raise UnknownNameError(unknown("task", task, TASKS))
    registry = current()
    document = space_document(space, registry, task or "")
    text = document if isinstance(document, str) else Path(space).read_text("utf-8")
    parsed = parse_yaml(text, space)
    served = parsed.get("task", "multiclass")
    first = served[0] if isinstance(served, list) and served else served
    if task is None and first not in TASKS:
        raise UnknownNameError(unknown("task", str(first), TASKS))
    chosen = task or str(first)
    fields = available_fields(chosen, ("logits", "embeddings", "weight"))
    compiled = Space.from_document(parsed, registry=registry, task=chosen, available=fields)
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        typer.echo(line.lstrip("# "))
    place = Column("place", overflow="fold")
    table = Table(place, "values", title=f"for {chosen}", title_justify="left")
    for path, domain in compiled.describe():
        table.add_row(escape(path), escape(plain(domain)))
    out = Console(highlight=False)
    out.print(table)
    for left in compiled.left_out:
        out.print(f"left out: {left.what}: {left.why}", markup=False)
