"""``lossearch plugins list``, ``show``, ``new``, ``check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lossearch.cli import app

if TYPE_CHECKING:
    from lossearch.components import Component
    from lossearch.registry import Registry

plugins_app = typer.Typer(no_args_is_help=True, help="Look at components, and write new ones.")
app.add_typer(plugins_app, name="plugins")

Plugin = Annotated[
    list[Path] | None, typer.Option(help="A one-file plugin, or a folder of them. Repeatable.")
]
_KINDS = (
    "loss", "miner", "reweighting", "balancer", "metric", "dataset", "model", "provider",
)  # fmt: skip


def _registry(files: list[Path] | None) -> Registry:
    """The registry, with a word on stderr about each plugin that did not load."""
    from lossearch import registry
    from lossearch.plugins import load_plugins, read_plugin_files

    loaded = load_plugins(read_plugin_files(files or ()))
    for name, error in loaded.errors.items():
        typer.secho(f"plugin {name} did not load: {error}", fg="yellow", err=True)
    registry.use(loaded.registry)
    return loaded.registry


@plugins_app.command("list")
def list_components(
    kind: Annotated[str | None, typer.Option(help=f"One of {', '.join(_KINDS)}.")] = None,
    task: Annotated[str | None, typer.Option(help="Those that serve a task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: Plugin = None,
) -> None:
    """Every component: its kind, tasks, parameters and summary."""
    from lossearch.components import TASKS
    from lossearch.errors import UnknownNameError, unknown

    if kind is not None and kind not in _KINDS:
        raise UnknownNameError(unknown("kind", kind, _KINDS))
    if task is not None and task not in TASKS:
        raise UnknownNameError(unknown("task", task, TASKS))
    registry = _registry(plugin)
    found = registry.list(kind, task)
    if as_json:
        typer.echo(json.dumps([describe(c, registry) for c in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from lossearch.cli.text import plain

    table = Table(box=None, header_style="bold")
    for column in ("name", "kind"):
        table.add_column(column, no_wrap=True)
    table.add_column("tasks")
    table.add_column("summary", ratio=1)
    for c in sorted(found, key=lambda c: (_KINDS.index(c.kind), c.name)):
        tasks = "all" if set(c.tasks) == set(TASKS) else ", ".join(c.tasks)
        table.add_row(c.name, c.kind, tasks, plain(c.summary))
    Console(highlight=False, markup=False).print(table)


@plugins_app.command("show")
def show_component(
    name: Annotated[str, typer.Argument(help="A component's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: Plugin = None,
) -> None:
    """One component: formula, parameters with ranges, fields, paper, what it costs."""
    registry = _registry(plugin)
    component = registry.get(name)
    facts = describe(component, registry)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from lossearch.cli.text import plain

    out = Console(highlight=False, markup=False)
    out.print(f"{name} ({component.kind}, of plugin '{facts['plugin']}')\n")
    out.print(plain(component.doc) + "\n")
    for key in ("tasks", "reads", "reads_if_there", "returns", "gives", "paper", "cost"):
        if facts.get(key):
            value = facts[key]
            shown = ", ".join(value) if isinstance(value, list) else value
            out.print(f"{key.replace('_', ' ')}: {shown}")
    if facts["parameters"]:
        table = Table("parameter", "type", "default", "searched in", box=None, header_style="bold")
        for parameter, row in facts["parameters"].items():
            table.add_row(parameter, row["type"], str(row["default"]), row["search"] or "-")
        out.print()
        out.print(table)


@plugins_app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Its name, in snake_case.")],
    kind: Annotated[str, typer.Option(help="loss, reweighting or metric.")] = "loss",
    folder: Annotated[Path, typer.Option(help="Where the files go.")] = Path(),
) -> None:
    """Write a one-file plugin with its test, which passes at once."""
    from lossearch.testing.scaffold import new_plugin

    written = new_plugin(name, folder, kind, registry=_registry(None))
    for path in written:
        typer.echo(str(path))
    typer.secho(
        f"Check it with `lossearch plugins check {written[0]}`, use it with `lossearch run "
        f"STUDY.yaml --plugin {written[0]}`",
        err=True,
    )


@plugins_app.command("check")
def check(
    target: Annotated[str, typer.Argument(help="A file, a package, or a component's name.")],
    plugin: Plugin = None,
) -> None:
    """Run the conformance checks of a plugin; exit code 1 where one fails."""
    from lossearch.testing.scaffold import check_target

    failed = 0
    for name, results in check_target(target, _registry(plugin)).items():
        bad = [r for r in results if not r.ok]
        failed += len(bad)
        seconds = sum(r.seconds for r in results)
        typer.echo(f"{name}: {len(results) - len(bad)} of {len(results)} checks ({seconds:.1f} s)")
        for result in results:
            if not result.ok:
                typer.secho(f"  failed: {result.name}: {result.message}", fg="red")
            elif result.message:
                typer.echo(f"  skipped: {result.name}: {result.message}")
    if failed:
        sys.exit(1)


# What a component costs that says nothing of it.
_USUAL = {
    "loss": "one forward and backward of the loss itself",
    "reweighting": "O(batch)",
    "miner": "O(batch log batch)",
    "balancer": "O(terms), one backward",
}


def describe(component: Component, registry: Registry) -> dict[str, Any]:
    """A component as plain data."""
    from lossearch.components import Choices

    domains = component.signature.domains
    facts, by_task = component.signature.facts, component.signature.by_task
    schema = component.Params.model_json_schema()["properties"]
    rows: dict[str, Any] = {}
    for name, field in component.Params.model_fields.items():
        search = ""
        if name in domains:
            domain = domains[name]
            if isinstance(domain, Choices):
                search = "one of " + ", ".join(map(str, domain.values))
            else:
                search = f"{domain.low:g} … {domain.high:g}{' (log)' if domain.log else ''}"
        elif name in facts:
            search = f"given: {facts[name]}"
        elif name in by_task:
            search = "by task: " + ", ".join(f"{t} {v}" for t, v in by_task[name].items())
        rows[name] = {
            "type": _type(schema.get(name, {})),
            "default": None if field.is_required() else field.default,
            "search": search,
        }
    return {
        "name": component.name,
        "kind": component.kind,
        "plugin": registry.owner(component.name),
        "summary": component.summary,
        "tasks": list(component.tasks),
        "reads": list(component.fields),
        "reads_if_there": list(component.optional_fields),
        "returns": "by its parameters" if callable(component.returns) else component.returns,
        "gives": list(component.gives),
        "auxiliary": component.auxiliary,
        "maximize": component.maximize if component.kind == "metric" else None,
        "vmappable": component.vmappable,
        "stateful": component.stateful,
        "paper": str(component.paper) if component.paper else None,
        "cost": component.cost or _USUAL.get(component.kind, ""),
        "parameters": rows,
    }


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(s) for s in schema["anyOf"]))
    kind = str(schema.get("type", "any"))
    short = {"number": "float", "integer": "int", "boolean": "bool", "array": "list"}
    return short.get(kind, kind)
