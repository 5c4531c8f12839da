"""What was read, from the ``data`` of a study's row: for the terminal and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lossearch.data.reading import listed

_SPLITS = {"train_size": "training", "validation_size": "validation", "test_size": "test"}
_PLURAL = {"number": "numbers", "date": "dates", "category": "categories"}
_CLASSES = 10  # that are named in a line
_LONG = 240  # characters of the line of notes


def data_lines(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """At most three lines, each with the word before it: samples, inputs, what to know of them.

    Args:
        data: The facts of the data, as a ledger has them; what an old one lacks is left out.
    """
    lines = [("data", _samples(data)), ("inputs", _inputs(data))]
    notes = list(data.get("notes") or ())
    shown = [
        note for i, note in enumerate(notes) if not i or sum(map(len, notes[: i + 1])) < _LONG
    ]
    if notes:
        more = len(notes) - len(shown)
        rest = f"; and {more} more: `lossearch data STUDY.yaml`" if more else ""
        lines.append(("notes", "; ".join(shown) + rest))
    return [(word, text) for word, text in lines if text]


def _samples(data: Mapping[str, Any]) -> str:
    parts = [f"{data[key]} {word}" for key, word in _SPLITS.items() if key in data]
    sizes = ", ".join(parts[:-1]) + f" and {parts[-1]} samples" if len(parts) == 3 else ""
    text = "; ".join(filter(None, (sizes, str(data.get("task") or ""))))
    names, counts = data.get("class_names") or (), data.get("class_counts") or ()
    if names and len(names) == len(counts):
        if len(names) <= _CLASSES:
            text += ": " + ", ".join(map("{} {}".format, names, counts)) + " in training"
        else:
            text += f": {len(names)} classes of {min(counts)} to {max(counts)} in training"
    if data.get("noise_rate"):
        text += f"; {data['noise_rate']:.1%} of the training labels made wrong"
    return text


def _inputs(data: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, data.get("input_shape") or ()))
    reading = data.get("reading")
    if not reading:
        return {"image": f"images of {shape}", "table": f"{shape} numbers each"}.get(
            data.get("kind", ""), f"of shape {shape}"
        ) * bool(shape)
    columns = reading["columns"]
    used = Counter(column["kind"] for column in columns if not column["dropped"])
    kinds = [f"{n} {_PLURAL[kind] if n > 1 else kind}" for kind, n in used.items()]
    missing = [column["missing"] for column in columns if not column["dropped"]]
    holes = sum(map(bool, missing))
    dropped = [column["name"] for column in columns if column["dropped"]]
    return "; ".join(
        filter(
            None,
            (
                f"{_count(len(columns), 'column')}: {', '.join(kinds)}",
                f"dropped {listed(dropped)}" if dropped else "",
                f"{_count(sum(missing), 'value')} missing in {holes}" if holes else "none missing",
                f"{shape} features",
            ),
        )
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def columns_of(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """The columns of a table: name, kind, how many missing and different, what became of them."""
    rows: list[dict[str, str]] = []
    for column in (data.get("reading") or {}).get("columns") or ():
        rare = column["rare"]
        words = [
            f"dropped: {column['dropped']}" if column["dropped"] else "",
            column["how"],
            f"its {rare} rare values are one" if rare > 1 else "",
        ]
        rows.append(
            {
                "column": column["name"],
                "kind": column["kind"],
                "missing": str(column["missing"]),
                "values": str(column["values"]),
                "read as": "; ".join(filter(None, words)),
            }
        )
    return rows
