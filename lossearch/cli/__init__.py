"""The command line: parse, call, print. Data to stdout, talk to stderr, errors in one line."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from lossearch import __version__

app = typer.Typer(
    name="lossearch",
    help="Search over loss functions: compose, train, compare, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"lossearch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if verbose:
        os.environ["LOSSEARCH_VERBOSE"] = "1"


# Each module adds its commands to `app`; none of them imports torch before a command runs.
from lossearch.cli import data, inspect, plugins, study  # noqa: E402, F401


def main() -> None:
    """Run the command line; an error that is meant for a person is one message, exit code 1."""
    from lossearch.errors import LossearchError

    _plugin_commands()
    try:
        app()
    except LossearchError as error:
        if os.environ.get("LOSSEARCH_VERBOSE"):
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except OSError as error:  # a file or folder that cannot be read or written
        if os.environ.get("LOSSEARCH_VERBOSE"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        typer.secho(f"error: {where}{error.strerror or error}", fg="red", err=True)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("LOSSEARCH_VERBOSE"):
            raise
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        typer.secho(
            f"error: {text}\nThis is a fault of lossearch or of a plugin; "
            "`lossearch --verbose ...` shows where.",
            fg="red",
            err=True,
        )
        sys.exit(70)


def _plugin_commands() -> None:
    """Let plugins add commands, where the first word is none of ours: loading them takes time."""
    words = [w for w in sys.argv[1:] if not w.startswith("-")]
    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    known |= {g.name for g in app.registered_groups if g.name}
    if not words or words[0] in known:
        return
    from lossearch.plugins import load_plugins

    for register in load_plugins().commands:
        register(app)
