"""``lossearch data``, and what a study says of its data when it starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
Write = Callable[..., Path]
CHANGES = {
    "data": {"name": "csv", "path": "people.csv", "label": "ill"},
    "space": {"terms": [{"loss": {"choice": ["binary_cross_entropy", "focal"]}}]},
}


@pytest.fixture
def people(tmp_path: Path, study: Write) -> Path:
    lines = [";height;[b]age[/b];who;ill"]
    for i in range(90):
        age = "n.a." if i % 9 == 0 else str(20 + i % 7)
        ill = ("yes", "Yes", "no", "no", "no")[i % 5]
        lines.append(f"{i};1,{i % 13}5;{age};person {i};{ill}")
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    return study(CHANGES)


def words(text: str) -> str:
    return " ".join(text.split())


def test_data_shows_columns_classes_splits_and_notes(
    cli: Cli, people: Path, tmp_path: Path
) -> None:
    said = cli("data", people)
    assert said.code == 0 and said.err == ""
    out = words(said.out)
    assert "54 training, 18 validation and 18 test samples; binary: no 32, Yes 22" in out
    assert "4 columns: 2 numbers; dropped 'Unnamed: 0', 'who'; 10 values missing in 1" in out
    assert "labels 'yes' are taken as 'Yes'" in out
    assert "height number 0 13 decimal comma" in out
    assert "[b]age[/b] number 10 7 10 times 'n.a.' read as missing" in out
    assert "who category 0 90 dropped: text that is nearly all different" in out
    assert "class training validation test no 32 11 11 " in out
    assert {p.name for p in tmp_path.iterdir()} == {"study.yaml", "data.npz", "people.csv"}


def test_data_as_json(cli: Cli, people: Path) -> None:
    said = cli("data", people, "--json")
    found = json.loads(said.out)
    assert found["counts"] == {"training": [32, 22], "validation": [11, 7], "test": [11, 7]}
    assert [c["kind"] for c in found["reading"]["columns"]] == [
        "number", "number", "number", "category",
    ]  # fmt: skip
    assert found["task"] == "binary" and len(found["notes"]) == 5


def test_data_of_arrays_has_no_columns(cli: Cli, study: Write) -> None:
    said = cli("data", study())
    assert said.code == 0 and "4 numbers each" in said.out and "column" not in said.out
    assert json.loads(cli("data", study(), "--json").out)["reading"] is None


def test_data_refusals(cli: Cli, study: Write) -> None:
    assert "given from Python" in cli("data", study({"data": {"name": "user"}})).error()
    lost = {"name": "csv", "path": "lost.csv"}
    assert "has no 'lost.csv'" in cli("data", study({"data": lost})).error()


def test_a_study_says_in_three_lines_what_it_read(cli: Cli, people: Path) -> None:
    for command in (("run", people, "--dry-run"), ("run", people, "--output", "out")):
        said = cli(*command)
        assert said.code == 0, said.err
        text = said.out if "--dry-run" in command else said.err
        lines = [
            line for line in text.splitlines() if line.startswith(("data ", "inputs", "notes"))
        ]
        assert len(lines) == 3
        assert "dropped 'Unnamed: 0', 'who'" in lines[1]
        assert "`lossearch data STUDY.yaml`" in lines[2]
    report = Path("out/report.html").read_text()
    for text in ("What was read", "decimal comma", "[b]age[/b]", "nearly all different"):
        assert text in report
