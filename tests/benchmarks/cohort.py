"""Cohorts against the same jobs one after the other, and against a bare stacked loop.

    python tests/benchmarks/cohort.py [mlp|floor|cnn|timm ...] [--repeats 3]

``mlp``: 32 members with poly_loss (epsilon and learning rate differ), an MLP 64-128-10 on digits,
20 epochs, against 32 lone trainers (4 are timed, after a warm-up). ``floor``: the same cohort,
its evaluations included, over a hand-written loop without any: the same stack, plain
cross-entropy, one fused AdamW. ``cnn``: three convolutions on 2,000 noise images of 32 x 32, 8
members: where overhead dominates, and where arithmetic does. ``timm``: what the engine chooses
for ResNet-18 and ViT-tiny at 32 x 32 and batches of 16, and what it measured for 4 and 8. One CPU
thread, its own time (other processes still cost it caches). The ratios are medians over the
repeats, whose two sides run in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from lossearch.data import Data, DataConfig, Dataset, prepare, prepare_dataset
from lossearch.models import ModelConfig
from lossearch.registry import current
from lossearch.spec import ComponentSpec
from lossearch.training import Job, Recipe, TrainingConfig, Unit, Workbench

MLP = ModelConfig.model_validate({"name": "mlp", "hidden": [128]})


class Convolutions(nn.Sequential):
    """Three layers for 32 x 32 images."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
        )  # fmt: skip


def bench(data: Data, model: Any, epochs: int, batch_size: int = 128) -> Workbench:
    """A workbench on these data, with checkpoints in a new folder."""
    recipe = Recipe(
        data=data,
        model=model,
        training=TrainingConfig(epochs=epochs, batch_size=batch_size, device="cpu"),
        metrics=(ComponentSpec(name="accuracy"),),
        checkpoints=Path(tempfile.mkdtemp()),
    )
    return Workbench(recipe, current())


def jobs(count: int, epochs: int) -> tuple[Job, ...]:
    return tuple(
        Job(
            i,
            {"task": "multiclass", "terms": [{"loss": {"name": "poly_loss", "epsilon": i / 8}}]},
            {"lr": 1e-3 * (1 + i / count), "weight_decay": 0.01},
            0,
            epochs,
        )
        for i in range(count)
    )


def digits() -> Data:
    return prepare(DataConfig.model_validate({"name": "digits"}), current())


def images() -> Data:
    draw = np.random.default_rng(0)
    targets = np.arange(2000) % 10
    pixels = draw.integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    return prepare_dataset(Dataset(torch.from_numpy(pixels), targets, augment=False))


def seconds(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def against_alone(
    data: Data, model: Any, count: int, epochs: int, repeats: int, batch_size: int = 128
) -> list[float]:
    """How many times faster one unit is than its jobs, one unit each."""
    ratios: list[float] = []
    for _ in range(repeats):
        work = bench(data, model, epochs, batch_size)
        work.choice.gain = lambda _: 9.0  # the cohort itself is asked for, whether it pays or not
        work.run(Unit(0, jobs(1, epochs)[:1]))  # first calls of torch load much
        together = seconds(lambda: work.run(Unit(1, jobs(count, epochs))))  # noqa: B023
        some = jobs(count, epochs)[:: max(1, count // 4)][:4]
        alone = seconds(lambda: [work.run(Unit(1, (job,))) for job in some])  # noqa: B023
        ratios.append(alone * count / len(some) / together)
    return ratios


def bare(data: Data, count: int, epochs: int) -> float:
    """Seconds of the stacked loop that one would write by hand, without any evaluation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    parameters, _ = stack_module_state([model] * count)
    parameters = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, fused=True)
    forward = vmap(lambda p, x: functional_call(model, p, (x,)), in_dims=(0, None))
    loss = vmap(F.cross_entropy, in_dims=(0, None))
    order = torch.Generator().manual_seed(0)

    def run() -> None:
        for _ in range(epochs):
            for batch in data.train.batches(128, generator=order):
                value = loss(forward(parameters, batch["inputs"]), batch["targets"]).sum()
                optimizer.zero_grad()
                value.backward()
                optimizer.step()

    return seconds(run)


def over_bare(data: Data, count: int, epochs: int, repeats: int) -> list[float]:
    ratios: list[float] = []
    for _ in range(repeats):
        work = bench(data, MLP, epochs)
        work.choice.gain = lambda _: 9.0
        floor = bare(data, count, epochs)
        ratios.append(seconds(lambda: work.run(Unit(1, jobs(count, epochs)))) / floor)  # noqa: B023
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["mlp", "floor", "cnn"])
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("what", "ratio", "from", "to", "goal")

    def row(name: str, ratios: list[float], goal: str) -> None:
        middle = statistics.median(ratios)
        table.add_row(name, f"{middle:.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}", goal)

    if "mlp" in chosen.what:
        ratios = against_alone(digits(), MLP, 32, 20, chosen.repeats)
        row("MLP, 32 members: times faster than alone", ratios, ">= 15")
    if "floor" in chosen.what:
        ratios = over_bare(digits(), 32, 20, chosen.repeats)
        row("MLP, 32 members: time over the bare loop", ratios, "<= 1.25")
    if "cnn" in chosen.what:
        ratios = against_alone(images(), Convolutions(8), 8, 2, chosen.repeats, batch_size=32)
        row("CNN 8-16-32, batches of 32, 8 members: times faster", ratios, ">= 3")
        work = bench(images(), Convolutions(16), 1)
        row("CNN 16-32-64, batches of 128: gain measured for 8", [work.choice.gain(8)], "")
        row("CNN 16-32-64, batches of 128: size chosen", [work.preferred_size()], "never slower")
    if "timm" in chosen.what:
        for name in ("resnet18", "vit_tiny_patch16_224"):
            model = ModelConfig.model_validate({"name": name})
            work = bench(images(), model, 1, batch_size=16)
            for size in (4, 8):
                row(f"{name}: gain measured for {size}", [work.choice.gain(size)], "")
            row(f"{name}: size chosen", [work.preferred_size()], "never slower")
            if work.choice.problem:
                table.add_row(name, work.choice.problem)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
