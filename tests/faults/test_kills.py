"""``kill -9`` of the driver and of workers at random moments, and what a resume makes of it."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.harness import (
    SEED,
    Driver,
    Figures,
    Whole,
    adopt_orphans,
    check,
    check_tracking,
    descendants,
    event_of,
    lines_of,
    moments,
    times,
    whole_study,
    write_study,
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
MOST = 4  # kills of one study


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adopt_orphans()
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def whole(base: Path) -> Whole:
    return whole_study(base)


def test_the_verdict_is_the_same_when_nothing_happens(base: Path, whole: Whole) -> None:
    """Else nothing below would mean anything."""
    driver = Driver(base / "again", base / "study.yaml")
    assert driver.wait() == 0, driver.said
    figures = Figures("")
    check(figures, "again", base / "again", whole, equal=True, before=[])
    check_tracking(figures, "again", base / "again")
    assert figures.problems == []


def test_kills_of_the_driver(
    base: Path, whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = times(60)
    figures = Figures(f"kill -9 of the driver, {wanted} times (seed {SEED})")
    figures.counts["kills"] = figures.counts["studies resumed to their end"] = 0
    draw = random.Random(SEED)
    when = moments(draw, len(whole.rows), whole.startup)
    study = 0
    while figures.counts["kills"] < wanted:
        study += 1
        folder, where = base / f"driver-{study}", f"study {study}"
        before: list[bytes] = []
        kills = min(draw.randint(1, MOST), wanted - figures.counts["kills"])
        while kills:  # of the run, and of each resume
            begun = bool(lines_of(folder))
            driver = Driver(folder, None if begun else base / "study.yaml")
            if not driver.reach(*next(when)):
                if driver.wait() != 0:
                    figures.wrong("runs and resumes that failed", where, driver.said)
                break
            driver.kill()
            kills -= 1
            figures.counts["kills"] += 1
            if left := driver.left():
                figures.wrong("processes left", where, left)
            now = lines_of(folder)
            if now[: len(before)] != before:
                figures.wrong("lines lost or altered", where, folder)
            before = now
            figures.after[event_of(before)] += 1
        driver = Driver(folder, None if before else base / "study.yaml")
        code = driver.wait()
        if left := driver.left():
            figures.wrong("processes left", where, left)
        if code != 0:
            figures.wrong("runs and resumes that failed", where, driver.said)
            continue
        figures.counts["studies resumed to their end"] += 1
        check(figures, where, folder, whole, equal=True, before=before)
        check_tracking(figures, where, folder)
    with capsys.disabled():
        print(figures.table())
    assert figures.problems == []


def test_kills_of_workers(base: Path, whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    """A study on Ray goes on without its worker; which trials win depends on the timing."""
    wanted = times(20)
    figures = Figures(f"kill -9 of a Ray worker, {wanted} times (seed {SEED})")
    figures.counts["kills"] = figures.counts["studies that went on to their end"] = 0
    draw = random.Random(SEED + 1)
    ray = {"name": "ray", "workers": 2, "cpus": 0.5}
    path = write_study(base / "ray.yaml", executor=ray)
    study = 0
    while figures.counts["kills"] < wanted:
        study += 1
        folder, where = base / f"worker-{study}", f"study {study}"
        driver = Driver(folder, path)
        before: list[bytes] = []
        kills = min(draw.randint(1, MOST), wanted - figures.counts["kills"])
        for rows in sorted(draw.sample(range(2, len(whole.rows) - 8), kills)):
            if not driver.reach(rows, draw.expovariate(1 / 0.05)):
                break
            tree = descendants(driver.process.pid)
            workers = sorted(p for p, title in tree.items() if _is_worker(title))
            if not workers:
                continue
            busy = [p for p in workers if "IDLE" not in tree[p]]
            victim = draw.choice(busy or workers)
            before = lines_of(folder)
            os.kill(victim, signal.SIGKILL)
            figures.counts["kills"] += 1
            figures.after[f"{event_of(before)} ({tree[victim].split('(')[0]})"] += 1
        if driver.wait() != 0:
            figures.wrong("studies that stopped", where, driver.said)
        if left := driver.left():
            figures.wrong("processes left", where, left)
        ended = lines_of(folder)
        driver = Driver(folder)
        if driver.wait() != 0:
            figures.wrong("resumes that failed", where, driver.said)
            continue
        if left := driver.left():
            figures.wrong("processes left", where, left)
        figures.counts["studies that went on to their end"] += 1
        check(figures, where, folder, whole, equal=False, before=before)
        check(figures, where, folder, whole, equal=False, before=ended)
        check_tracking(figures, where, folder)
    with capsys.disabled():
        print(figures.table())
    assert figures.problems == []


def _is_worker(title: str) -> bool:
    """Whether a process of Ray's runs work; the node ends with any of its agents."""
    return title.startswith("ray::") and "Agent" not in title
