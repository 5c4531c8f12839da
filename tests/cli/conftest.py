"""The command line, called in this process, in a folder with a small study."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lossearch.cli import main
from lossearch.documents import dump_yaml
from lossearch.registry import use

DOCUMENT: dict[str, Any] = {
    "data": {"name": "npz", "path": "data.npz"},
    "model": {"name": "mlp", "hidden": [4]},
    "space": {"terms": [{"loss": {"choice": ["focal", "poly_loss"]}}]},
    "search": {"trials": 4, "rungs": None},
    "training": {"epochs": 2, "batch_size": 32, "device": "cpu"},
    "confirm": {"top": 1, "seeds": 2},
    "executor": "local",
    "tracking": None,
}


@dataclass
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The text of a refusal: exit code 1, on stderr alone, no traceback."""
        assert self.code == 1, (self.code, self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("error: ") and self.err.endswith("\n"), self.err
        assert "Traceback" not in self.err and "pydantic" not in self.err
        return self.err.removeprefix("error: ").strip()


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOSSEARCH_VERBOSE", raising=False)
    yield
    use(None)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["lossearch", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def document() -> dict[str, Any]:
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def study(tmp_path: Path, document: dict[str, Any]) -> Callable[..., Path]:
    """Writes ``study.yaml`` and its data; a dotted key changes the document."""

    def write(changes: dict[str, Any] | None = None, arrays: Any = None) -> Path:
        draw = np.random.default_rng(0)
        targets = np.repeat([0, 1, 2], 30)
        inputs = draw.normal(size=(90, 4)).astype(np.float32)
        inputs[np.arange(90), targets] += 1.5
        if arrays is not None:
            inputs, targets = arrays(inputs, targets)
        np.savez(tmp_path / "data.npz", X=inputs, y=targets)
        for dotted, value in (changes or {}).items():
            inside = document
            *outer, last = dotted.split(".")
            for key in outer:
                inside = inside[key]
            inside[last] = value
        path = tmp_path / "study.yaml"
        path.write_text(dump_yaml(document))
        return path

    return write
