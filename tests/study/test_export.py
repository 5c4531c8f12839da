"""The objective leaves the study: as YAML, as code, and with the plugin files it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lossearch
from lossearch.study import StudyResult, read_study, resume, start
from lossearch.study.folder import Folder
from lossearch.study.outputs import export

Write = Callable[..., Path]
Facts = Callable[[StudyResult], list[Any]]
StopAt = Callable[..., Any]

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
def test_a_plugin_file_is_read_once(
    write_study: Write, tmp_path: Path, change: str, facts: Facts, stop_at: StopAt
) -> None:
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
        assert (found.folder / "plugins" / "mine.py").read_text() == MINE
        shutil.copytree(found.folder / "plugins", away / "plugins")
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
    best = yaml.safe_load((found.folder / "best.yaml").read_text())
    assert best["plugins"] == ["plugins/mine.py"]
    assert (found.folder / "plugins" / "mine.py").exists()
