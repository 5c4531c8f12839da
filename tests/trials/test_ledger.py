"""The ledger: durable, whole after a kill, and replayed event by event."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from lossearch.errors import BusyError, StorageError, StudyError
from lossearch.trials.ledger import Ledger, read_ledger, replay
from tests.disk import room_for

PROPOSED: dict[str, Any] = {
    "trial": 0,
    "role": "search",
    "objective": {"task": "multiclass", "terms": [{"loss": {"name": "focal"}}]},
    "label": "2 × focal · none",
    "training": {"lr": 0.1},
    "params": {"training.lr": 0.1},
    "distributions": {},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_a_row_is_on_the_disk_before_append_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    fsync = os.fsync

    def watch(number: int) -> None:
        synced.append(path.read_bytes())
        fsync(number)

    monkeypatch.setattr(os, "fsync", watch)
    ledger = Ledger(path)
    row = ledger.append("proposed", **PROPOSED)
    assert synced == [path.read_bytes()]
    written = json.loads(path.read_text("utf-8"))
    assert {k: v for k, v in written.items() if k != "check"} == row
    ledger.close()


def test_nan_and_infinity_become_null_at_any_depth(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append("rung", score=math.nan, curve=[{"a": math.inf, "b": (1.0, -math.inf)}])
    ledger.close()
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    (row,) = read_ledger(path)
    assert row["score"] is None
    assert row["curve"] == [{"a": None, "b": [1.0, None]}]


@pytest.mark.parametrize(
    "torn", [b'{"event": "ru', '{"label": "×'.encode()[:-1], b'{"event": "x"}']
)
def test_a_torn_last_line_is_left_out_and_cut_off(path: Path, torn: bytes) -> None:
    ledger = Ledger(path)
    ledger.append("proposed", **PROPOSED)
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(read_ledger(path)) == 1
    ledger = Ledger(path)  # cuts the torn line off
    assert path.read_bytes() == whole
    ledger.append("resumed")
    ledger.close()
    assert [r["event"] for r in read_ledger(path)] == ["proposed", "resumed"]


@pytest.mark.parametrize("damaged", ['{"event": "ru', "5", "{}", "", "\x00"])
def test_a_damaged_line_in_the_middle_is_named(path: Path, damaged: str) -> None:
    path.write_text('{"event": "study"}\n' + damaged + '\n{"event": "resumed"}\n')
    with pytest.raises(StudyError, match=r"ledger\.jsonl, line 2, is not a ledger row.*first 1 l"):
        read_ledger(path)


def written(path: Path, count: int = 6) -> list[bytes]:
    """The lines of a new ledger."""
    ledger = Ledger(path)
    for seed in range(count):
        ledger.append("confirmed", trial=3, seed=seed, test={"nll": 0.1 * seed})
    ledger.close()
    return path.read_bytes().splitlines(keepends=True)


def test_a_lines_check_is_the_hash_of_the_line_and_of_the_check_before(path: Path) -> None:
    before = b""
    for line in written(path, 3):
        body, check = line.rstrip(b"\n").split(b', "check": "')
        wanted = hashlib.blake2b(before + body + b"}", digest_size=8).hexdigest().encode()
        assert check == wanted + b'"}'
        before = wanted
    assert all("check" not in row for row in read_ledger(path))


def alter(lines: list[bytes]) -> list[bytes]:
    lines[2] = lines[2].replace(b'"trial": 3', b'"trial": 8')
    return lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: [*x[:2], *x[3:]], "line 3, does not follow from line 2: it was altered, or"),
        (lambda x: x[1:], "line 1, cannot be right: .*start a new study"),
        (lambda x: [*x[:3], x[2], *x[3:]], "line 4, is line 3 once more"),
        (lambda x: [*x, x[2]], "line 7, is line 3 once more"),
        (lambda x: [*x, *x], "line 7, is line 1 once more"),
        (lambda x: [*x[:2], x[3], x[2], *x[4:]], "line 3, does not follow from line 2"),
        (alter, "line 3, does not follow from line 2.*keep its first 2 lines"),
        (lambda x: [*x[:3], b'{"event": "resumed"}\n', *x[3:]], "line 4, has no check"),
        (lambda x: [*x, b'{"event": "resumed"}\n'], "line 7, has no check"),
    ],
)
def test_a_line_that_was_lost_doubled_moved_or_altered_is_named(
    path: Path, change: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    path.write_bytes(b"".join(change(written(path))))
    with pytest.raises(StudyError, match=rf"ledger\.jsonl, {said}"):
        read_ledger(path)


def test_every_bit_counts(path: Path) -> None:
    whole = b"".join(written(path, 3))
    for place in range(len(whole) - 1):  # without its end, the last line is a torn one
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StudyError, match=r"ledger\.jsonl, line \d,"):
            read_ledger(path)


def test_what_is_kept_of_a_damaged_ledger_goes_on(path: Path) -> None:
    path.write_bytes(b"".join(written(path)[:2]))
    written(path, 1)
    assert [row["seed"] for row in read_ledger(path)] == [0, 1, 0]


def test_an_old_ledger_is_read_and_what_is_added_to_it_checks_it_too(path: Path) -> None:
    old = b'{"event": "study", "time": 1}\n{"event": "resumed", "time": 2}\n'
    path.write_bytes(old)
    assert len(read_ledger(path)) == 2
    lines = written(path, 2)
    assert b"".join(lines[:2]) == old and all(b'"check"' in x for x in lines[2:])
    assert [row["event"] for row in read_ledger(path)] == ["study", "resumed"] + ["confirmed"] * 2
    path.write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(StudyError, match="line 2, does not follow from line 1"):
        read_ledger(path)


def test_an_edit_that_was_meant(path: Path) -> None:
    """As docs/reliability.md says: without its checks it is as an old ledger."""
    path.write_bytes(b"".join(alter(written(path))))
    subprocess.run(["sed", "-i", 's/, "check": "[0-9a-f]*"}$/}/', path], check=True)
    assert [row["trial"] for row in read_ledger(path)] == [3, 3, 8, 3, 3, 3]
    written(path, 1)
    assert len(read_ledger(path)) == 7


def test_a_copy_that_went_through_windows(path: Path) -> None:
    path.write_bytes(b"".join(written(path)).replace(b"\n", b"\r\n"))
    assert len(read_ledger(path)) == 6
    written(path, 1)
    assert len(read_ledger(path)) == 7


def test_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"there is no study in .*: it has no ledger\.jsonl"):
        read_ledger(tmp_path / "ledger.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StudyError, match="cannot be read: Is a directory"):
        read_ledger(tmp_path / "folder")


def test_a_ledger_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written: Not a directory"):
        Ledger(tmp_path / "file" / "ledger.jsonl")


def test_a_full_disk_says_what_to_do_and_closing_raises_no_more(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append("study")
    ledger._file.close()
    ledger._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(StudyError, match=r"No space left on device.*lossearch resume"):
        ledger.append("resumed")
    ledger.close()
    assert len(read_ledger(path)) == 1


@pytest.mark.parametrize("together", [False, True])
def test_what_a_full_disk_cut_short_is_cut_off_before_writing_on(
    path: Path, together: bool
) -> None:
    ledger = Ledger(path)
    ledger.append("study")
    row = path.stat().st_size
    block = ledger.together() if together else nullcontext()
    with room_for(3 * row), pytest.raises(StorageError, match=r"No space left.*resume"), block:
        for _ in range(9):
            ledger.append("confirmed")
    kept = 1 if together else 2
    assert len(path.read_bytes().splitlines()) == kept
    ledger.append("resumed")  # after room was made
    ledger.close()
    assert [r["event"] for r in read_ledger(path)][kept:] == ["resumed"]


def test_half_a_line_that_cannot_be_cut_off_has_nothing_behind_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad:
        """Takes ten bytes of a line, and gives none back."""

        def __init__(self, file: Any) -> None:
            self.file = file
            self.fileno, self.close = file.fileno, file.close

        def write(self, data: bytes) -> int:
            return self.file.write(data[:10])

        def truncate(self, size: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    ledger = Ledger(path)
    ledger.append("study")
    whole = path.read_bytes()
    ledger._file = Bad(ledger._file)  # type: ignore[assignment]
    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        ledger.append("proposed", **PROPOSED)
    torn = path.read_bytes()
    assert torn[: len(whole)] == whole and len(torn) == len(whole) + 10
    for _ in range(2):
        with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
            ledger.append("resumed")
    assert path.read_bytes() == torn
    ledger.close()
    assert [r["event"] for r in read_ledger(path)] == ["study"]
    ledger = Ledger(path)
    ledger.append("resumed")
    ledger.close()
    assert [r["event"] for r in read_ledger(path)] == ["study", "resumed"]


def test_after_a_sync_that_failed_none_is_believed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports it once, and forgets what it has lost."""
    ledger = Ledger(path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO))))
        with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
            ledger.append("study")
    with pytest.raises(StorageError, match=os.strerror(errno.EIO)):
        ledger.append("resumed")
    ledger.close()


def test_two_processes_never_write_one_ledger(path: Path) -> None:
    first = Ledger(path)
    first.append("study")
    with pytest.raises(BusyError, match="is being run by another process"):
        Ledger(path)
    first.append("resumed")  # the refused one has cut nothing off
    first.close()
    Ledger(path).close()
    assert len(read_ledger(path)) == 2


def test_replay_of_every_event() -> None:
    row = {"time": 5.0}
    rows: list[dict[str, Any]] = [
        {"event": "study", "name": "s", **row},
        {"event": "proposed", **PROPOSED, **row},
        {
            "event": "rung",
            "trial": 0,
            "epoch": 2,
            "score": 0.5,
            "seconds": 1.0,
            "curve": [{"epoch": 1}, {"epoch": 2}],
            **row,
        },
        {"event": "ended", "status": "interrupted", **row},
    ]
    state = replay(rows)
    trial = state.trials[0]
    assert state.study["name"] == "s" and state.ended == "interrupted"
    assert (trial.status, trial.epoch, trial.rungs) == ("running", 2, {2: 0.5})
    assert state.counts() == {
        "finished": 0, "pruned": 0, "failed": 0, "rejected": 0, "running": 1,
    }  # fmt: skip

    rows += [
        {"event": "resumed", **row},
        {
            "event": "rung",
            "trial": 0,
            "epoch": 4,
            "score": 0.7,
            "seconds": 1.5,
            "curve": [{"epoch": 3}, {"epoch": 4}],
            **row,
        },
        {
            "event": "finished",
            "trial": 0,
            "score": 0.7,
            "metrics": {"accuracy": 0.7},
            "epochs": 4,
            "seconds": 2.5,
            "time": 9.0,
        },
        {"event": "proposed", **PROPOSED, **row, "trial": 1},
        {"event": "pruned", "trial": 1, "epoch": 2, "score": 0.1, **row},
        {"event": "proposed", **PROPOSED, **row, "trial": 2},
        {"event": "rung", "trial": 2, "epoch": 1, "score": None, "seconds": 1, "curve": [], **row},
        {"event": "failed", "trial": 2, "reason": "diverged", "detail": "nan", "epoch": 1, **row},
        {"event": "rejected", **PROPOSED, "trial": 3, "reason": "odd", **row, "detail": "d"},
        {
            "event": "confirmed",
            "trial": 0,
            "seed": 7,
            "validation": 0.6,
            "test": {"accuracy": 0.65},
            **row,
        },
        {"event": "verdict", "recommend": "baseline", **row},
        {"event": "ended", "status": "complete", **row},
    ]
    state = replay(rows)
    first, pruned, failed, rejected = state.trials.values()
    assert (first.status, first.score, first.epoch, first.seconds) == ("finished", 0.7, 4, 2.5)
    assert first.metrics == {"accuracy": 0.7} and first.ended == 9.0 and first.started == 5.0
    assert [r["epoch"] for r in first.curve] == [1, 2, 3, 4]
    assert first.rungs == {2: 0.5, 4: 0.7}
    assert (pruned.status, pruned.score, pruned.epoch) == ("pruned", 0.1, 2)
    assert (failed.status, failed.score, failed.reason) == ("failed", None, "diverged")
    assert failed.rungs == {}
    assert (rejected.status, rejected.reason, rejected.detail) == ("rejected", "odd", "d")
    assert (state.confirmations[0].seed, state.confirmations[0].test) == (7, {"accuracy": 0.65})
    assert state.verdict == {"recommend": "baseline"}
    assert state.ended == "complete"
    assert [t.number for t in state.finished()] == [0]
    assert state.counts() == {
        "finished": 1, "pruned": 1, "failed": 1, "rejected": 1, "running": 0,
    }  # fmt: skip


def test_several_metrics_stand_beside_the_first() -> None:
    scores = {"accuracy": 0.5, "ece": 0.2}
    rung = {"event": "rung", "trial": 0, "epoch": 2, "score": 0.5, "seconds": 1.0, "curve": []}
    state = replay(
        [
            {"event": "proposed", **PROPOSED, "time": 1.0, "sampler": {"generation": 3}},
            {**rung, "scores": scores, "time": 2.0},
            {**rung, "epoch": 4, "scores": {"accuracy": 0.5, "ece": None}, "time": 2.0},
        ]
    )
    trial = state.trials[0]
    assert trial.sampler == {"generation": 3}
    assert (trial.values(2), trial.values(4), trial.values(9)) == ((0.5, 0.2), (), ())
    end = {"event": "finished", "trial": 0, "score": 0.6, "epochs": 9, "time": 3.0}
    state = replay([{"event": "proposed", **PROPOSED, "time": 1.0}, {**rung, "time": 2.0}, end])
    assert (state.trials[0].values(2), state.trials[0].values()) == ((0.5,), (0.6,))
    more = {**end, "scores": {"accuracy": 0.6, "ece": 0.1}}
    state = replay([{"event": "proposed", **PROPOSED, "time": 1.0}, more])
    assert state.trials[0].values() == (0.6, 0.1)


def test_a_row_about_an_unknown_trial_is_named() -> None:
    rows = [{"event": "study", "time": 0}, {"event": "finished", "trial": 4, "time": 1}]
    with pytest.raises(StudyError, match=r"row 2 of the ledger \(finished\) does not follow"):
        replay(rows)


def test_rows_that_belong_together_reach_the_disk_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    ledger = Ledger(tmp_path / "ledger.jsonl")
    monkeypatch.setattr("os.fsync", lambda _: synced.append(len(read_ledger(ledger.path))))
    ledger.append("resumed")
    with ledger.together():
        ledger.append("resumed")
        ledger.append("resumed")
        assert synced == [1]
    assert synced == [1, 3]
    with ledger.together():
        pass
    assert synced == [1, 3]
    with pytest.raises(KeyboardInterrupt), ledger.together():
        ledger.append("ended")
        raise KeyboardInterrupt
    ledger.append("resumed")
    assert synced == [1, 3, 4]
    ledger.close()
    assert [r["event"] for r in read_ledger(ledger.path)] == ["resumed"] * 4


def test_of_rows_that_belong_together_all_count_or_none(path: Path) -> None:
    """Wherever a kill, or a power cut, has ended the write."""
    ledger = Ledger(path)
    ledger.append("study")
    before = path.read_bytes()
    with ledger.together():
        rows = [ledger.append("proposed", **PROPOSED | {"trial": n}) for n in range(3)]
    ledger.close()
    after = path.read_bytes()
    assert read_ledger(path)[1:] == rows
    for size in range(len(before), len(after)):
        path.write_bytes(after[:size])
        assert [r["event"] for r in read_ledger(path)] == ["study"]
    path.write_bytes(after[:-10])
    ledger = Ledger(path)
    assert path.read_bytes() == before
    ledger.append("resumed")
    ledger.close()
    assert [r["event"] for r in read_ledger(path)] == ["study", "resumed"]
