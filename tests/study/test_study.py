"""A whole study: what it leaves behind, and that stopping it changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lossearch
from lossearch.errors import DataError, StudyError
from lossearch.study import StudyResult, read_study, resume, start
from lossearch.study.folder import Folder
from lossearch.study.outputs import export
from lossearch.trials.ledger import State, read_ledger, replay
from lossearch.trials.proposer import MIN_BASELINE

Write = Callable[..., Path]


def ledger(folder: Path) -> list[dict[str, Any]]:
    return read_ledger(folder / "ledger.jsonl")


def facts(result: StudyResult) -> list[Any]:
    """All of a study's trials that does not depend on the clock."""
    return [
        (t.number, t.role, t.label, t.status, t.score, t.epoch, t.training, t.metrics, t.rungs)
        for t in result.trials
    ]


def stop_at(event: str, nth: int = 1) -> Any:
    """A display that presses Ctrl-C at the nth such event."""
    seen = [0]

    def begin(run: Any, executor: Any) -> Any:
        def listen(state: State, row: dict[str, Any]) -> None:
            seen[0] += row["event"] == event
            if row["event"] == event and seen[0] == nth:
                raise KeyboardInterrupt

        return listen

    return begin


@pytest.fixture
def result(write_study: Write) -> StudyResult:
    return start(read_study(write_study()))


def test_the_files(result: StudyResult, tmp_path: Path) -> None:
    assert result.folder == tmp_path / "runs" / "study"
    assert {p.name for p in result.folder.iterdir()} - {"checkpoints"} == {
        "best.yaml", "ledger.jsonl", "objective.py", "report.html", "study.yaml", "verdict.json",
    }  # fmt: skip
    assert list((result.folder / "checkpoints").glob("*")) == []
    assert result.problems == []


def test_the_verdict(result: StudyResult) -> None:
    verdict = json.loads((result.folder / "verdict.json").read_text())
    assert verdict == result.verdict
    assert verdict["metric"] == "accuracy" and verdict["maximize"] is True
    assert verdict["recommend"] == result.recommend and verdict["recommend"] in (
        "winner", "baseline",
    )  # fmt: skip
    for who in ("baseline", "winner"):
        side = verdict[who]
        assert {"objective", "training", "values", "mean", "label", "trial"} <= set(side)
        assert len(side["values"]) == 2
        assert side["mean"] == pytest.approx(np.mean(side["values"]))
    assert verdict["baseline"]["objective"]["terms"] == [{"loss": {"name": "cross_entropy"}}]
    assert verdict["difference"] == pytest.approx(
        verdict["winner"]["mean"] - verdict["baseline"]["mean"]
    )
    low, high = verdict["interval"]
    assert low <= verdict["difference"] <= high
    assert 0 <= verdict["p_value"] <= 1
    assert len(verdict["seeds"]) == 2 and 0 not in verdict["seeds"]
    assert verdict["counts"] == dict(Counter(t.status for t in result.trials)) | {
        k: 0 for k in verdict["counts"] if k not in {t.status for t in result.trials}
    }
    assert sum(verdict["counts"].values()) == 12
    assert verdict["dropped"] == []


def test_the_ledger_tells_the_whole_story(result: StudyResult) -> None:
    rows = ledger(result.folder)
    assert rows[0]["event"] == "study" and rows[-1] == {**rows[-1], "event": "ended"}
    first = rows[0]
    assert (first["metric"], first["maximize"]) == ("accuracy", True)
    assert first["data"]["name"] == "npz" and len(first["data"]["fingerprint"]) == 64
    assert first["data"]["class_counts"] == [30, 30, 30]
    state = replay(rows)
    assert list(state.trials.values()) == result.trials
    assert state.verdict == result.verdict and state.ended == "complete"
    by_status = Counter(t.status for t in result.trials)
    assert by_status["finished"] > 0 and by_status["pruned"] > 0 and by_status["running"] == 0
    own = [t for t in result.trials if t.role == "baseline"]
    assert len(own) >= min(MIN_BASELINE, 12 // 3)
    assert all(t.status == "finished" and t.epoch == 3 for t in own)  # never pruned
    for trial in result.trials:
        assert [r["epoch"] for r in trial.curve] == list(range(1, trial.epoch + 1))
        if trial.status == "finished":
            assert set(trial.metrics) == {"accuracy", "nll"}
    # each finalist and the baseline, on each fresh seed, once
    confirmed = Counter((c.trial, c.seed) for c in state.confirmations)
    assert result.verdict is not None
    finalists = [result.verdict["baseline"], *result.verdict["candidates"]]
    assert set(confirmed) == {(f["trial"], s) for f in finalists for s in result.verdict["seeds"]}
    assert set(confirmed.values()) == {1} and len(confirmed) >= 4
    assert all(set(c.test) == {"accuracy", "nll"} for c in state.confirmations)


def test_best_yaml_is_the_recommended_objective(result: StudyResult) -> None:
    text = (result.folder / "best.yaml").read_text()
    best = yaml.safe_load(text)
    assert result.verdict is not None and result.recommend is not None
    assert best["objective"] == result.verdict[result.recommend]["objective"]
    assert f"recommended: the {result.recommend}, of study study" in text
    objective = result.objective()
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = objective(logits=logits, targets=torch.tensor([0, 1, 2, 0, 1, 2]))
    value.backward()
    assert value.isfinite() and logits.grad is not None


def test_the_same_study_twice_gives_the_same_numbers(result: StudyResult, tmp_path: Path) -> None:
    again = start(read_study(tmp_path / "study.yaml"))
    assert again.folder.name == "study-2"
    assert facts(again) == facts(result)
    assert again.verdict == result.verdict
    third = start(read_study(tmp_path / "study.yaml", {"seed": 1}))
    assert third.folder.name == "study-3"
    assert facts(third) != facts(result)


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
    result: StudyResult, tmp_path: Path, event: str, nth: int
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


def test_what_was_killed_without_a_word_resumes_too(result: StudyResult, tmp_path: Path) -> None:
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


def test_many_stops_in_a_row(result: StudyResult, tmp_path: Path) -> None:
    config = read_study(tmp_path / "study.yaml", {"output": "stopped"})
    with pytest.raises(KeyboardInterrupt):
        start(config, display=stop_at("rung", 3))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "stopped", display=stop_at("rung", 2))
    assert facts(resume(tmp_path / "stopped")) == facts(result)


def test_resuming_an_ended_study_changes_nothing(result: StudyResult) -> None:
    again = resume(result.folder)
    assert facts(again) == facts(result) and again.verdict == result.verdict


def test_more_trials_may_be_asked_for_before_the_verdict(write_study: Write) -> None:
    config = read_study(write_study(), {"output": "out"})
    with pytest.raises(KeyboardInterrupt):
        start(config, display=stop_at("rung", 5))
    path = Path("out/study.yaml")
    path.write_text(path.read_text().replace("trials: 12", "trials: 15"))
    assert len(resume("out").trials) == 15


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
    write_study: Write, old: str, new: str, key: str
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


def test_resume_refuses_changed_data(write_study: Write, tmp_path: Path) -> None:
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


def test_resume_refuses_other_plugins(write_study: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(read_study(write_study(), {"output": "out"}), display=stop_at("rung", 2))
    path = Path("out/ledger.jsonl")
    text = path.read_text()
    version = lossearch.__version__
    assert f'"version": "{version}"' in text
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
    write_study: Write, result: StudyResult
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


def test_a_report_that_cannot_be_written_takes_no_verdict_away(
    write_study: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("lossearch.report.write_report", fail)
    found = start(read_study(write_study()))
    assert found.verdict is not None
    assert found.problems == ["the report could not be written: RuntimeError: no ink"]


def test_no_rungs_and_no_tracking_are_the_same_after_a_resume(write_study: Write) -> None:
    config = read_study(write_study(search__rungs=None), {"output": "out"})
    with pytest.raises(KeyboardInterrupt):
        start(config, display=stop_at("finished", 2))
    again = read_study(Path("out/study.yaml"))
    assert again.search.rungs is None and again.tracking is None
    assert again == config.model_copy(update={"output": str(Path("out").resolve())})
    found = resume("out")
    assert {t.status for t in found.trials} == {"finished"}
    assert not Path("mlflow.db").exists()


def test_a_space_file_is_kept_with_the_study(write_study: Write, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("task: multiclass\nterms:\n- loss: {choice: [focal, poly_loss]}\n")
    config = read_study(write_study(space="space.yaml"), {"output": "o"})
    with pytest.raises(KeyboardInterrupt):
        start(config, display=stop_at("rung"))
    space.unlink()
    assert resume("o").verdict is not None


def test_a_minimised_metric(write_study: Write) -> None:
    found = start(read_study(write_study(metric="nll", metrics=[])))
    assert found.verdict is not None and found.verdict["maximize"] is False
    scores = {t.number: t.score for t in found.trials if t.status == "finished" and t.score}
    best = [t for t in found.trials if t.number == min(scores, key=lambda n: scores[n])]
    state = replay(ledger(found.folder))
    assert best[0].number in {c.trial for c in state.confirmations}
    pruned = [t.rungs[1] for t in found.trials if t.status == "pruned" and t.epoch == 1]
    assert pruned and max(pruned) >= max(t.rungs[1] for t in found.trials if 3 in t.rungs and
                                         t.role != "baseline")  # fmt: skip


def test_objectives_that_fail_are_rows_and_not_the_end(
    write_study: Write, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    config = read_study(
        write_study(
            plugins=["bad.py"],
            space={"terms": [{"loss": {"choice": ["raises", "nan_loss"]}}]},
        )
    )
    found = start(config)
    assert found.verdict is not None
    reasons = Counter((t.reason, t.objective["terms"][0]["loss"]["name"]) for t in found.trials)
    assert reasons["error", "raises"] > 0 and reasons["diverged", "nan_loss"] > 0
    own = sum(t.role == "baseline" for t in found.trials)
    assert found.verdict["counts"] == {
        "finished": own, "pruned": 0, "failed": 12 - own, "rejected": 0, "running": 0,
    }  # fmt: skip
    assert (found.recommend, found.verdict["winner"]) == ("baseline", None)
    assert found.verdict["reason"] == "no other objective finished"
    best = yaml.safe_load((found.folder / "best.yaml").read_text())
    assert best["objective"]["terms"] == [{"loss": {"name": "cross_entropy"}}]
    assert (found.folder / "report.html").exists()


def test_a_baseline_that_never_finishes_is_said(write_study: Write, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    found = start(read_study(write_study(plugins=["bad.py"], baseline="raises")))
    assert found.verdict is not None
    assert (found.recommend, found.verdict["baseline"]) == ("baseline", None)
    assert found.verdict["reason"] == "no trial of the baseline finished"


BAD = '''
import torch.nn.functional as F
import lossearch

@lossearch.loss(task="multiclass")
def raises(logits, targets):
    """Raises."""
    raise ValueError("on purpose")

@lossearch.loss(task="multiclass")
def nan_loss(logits, targets):
    """NaN."""
    return F.cross_entropy(logits, targets, reduction="none") * float("nan")

@lossearch.hookimpl
def register_losses():
    return [raises, nan_loss]
'''

MINE = '''
from typing import Annotated
import torch.nn.functional as F
import lossearch

@lossearch.loss(task="multiclass")
def mine(logits, targets, *, scale: Annotated[float, lossearch.Range(0.5, 2.0)] = 1.0):
    """Cross-entropy of scaled logits."""
    return F.cross_entropy(scale * logits, targets, reduction="none")

@lossearch.hookimpl
def register_losses():
    return [mine]
'''


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_a_plugin_file_is_read_once(write_study: Write, tmp_path: Path, change: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    path = write_study(plugins=["mine.py"], space={"terms": [{"loss": "mine"}]})
    whole = start(read_study(path))
    with pytest.raises(KeyboardInterrupt):
        start(read_study(path, {"output": "stopped"}), display=stop_at("rung", 4))
    if change == "edited":
        file.write_text(MINE.replace("scale * logits", "1000 * logits"))
    else:
        file.unlink()
    resumed = resume("stopped")
    assert facts(resumed) == facts(whole) and resumed.verdict == whole.verdict
    mined = [t for t in resumed.trials if t.objective["terms"][0]["loss"]["name"] == "mine"]
    assert any("scale" in t.objective["terms"][0]["loss"] for t in mined)


LOGITS = "torch.tensor([[1.5, -0.5, 0.2], [0.1, 0.3, -2.0], [0.0, 0.0, 4.0]])"
SCRIPT = f"""
import sys, torch
sys.path.insert(0, sys.argv[1])
from objective import TRAINING, make_objective
value = make_objective()(logits={LOGITS}, targets=torch.tensor([0, 2, 2]))
print(repr(value.item()), sorted(TRAINING))
"""


@pytest.mark.parametrize("plugin", [False, True])
def test_the_exported_objective_gives_the_same_value(
    write_study: Write, tmp_path: Path, plugin: bool
) -> None:
    changes: dict[str, Any] = {}
    if plugin:
        (tmp_path / "mine.py").write_text(MINE)
        changes = {
            "plugins": ["mine.py"],
            "space": {"terms": [{"loss": {"name": "mine"}}]},
            "baseline": {"name": "mine", "scale": 0.7},
        }
    found = start(read_study(write_study(**changes)))
    logits, targets = eval(LOGITS), torch.tensor([0, 2, 2])
    expected = found.objective()(logits=logits, targets=targets).item()
    # as YAML, read from another folder
    away = tmp_path / "away"
    away.mkdir()
    (away / "objective.yaml").write_text(export(Folder(found.folder), "yaml"))
    if plugin:
        assert (found.folder / "mine.py").read_text() == MINE
        (away / "mine.py").write_text(MINE)
        (tmp_path / "mine.py").unlink()
    loaded = lossearch.load_objective(away / "objective.yaml")
    assert loaded(logits=logits, targets=targets).item() == expected
    # as a Python module, in a process of its own
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(found.folder)],
        capture_output=True, text=True, cwd=away, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{expected!r} ['lr', 'weight_decay']"


def test_a_plugin_inside_an_ensemble_goes_with_the_objective(
    write_study: Write, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    ensemble = {"name": "loss_ensemble", "members": [{"name": "mine"}, {"name": "focal"}]}
    space = {"terms": [{"loss": ensemble}]}
    found = start(read_study(write_study(plugins=["mine.py"], baseline=ensemble, space=space)))
    assert yaml.safe_load((found.folder / "best.yaml").read_text())["plugins"] == ["mine.py"]
    assert (found.folder / "mine.py").exists()


def events(found: StudyResult) -> Iterator[str]:
    return (row["event"] for row in ledger(found.folder))


def test_trials_rejected_before_training_are_told(write_study: Write) -> None:
    """A reweighting that some loss of the choice cannot take is found before it costs anything."""
    space = {
        "terms": [
            {"loss": {"choice": ["cross_entropy", "focal"]}},
            {"loss": "orthogonal_projection", "weight": {"low": 0.1, "high": 1}, "optional": True},
        ],
        "balancer": {"choice": ["fixed_weights", "dwa"]},
    }
    found = start(read_study(write_study(space=space)))
    assert found.verdict is not None
    assert {len(t.objective["terms"]) for t in found.trials} == {1, 2}
    assert all("balancer" not in t.objective or len(t.objective["terms"]) == 2
               for t in found.trials)  # fmt: skip
    assert {t.status for t in found.trials} <= {"finished", "pruned"}
    assert list(events(found))[-2:] == ["verdict", "ended"]
