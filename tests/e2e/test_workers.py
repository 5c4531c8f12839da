"""On Ray, short units are spread over all workers, and not given to the first one that is up."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

import lossearch

pytestmark = pytest.mark.slow

PLUGIN = """
import os
import time
import torch
import torch.nn.functional as F
import lossearch

@lossearch.loss(name="tells", task="multiclass")
class Tells(torch.nn.Module):
    '''Cross-entropy that writes down who trains with it, once an epoch.'''

    def __init__(self):
        super().__init__()

    def start_epoch(self, epoch):
        time.sleep(0.3 * epoch)  # or one worker is done before the other is asked
        with open({path!r}, "a") as file:
            file.write(f"{{os.getpid()}}:{{os.getppid()}}" + chr(10))

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets, reduction="none")

@lossearch.hookimpl
def register_losses():
    return [Tells]
"""


def test_every_worker_gets_units(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "tells.py").write_text(PLUGIN.format(path=str(seen)))
    lossearch.search(
        {
            "data": {"name": "digits", "limit": 300},
            "model": {"name": "mlp", "hidden": [8]},
            "space": {"terms": [{"loss": "tells"}]},
            "search": {"trials": 24, "rungs": None},
            "training": {"epochs": 2},
            "confirm": {"top": 1, "seeds": 2},
            "executor": {"name": "ray", "workers": 2, "cpus": 0.5},
            "tracking": None,
        },
        plugins=(tmp_path / "tells.py",),
        output=tmp_path / "out",
        progress=False,
    )
    processes = [line.split(":") for line in seen.read_text().split()]
    # the bench beside the driver, its child, looks at objectives, too
    by_worker = Counter(pid for pid, parent in processes if parent != str(os.getpid()))
    assert len(by_worker) == 2 and min(by_worker.values()) > 4, by_worker
