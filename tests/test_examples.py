"""The examples run, at a size that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lossearch.space import Space
from lossearch.study import read_study
from lossearch.study.setup import set_up

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_model(tmp_path: Path) -> None:
    size = ["--trials", "4", "--epochs", "2", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "own_model.py"), *size],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("winner", "baseline"))
    assert "after 20 steps of it" in done.stdout


def test_every_study_file_can_start() -> None:
    for path in EXAMPLES.glob("*.yaml"):
        setup = set_up(read_study(path))
        assert isinstance(setup.space, Space) and not setup.space.left_out
