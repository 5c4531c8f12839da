"""One process has a study at a time, from the making of its folder to the end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lossearch.errors import BusyError, DataError, StudyError
from lossearch.study import read_study, resume, start
from lossearch.study.finish import renew
from lossearch.study.folder import Folder, claimed
from lossearch.study.setup import Setup

pytestmark = pytest.mark.long

Write = Callable[..., Path]
StopAt = Callable[..., Any]
Ledger = Callable[[Path], list[dict[str, Any]]]

# A dataset that takes as long as it is told to.
SLOW = '''
import os, time
from pathlib import Path
import numpy as np
import lossearch
from lossearch.data import Dataset

@lossearch.dataset(task="multiclass")
def slow(*, path: str = "") -> Dataset:
    """Points, once there is a file called go."""
    folder = Path(path)
    (folder / f"reading-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    with np.load(folder / "data.npz") as held:
        return Dataset(held["X"], held["y"])

@lossearch.hookimpl
def register_datasets():
    return [slow]
'''


@pytest.fixture
def slow(write_study: Write, tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(SLOW)
    return write_study(
        plugins=["slow.py"], data={"name": "slow", "path": str(tmp_path)}, search__trials=4
    )


@pytest.fixture
def driver() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line in a process of its own."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "lossearch", *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def wait_for(count: int, folder: Path, *processes: subprocess.Popen[str]) -> None:
    """Until so many processes read their data."""
    end = time.monotonic() + 120
    while len(list(folder.glob("reading-*"))) < count:
        assert time.monotonic() < end
        assert all(p.poll() is None for p in processes), processes[0].communicate()
        time.sleep(0.02)


def test_two_runs_at_once_have_two_folders(slow: Path, tmp_path: Path, driver: Any) -> None:
    both = [driver("run", slow) for _ in range(2)]
    wait_for(2, tmp_path, *both)
    assert sorted(p.name for p in Path("runs").iterdir()) == ["study", "study-2"]
    for name in ("study", "study-2"):
        with pytest.raises(BusyError, match=f"{name} is being run by another process"):
            resume(Path("runs") / name)
    (tmp_path / "go").touch()
    for process in both:
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
    assert resume("runs/study").verdict == resume("runs/study-2").verdict


def test_one_output_takes_one_run_and_a_kill_lets_go_of_it(
    slow: Path, tmp_path: Path, driver: Any
) -> None:
    first = driver("run", slow, "--output", "out")
    wait_for(1, tmp_path, first)
    second = driver("run", slow, "--output", "out")
    said = second.communicate(timeout=120)[0]
    assert second.returncode == 1 and "out is being run by another process" in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (tmp_path / "go").touch()
    assert start(read_study(slow, {"output": "out"})).verdict is not None


def test_two_resumes_at_once_double_nothing(
    slow: Path, tmp_path: Path, driver: Any, stop_at: StopAt, ledger: Ledger
) -> None:
    (tmp_path / "go").touch()
    with pytest.raises(KeyboardInterrupt):
        start(read_study(slow, {"output": "out"}), display=stop_at("rung"))
    for left in (tmp_path / "go", *tmp_path.glob("reading-*")):
        left.unlink()
    both = [driver("resume", "out") for _ in range(2)]
    wait_for(1, tmp_path)
    end = time.monotonic() + 120
    while all(p.poll() is None for p in both):
        assert time.monotonic() < end
        time.sleep(0.05)
    (tmp_path / "go").touch()
    said = {p.wait(120): p.communicate()[0] for p in both}
    assert set(said) == {0, 1} and "is being run by another process" in said[1]
    rows = ledger(Path("out"))
    assert sum(r["event"] == "resumed" for r in rows) == 1
    proposed = Counter(r["trial"] for r in rows if r["event"] == "proposed")
    assert set(proposed.values()) == {1}


def test_a_study_is_held_while_its_embeddings_are_computed(
    write_study: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = write_study(), []
    whole = Setup.with_features

    def computing(self: Setup, folder: Path, progress: Any) -> Setup:
        again = read_study(path, {"output": str(folder)})
        for use in (lambda: resume(folder), lambda: start(again)):
            with pytest.raises(BusyError):
                use()
        with claimed(None, "study") as (other, _):
            seen.append(other.path.name)
        return whole(self, folder, progress)

    monkeypatch.setattr(Setup, "with_features", computing)
    found = start(read_study(path))
    assert found.verdict is not None and found.folder.name == "study"
    assert seen == ["study-2"] and not Path("runs/study-2").exists()


def test_a_report_beside_a_running_study_leaves_its_tracking_alone(
    write_study: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = start(read_study(write_study())).folder
    asked: list[Path] = []
    monkeypatch.setattr(
        "lossearch.study.finish.tracker_of", lambda config, folder: asked.append(folder.path)
    )
    with Folder(folder).held():
        renew(folder)
        assert asked == []
    renew(folder)
    assert asked == [folder]


def test_a_study_that_cannot_begin_leaves_nothing(write_study: Write, tmp_path: Path) -> None:
    path = write_study()
    (tmp_path / "data.npz").unlink()
    for output in (None, "a/b/c"):
        with pytest.raises(DataError):
            start(read_study(path, {"output": output}))
        assert {p.name for p in tmp_path.iterdir()} == {"study.yaml"}
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "study.yaml").write_text("mine")
    with pytest.raises(DataError):
        start(read_study(path, {"output": "here"}))
    assert (tmp_path / "here" / "study.yaml").read_text() == "mine"
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["study.yaml"]


def _claim_often(times: int) -> None:
    for _ in range(times):
        with claimed(None, "study") as (folder, _):
            owner = folder.path / "owner"
            os.close(os.open(owner, os.O_CREAT | os.O_EXCL))  # fails where two have one folder
            owner.unlink()


def test_no_two_processes_ever_claim_one_folder() -> None:
    fork = multiprocessing.get_context("fork")
    crowd = [fork.Process(target=_claim_often, args=(100,)) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(120)
    assert [p.exitcode for p in crowd] == [0, 0, 0, 0]
    assert not any(Path("runs").glob("*/*"))


def test_a_folder_that_is_not_there_is_not_made_by_a_resume(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="nowhere is no folder"):
        resume(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyError, match="holds no study"):
        resume(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
