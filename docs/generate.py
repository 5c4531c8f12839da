"""Write ``docs/components.md`` from the registry; with ``--check``, fail where it differs."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from lossearch.cli.plugins import describe
from lossearch.components import FIELDS, TASKS, Component
from lossearch.plugins import load_plugins
from lossearch.registry import Registry

PAGE = Path(__file__).with_name("components.md")

KINDS = {
    "loss": (
        "Losses",
        "What is trained on. A loss gives one value for each sample, of which the objective takes "
        "the mean; one marked *batch* exists only for the whole batch, and no weight or miner "
        "reaches its samples.",
    ),
    "reweighting": ("Reweightings", "Turn a loss's values into weights of mean 1."),
    "miner": ("Miners", "Choose the samples that a step learns from."),
    "balancer": (
        "Balancers",
        "Combine several terms, by their values (`losses`) or by their gradients (`gradients`).",
    ),
    "metric": ("Metrics", "What a study is searched by and judged on, over a whole split."),
    "dataset": ("Datasets", "The `data:` of a study."),
    "model": ("Models", "The `model:` of a study; any other name is looked up in timm."),
    "provider": ("Providers", "Make further batch fields from those that are there."),
}

ACTING = ("loss", "reweighting", "miner")
ALONE = """\
## What goes one by one

In a cohort these are computed one after the other, each on its own slice of the stacked outputs;
all others in one call under vmap for all members that differ in numbers alone. Those that call the
network again, or predict by a rule of their own, train outside cohorts."""

HEAD = """\
# Components

Written by `make docs` from what the installed plugins register; do not edit.
`lossearch plugins show NAME` prints one component in full.

How to read the tables. *Reads* are batch fields ([below](#batch-fields)), those in brackets only
where they are there. A parameter stands with its default and, after a colon, what a search tries
(`…` between the ends of a range, ends included); without a colon it is not searched unless a
space says so. *given* means that the engine fills it in. *vmap*: many copies with different
parameters run as one under `torch.func.vmap`. *state*: it learns or remembers something, and is
part of `objective.state_dict()`. A name leads to what its component computes, below the table.
"""


def render() -> str:
    """The page, for the plugins that lossearch itself ships."""
    plugins = load_plugins()
    registry = plugins.registry
    ours = {info.name for info in plugins.loaded if info.distribution == "lossearch"}
    parts = [HEAD]
    for kind, (title, text) in KINDS.items():
        found = [c for c in registry.list(kind) if registry.owner(c.name) in ours]
        if found:
            parts.append(f"## {title}\n\n{text}\n\n{_table(found, registry)}")
            parts += [f"### `{c.name}`\n\n{_body(c)}\n" for c in found if _body(c)]
    alone = [
        [f"`{c.name}`", _cell(c.no_vmap)]
        for kind in ACTING
        for c in registry.list(kind)
        if registry.owner(c.name) in ours and (c.stateful or not c.vmappable)
    ]
    parts.append(f"{ALONE}\n\n{_rows(['name', 'why'], alone)}")
    rows = [[f"`{name}`", shape, meaning] for name, (shape, meaning) in FIELDS.items()]
    parts.append(
        "## Batch fields\n\nB samples, C classes, E embedding width, D targets, K terms, P pairs, "
        f"N others.\n\n{_rows(['field', 'shape', 'meaning'], rows)}"
    )
    return "\n".join(parts)


def _table(components: list[Component], registry: Registry) -> str:
    kind = components[0].kind
    acts = kind in (*ACTING, "metric")
    # Columns that would be empty all the way down are left out.
    columns = {
        "name": _name,
        "tasks": _tasks,
        "reads": _reads if acts or kind == "provider" else None,
        "parameters": _parameters,
        "notes": _traits,
        "paper": (lambda c, _: _paper(c)) if any(c.paper for c in components) else None,
    }
    if kind in ("dataset", "model"):
        columns.pop("notes")
    used = {title: make for title, make in columns.items() if make}
    rows = []
    for component in components:
        facts = describe(component, registry)
        rows.append([make(component, facts) for make in used.values()])
    return _rows(list(used), rows)


def _rows(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _name(component: Component, _: dict[str, Any]) -> str:
    name = f"`{component.name}`"
    linked = f"[{name}](#{component.name})" if _body(component) else name
    return f"{linked}<br>{_cell(component.summary)}"


def _body(component: Component) -> str:
    """What its docstring says beside the summary, the parameters and the errors."""
    paragraphs = re.split(r"\n\s*\n", component.doc)[1:]
    plain = [p for p in paragraphs if not re.match(r"(Args|Returns|Raises|Attributes):|\s", p)]
    return "\n\n".join(_markdown(p) for p in plain)


def _tasks(component: Component, _: dict[str, Any]) -> str:
    return "all" if set(component.tasks) == set(TASKS) else ", ".join(component.tasks)


def _reads(_: Component, facts: dict[str, Any]) -> str:
    extra = [f"[`{field}`]" for field in facts["reads_if_there"]]
    return ", ".join([*(f"`{field}`" for field in facts["reads"]), *extra]) or "by its parameters"


def _parameters(_: Component, facts: dict[str, Any]) -> str:
    shown: list[str] = []
    for name, row in facts["parameters"].items():
        search = row["search"].replace("one of ", "").replace("|", r"\|")
        if search.startswith("given"):
            shown.append(f"`{name}` {search.replace(': ', ' ')}")
            continue
        default = f"`{name} = {_value(row['default'])}`"
        shown.append(f"{default}: {search}" if search else default)
    return "<br>".join(shown) or "none"


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


def _traits(component: Component, facts: dict[str, Any]) -> str:
    traits: list[str] = []
    if component.kind == "metric":
        traits.append("more is better" if component.maximize else "less is better")
    if facts["returns"]:
        traits.append(facts["returns"].replace("_", " "))
    traits += [f"`{field}`" for field in component.gives]
    if component.auxiliary:
        traits.append("beside another loss only")
    if component.vmappable:
        traits.append("vmap")
    if component.stateful:
        traits.append("state")
    if component.cost:
        traits.append(f"cost: {_cell(component.cost)}")
    return "; ".join(traits)


def _paper(component: Component) -> str:
    paper = component.paper
    if paper is None:
        return ""
    text = f"{paper.title}, {paper.year}".replace("|", r"\|")
    link = paper.link
    if link.startswith("arXiv:"):
        return f"[{text}](https://arxiv.org/abs/{link.removeprefix('arXiv:')})"
    if link.startswith("10."):
        return f"[{text}](https://doi.org/{link})"
    return f"[{text}]({link})" if link.startswith("http") else f"{text} {link}".strip()


def _markdown(text: str) -> str:
    """reST maths, code and names as GitHub shows them."""
    if text.startswith(".. math::"):
        return f"```math{textwrap.dedent(text.removeprefix('.. math::'))}\n```"
    text = re.sub(r":math:`([^`]*)`", r"$`\1`$", text)
    text = re.sub(r":\w+:`(?:[^`<]*<)?~?(?:[\w.]+\.)?(\w+)>?`", r"`\1`", text)
    return re.sub(r"``([^`]*)``", r"`\1`", text)


def _cell(text: str) -> str:
    """The same, safe inside a table."""
    return _markdown(text).replace("|", r"\|")


def main() -> int:
    """Write the page, or compare it."""
    text = render()
    if sys.argv[1:] == ["--check"]:
        if PAGE.is_file() and PAGE.read_text("utf-8") == text:
            return 0
        print("docs/components.md differs from the registry; run `make docs`", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
