"""What a proposal and its ledger row cost, as a search grows.

    python tests/benchmarks/proposals.py [--space classification] [--trials 5000]

A made-up search: each trial is proposed in a batch of 16, registered, and then gets a score at a
first rung, or to the end where that is among the best third, as under successive halving. Nothing
is trained. The time is that of ``Proposer.propose``, the ledger's row and ``register``: medians
over the 160 proposals around each count, and their ratio in the same run.

Goals: at most 5 ms a proposal in batches of 16 at trial 200; at trial 5,000 at most twice the cost
at trial 100. With ``--optuna`` the same search by Optuna's own TPE, told to group, up to trial
1,000: what it would cost without :mod:`lossearch.trials.tpe`.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import torch
from rich.console import Console
from rich.table import Table

from lossearch.registry import current
from lossearch.space import Between, Space
from lossearch.trials.ledger import Ledger, State, apply
from lossearch.trials.proposer import Proposer, SearchConfig

BATCH, WINDOW = 16, 160
COUNTS = (100, 200, 500, 1000, 2000, 5000)
LR = Between(1e-4, 1e-1, log=True, default=3e-3)
FIELDS = {"logits", "targets", "embeddings", "weight", "class_counts", "index", "epoch", "step",
          "total_steps"}  # fmt: skip


def spaces(name: str) -> tuple[Space, Space]:
    registry = current()
    where: dict[str, Any] = {"registry": registry, "task": "multiclass", "available": FIELDS}
    plain = {"loss": {"name": "cross_entropy", "label_smoothing": 0.0}}
    return (
        Space.from_document(registry.spaces[name], **where),
        Space.from_document({"task": "multiclass", "terms": [plain]}, **where),
    )


def ours(name: str, count: int, sampler: str) -> tuple[list[float], list[float]]:
    """Seconds of each proposal: alone, and with its row."""
    space, baseline = spaces(name)
    config = SearchConfig(trials=count + BATCH, sampler=sampler)  # type: ignore[arg-type]
    proposer = Proposer(space, baseline, {"lr": LR}, config, maximize=True, seed=0)
    draw, state = random.Random(0), State()
    alone: list[float] = []
    whole: list[float] = []
    scores: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        while len(state.trials) < count:
            batch: list[int] = []
            for _ in range(BATCH):
                begin = time.perf_counter()
                number = len(state.trials)
                p = proposer.propose()
                alone.append(time.perf_counter() - begin)
                row = {
                    "trial": number,
                    "role": p.role,
                    "objective": p.objective.document(),
                    "label": p.objective.label(),
                    "training": p.training,
                    "params": p.params,
                    "distributions": p.distributions,
                    "sampler": p.sampler,
                }
                apply(state, ledger.append("proposed", **row))
                proposer.register(state.trials[number])
                whole.append(time.perf_counter() - begin)
                batch.append(number)
            for number in batch:
                trial = state.trials[number]
                score = -abs(math.log10(trial.training["lr"]) + 2) + draw.gauss(0, 0.1)
                scores.append(score)
                trial.epoch, trial.rungs = 3, {3: score}
                if score >= sorted(scores[-300:])[-(len(scores[-300:]) // 3 + 1)]:
                    trial.status, trial.epoch, trial.score = "finished", 9, score
        ledger.close()
    return alone, whole


def optunas(name: str, count: int) -> list[float]:
    """The same by Optuna's storage and sampler, without a ledger."""
    space, _ = spaces(name)
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, seed=0)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    draw, seconds = random.Random(0), []
    for _ in range(count):
        begin = time.perf_counter()
        trial = study.ask()
        space.suggest(trial)
        lr = LR.suggest(trial, "training.lr")
        seconds.append(time.perf_counter() - begin)
        study.tell(trial, -abs(math.log10(lr) + 2) + draw.gauss(0, 0.1))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="classification")
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--optuna", action="store_true", help="Optuna's own TPE beside it")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    alone, whole = ours(chosen.space, chosen.trials, chosen.sampler)
    runs = {chosen.sampler: alone, "with its row": whole}
    if chosen.optuna:
        runs["optuna's tpe"] = optunas(chosen.space, min(chosen.trials, 1000))
    table = Table("at trial", *(f"{name}, ms" for name in runs))
    found: dict[str, dict[int, float]] = {name: {} for name in runs}
    for count in [c for c in COUNTS if c <= chosen.trials]:
        cells: list[str] = []
        for name, seconds in runs.items():
            if count <= len(seconds):
                window = seconds[max(0, count - WINDOW // 2) : count + WINDOW // 2]
                found[name][count] = 1e3 * statistics.median(window)
            cells.append(f"{found[name][count]:.2f}" if count in found[name] else "")
        table.add_row(f"{count:,}", *cells)
    console = Console(width=100)
    console.print(f"{chosen.space}, in batches of {BATCH}: a proposal and its ledger row")
    console.print(table)
    last = max(found["with its row"])
    for name in (chosen.sampler, "with its row"):
        ratio = found[name][last] / found[name][100]
        console.print(f"{name}: at trial {last:,} {ratio:.2f} x the cost at trial 100 (goal 2)")


if __name__ == "__main__":
    main()
