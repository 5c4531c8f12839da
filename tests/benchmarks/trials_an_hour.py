"""Trials an hour: the local executor, the Ray executor, and plain Optuna, on the same work.

    python tests/benchmarks/trials_an_hour.py [--trials 40] [--epochs 10]

The work: an MLP (64-128-10) on digits with 30 % label noise, generalized cross-entropy with q and
the learning rate searched, no pruning, no confirmation, no tracking. Plain Optuna is what one
would write by hand: `study.optimize` over a training loop. Every process uses one CPU thread; Ray
uses as many workers as there are cores. Seconds run from the first proposal to the last result of
the search, the start of Ray's workers included; what comes before (loading the data, starting Ray)
is the column "start".
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import optuna
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lossearch
from lossearch.data import DataConfig, prepare
from lossearch.registry import current

DATA = {"name": "digits", "noise": {"rate": 0.3}}
SPACE = {"task": "multiclass", "terms": [{"loss": {"name": "generalized_cross_entropy", "k": 0}}]}


def plain_optuna(trials: int, epochs: int) -> float:
    """Seconds of a hand-written Optuna study."""
    torch.set_num_threads(1)
    data = prepare(DataConfig.model_validate(DATA), current())
    batch = next(iter(data.train.batches(len(data.train))))
    x, y = batch["inputs"], batch["targets"]
    held = next(iter(data.validation.batches(len(data.validation))))

    def objective(trial: optuna.Trial) -> float:
        q = trial.suggest_float("q", 0.01, 1.0)
        lr = trial.suggest_float("lr", 1e-4, 3e-2, log=True)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        steps = -(-len(x) // 128) * epochs
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                p = model(x[rows]).softmax(1).gather(1, y[rows, None])
                loss = ((1 - p**q) / q).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            with torch.no_grad():
                accuracy = (model(held["inputs"]).argmax(1) == held["targets"]).float().mean()
        return float(accuracy)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = time.perf_counter()
    optuna.create_study(direction="maximize").optimize(objective, n_trials=trials)
    return time.perf_counter() - started


def study(executor: str, trials: int, epochs: int) -> tuple[float, float]:
    """Seconds from the first proposal to the last result, and of the start before them."""
    times: list[float] = []

    def listen(_state: object, row: dict) -> None:
        if row["event"] in ("proposed", "finished"):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        lossearch.search(
            {
                "name": "benchmark",
                "data": DATA,
                "space": SPACE,
                "search": {"trials": trials, "rungs": None},
                "training": {"epochs": epochs},
                "confirm": {"top": 1, "seeds": 2},
            },
            executor=executor,
            tracking=None,
            output=Path(folder) / executor,
            progress=False,
            on_event=listen,
        )
    return (times[-1] - times[0]), times[0] - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=10)
    chosen = parser.parse_args()
    table = Table("what", "seconds", "trials an hour", "ratio to Optuna", "start, s")
    optuna_seconds = plain_optuna(chosen.trials, chosen.epochs)
    rows = [("plain Optuna, one process", optuna_seconds, 0.0)]
    rows += [(f"lossearch, {e} executor", *study(e, chosen.trials, chosen.epochs))
             for e in ("local", "ray")]  # fmt: skip
    for name, seconds, start in rows:
        table.add_row(
            name,
            f"{seconds:.1f}",
            f"{chosen.trials / seconds * 3600:.0f}",
            f"{optuna_seconds / seconds:.2f}",
            f"{start:.1f}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
