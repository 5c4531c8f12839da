"""Cached embeddings against tensors in memory, and against the frozen backbone in the loop.

    python tests/benchmarks/features.py [read|epoch ...] [--repeats 5] [--architecture resnet10t]

``read``: an epoch of shuffled batches of 128 from 50,000 x 512 float32, from the mapped file (once
its pages are in memory; the first epoch of a process is shown apart) over the same from a tensor;
and the memory that a process of its own has for itself after a whole epoch. ``epoch``: an epoch of
training, the validation included, of 2,000 noise images of 32 x 32: the head on cached embeddings
against the head on the frozen backbone; and how many epochs the computing of the embeddings costs.
One CPU thread, its own time (other processes still cost it caches). Medians over the repeats,
whose two sides run in turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lossearch.data import Data, Dataset, Split, prepare_dataset
from lossearch.features import HEAD, Rows, cached
from lossearch.models import ModelConfig, build_network
from lossearch.registry import current
from lossearch.spec import ObjectiveSpec
from lossearch.training import TrainingConfig
from lossearch.training.trainer import Trainer

SAMPLES, WIDTH = 50_000, 512


def seconds(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def read(split: Split, generator: torch.Generator) -> None:
    for _ in split.batches(128, generator=generator):
        pass


def own_memory(path: Path, mapped: bool, answer: Any) -> None:
    """MB that an epoch adds to what this process shares with nobody, and seconds of the first."""
    split = Split(Rows(path, 0, SAMPLES), torch.zeros(SAMPLES))
    if not mapped:
        split = Split(torch.from_numpy(np.load(path)), torch.zeros(SAMPLES))
    before = _private()
    first = seconds(lambda: read(split, torch.Generator().manual_seed(0)))
    answer.put((_private() - before + (0 if mapped else WIDTH * SAMPLES * 4 / 1e6), first))


def _private() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1e3


def in_a_process(path: Path, mapped: bool) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    answer: Any = context.Queue()
    process = context.Process(target=own_memory, args=(path, mapped, answer))
    process.start()
    found = answer.get(timeout=300)
    process.join()
    return found


def trainer(data: Data, model: ModelConfig) -> Trainer:
    registry = current()
    return Trainer(
        ObjectiveSpec.parse({"task": "multiclass", "terms": [{"loss": "cross_entropy"}]}),
        data,
        model,
        TrainingConfig(epochs=1000, device="cpu"),
        {"lr": 1e-3, "weight_decay": 0.01},
        registry.build("accuracy", kind="metric", task="multiclass"),
        registry,
        0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["read", "epoch"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--architecture", default="resnet10t")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("what", "median", "from", "to")

    def row(name: str, values: list[float], form: str = ".2f") -> None:
        found = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(format(value, form) for value in found))

    folder = Path(tempfile.mkdtemp())
    if "read" in chosen.what:
        path = folder / "rows.npy"
        values = torch.randn(SAMPLES, WIDTH)
        np.save(path, values.numpy())
        mapped = Split(Rows(path, 0, SAMPLES), torch.zeros(SAMPLES))
        held = Split(values, torch.zeros(SAMPLES))
        generator = torch.Generator().manual_seed(0)
        read(mapped, generator)
        pairs = [
            [seconds(lambda: read(split, generator)) for split in (mapped, held)]  # noqa: B023
            for _ in range(chosen.repeats)
        ]
        row("read: ms of an epoch from the file", [1e3 * m for m, _ in pairs], ".1f")
        row("read: time over that of a tensor", [m / h for m, h in pairs])
        for name, is_mapped in (("the file", True), ("a tensor", False)):
            own, first = in_a_process(path, is_mapped)
            row(f"read: ms of a process's first epoch from {name}", [1e3 * first], ".1f")
            row(f"read: MB of its own, from {name}", [own], ".1f")
    if "epoch" in chosen.what:
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
        images = prepare_dataset(Dataset(torch.from_numpy(pixels), np.arange(2000) % 10))
        model = ModelConfig.model_validate(
            {"name": "timm", "architecture": chosen.architecture, "freeze": True}
        )
        network = build_network(model, images.info, current())
        started = time.process_time()
        data = cached(images, network, folder)
        once = time.process_time() - started
        both = trainer(data, HEAD), trainer(images, model)
        both[0].run_epoch()  # first calls of torch load much
        pairs = [[seconds(each.run_epoch) for each in both] for _ in range(chosen.repeats)]
        row(f"epoch: ms, the head on {data.info.input_shape[0]} features",
            [1e3 * c for c, _ in pairs], ".1f")  # fmt: skip
        row(f"epoch: ms, {chosen.architecture} in the loop", [1e3 * w for _, w in pairs], ".1f")
        row("epoch: times faster", [w / c for c, w in pairs], ".0f")
        row("epoch: computing costs as many epochs of the loop", [once / w for _, w in pairs])
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
