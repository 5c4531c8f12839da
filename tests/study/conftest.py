"""A study that takes a second: three clouds of points, a small network, the local executor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lossearch.documents import dump_yaml
from lossearch.registry import current, use
from lossearch.study import StudyResult, read_study, start
from lossearch.training import Recipe, Unit, UnitResult, Workbench
from lossearch.trials.ledger import State, read_ledger

DOCUMENT: dict[str, Any] = {
    "data": {"name": "npz", "path": "data.npz"},
    "model": {"name": "mlp", "hidden": [8]},
    "space": {
        "terms": [{"loss": {"choice": ["cross_entropy", "focal", "poly_loss"]}}],
    },
    "metrics": ["nll"],
    "search": {"trials": 12, "rungs": {"min_epochs": 1, "factor": 2}},
    "training": {
        "epochs": 3,
        "batch_size": 32,
        "device": "cpu",
        "lr": {"low": 0.005, "high": 0.3, "log": True},
    },
    "fairness": {"probe_lr": False},
    "confirm": {"top": 2, "seeds": 2},
    "executor": "local",
    "tracking": None,
}


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    targets = np.repeat([0, 1, 2], 50)
    inputs = draw.normal(size=(150, 4)).astype(np.float32)
    inputs[np.arange(150), targets] += 1.5
    return inputs, targets


@pytest.fixture
def points() -> tuple[np.ndarray, np.ndarray]:
    return arrays()


def here(recipe: Recipe) -> Workbench:
    """A bench in this process."""
    return Workbench(recipe, current())


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each test in a folder of its own, which also gets ``runs/``."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    use(None)


@pytest.fixture
def document() -> dict[str, Any]:
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def write_study(tmp_path: Path, document: dict[str, Any]) -> Callable[..., Path]:
    """Writes ``study.yaml`` with its data beside it; a dotted key changes the document."""

    def write(name: str = "study.yaml", **changes: Any) -> Path:
        inputs, targets = arrays()
        np.savez(tmp_path / "data.npz", X=inputs, y=targets)
        for dotted, value in changes.items():
            inside = document
            *outer, last = dotted.split("__")
            for key in outer:
                inside = inside[key]
            inside[last] = value
        path = tmp_path / name
        path.write_text(dump_yaml(document))
        return path

    return write


@pytest.fixture
def result(write_study: Callable[..., Path]) -> StudyResult:
    """That study, run to its end."""
    return start(read_study(write_study()))


@pytest.fixture
def ledger() -> Callable[[Path], list[dict[str, Any]]]:
    """The rows of the ledger in a folder."""
    return lambda folder: read_ledger(folder / "ledger.jsonl")


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> list[Unit]:
    """Every unit that is run in this process."""
    seen: list[Unit] = []
    run = Workbench.run

    def watched(self: Workbench, unit: Unit) -> UnitResult:
        seen.append(unit)
        return run(self, unit)

    monkeypatch.setattr(Workbench, "run", watched)
    return seen


@pytest.fixture
def facts() -> Callable[[StudyResult], list[Any]]:
    """All of a study's trials that does not depend on the clock."""
    return lambda result: [
        (t.number, t.role, t.label, t.status, t.score, t.epoch, t.training, t.metrics, t.rungs)
        for t in result.trials
    ]


@pytest.fixture
def stop_at() -> Callable[..., Any]:
    """Makes a display that presses Ctrl-C at the nth event of a kind."""

    def make(event: str, nth: int = 1) -> Any:
        seen = [0]

        def begin(run: Any, executor: Any) -> Any:
            def listen(state: State, row: dict[str, Any]) -> None:
                seen[0] += row["event"] == event
                if row["event"] == event and seen[0] == nth:
                    raise KeyboardInterrupt

            return listen

        return begin

    return make
