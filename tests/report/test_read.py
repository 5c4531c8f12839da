"""What was read: from the study's row alone, whole, escaped, and there or not in old ledgers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lossearch.report.data import columns_of, data_lines
from lossearch.report.page import render
from lossearch.trials.ledger import replay

NASTY = "<b>x</b>"


def column(name: str, **more: Any) -> dict[str, Any]:
    plain = {"kind": "number", "missing": 0, "values": 9, "how": "", "rare": 0, "dropped": ""}
    return {"name": name, **plain, **more}


@pytest.fixture
def data() -> dict[str, Any]:
    columns = [
        column("a", missing=3),
        column("b", kind="category", rare=2),
        column(NASTY, dropped="empty"),
        column("c", missing=1, how="decimal comma"),
    ]
    return {
        "task": "binary",
        "class_names": ["no", "yes"],
        "class_counts": [50, 10],
        "train_size": 60,
        "validation_size": 20,
        "test_size": 20,
        "input_shape": [7],
        "kind": "table",
        "noise_rate": 0.0,
        "notes": [f"dropped '{NASTY}': empty"],
        "reading": {"rows": 100, "columns": columns},
    }


def test_lines(data: dict[str, Any]) -> None:
    assert data_lines(data) == [
        (
            "data",
            "60 training, 20 validation and 20 test samples; binary: no 50, yes 10 in training",
        ),
        (
            "inputs",
            f"4 columns: 2 numbers, 1 category; dropped '{NASTY}'; 4 values missing in 2; "
            "7 features",
        ),
        ("notes", f"dropped '{NASTY}': empty"),
    ]
    assert columns_of(data)[1]["read as"] == "its 2 rare values are one"
    images = {**data, "kind": "image", "input_shape": [3, 8, 8], "reading": None, "notes": []}
    assert data_lines(images)[1:] == [("inputs", "images of 3 x 8 x 8")]


def test_long_notes_are_cut_and_many_classes_counted(data: dict[str, Any]) -> None:
    data |= {"notes": ["n" * 100] * 5, "class_names": ["c"] * 40, "class_counts": [*range(1, 41)]}
    first, _, (_, notes) = data_lines(data)
    assert "40 classes of 1 to 40" in first[1]
    assert notes.count("n" * 100) == 2 and notes.endswith(
        "and 3 more: `lossearch data STUDY.yaml`"
    )


def test_the_page_has_it_from_the_ledger(
    study_rows: Callable[..., Any], data: dict[str, Any]
) -> None:
    rows = study_rows(trials=2, end=False)
    assert "What was read" not in render(replay(rows))  # of before it was told
    rows[0]["data"] = data
    page = render(replay(rows))
    assert "What was read" in page and "decimal comma" in page and NASTY not in page
    assert page.count("&lt;b&gt;x&lt;/b&gt;") == 3  # the line, the note and the table
