"""The disk full at random moments: the study stops with words, and goes on whole once it is not.

The disk is a tmpfs of a few megabytes, for which one must be root.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
    event_of,
    lines_of,
    moments,
    times,
    whole_study,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adopt_orphans()
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def whole(base: Path) -> Whole:
    return whole_study(base)


@pytest.fixture
def disk(base: Path) -> Iterator[Path]:
    """A disk of 32 MB."""
    folder = base / "mount"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no disk can be made here: {made.stderr.strip()} (root can)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all that is left, to the last page."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    return path


def test_a_full_disk(
    base: Path, whole: Whole, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = times(20)
    figures = Figures(f"the disk full, {wanted} times (seed {SEED})")
    figures.counts["times full"] = figures.counts["studies resumed to their end"] = 0
    draw = random.Random(SEED + 2)
    when = moments(draw, len(whole.rows) - 1, whole.startup)
    shutil.copy(base / "mlflow.db", disk)  # the store is on the same disk
    number = 0
    while figures.counts["times full"] < wanted:
        number += 1
        folder, where = disk / f"study-{number}", f"study {number}"
        driver = Driver(folder, base / "study.yaml")
        driver.reach(*next(when))
        before = lines_of(folder)
        filler = fill(disk)
        code = driver.wait()
        if left := driver.left():
            figures.wrong("processes left", where, left)
        stopped = code != 0
        if stopped:
            figures.counts["times full"] += 1
            figures.after[event_of(before)] += 1
            words = "No space left on device" in driver.said
            if code != 1 or not words or "Traceback" in driver.said:
                figures.wrong("stopped without the right words", where, (code, driver.said))
        filler.unlink()
        begun = bool(lines_of(folder))
        driver = Driver(folder, None if begun else base / "study.yaml")
        if driver.wait() != 0:
            figures.wrong("resumes that failed", where, driver.said)
            continue
        if left := driver.left():
            figures.wrong("processes left", where, left)
        figures.counts["studies resumed to their end"] += stopped
        check(figures, where, folder, whole, equal=True, before=before)
        check_tracking(figures, where, folder)
        shutil.rmtree(folder)
    with capsys.disabled():
        print(figures.table())
    assert figures.problems == []
