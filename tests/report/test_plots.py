"""The PNG pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lossearch.report import write_plots
from lossearch.trials.ledger import State, replay
from tests.ledgers import study_rows


def test_pictures_of_a_whole_study(tmp_path: Path) -> None:
    state = replay(study_rows())
    shapes = {
        "margin": [-1.0, 0.0, 1.0],
        "loss": {"winner: a": [2.0, 1.0, 0.5], "baseline: b": [1.5, 1.0, 0.7]},
        "gradient": {"winner: a": [-1.0, -0.7, -0.3], "baseline: b": [-1.0, -0.5, -0.2]},
    }
    written, problems = write_plots(tmp_path / "plots", state, shapes)
    assert problems == []
    assert [p.name for p in written] == ["search.png", "curves.png", "loss_shape.png"]
    for path in written:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert write_plots(tmp_path / "plots", State()) == ([], [])
    assert not (tmp_path / "plots").exists()


STRANGE = [
    r"$\frac{", r"a $x^2$ b $", "_hidden", "\\", "%s {} <b>&", "损失 \N{PILE OF POO}", "a\nb\0c",
]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_is_no_formula(tmp_path: Path, name: str) -> None:
    """Whatever the metric, and the losses of a plugin, are called."""

    def renamed(row: dict[str, Any]) -> dict[str, Any]:
        return {name if k == "macro_f1" else k: v for k, v in row.items()}

    rows = json.loads(json.dumps(study_rows()), object_hook=renamed)
    for row in rows:
        row["metric"], row["label"] = name, f"{name}(gamma=2) {name}"
    shapes = {
        "margin": [0.0, 1.0],
        "loss": {f"winner: {name}": [2.0, 1.0], f"baseline: {name}": [1.5, 1.0]},
        "gradient": {f"winner: {name}": [-1.0, -0.7], f"baseline: {name}": [-1.0, -0.5]},
    }
    written, problems = write_plots(tmp_path / "plots", replay(rows), shapes)
    assert problems == [] and len(written) == 3


def test_a_picture_that_fails_takes_no_other_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("lossearch.report.plots._search", fail)
    written, problems = write_plots(tmp_path / "plots", replay(study_rows()))
    assert [p.name for p in written] == ["curves.png"]
    assert problems == ["search.png could not be drawn: ValueError: no ink"]
