"""``lossearch run``, ``resume``, ``report``, ``export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lossearch.cli import app

if TYPE_CHECKING:
    from lossearch.study import StudyResult

Study = Annotated[Path, typer.Argument(help="A study file (YAML).", metavar="STUDY.yaml")]
Dir = Annotated[Path, typer.Argument(help="A study's folder.", metavar="DIR")]


@app.command()
def run(
    study: Study,
    trials: Annotated[int | None, typer.Option(help="Trials in all.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a full training.")] = None,
    executor: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    output: Annotated[Path | None, typer.Option(help="The folder for the results.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of search and training.")] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A one-file plugin, or a folder of them. Repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the space and the cost; train nothing.")
    ] = False,
) -> None:
    """Search, confirm and judge, as a study file says."""
    from lossearch.study import read_study, start

    overrides: dict[str, Any] = {
        "search.trials": trials,
        "training.epochs": epochs,
        "executor.name": executor,
        "output": str(output) if output else None,
        "seed": seed,
    }
    config = read_study(study, {k: v for k, v in overrides.items() if v is not None})
    if plugin:
        paths = (*config.plugins, *(str(p.resolve()) for p in plugin))
        config = config.model_copy(update={"plugins": paths})
    if dry_run:
        from lossearch.cli.dry_run import show_plan

        show_plan(config)
        return
    from lossearch.display import begin_display

    _end(lambda: start(config, display=begin_display()))


@app.command()
def resume(folder: Dir) -> None:
    """Go on with a study that was interrupted or killed."""
    from lossearch.display import begin_display
    from lossearch.study import resume as go_on

    _end(lambda: go_on(folder, display=begin_display()))


def _end(go: Any) -> None:
    """Run a study and say how it ended and where to look next."""
    from rich.console import Console

    talk = Console(stderr=True)
    try:
        result: StudyResult = go()
    except KeyboardInterrupt:  # the display has said how to go on
        raise typer.Exit(130) from None
    for problem in result.problems:
        talk.print(problem, style="yellow", markup=False)
    show_result(result)


def show_result(result: StudyResult) -> None:
    """The verdict and where to look next."""
    from rich.console import Console

    from lossearch.report import verdict_text
    from lossearch.study import read_study
    from lossearch.study.folder import Folder
    from lossearch.study.session import tracking_uri

    out = Console(width=None if sys.stdout.isatty() else 100, soft_wrap=True, highlight=False)
    if result.verdict is not None:
        out.print(f"\n[bold]Verdict[/]  {verdict_text(result.verdict)}")
    folder = Folder(result.folder)
    config = read_study(folder.study)
    out.print("\n[bold]Where to look next[/]")
    out.print(f"  report      {folder.report}")
    out.print(f"  objective   {folder.best}  (lossearch.load_objective reads it)")
    out.print(f"  as code     lossearch export {folder.path} --format python")
    if config.tracking is not None:
        uri = tracking_uri(config, folder)
        served = uri.startswith(("http://", "https://", "databricks"))
        out.print(f"  trials      {uri if served else f'mlflow ui --backend-store-uri {uri}'}")


@app.command()
def report(folder: Dir) -> None:
    """Write the report anew, and bring MLflow up to date."""
    from rich.console import Console

    from lossearch.study.session import renew

    path, problems = renew(folder)
    for problem in problems:
        Console(stderr=True).print(problem, style="yellow", markup=False)
    typer.echo(str(path))


@app.command()
def export(
    folder: Dir,
    form: Annotated[
        Literal["yaml", "python"], typer.Option("--format", help="yaml or python.")
    ] = "yaml",
    output: Annotated[Path | None, typer.Option(help="Write to this file, not to stdout.")] = None,
) -> None:
    """Print the recommended objective, for use in any training loop."""
    from lossearch.study import outputs
    from lossearch.study.folder import Folder

    found = Folder(folder).existing()
    text = outputs.export(found, form)
    if output is None:
        typer.echo(text, nl=False)
        return
    outputs.write(output, text)
    outputs.copy_plugins(found, output.resolve().parent)
