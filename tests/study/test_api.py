"""``lossearch.search``: from what a person has at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import lossearch
from lossearch.errors import DataError, ModelError, ParameterError, StudyError
from lossearch.study import StudyConfig, read_study

Points = tuple[np.ndarray, np.ndarray]
QUICK: dict[str, Any] = {
    "space": {"terms": [{"loss": {"choice": ["focal", "poly_loss"]}}]},
    "trials": 5,
    "epochs": 2,
    "executor": "local",
    "tracking": None,
    "search": {"rungs": None},
    "training": {"batch_size": 32, "device": "cpu"},
    "confirm": {"top": 1, "seeds": 2},
    "progress": False,
}


def rows(path: Path) -> dict[str, Any]:
    from lossearch.trials.ledger import read_ledger

    return read_ledger(path / "ledger.jsonl")[0]


class Items(Dataset[Any]):
    def __init__(self, points: Points) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points[0])

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.points[0][index]), int(self.points[1][index])


def forms(points: Points) -> dict[str, tuple[Any, Any]]:
    inputs, targets = points
    frame = pd.DataFrame(inputs, columns=list("abcd")).assign(kind=targets)
    return {
        "arrays": (inputs, targets),
        "a pair": ((inputs, targets), None),
        "tensors": (torch.from_numpy(inputs), torch.from_numpy(targets)),
        "lists": (inputs.tolist(), targets.tolist()),
        "a data frame": (frame, "kind"),
        "a TensorDataset": (TensorDataset(*map(torch.from_numpy, points)), None),
        "a torch Dataset": (Items(points), None),
    }


@pytest.mark.parametrize("form", list(forms((np.zeros((1, 4)), np.zeros(1)))))
def test_data_in_any_form(points: Points, form: str) -> None:
    data, targets = forms(points)[form]
    found = lossearch.search(data, targets, **QUICK)
    assert found.recommend in ("winner", "baseline") and len(found.trials) == 5
    assert found.folder == Path("runs/study").resolve()
    assert rows(found.folder)["data"]["name"] == "user"
    assert rows(found.folder)["data"]["train_size"] == 90


def test_two_classes_and_many_labels(points: Points) -> None:
    inputs, targets = points
    quick = {**QUICK, "space": {"terms": [{"loss": {"choice": ["focal", "asymmetric"]}}]}}
    two = lossearch.search(inputs, (targets == 0).astype(int), metric="auroc", **quick)
    assert rows(two.folder)["data"]["task"] == "binary"
    several = np.stack([targets == 0, targets > 0, inputs[:, 3] > 0], axis=1).astype(int)
    many = lossearch.search(inputs, several, metric="macro_f1", **quick)
    assert rows(many.folder)["data"]["task"] == "multilabel"
    assert many.verdict is not None
    assert many.verdict["baseline"]["objective"]["terms"][0]["loss"]["name"] == (
        "binary_cross_entropy"
    )


def test_the_users_own_module_stays_as_it_is(points: Points) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    before = [p.detach().clone() for p in module.parameters()]
    found = lossearch.search(points, model=module, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert "Tanh" in rows(found.folder)["model"]
    with pytest.raises(ModelError, match="needs"):
        lossearch.search(points, model=nn.Linear(4, 7), **QUICK)


def test_sections_and_what_is_done_to_the_data(points: Points) -> None:
    found = lossearch.search(
        points,
        model={"name": "mlp", "hidden": [5]},
        metric={"name": "macro_f1"},
        metrics=["nll"],
        seed=3,
        output="here",
        split={"validation": 0.1, "test": 0.3},
        noise={"rate": 0.3},
        **QUICK,
    )
    config = read_study(found.folder / "study.yaml")
    assert found.folder == Path("here").resolve()
    assert (config.search.trials, config.search.rungs) == (5, None)
    assert (config.training.epochs, config.training.batch_size) == (2, 32)
    assert config.tracking is None and config.seed == 3
    assert config.model.params == {"hidden": [5]}
    assert [m.name for m in config.all_metrics()] == ["macro_f1", "nll"]
    data = rows(found.folder)["data"]
    assert (data["validation_size"], data["test_size"]) == (15, 45)
    assert 0.1 < data["noise_rate"] < 0.5


def test_a_fixed_test_part(points: Points) -> None:
    inputs, targets = points
    test = (inputs[1::2], targets[1::2])
    found = lossearch.search(inputs[::2], targets[::2], test=test, **QUICK)
    assert rows(found.folder)["data"]["test_size"] == 75


def test_a_study_by_path_document_or_config(
    write_study: Callable[..., Path], document: dict[str, Any], tmp_path: Path
) -> None:
    path = write_study(search__trials=5)
    document["data"]["path"] = str(tmp_path / "data.npz")
    config = StudyConfig.model_validate(document)
    for number, data in enumerate((path, str(path), document, config)):
        found = lossearch.search(data, progress=False, output=f"o{number}", seed=1, epochs=2)
        assert len(found.trials) == 5 and found.verdict is not None
        said = read_study(tmp_path / f"o{number}" / "study.yaml")
        assert (said.seed, said.training.epochs, said.training.batch_size) == (1, 2, 32)
        assert said.tracking is None


def test_the_task_of_a_study_may_be_said(write_study: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="task binary needs two classes, and there are 3"):
        lossearch.search(write_study(), task="binary", progress=False)


def test_every_row_is_heard_of_and_an_interrupt_resumes(points: Points) -> None:
    seen: list[str] = []

    def stop(state: Any, row: dict[str, Any]) -> None:
        seen.append(row["event"])
        if len(seen) == 6:
            raise KeyboardInterrupt

    whole = lossearch.search(points, output="whole", **QUICK)
    with pytest.raises(KeyboardInterrupt):
        lossearch.search(points, output="out", on_event=stop, **QUICK)
    with pytest.raises(StudyError, match="already holds a study"):
        lossearch.search(points, output="out", **QUICK)
    with pytest.raises(StudyError, match=r"data given from Python; .*resume_existing=True"):
        from lossearch.study import resume

        resume("out")
    found = lossearch.search(points, output="out", resume_existing=True, **QUICK)
    assert found.verdict == whole.verdict
    assert [t.label for t in found.trials] == [t.label for t in whole.trials]
    other = (points[0] + 1, points[1])
    with pytest.raises(StudyError, match="the data are not those"):
        lossearch.search(other, output="out", resume_existing=True, **QUICK)
    fresh = lossearch.search(points, output="new", resume_existing=True, **QUICK)
    assert fresh.verdict == whole.verdict


def test_a_model_from_python_is_needed_again(
    write_study: Callable[..., Path], points: Points
) -> None:
    from lossearch.study import resume

    module = nn.Linear(4, 3)
    found = lossearch.search(write_study(search__trials=4), model=module, progress=False)
    with pytest.raises(StudyError, match="a model given from Python"):
        resume(found.folder)
    assert resume(found.folder, module=module).verdict == found.verdict
    with pytest.raises(StudyError, match="the model is not the one"):
        resume(found.folder, module=nn.Sequential(nn.Linear(4, 3)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": "acuracy"}, lossearch.LossearchError, "did you mean 'accuracy'"),
        ({"task": "multi"}, DataError, "there is no task 'multi'"),
        ({"trainings": {}}, StudyError, "unknown key 'trainings'; did you mean 'training'"),
        ({"trials": 1}, StudyError, "search.trials = 1 is not allowed"),
        ({"model": "resnet19"}, ModelError, "near it:.*resnet18"),
        ({"space": "clasification"}, StudyError, "did you mean 'classification'"),
        ({"noise": {"rate": 2}}, StudyError, r"data\.noise\.rate = 2 is not allowed"),
        ({"metric": {"name": "accuracy", "k": 1}}, ParameterError, "has no parameter 'k'"),
    ],
)
def test_what_is_refused(
    points: Points, change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        lossearch.search(points, **{**QUICK, **change})
    assert list(tmp_path.iterdir()) == []
