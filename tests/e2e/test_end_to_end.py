"""A study as a person runs it: real Ray, a real MLflow store, a kill -9, a resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import lossearch

pytestmark = pytest.mark.slow

STUDY = """
name: killed
seed: 3
data: {name: digits, noise: {rate: 0.3}, limit: 600}
model: {name: mlp, hidden: [32]}
space: label_noise
metrics: [nll]
search: {trials: 14, rungs: {min_epochs: 2, factor: 3}}
training: {epochs: 6, batch_size: 64}
confirm: {top: 2, seeds: 3}
executor: {name: ray, workers: 2, cpus: 0.5}
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lossearch", *arguments]


def rows(folder: Path) -> list[dict]:
    path = folder / "ledger.jsonl"
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def ended(folder: Path) -> list[int]:
    return [r["trial"] for r in rows(folder) if r["event"] == "finished"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was killed with SIGKILL in the middle and then resumed."""
    base = tmp_path_factory.mktemp("e2e")
    (base / "killed.yaml").write_text(STUDY)
    out = base / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        command("run", "killed.yaml", "--output", str(out)),
        cwd=base,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    deadline = time.monotonic() + 240
    while len(ended(out)) < 3 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if driver.poll() is not None or time.monotonic() > deadline:
        driver.kill()
        raise AssertionError(f"the study did not get going: {driver.communicate()}")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    (base / "before.json").write_text(json.dumps(rows(out)))
    resumed = subprocess.run(
        command("resume", str(out)),
        cwd=base,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "Verdict" in resumed.stdout
    return out


def proposed(folder: Path) -> list[dict[str, Any]]:
    return [r for r in rows(folder) if r["event"] in ("proposed", "rejected")]


def test_kill_loses_no_finished_trial(folder: Path) -> None:
    before = json.loads((folder.parent / "before.json").read_text())
    after = rows(folder)
    assert after[: len(before)] == before
    counts = Counter(r["trial"] for r in after if r["event"] in ("finished", "pruned", "failed"))
    assert set(counts.values()) == {1}, "a trial ended twice"
    assert [r["trial"] for r in proposed(folder)] == list(range(len(proposed(folder))))
    searched = [r for r in proposed(folder) if r.get("control") is None]
    assert len(searched) == 14  # beside them, the baseline at the finalists' learning rates


def test_no_epoch_is_recorded_twice(folder: Path) -> None:
    seen: dict[int, list[float]] = {}
    for row in rows(folder):
        if row["event"] == "rung":
            seen.setdefault(row["trial"], []).extend(r["epoch"] for r in row["curve"])
    for trial, epochs in seen.items():
        assert epochs == list(range(1, len(epochs) + 1)), f"trial {trial}"


def test_study_folder_is_complete(folder: Path) -> None:
    names = {p.name for p in folder.iterdir()}
    wanted = {"study.yaml", "ledger.jsonl", "best.yaml", "verdict.json", "report.html"}
    assert wanted | {"objective.py"} <= names
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["recommend"] in ("winner", "baseline")
    assert len(verdict["seeds"]) == len(verdict["baseline"]["values"]) == 3
    assert sum(verdict["counts"].values()) == len(proposed(folder))
    assert lossearch.load_objective(folder).reads >= {"targets"}
    assert not list((folder / "checkpoints").glob("*")), "checkpoints of ended trials are kept"


def test_mlflow_says_what_the_ledger_says(folder: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lossearch")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    assert not [r for r in runs if r.info.status == "RUNNING"]
    by_trial = Counter(
        r.data.tags.get("lossearch.trial")
        for r in runs
        if r.data.tags.get("lossearch.kind") == "trial"
    )
    assert by_trial == {str(r["trial"]): 1 for r in proposed(folder)}
    ends = ("finished", "pruned", "failed", "rejected")
    ledger = {r["trial"]: r["event"] for r in rows(folder) if r["event"] in ends}
    for run in runs:
        trial = run.data.tags.get("lossearch.trial")
        if run.data.tags["lossearch.kind"] == "trial":
            assert run.data.tags["lossearch.status"] == ledger[int(trial)]
    confirmed = sum(r["event"] == "confirmed" for r in rows(folder))
    roles = [r.data.tags.get("lossearch.role") for r in runs]
    assert roles.count("confirmation") == confirmed > 0


def test_local_executor_gives_the_same_trials(folder: Path, tmp_path: Path) -> None:
    """The executor places work and changes no result: the same objective scores the same."""
    first = next(r for r in rows(folder) if r["event"] == "finished" and r["trial"] == 0)
    study = tmp_path / "killed.yaml"
    study.write_text(STUDY)
    result = lossearch.search(
        study,
        executor="local",
        trials=2,
        output=tmp_path / "local",
        progress=False,
        tracking=None,
        confirm={"top": 1, "seeds": 2},
    )
    assert result.trials[0].role == "baseline"
    assert result.trials[0].score == first["score"]
    assert result.trials[0].metrics == first["metrics"]
