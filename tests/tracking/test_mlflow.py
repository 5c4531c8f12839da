"""The tracker against a real SQLite store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from lossearch.tracking.mlflow import MlflowTracker
from lossearch.trials.ledger import Ledger, read_ledger, replay

LEDGERS = Path(__file__).parents[1] / "ledgers.py"
DEAD_SERVER = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def blank_store(tmp_path_factory):
    """A database with MLflow's tables: making them takes seconds, copying it does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("blank") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def uri(tmp_path, blank_store):
    (tmp_path / "mlflow.db").write_bytes(blank_store)
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study").mkdir()
    return tmp_path / "study"


def track(uri: str, folder: Path, rows: list, timeout: float = 60) -> str | None:
    tracker = MlflowTracker(uri, "trials", folder)
    tracker.catch_up(rows)
    tracker.close(timeout)
    return tracker.problem


def runs_of(uri: str, where: str = "") -> list:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("trials")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], where))


def keys_of(runs: list) -> Counter:
    names = ("lossearch.kind", "lossearch.trial", "lossearch.seed")
    return Counter(tuple(r.data.tags.get(n) for n in names) for r in runs)


def expected_keys(rows: list) -> set:
    state = replay(rows)
    return {
        ("study", None, None),
        *(("trial", str(n), None) for n in state.trials),
        *(("confirmation", str(c.trial), str(c.seed)) for c in state.confirmations),
    }


def test_a_whole_study(uri, folder, study_rows, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    rows = study_rows(trials=24)
    state = replay(rows)
    assert track(uri, folder, rows) is None
    runs = runs_of(uri)
    keys = keys_of(runs)
    assert set(keys) == expected_keys(rows) and set(keys.values()) == {1}

    parent = next(r for r in runs if r.data.tags["lossearch.kind"] == "study")
    assert parent.info.status == "FINISHED"
    assert parent.data.params["data.noise.rate"] == "0.4"
    assert parent.data.tags["lossearch.data.fingerprint"] == "9f2b5c0d17aa"
    assert parent.data.tags["mlflow.note.content"] == "Use the winner."
    assert parent.data.metrics["best_score"] == max(t.score for t in state.finished())
    counts = {k: v for k, v in state.counts().items() if v}
    for status, count in counts.items():
        assert parent.data.metrics[f"trials.{status}"] == count

    shown = {"finished": "FINISHED", "pruned": "KILLED", "rejected": "KILLED", "failed": "FAILED"}
    assert set(counts) == set(shown), "the made-up study must have trials of every status"
    for status, mlflow_status in shown.items():
        found = runs_of(
            uri, f"tags.`lossearch.status` = '{status}' and tags.`lossearch.kind` = 'trial'"
        )
        assert len(found) == counts[status]
        assert {r.info.status for r in found} == {mlflow_status}
        assert {r.data.tags["mlflow.parentRunId"] for r in found} == {parent.info.run_id}

    for trial in (t for t in state.trials.values() if t.reason):
        where = f"tags.`lossearch.reason` = '{trial.reason}'"
        assert str(trial.number) in {r.data.tags["lossearch.trial"] for r in runs_of(uri, where)}
    assert len(runs_of(uri, "tags.`lossearch.loss` LIKE '%+confidence_penalty'")) > 0

    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert [p.name for p in folder.iterdir()] == ["tracking.json"]


def test_a_trials_run_is_complete(uri, folder, study_rows):
    from mlflow import MlflowClient

    rows = study_rows(trials=24)
    trial = next(t for t in replay(rows).finished() if "balancer" in t.objective)
    assert track(uri, folder, rows) is None
    (run,) = runs_of(
        uri, f"tags.`lossearch.trial` = '{trial.number}' and tags.`lossearch.role` = 'search'"
    )
    assert run.info.run_name == trial.label
    assert run.data.tags["lossearch.fidelity"] == str(trial.epoch)
    assert run.data.tags["lossearch.reweighting"] == "class_balanced"
    params, loss = run.data.params, trial.objective["terms"][0]["loss"]
    assert params["terms.0.loss.name"] == loss["name"]
    assert params["balancer.temperature"] == "2.0"
    assert params["training.lr"] == str(trial.training["lr"])
    client = MlflowClient(uri)
    history = client.get_metric_history(run.info.run_id, "macro_f1")
    assert [(m.step, m.value) for m in history] == [
        (r["epoch"], r["macro_f1"]) for r in trial.curve
    ]
    assert run.data.metrics["score"] == trial.score
    path = client.download_artifacts(run.info.run_id, "objective.yaml", str(folder))
    assert yaml.safe_load(Path(path).read_text()) == trial.objective


def test_confirmations_are_runs_with_their_seed_and_test_metrics(uri, folder, study_rows):
    rows = study_rows(trials=8)
    assert track(uri, folder, rows) is None
    confirmed = next(r for r in rows if r["event"] == "confirmed")
    (run,) = runs_of(
        uri,
        f"tags.`lossearch.seed` = '{confirmed['seed']}' "
        f"and tags.`lossearch.trial` = '{confirmed['trial']}'",
    )
    assert run.data.tags["lossearch.role"] == "confirmation"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test.accuracy"] == confirmed["test"]["accuracy"]


def test_rows_once_written_are_skipped(uri, folder, study_rows):
    rows = study_rows(trials=6)
    half = len(rows) // 2
    assert track(uri, folder, rows[:half]) is None
    assert json.loads((folder / "tracking.json").read_text())["rows"] == half
    assert track(uri, folder, rows) is None
    runs = runs_of(uri)
    assert set(keys_of(runs)) == expected_keys(rows) and set(keys_of(runs).values()) == {1}
    assert {r.info.status for r in runs} <= {"FINISHED", "KILLED", "FAILED"}


def test_writing_everything_again_changes_nothing(uri, folder, study_rows):
    from mlflow import MlflowClient

    rows = study_rows(trials=6)
    assert track(uri, folder, rows) is None
    before = {r.info.run_id: r.data.to_dictionary() for r in runs_of(uri)}
    (folder / "tracking.json").unlink()  # as if killed before the position was ever saved
    assert track(uri, folder, rows) is None
    after = {r.info.run_id: r.data.to_dictionary() for r in runs_of(uri)}
    assert after == before
    (trial,) = runs_of(uri, "tags.`lossearch.trial` = '0' and tags.`lossearch.kind` = 'trial'")
    assert len(MlflowClient(uri).get_metric_history(trial.info.run_id, "macro_f1")) == 8


def test_a_killed_study_ends_in_mlflow_and_goes_on_when_resumed(uri, folder, study_rows):
    rows = study_rows(trials=5, end=False)
    assert track(uri, folder, rows) is None
    where = "tags.`lossearch.status` = 'interrupted'"
    assert keys_of(runs_of(uri, where)) == {("study", None, None): 1, ("trial", "4", None): 1}
    assert {r.info.status for r in runs_of(uri, where)} == {"KILLED"}
    time_ = rows[-1]["time"] + 100
    rows += [
        {"event": "resumed", "time": time_},
        {"event": "finished", "time": time_ + 1, "trial": 4, "score": 0.7, "metrics": {},
         "epochs": 8, "seconds": 1.0},
        {"event": "ended", "time": time_ + 2, "status": "complete"},
    ]  # fmt: skip
    assert track(uri, folder, rows) is None
    assert runs_of(uri, where) == []
    assert {r.info.status for r in runs_of(uri, "tags.`lossearch.trial` = '4'")} == {"FINISHED"}


VICTIM = """
import runpy, sys, time
from pathlib import Path
from lossearch.tracking.mlflow import MlflowTracker
from lossearch.trials.ledger import Ledger
ledgers, uri, folder = sys.argv[1:]
tracker = MlflowTracker(uri, "trials", Path(folder))
ledger = Ledger(Path(folder) / "ledger.jsonl")
for number, row in enumerate(runpy.run_path(ledgers)["study_rows"](trials=30)):
    tracker.write(ledger.append(**{k: v for k, v in row.items() if k != "time"}))
    while number == 20 and not (Path(folder) / "tracking.json").exists():
        time.sleep(0.01)  # MLflow is being imported
    time.sleep(0.03)
tracker.close(60)
"""


def test_kill_in_the_middle_then_catch_up(uri, folder, study_rows):
    process = subprocess.Popen([sys.executable, "-c", VICTIM, str(LEDGERS), uri, str(folder)])
    path = folder / "ledger.jsonl"
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < 70:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    done = len(read_ledger(path))
    everything = study_rows(trials=30)
    assert 0 < json.loads((folder / "tracking.json").read_text())["rows"] <= done
    assert done < len(everything)
    ledger = Ledger(path)
    tracker = MlflowTracker(uri, "trials", folder)
    tracker.catch_up(read_ledger(path))
    tracker.write(ledger.append("resumed"))
    for row in everything[done:]:
        tracker.write(ledger.append(**{k: v for k, v in row.items() if k != "time"}))
    tracker.close(60)
    assert tracker.problem is None
    runs = runs_of(uri)
    assert set(keys_of(runs)) == expected_keys(everything)
    assert set(keys_of(runs).values()) == {1}
    assert "RUNNING" not in {r.info.status for r in runs}
    state = replay(read_ledger(path))
    shown = {r.data.tags["lossearch.trial"]: r for r in runs
             if r.data.tags["lossearch.kind"] == "trial"}  # fmt: skip
    for trial in state.trials.values():
        run = shown[str(trial.number)]
        assert run.data.tags["lossearch.status"] == trial.status
        assert "terms.0.loss.name" in run.data.params
        if trial.curve:
            assert run.data.metrics["macro_f1"] == trial.curve[-1]["macro_f1"]


def test_a_dead_server_costs_the_study_nothing(uri, folder, study_rows):
    rows = study_rows(trials=6)
    start = time.monotonic()
    tracker = MlflowTracker(DEAD_SERVER, "trials", folder)
    for row in rows:
        tracker.write(row)
    assert time.monotonic() - start < 0.5
    tracker.log_files([folder / "study.yaml"])
    tracker.close(8)
    assert time.monotonic() - start < 15
    assert tracker.problem is not None
    assert "127.0.0.1:9" in tracker.problem and "ledger.jsonl" in tracker.problem
    tracker.write(rows[-1])  # still never raises
    assert track(uri, folder, rows) is None
    assert set(keys_of(runs_of(uri))) == expected_keys(rows)


def test_another_store_gets_the_whole_study(uri, folder, study_rows, tmp_path, blank_store):
    rows = study_rows(trials=3)
    assert track(uri, folder, rows) is None
    (tmp_path / "other.db").write_bytes(blank_store)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert track(other, folder, rows) is None
    assert set(keys_of(runs_of(other))) == expected_keys(rows)


def test_what_mlflow_refuses_is_told_and_the_rest_is_written(uri, folder, study_rows):
    rows = study_rows(trials=4)
    assert track(uri, folder, rows[:2]) is None
    rows[1]["objective"] = {"terms": [{"loss": {"name": "another"}}]}  # a parameter that changes
    (folder / "tracking.json").unlink()
    problem = track(uri, folder, rows)
    assert problem is not None and "trial 0" in problem
    assert set(keys_of(runs_of(uri))) == expected_keys(rows)


def test_files_and_the_winner_are_kept(uri, folder, study_rows, tmp_path):
    from mlflow import MlflowClient

    (folder / "verdict.json").write_text("{}")
    (folder / "loss").mkdir()
    (folder / "loss" / "objective.yaml").write_text("task: multiclass")
    for _ in range(2):
        tracker = MlflowTracker(uri, "trials", folder)
        tracker.catch_up(study_rows(trials=3))
        tracker.log_files([folder / "verdict.json", folder / "loss", folder / "absent.png"])
        tracker.register("shirts", "loss")
        tracker.close(60)
        assert tracker.problem is None
    client = MlflowClient(uri)
    (parent,) = runs_of(uri, "tags.`lossearch.kind` = 'study'")
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"verdict.json", "loss"}
    (version,) = client.search_model_versions("name = 'shirts'")
    assert version.run_id == parent.info.run_id
    source = Path(str(version.source).removeprefix("file://"))
    assert source.is_relative_to(tmp_path / "mlartifacts")
    assert (source / "objective.yaml").read_text() == "task: multiclass"


def test_an_experiment_that_was_deleted_is_named(uri, folder, study_rows):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("trials"))
    problem = track(uri, folder, study_rows(trials=1))
    assert problem is not None and "experiment 'trials' was deleted" in problem


def test_a_relative_store_does_not_move_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = MlflowTracker("sqlite:///runs/mlflow.db", "trials", tmp_path)
    assert str(tmp_path / "runs" / "mlflow.db") in tracker._store.place
    tracker.close()
    assert list(tmp_path.iterdir()) == []  # nothing was given, so nothing is made


def test_a_password_stays_out_of_messages_and_files(folder, study_rows):
    problem = track("http://me:secret@127.0.0.1:9", folder, study_rows(trials=1), timeout=20)
    assert problem is not None and "127.0.0.1:9" in problem
    assert "secret" not in problem and "MlflowException" in problem


def test_importing_the_tracker_does_not_import_mlflow():
    code = "import sys, lossearch.tracking.mlflow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
