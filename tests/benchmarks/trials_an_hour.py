"""Objectives tried an hour: lossearch against what one would write by hand, on the same work.

    python tests/benchmarks/trials_an_hour.py [digits|features] [--trials 256] [--epochs 20]

``digits``: an MLP (64-128-10) on digits with 30 % label noise. ``features``: a linear head on
50,000 x 512 embeddings (drawn at random around ten centres, in the shape that a ResNet-18 gives
for CIFAR-10; what they hold makes no difference to the time). In both, generalized cross-entropy
with q and the learning rate searched, every trial trained to its end: no rungs, no probing of
learning rates, no confirmation, no tracking.

The hand-written scripts are what one would write: ``study.optimize`` over a training loop; and Ray
Tune with OptunaSearch, reused actors and data kept in each. ``--optuna-trials`` and
``--ray-trials`` take fewer, scaled up; with few trials the start of Ray's workers, which its
seconds hold, makes its rate look low. One CPU thread a process. Seconds run from the first
proposal to the last result of the search, with the start of Ray's workers; loading the data and
starting Ray itself come before. A last row is lossearch as shipped, with its rungs, probes and
references: more work a trial, and less of it for the bad ones.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lossearch
from lossearch.data import Data, DataConfig, Dataset, prepare, prepare_dataset
from lossearch.registry import current

SPACE = {"task": "multiclass", "terms": [{"loss": {"name": "generalized_cross_entropy", "k": 0}}]}
Pair = tuple[Tensor, Tensor]


def data_of(work: str) -> dict[str, Any] | Dataset:
    if work == "digits":
        return {"name": "digits", "noise": {"rate": 0.3}}
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 10, 62_500)
    centres = draw.normal(size=(10, 512)).astype(np.float32)
    inputs = draw.normal(size=(62_500, 512)).astype(np.float32)
    inputs += 0.15 * centres[targets]
    return Dataset(torch.from_numpy(inputs), targets)


def tensors(work: str) -> tuple[Pair, Pair]:
    """Training and validation split, as a script holds them."""
    given = data_of(work)
    data: Data = (
        prepare(DataConfig.model_validate(given), current())
        if isinstance(given, dict)
        else prepare_dataset(given)
    )
    found: list[Pair] = []
    for split in (data.train, data.validation):
        batch = next(iter(split.batches(len(split))))
        found.append((batch["inputs"], batch["targets"]))
    return found[0], found[1]


def network(work: str) -> nn.Module:
    if work == "features":
        return nn.Linear(512, 10)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train(work: str, train: Pair, held: Pair, epochs: int, q: float, lr: float) -> float:
    """The loop of a hand-written script."""
    torch.manual_seed(0)
    (x, y), model = train, network(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    steps = -(-len(x) // 128) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracy = 0.0
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            p = model(x[rows]).softmax(1).gather(1, y[rows, None])
            loss = ((1 - p**q) / q).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            accuracy = float((model(held[0]).argmax(1) == held[1]).float().mean())
    return accuracy


def plain_optuna(work: str, trials: int, epochs: int) -> float:
    """Seconds of a hand-written Optuna study."""
    torch.set_num_threads(1)
    splits = tensors(work)

    def objective(trial: optuna.Trial) -> float:
        q = trial.suggest_float("q", 0.01, 1.0)
        return train(work, *splits, epochs, q, trial.suggest_float("lr", 1e-4, 3e-2, log=True))

    train(work, *splits, 1, 0.5, 1e-3)  # what torch does at its first use is nobody's trial
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = time.perf_counter()
    optuna.create_study(direction="maximize").optimize(objective, n_trials=trials)
    return time.perf_counter() - started


def hand_written_ray(work: str, trials: int, epochs: int) -> float:
    """Seconds of a hand-written Ray Tune script with OptunaSearch."""
    import logging

    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any], splits: tuple[Pair, Pair] | None = None) -> None:
            torch.set_num_threads(1)
            self.splits = splits

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            assert self.splits is not None
            found = train(work, *self.splits, epochs, self.config["q"], self.config["lr"])
            return {"accuracy": found, "done": True}

    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR)
    cores = int(ray.cluster_resources()["CPU"])
    trainable = tune.with_parameters(Trial, splits=tensors(work))
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"q": tune.uniform(0.01, 1.0), "lr": tune.loguniform(1e-4, 3e-2)},
            tune_config=tune.TuneConfig(
                metric="accuracy", mode="max", search_alg=OptunaSearch(), num_samples=trials,
                max_concurrent_trials=cores, reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )  # fmt: skip
        started = time.perf_counter()
        tuner.fit()
        seconds = time.perf_counter() - started
    ray.shutdown()
    return seconds


def study(work: str, executor: str, trials: int, epochs: int, shipped: bool = False) -> float:
    """Seconds from the first proposal to the last result."""
    times: list[float] = []

    def listen(_state: object, row: dict) -> None:
        if row["event"] in ("measured", "proposed", "finished", "pruned"):
            times.append(time.perf_counter())

    given = data_of(work)
    config: dict[str, Any] = {
        "name": "benchmark",
        "model": "linear" if work == "features" else {"name": "mlp", "hidden": [128]},
        "space": SPACE,
        "search": {"trials": trials, "rungs": None, "references": False},
        "fairness": {"probe_lr": False},
        "training": {"epochs": epochs, "device": "cpu"},
        "confirm": {"top": 1, "seeds": 2},
    }
    if shipped:
        config |= {"search": {"trials": trials}, "fairness": {}}
    with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
        options: dict[str, Any] = {
            "executor": executor,
            "tracking": None,
            "output": Path(folder) / executor,
            "progress": False,
            "on_event": partial(stop_after, listen),
        }
        if isinstance(given, dict):
            lossearch.search({**config, "data": given}, **options)
        else:
            lossearch.search(given, **config, **options)
    return times[-1] - times[0]


class _Enough(Exception):
    """The search is over; its confirmation is not part of the comparison."""


def stop_after(listen: Any, state: Any, row: dict) -> None:
    if row["event"] == "confirmed":
        raise _Enough
    listen(state, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="?", choices=("digits", "features"), default="digits")
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--ray-trials", type=int, help="fewer, scaled up")
    parser.add_argument("--optuna-trials", type=int, help="fewer, scaled up")
    chosen = parser.parse_args()
    work, trials, epochs = chosen.work, chosen.trials, chosen.epochs
    fewer = chosen.optuna_trials or trials
    optuna_rate = fewer / plain_optuna(work, fewer, epochs)
    by_ray = chosen.ray_trials or trials
    ray_rate = by_ray / hand_written_ray(work, by_ray, epochs)
    rows = [
        ("plain Optuna, one process", optuna_rate),
        ("Ray Tune with OptunaSearch, by hand", ray_rate),
        ("lossearch, local (one core)", trials / study(work, "local", trials, epochs)),
        ("lossearch, Ray (all cores)", trials / study(work, "ray", trials, epochs)),
        ("lossearch as shipped, Ray", trials / study(work, "ray", trials, epochs, shipped=True)),
    ]
    table = Table("what", "trials an hour", "to Optuna", "to Ray by hand")
    for name, rate in rows:
        table.add_row(
            name, f"{rate * 3600:,.0f}", f"{rate / optuna_rate:.2f}", f"{rate / ray_rate:.2f}"
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
