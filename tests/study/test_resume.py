"""Stopping a study anywhere changes nothing; changing it in between is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lossearch
from lossearch.errors import DataError, StudyError
from lossearch.study import StudyResult, read_study, resume, start
from lossearch.trials.ledger import State

Write = Callable[..., Path]
Facts = Callable[[StudyResult], list[Any]]
Ledger = Callable[[Path], list[dict[str, Any]]]
StopAt = Callable[..., Any]


@pytest.mark.parametrize(
    ("event", "nth"),
    [
        ("study", 1),
        ("proposed", 1),
        ("proposed", 8),
        ("rung", 1),
        ("rung", 7),
        ("finished", 2),
        ("pruned", 1),
        ("confirmed", 1),
        ("confirmed", 4),
        ("verdict", 1),
    ],
)
def test_stopped_anywhere_and_resumed_it_is_the_uninterrupted_study(
    result: StudyResult,
    tmp_path: Path,
    event: str,
    nth: int,
    ledger: Ledger,
    facts: Facts,
    stop_at: StopAt,
) -> None:
    config = read_study(tmp_path / "study.yaml", {"output": "stopped"})
    stopped = False
    try:
        start(config, display=stop_at(event, nth))
    except KeyboardInterrupt:
        stopped = True
    folder = tmp_path / "stopped"
    rows = ledger(folder)
    if event != "study":  # the display begins after the first row
        assert stopped
        assert rows[-1] == {**rows[-1], "event": "ended", "status": "interrupted"}
        assert (folder / "report.html").exists()
    resumed = resume(folder)
    assert facts(resumed) == facts(result)
    assert resumed.verdict == result.verdict
    assert json.loads((folder / "verdict.json").read_text()) == result.verdict
    assert (folder / "best.yaml").read_text() == (result.folder / "best.yaml").read_text()
    numbers = [r["trial"] for r in ledger(folder) if r["event"] == "finished"]
    assert len(numbers) == len(set(numbers))


def test_what_was_killed_without_a_word_resumes_too(
    result: StudyResult, tmp_path: Path, facts: Facts
) -> None:
    """Cut the ledger at every seventeenth row, its last line torn, as kill -9 would."""
    whole = (result.folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    for number, cut in enumerate(range(1, len(whole), 17)):
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        (folder / "study.yaml").write_bytes((result.folder / "study.yaml").read_bytes())
        (folder / "ledger.jsonl").write_bytes(b"".join(whole[:cut]) + whole[cut][:20])
        resumed = resume(folder)
        assert facts(resumed) == facts(result), cut
        assert resumed.verdict == result.verdict


@pytest.mark.parametrize("old", [False, True])
def test_killed_while_the_rows_of_a_unit_are_written(
    write_study: Write,
    tmp_path: Path,
    facts: Facts,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
) -> None:
    """A unit is proposed as a whole, or not at all; and what became of it is written so.

    In an old ledger rows stand alone: there a rate that was chosen stays so.
    """
    monkeypatch.setattr("lossearch.training.choice.Choice.preferred", lambda self, most: most)

    def rungs(rows: list[dict[str, Any]]) -> set[Any]:
        return {(r["trial"], r["epoch"], r["score"]) for r in rows if r["event"] == "rung"}

    document = {"fairness__probe_lr": old, "search__trials": 8 if old else 20}
    result = start(read_study(write_study(**document), {"output": "whole"}))
    whole = (result.folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    if old:
        whole = [re.sub(b'(, "more": true)?, "check": "[0-9a-f]*"}$', b"}", x) for x in whole]
    events = [json.loads(line)["event"] for line in whole]
    first = events.index("probed") if old else 3
    assert old or sum(b'"more"' in line for line in whole) > 10
    for cut in range(first, first + 3) if old else range(first, len(whole), 11):
        folder = tmp_path / f"killed{cut}"
        folder.mkdir()
        (folder / "study.yaml").write_bytes((result.folder / "study.yaml").read_bytes())
        (folder / "ledger.jsonl").write_bytes(b"".join(whole[:cut]))
        resumed = resume(folder)
        assert facts(resumed) == facts(result), (cut, events[cut - 1])
        assert resumed.verdict == result.verdict
        assert rungs(ledger(folder)) == rungs(ledger(result.folder)), (cut, events[cut - 1])


def test_many_stops_in_a_row(
    result: StudyResult, tmp_path: Path, facts: Facts, stop_at: StopAt
) -> None:
    config = read_study(tmp_path / "study.yaml", {"output": "stopped"})
    with pytest.raises(KeyboardInterrupt):
        start(config, display=stop_at("rung", 3))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "stopped", display=stop_at("rung", 2))
    assert facts(resume(tmp_path / "stopped")) == facts(result)


def test_resuming_an_ended_study_changes_nothing(result: StudyResult, facts: Facts) -> None:
    again = resume(result.folder)
    assert facts(again) == facts(result) and again.verdict == result.verdict


def test_more_trials_may_be_asked_for_before_the_verdict(
    write_study: Write, stop_at: StopAt
) -> None:
    config = read_study(write_study(), {"output": "out"})
    with pytest.raises(KeyboardInterrupt):
        start(config, display=stop_at("rung", 5))
    path = Path("out/study.yaml")
    path.write_text(path.read_text().replace("trials: 12", "trials: 15"))
    trials = resume("out").trials
    assert sum(t.control is None for t in trials) == 15


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("epochs: 3", "epochs: 9", "training"),
        ("seed: 0\ndata", "seed: 1\ndata", "seed"),
        ("- 8", "- 9", "model"),
        ("poly_loss", "squentropy", "space"),
        ("factor: 2", "factor: 3", "search"),
        ("name: accuracy", "name: macro_f1", "metric"),
    ],
)
def test_resume_refuses_a_changed_study(
    write_study: Write, old: str, new: str, key: str, stop_at: StopAt
) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(read_study(write_study(), {"output": "out"}), display=stop_at("rung", 2))
    path = Path("out/study.yaml")
    text = path.read_text().replace("[8]", "\n  - 8")
    assert old in text
    path.write_text(text.replace(old, new))
    before = Path("out/ledger.jsonl").read_bytes()
    with pytest.raises(StudyError, match=f"'{key}' in .*study.yaml is not what this study began"):
        resume("out")
    assert Path("out/ledger.jsonl").read_bytes() == before


def test_resume_refuses_changed_data(write_study: Write, tmp_path: Path, stop_at: StopAt) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(read_study(write_study(), {"output": "out"}), display=stop_at("rung", 2))
    with np.load(tmp_path / "data.npz") as held:
        inputs, targets = held["X"].copy(), held["y"]
    inputs[0, 0] += 1
    np.savez(tmp_path / "data.npz", X=inputs, y=targets)
    with pytest.raises(StudyError, match="the data are not those that this study began with"):
        resume("out")
    (tmp_path / "data.npz").unlink()
    with pytest.raises(DataError, match=r"data\.npz"):
        resume("out")


def test_resume_refuses_other_plugins(write_study: Write, stop_at: StopAt) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(read_study(write_study(), {"output": "out"}), display=stop_at("rung", 2))
    path = Path("out/ledger.jsonl")
    text = path.read_text()
    version = lossearch.__version__
    assert f'"version": "{version}"' in text
    text = re.sub(', "check": "[0-9a-f]*"}$', "}", text, flags=re.MULTILINE)  # an edit is meant
    path.write_text(text.replace(f'"version": "{version}"', '"version": "0.0.1"', 1))
    with pytest.raises(StudyError, match="the plugins are not those that this study began with"):
        resume("out")


def test_a_folder_that_holds_a_study_takes_no_second(result: StudyResult, tmp_path: Path) -> None:
    before = (result.folder / "ledger.jsonl").read_bytes()
    config = read_study(tmp_path / "study.yaml", {"output": str(result.folder)})
    with pytest.raises(StudyError, match="already holds a study; go on with it by `lossearch res"):
        start(config)
    assert (result.folder / "ledger.jsonl").read_bytes() == before


def test_a_study_killed_before_its_first_row_does_not_block_its_folder(
    write_study: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "ledger.jsonl").write_bytes(b'{"event": "stu')
    with pytest.raises(StudyError, match="holds no study"):
        resume(folder)
    assert start(read_study(write_study(), {"output": "out"})).verdict is not None


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="nowhere is no folder"):
        resume(tmp_path / "nowhere")
    with pytest.raises(StudyError, match="holds no study"):
        resume(tmp_path)


def test_a_full_disk_stops_the_study_and_keeps_what_there_is(
    write_study: Write, result: StudyResult, facts: Facts
) -> None:
    seen: list[str] = []

    def begin(run: Any, executor: Any) -> Any:
        def listen(state: State, row: dict[str, Any]) -> None:
            seen.append(row["event"])
            if len(seen) == 6:
                run.ledger._file.close()
                run.ledger._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115

        return listen

    config = read_study(write_study(), {"output": "full"})
    with pytest.raises(StudyError, match="No space left on device"):
        start(config, display=begin)
    assert seen[-1] == "ended"  # so that a display closes
    assert facts(resume("full")) == facts(result)


def test_no_rungs_and_no_tracking_are_the_same_after_a_resume(
    write_study: Write, stop_at: StopAt
) -> None:
    config = read_study(write_study(search__rungs=None), {"output": "out"})
    with pytest.raises(KeyboardInterrupt):
        start(config, display=stop_at("finished", 2))
    again = read_study(Path("out/study.yaml"))
    assert again.search.rungs is None and again.tracking is None
    assert again == config.model_copy(update={"output": str(Path("out").resolve())})
    found = resume("out")
    trained = {t.status for t in found.trials if t.reason != "equal"}
    assert trained == {"finished"}
    assert not Path("mlflow.db").exists()


def test_a_space_file_is_kept_with_the_study(
    write_study: Write, tmp_path: Path, stop_at: StopAt
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("task: multiclass\nterms:\n- loss: {choice: [focal, poly_loss]}\n")
    config = read_study(write_study(space="space.yaml"), {"output": "o"})
    with pytest.raises(KeyboardInterrupt):
        start(config, display=stop_at("rung"))
    space.unlink()
    assert resume("o").verdict is not None
