"""The bench in a process of its own: what objectives do to that process, and to each other."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossearch.executors.bench import Bench, ChildBench, open_bench
from lossearch.executors.local import LocalExecutor
from lossearch.study.setup import Setup
from lossearch.training import Job, JobResult, Unit, UnitResult, Workbench

from .conftest import job, spec

pytestmark = pytest.mark.slow


class Source:
    """Given units."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.waiting, self.left = list(units), len(units)
        self.results: list[JobResult] = []

    @property
    def over(self) -> bool:
        return self.left == 0

    def next(self) -> Unit | None:
        return self.waiting.pop(0) if self.waiting else None

    def report(self, unit: Unit, result: UnitResult) -> None:
        self.results += result.jobs
        self.left -= 1


def train(bench: Bench, *jobs: Job) -> list[JobResult]:
    source = Source([Unit(0, jobs)])
    LocalExecutor().run(bench, source)
    return source.results


def test_looks_are_those_of_this_process_but_for_what_dies(
    bench: Bench, setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lossearch.executors.bench._LOOK", 4.0)
    names = ("cross_entropy", "crashes", "focal", "hangs", "poly_loss")
    found = bench.look([spec(name) for name in names])
    crashed, hung = found.pop(1).refused, found.pop(2).refused
    assert crashed is not None and hung is not None
    assert crashed.reason == "worker_died" and "in crashes (deadly.py, line 13)" in crashed.detail
    assert "Segmentation fault" in crashed.detail
    assert hung.reason == "timed_out" and "in hangs (deadly.py, line 19)" in hung.detail
    here = Workbench(setup.recipe(tmp_path), setup.registry)
    for one, other in zip(
        found, here.look([spec("cross_entropy"), spec("focal"), spec("poly_loss")]), strict=True
    ):
        assert one.refused is None and one.factor == other.factor
        assert one.fingerprint is not None and other.fingerprint is not None
        assert np.array_equal(one.fingerprint, other.fingerprint)


def test_companions_of_a_deadly_objective_finish_as_they_would_without_it(
    bench: Bench, setup: Setup, tmp_path: Path
) -> None:
    names = ("focal", "exits_later", "poly_loss")
    found = train(bench, *(job(i, name) for i, name in enumerate(names)))
    exited = found.pop(1)
    assert exited.reason == "worker_died" and "exit code 3" in exited.detail
    here = Workbench(setup.recipe(tmp_path / "other"), setup.registry)
    alone = [here.run(Unit(0, (job(i, names[i]),))).jobs[0] for i in (0, 2)]
    for one, other in zip(found, alone, strict=True):
        assert one.reason is None and one.curve == other.curve and one.metrics == other.metrics


def test_a_training_that_hangs_is_ended_and_marked(bench: Bench) -> None:
    [hung] = train(bench, job(0, "hangs_later"))
    assert hung.reason == "timed_out" and "in hangs_later (deadly.py, line 33)" in hung.detail


@pytest.mark.long
def test_a_process_that_somebody_kills_is_replaced(bench: Bench) -> None:
    assert isinstance(bench, ChildBench)
    bench.look([spec("cross_entropy")])
    first = bench._process.pid
    threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
    found = train(bench, *(job(i, "focal", until=3) for i in range(3)))
    assert [r.reason for r in found] == [None] * 3
    time.sleep(0.4)  # for a machine on which the units were done before the kill
    assert [r.reason for r in train(bench, job(9, "focal"))] == [None]
    assert bench._process.pid != first


@pytest.mark.long
def test_what_components_print_is_shown_and_no_answer(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bench.look([spec("prints")])[0].refused is None
    for _ in range(50):
        if "seen by a person" in (said := capfd.readouterr().err):
            return
        time.sleep(0.1)
    raise AssertionError(said)


def test_sound_objectives_are_untouched_by_one_that_spoils_the_process(
    bench: Bench, setup: Setup, tmp_path: Path
) -> None:
    looks = bench.look([spec("spoils"), spec("focal"), spec("spoils"), spec("cross_entropy")])
    again = bench.look([spec("focal")])
    assert [look.refused for look in (looks[1], looks[3], *again)] == [None] * 3
    assert looks[1].factor == again[0].factor
    found = train(bench, job(0, "spoils"), job(1, "focal"), job(2, "spoils"), job(3, "focal"))
    here = Workbench(setup.recipe(tmp_path / "other"), setup.registry)
    alone = here.run(Unit(0, (job(1, "focal"),))).jobs[0]
    assert found[1].curve == found[3].curve == alone.curve


def test_what_cannot_be_sent_is_trained_here_aloud(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = setup.recipe(tmp_path)
    stuck: Any = threading.Lock()
    with caplog.at_level(logging.WARNING):
        bench = open_bench(replace(recipe, model=stuck))
    assert isinstance(bench, Workbench) and "in this process" in caplog.text
    assert "cannot be sent to another" in caplog.text


@pytest.mark.long
def test_ctrl_c_ends_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(bench, ChildBench)
    process = bench._process
    bench.look([spec("focal")])
    bench.close()
    assert process.poll() is not None


SCRIPT = """
import lossearch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x)

result = lossearch.search(
    {"data": "digits"}, model=Net(), space={"terms": [{"loss": "focal"}]}, trials=3,
    epochs=2, confirm={"top": 1, "seeds": 2}, executor="local", tracking=None,
    progress=False, output="out",
)
print("recommended", result.recommend)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """Starts a script without a guard for its main part, as people write them."""

    def start() -> subprocess.Popen[str]:
        (tmp_path / "mine.py").write_text(SCRIPT)
        return subprocess.Popen(
            [sys.executable, "mine.py"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LOSSEARCH_MARK": "us"},
        )

    return start


@pytest.mark.long
def test_a_model_of_a_script_is_sent(script: Callable[[], subprocess.Popen[str]]) -> None:
    said, _ = script().communicate(timeout=300)
    assert "recommended" in said


def _marked() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"LOSSEARCH_MARK=us" in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_no_process_outlives_a_killed_driver(
    script: Callable[[], subprocess.Popen[str]],
) -> None:
    driver = script()
    for _ in range(1000):
        if len(_marked()) > 1:
            break
        time.sleep(0.1)
    assert len(_marked()) > 1
    time.sleep(1)
    driver.kill()
    driver.wait()
    for _ in range(100):
        if not _marked():
            return
        time.sleep(0.1)
    raise AssertionError(_marked())
