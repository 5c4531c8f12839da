"""Two stages: heads are searched on a frozen backbone's embeddings, the best train in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lossearch.errors import StudyError
from lossearch.study import StudyResult, read_study, resume, start
from lossearch.training import Unit

Ledger = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture
def config(tmp_path: Path) -> Any:
    draw = np.random.default_rng(0)
    targets = np.arange(120) % 3
    pixels = draw.integers(0, 120, (120, 3, 16, 16), dtype=np.uint8)
    pixels[np.arange(120), targets] += 60
    np.savez(tmp_path / "images.npz", X=pixels, y=targets)
    document = {
        "data": {"name": "npz", "path": "images.npz"},
        "model": {"name": "test_resnet", "freeze": True},
        "space": {"terms": [{"loss": {"choice": ["focal", "poly_loss", "squentropy",
                                                 "mse_logits", "orthogonal_projection"]}}]},
        "search": {"trials": 16, "rungs": {"min_epochs": 1, "factor": 2}},
        "training": {"epochs": 2, "batch_size": 32, "device": "cpu"},
        "fairness": {"probe_lr": False},
        "finetune": {"top": 4, "epochs": 2, "lr": {"low": 1e-4, "high": 1e-3, "log": True},
                     "rates": 2},
        "confirm": {"top": 2, "seeds": 2},
        "tracking": None,
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(document))
    return read_study(path)


@pytest.fixture
def result(config: Any, units: list[Unit]) -> StudyResult:
    return start(config)


def test_the_best_of_the_heads_train_in_full(
    result: StudyResult, units: list[Unit], ledger: Ledger
) -> None:
    rows = [r for r in ledger(result.folder) if r["event"] == "finetuned"]
    trials = {t.number: t for t in result.trials}
    tried = {r["trial"] for r in rows}
    assert 3 <= len(tried) <= 5 and len(rows) == 2 * len(tried)  # the baseline and the best
    assert {trials[n].role for n in tried} >= {"baseline"}
    assert {round(r["values"]["lr"], 6) for r in rows} == {1e-4, 1e-3}
    for number in tried:
        best = max((r for r in rows if r["trial"] == number), key=lambda r: r["score"])
        assert trials[number].full is not None
        assert trials[number].full["score"] == best["score"]
        assert trials[number].final == trials[number].full["values"]
    assert result.verdict is not None
    stages = result.verdict["stages"]
    assert stages["count"] == len(tried) and "objectives" in stages["sentence"]
    assert stages["sentence"] in result.verdict["text"]
    confirmed = [j for u in units for j in u.jobs if j.test and j.until == 2]
    assert confirmed and all(j.values == trials[j.trial].final for j in confirmed)
    assert not list((result.folder / "checkpoints").rglob("*.pt"))


def test_the_embeddings_are_kept_for_the_next_study(
    result: StudyResult, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = (result.folder.parent / "features").glob("*.npy")
    changed = file.stat().st_mtime_ns
    again = start(config)
    assert again.folder != result.folder and file.stat().st_mtime_ns == changed
    assert [t.rungs for t in again.trials] == [t.rungs for t in result.trials]
    assert again.verdict == result.verdict


def test_what_acts_on_fixed_embeddings_alone_is_left_out(
    result: StudyResult, ledger: Ledger
) -> None:
    assert all("orthogonal" not in t.label for t in result.trials)
    (left,) = ledger(result.folder)[0]["left_out"]
    assert "orthogonal_projection" in left["what"] and "frozen backbone" in left["why"]


@pytest.mark.parametrize(("event", "nth"), [("rung", 4), ("finetuned", 3), ("confirmed", 2)])
def test_it_resumes(
    result: StudyResult, config: Any, stop_at: Callable[..., Any], event: str, nth: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(config.model_copy(update={"output": "out"}), display=stop_at(event, nth))
    again = resume("out")
    assert again.verdict == result.verdict


@pytest.mark.parametrize("section", ["finetune", "features.views"])
def test_stages_need_a_frozen_model(config: Any, section: str) -> None:
    document = config.document()
    document["model"]["freeze"] = False
    if section == "features.views":
        document["finetune"], document["features"] = None, {"views": 2}
    with pytest.raises(StudyError, match=rf"^{section} is for a frozen model.*freeze: true"):
        start(type(config).model_validate(document))
