"""A study's folder: what lies where, and that no two studies share one."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lossearch.errors import BusyError, StudyError
from lossearch.trials.ledger import Ledger

_TRIES = 10


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

    def files(self) -> list[Path]:
        """The files for a person that are there by now."""
        named = (self.study, self.best, self.verdict, self.report, self.objective, self.plots)
        return [path for path in named if path.exists()]

    def existing(self) -> Folder:
        """Itself, where it holds a study.

        Raises:
            StudyError: there is no study in it, or what should be a file of it leads elsewhere.
        """
        self.refuse_links()
        if not self.holds_study:
            what = "is no folder" if not self.path.is_dir() else "holds no study (no ledger.jsonl)"
            raise StudyError(f"{self.path} {what}; `lossearch run STUDY.yaml` makes one")
        return self

    @contextmanager
    def held(self) -> Iterator[Ledger]:
        """The ledger of the study that lies here, which no other process gets meanwhile.

        Raises:
            BusyError: another process holds it.
            StudyError: there is no study in it, as for :meth:`existing`.
        """
        self.refuse_links()
        if not self.ledger.exists():
            self.existing()
        ledger = Ledger(self.ledger)  # first of all: a study that begins has no row yet
        try:
            self.existing()
            yield ledger
        finally:
            ledger.close()

    def refuse_links(self) -> None:
        """Make sure that what is read and written here lies here.

        Raises:
            StudyError: a file of the study is a link that leads out of the folder.
        """
        own = (self.study, self.ledger, self.best, self.verdict, self.report, self.objective)
        drafts = (*(partial(file) for file in own), self.report.with_suffix(".tmp"))
        for path in itertools.chain(own, drafts, (self.plots,), self.plots.rglob("*")):
            if os.path.islink(path) and not path.resolve().is_relative_to(self.path):
                raise StudyError(
                    f"{path} is a link that leads out of the study's folder, to {path.resolve()}; "
                    "put the file itself in its place"
                )


def partial(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def claimed(output: str | None, name: str) -> Iterator[tuple[Folder, Ledger]]:
    """A folder for a new study and its ledger, which no other process gets meanwhile.

    Without ``output`` it is ``runs/NAME``, or the first of ``runs/NAME-2``, ... that holds no
    study and that nobody else is about to begin one in. Where none begins, nothing is left.

    Raises:
        BusyError: another process holds ``output``.
        StudyError: it holds another study, cannot be made, or cannot be written to.
    """
    folder, ledger, made = _given(Folder(output)) if output else _fresh(Path("runs") / name)
    try:
        yield folder, ledger
    finally:
        if not folder.holds_study:
            with suppress(OSError):
                _take_away(folder, made)
        ledger.close()


_Claim = tuple[Folder, Ledger, list[Path]]


def _given(folder: Folder) -> _Claim:
    claim = _claim(folder)
    if claim is None:
        raise StudyError(
            f"{folder.path} already holds a study; go on with it by `lossearch resume "
            f"{folder.path}`, or choose another folder with --output"
        )
    return claim


def _fresh(path: Path) -> _Claim:
    for number in itertools.count(1):
        with suppress(BusyError):
            claim = _claim(Folder(path if number == 1 else f"{path}-{number}"))
            if claim is not None:
                return claim
    raise AssertionError


def _claim(folder: Folder) -> _Claim | None:
    """Make a folder and lock it; ``None`` where it holds a study.

    Returns:
        The folder, its ledger, and what was made for it, the innermost first.
    """
    try:
        folder.refuse_links()
    except OSError as error:
        raise _unwritable(folder, error) from None
    if folder.holds_study:
        return None
    made = [p for p in (folder.path, *folder.path.parents) if not os.path.exists(p)]
    try:
        ledger = _locked(folder)
    except OSError as error:
        _remove(made)
        raise _unwritable(folder, error) from None
    if folder.holds_study:  # of another process, which has begun and ended meanwhile
        ledger.close()
        return None
    probe = folder.path / ".writable"
    try:
        probe.write_bytes(b"x" * 65536)
        probe.unlink()
    except OSError as error:
        probe.unlink(missing_ok=True)
        _take_away(folder, made)
        ledger.close()
        raise _unwritable(folder, error) from None
    return folder, ledger, made


def _locked(folder: Folder) -> Ledger:
    for _ in range(_TRIES):
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            return Ledger(folder.ledger)
        except BusyError:
            raise
        except (OSError, StudyError):  # who held it may just be taking it away
            time.sleep(0.002)
    folder.path.mkdir(parents=True, exist_ok=True)
    return Ledger(folder.ledger)


def _unwritable(folder: Folder, error: OSError) -> StudyError:
    return StudyError(
        f"the output folder {folder.path} cannot be written to: {error.strerror}. Choose another "
        "with --output"
    )


def _take_away(folder: Folder, made: list[Path]) -> None:
    """Leave nothing of a study that has not begun; its lock is still held."""
    if folder.path in made:
        folder.study.unlink(missing_ok=True)
    folder.ledger.unlink(missing_ok=True)  # from here on others may take the folder
    _remove(made)


def _remove(made: list[Path]) -> None:
    with suppress(OSError):  # others may use them by now
        for each in made:
            each.rmdir()
