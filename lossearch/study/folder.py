"""A study's folder: what lies where, and that no two studies share one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lossearch.errors import StudyError


class Folder:
    """The files of one study."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()
        self.study = self.path / "study.yaml"
        self.ledger = self.path / "ledger.jsonl"
        self.best = self.path / "best.yaml"
        self.verdict = self.path / "verdict.json"
        self.report = self.path / "report.html"
        self.objective = self.path / "objective.py"
        self.plots = self.path / "plots"
        self.checkpoints = self.path / "checkpoints"

    @property
    def holds_study(self) -> bool:
        try:  # killed before its first row was whole, a study has not begun
            with self.ledger.open("rb") as file:
                return file.readline().endswith(b"\n")
        except OSError:
            return False

    def create(self) -> None:
        """Make the folder.

        Raises:
            StudyError: it holds another study, cannot be made, or cannot be written to.
        """
        if self.holds_study:
            raise StudyError(
                f"{self.path} already holds a study; go on with it by `lossearch resume "
                f"{self.path}`, or choose another folder with --output"
            )
        made = [p for p in (self.path, *self.path.parents) if not os.path.exists(p)]
        probe = self.path / ".writable"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x" * 65536)
            probe.unlink()
        except OSError as error:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
                for folder in made:
                    folder.rmdir()
            raise StudyError(
                f"the output folder {self.path} cannot be written to: {error.strerror}. Choose "
                "another with --output"
            ) from None

    def files(self) -> list[Path]:
        """The files for a person that are there by now."""
        named = (self.study, self.best, self.verdict, self.report, self.objective, self.plots)
        return [path for path in named if path.exists()]

    def existing(self) -> Folder:
        """Itself, where it holds a study.

        Raises:
            StudyError: there is no study in it.
        """
        if not self.holds_study:
            what = "is no folder" if not self.path.is_dir() else "holds no study (no ledger.jsonl)"
            raise StudyError(f"{self.path} {what}; `lossearch run STUDY.yaml` makes one")
        return self


def fresh_folder(name: str, root: str | Path = "runs") -> Folder:
    """``runs/NAME``, or the first of ``runs/NAME-2``, ... that holds no study."""
    number = 1
    while True:
        folder = Folder(Path(root) / (name if number == 1 else f"{name}-{number}"))
        if not folder.holds_study:
            return folder
        number += 1
