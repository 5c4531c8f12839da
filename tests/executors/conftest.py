"""Studies whose losses crash, end or stop their process, with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from lossearch.executors.bench import Bench, open_bench
from lossearch.registry import use
from lossearch.spec import ObjectiveSpec
from lossearch.study.config import StudyConfig
from lossearch.study.setup import Setup, set_up
from lossearch.training import Job

# Deadly at a look, or only when an epoch comes that no look reaches.
PLUGIN = '''
import ctypes, os, sys
import torch
import torch.nn.functional as F
import lossearch

def cross_entropy(logits, targets):
    return F.cross_entropy(logits, targets, reduction="none")

@lossearch.loss(task="multiclass")
def crashes(logits, targets):
    """Cross-entropy."""
    ctypes.string_at(0)
    return cross_entropy(logits, targets)

@lossearch.loss(task="multiclass")
def hangs(logits, targets):
    """Cross-entropy, and Python never gets a turn."""
    ctypes.PyDLL(None).sleep(1000)
    return cross_entropy(logits, targets)

@lossearch.loss(task="multiclass")
def exits_later(logits, targets, epoch):
    """Cross-entropy."""
    if epoch == 1:
        os._exit(3)
    return cross_entropy(logits, targets)

@lossearch.loss(task="multiclass")
def hangs_later(logits, targets, epoch):
    """Cross-entropy."""
    if epoch == 1:
        ctypes.PyDLL(None).sleep(1000)
    return cross_entropy(logits, targets)

@lossearch.loss(task="multiclass")
def prints(logits, targets):
    """Cross-entropy."""
    print("seen by a person")
    return 2 * cross_entropy(logits, targets)

@lossearch.loss(task="multiclass")
def spoils(logits, targets):
    """Cross-entropy that leaves the process as it should not be."""
    value = cross_entropy(logits, targets)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.autograd.set_detect_anomaly(True)
    os.environ["SPOILT"] = "yes"
    os.chdir("/")
    return value

@lossearch.hookimpl
def register_losses():
    return [crashes, hangs, exits_later, hangs_later, prints, spoils]
'''


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """A study of digits with these losses."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("deadly")
    (folder / "deadly.py").write_text(PLUGIN)
    config = StudyConfig.model_validate(
        {
            "data": {"name": "digits", "limit": 400},
            "model": {"name": "mlp", "hidden": [8]},
            "space": {"terms": [{"loss": {"choice": ["cross_entropy", "focal"]}}]},
            "training": {"epochs": 3, "batch_size": 64, "timeout": 2, "device": "cpu"},
            "plugins": [str(folder / "deadly.py")],
        }
    )
    yield set_up(config)
    use(None)


@pytest.fixture
def bench(setup: Setup, tmp_path: Path) -> Iterator[Bench]:
    """Its bench, in a process of its own."""
    with closing(open_bench(setup.recipe(tmp_path / "checkpoints"))) as made:
        yield made


def spec(loss: str) -> ObjectiveSpec:
    return ObjectiveSpec.parse({"task": "multiclass", "terms": [{"loss": loss}]})


def job(trial: int, loss: str, until: int = 2) -> Job:
    return Job(trial, spec(loss).document(), {"lr": 1e-2, "weight_decay": 0.0}, 0, until)
