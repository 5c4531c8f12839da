"""What a study finds its data and providers to give, before anything trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lossearch.errors import DataError, ModelError, ParameterError
from lossearch.study import read_study, start
from lossearch.study.setup import set_up

BAGS = '''
import lossearch
import torch.nn.functional as F

@lossearch.loss(task="multiclass", returns="batch")
def of_bags(logits, targets, bag):
    """Cross-entropy of each bag's mean scores and its proportions."""
    same = (bag[:, None] == bag).to(logits.dtype)
    return F.cross_entropy(same @ logits / same.sum(1, keepdim=True), targets)

@lossearch.hookimpl
def register_losses():
    return [of_bags]
'''


def test_a_study_on_bags(
    write_study: Callable[..., Path], document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "bags.py").write_text(BAGS)
    document["plugins"] = ["bags.py"]
    document["data"]["bags"] = {"size": 4}
    document["confirm"]["top"] = 1
    space = {"terms": [{"loss": {"choice": ["of_bags", "focal"]}}]}
    path = write_study(space={"terms": [{"loss": "of_bags"}]}, search__trials=3)
    result = start(read_study(path))
    tried = [t for t in result.trials if t.role != "baseline"]
    assert tried and {t.status for t in tried} <= {"finished", "pruned"}, tried
    document["data"]["bags"] = {"size": 5}
    with pytest.raises(DataError, match="batch_size = 32 cannot hold whole bags of 5"):
        set_up(read_study(write_study(space=space)))
    del document["data"]["bags"]
    left = set_up(read_study(write_study(space=space))).space.left_out
    assert [(each.what, "reads 'bag'" in each.why) for each in left] == [("loss of_bags", True)]


def test_providers_are_tried_when_a_study_is_set_up(
    write_study: Callable[..., Path],
    document: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = set_up(read_study(write_study())).network
    torch.save(network.state_dict(), tmp_path / "teacher.pt")
    torch.save({"head.bias": torch.zeros(3)}, tmp_path / "other.pt")
    document["providers"] = [{"name": "teacher", "checkpoint": "teacher.pt"}, {"name": "attack"}]
    path = write_study()
    monkeypatch.chdir("/")  # a path is looked for beside the study's file
    setup = set_up(read_study(path))
    assert setup.provided == {
        "teacher": ("teacher_logits", "teacher_embeddings"), "attack": ("logits_adv",),
    }  # fmt: skip
    assert {"teacher_logits", "logits_adv"} <= setup.available
    for checkpoint, error, why in (
        ("other.pt", ModelError, "does not fit the study's model"),
        ("nowhere.pt", ParameterError, "is not a file"),
    ):
        document["providers"] = [{"name": "teacher", "checkpoint": checkpoint}]
        with pytest.raises(error, match=why):
            set_up(read_study(write_study()))
