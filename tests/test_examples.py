"""The examples run, at a size that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


def run(script: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "file", "said"),
    [
        ("label_noise_cifar10.py", "cifar10-train-jpg.zip", "generalized_cross_entropy"),
        ("long_tail_cifar10.py", "cifar10-train-jpg.zip", "Its winner "),
        ("imbalanced_tables.py", "mammography.csv", "average precision: the search recommends"),
    ],
)
def test_a_reproduction(tmp_path: Path, samples: Path, script: str, file: str, said: str) -> None:
    done = run(script, samples / file, "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and "the search" in done.stdout and "failed" not in done.stdout
    assert done.stdout.count(" ± ") >= 6


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("label_noise_cifar10.py", "there is no nowhere.zip"),
        ("imbalanced_tables.py", "there is no file nowhere.zip"),
    ],
)
def test_a_reproduction_without_its_data(tmp_path: Path, script: str, names: str) -> None:
    done = run(script, "nowhere.zip", "--quick", cwd=tmp_path)
    assert done.returncode == 1
    assert names in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_study_file_can_start() -> None:
    for path in EXAMPLES.glob("*.yaml"):
        setup = set_up(read_study(path))
        assert isinstance(setup.space, Space) and not setup.space.left_out
