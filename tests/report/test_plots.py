"""The PNG pictures."""

from __future__ import annotations

from pathlib import Path

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
    written = write_plots(tmp_path / "plots", state, shapes)
    assert [p.name for p in written] == ["search.png", "curves.png", "loss_shape.png"]
    for path in written:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert write_plots(tmp_path / "plots", State()) == []
    assert not (tmp_path / "plots").exists()
