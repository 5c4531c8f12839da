"""Cohorts against the loop that one would write by hand, and against a bare stacked loop.

    python tests/benchmarks/cohort.py [mlp|heads|cnn|floor|memory|split|timm ...] [--repeats 5]

``mlp``: 32 members with poly_loss (epsilon and learning rate differ) on an MLP 64-128-10 and
digits, batches of 128, 20 epochs: a whole unit of the workbench, with an evaluation an epoch, a
checkpoint at the rung (epoch 10) and on from it to the end. By hand: the same loss, AdamW as
torch gives it, a cosine scheduler, randperm and indexing, one evaluation an epoch. ``heads``: the
same with 32 and 64 linear heads on 50,000 x 512 made-up features, 1 epoch. ``cnn``: three
convolutions on 2,000 noise images of 32 x 32, 8 members. ``floor``: the mlp cohort over a
hand-written stacked loop under vmap with plain cross-entropy, one fused AdamW, and the same
evaluation. ``memory``: what a cohort of 32, and one lone training, of an MLP 64-512-512-10 add to
a process at their peak (Linux). ``split``: where the time of an mlp unit goes. ``timm``: what the
engine chooses for ResNet-18 and ViT-tiny at 32 x 32. One CPU thread, its own time (other
processes still cost it caches). The two sides of a ratio run in turns; it is the median of the
repeats.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lossearch.data import Data, DataConfig, Dataset, as_dataset, prepare, prepare_dataset
from lossearch.models import ModelConfig
from lossearch.registry import current
from lossearch.spec import ComponentSpec
from lossearch.training import Job, Recipe, TrainingConfig, Unit, Workbench
from lossearch.training.cohort import Cohort
from lossearch.training.member import Member
from lossearch.training.stacked import Stack

MLP = ModelConfig.model_validate({"name": "mlp", "hidden": [128]})
LINEAR = ModelConfig.model_validate({"name": "linear"})


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


def run(work: Workbench, count: int, epochs: int, rung: int = 0) -> None:
    """One unit, with a stop at a rung; as a cohort, whether it pays or not."""
    work.choice.gain = lambda size: 9.0
    todo = jobs(count, epochs)
    if rung:
        work.run(Unit(0, tuple(replace(j, until=rung) for j in todo)))
    assert all(r.done and r.reason is None for r in work.run(Unit(1, todo)).jobs)


def by_hand(data: Data, model: Callable[[], nn.Module], epochs: int, batch_size: int) -> None:
    """What one would write for one trial."""
    torch.manual_seed(0)
    inputs, targets = whole(data.train)
    held, answers = whole(data.validation)
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    steps = -(-len(inputs) // batch_size) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        network.train()
        for index in torch.randperm(len(inputs)).split(batch_size):
            ce = F.cross_entropy(network(inputs[index]), targets[index], reduction="none")
            loss = (ce + 2.0 * (1 - torch.exp(-ce))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            float((network(held).argmax(1) == answers).float().mean())


def whole(split: Any) -> tuple[Tensor, Tensor]:
    batch = next(iter(split.batches(len(split))))
    return batch["inputs"], batch["targets"]


def bare(data: Data, count: int, epochs: int) -> None:
    """The stacked loop that one would write by hand, with an evaluation an epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    parameters, _ = stack_module_state([model] * count)
    parameters = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, fused=True)
    forward = vmap(lambda p, x: functional_call(model, p, (x,)), in_dims=(0, None))
    loss = vmap(F.cross_entropy, in_dims=(0, None))
    order = torch.Generator().manual_seed(0)
    held, answers = whole(data.validation)
    for _ in range(epochs):
        for batch in data.train.batches(128, generator=order):
            value = loss(forward(parameters, batch["inputs"]), batch["targets"]).sum()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        with torch.no_grad():
            right = forward(parameters, held).argmax(2) == answers
            right.float().mean(1).tolist()


def digits() -> Data:
    return prepare(DataConfig.model_validate({"name": "digits"}), current())


def features() -> Data:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(50_000, 512)).astype(np.float32)
    return prepare_dataset(as_dataset(inputs, (inputs[:, :10]).argmax(1)))


def images() -> Data:
    draw = np.random.default_rng(0)
    targets = np.arange(2000) % 10
    pixels = draw.integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    return prepare_dataset(Dataset(torch.from_numpy(pixels), targets, augment=False))


Side = tuple[Callable[[], None], int]  # and how many trainings it stands for


def ratio(one: Side, other: Side, repeats: int) -> list[float]:
    """Times a training of ``one`` over ``other``: the median, then each repeat's."""
    times: list[tuple[float, float]] = []
    for repeat in range(repeats + 1):
        pair: list[float] = []
        for call, count in (one, other):
            started = time.process_time()
            call()
            pair.append((time.process_time() - started) / count)
        if repeat:  # first calls of torch load much
            times.append((pair[0], pair[1]))
    each = [a / b for a, b in times]
    return [statistics.median(each), *each]


def peak(kind: str) -> float:
    """Megabytes that ``lone`` or a ``cohort`` of 32 adds to a process, at most."""
    command = [sys.executable, __file__, "peak", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(kind: str) -> None:
    """In a process of its own, after a small training that loads what is loaded once."""

    def megabytes(key: str) -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{key}:")[1].split()[0]) / 1024

    data = digits()
    small = bench(data, ModelConfig.model_validate({"name": "mlp", "hidden": [4]}), 2)
    small.run(Unit(0, jobs(1, 2)))
    run(small, 2, 2)
    work = bench(data, ModelConfig.model_validate({"name": "mlp", "hidden": [512, 512]}), 2)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = megabytes("VmRSS")
    if kind == "lone":
        work.run(Unit(0, jobs(1, 2)))
    else:
        run(work, 32, 2)
    print(megabytes("VmHWM") - before)


def split(repeats: int) -> Table:
    """Where the time of a unit goes, in its fastest repeat."""
    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                spent[label] = spent.get(label, 0.0) + time.perf_counter() - started

        setattr(owner, name, call)

    timed(Workbench, "_member", "members: objectives, checkpoints read")
    timed(Cohort, "__init__", "the stack")
    timed(Cohort, "_try", "objectives")
    timed(Stack, "backward", "backward")
    timed(Stack, "step", "optimizer")
    timed(Cohort, "_predict", "evaluation: logits")
    timed(Member, "scored", "evaluation: metrics")
    timed(Cohort, "_save", "checkpoints written")
    timed(Cohort, "_run_epoch", "epochs")
    work, best = bench(digits(), MLP, 20), (float("inf"), {})
    for _ in range(repeats + 1):
        spent.clear()
        started = time.perf_counter()
        run(work, 32, 20, rung=10)
        best = min(best, (time.perf_counter() - started, dict(spent)), key=lambda b: b[0])
    table = Table("a unit of 32 members, 20 epochs, a rung at 10", "ms", "share")
    for label, seconds in best[1].items():
        table.add_row(label, f"{1e3 * seconds:.0f}", f"{seconds / best[0]:.1%}")
    table.add_row("all", f"{1e3 * best[0]:.0f}", "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["mlp", "heads", "cnn", "floor", "memory"])
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what[0] == "peak":
        measure_peak(chosen.what[1])
        return
    table = Table("what", "ratio", "from", "to", "goal")

    def row(name: str, ratios: list[float], goal: str) -> None:
        each = ratios[1:] or ratios
        table.add_row(name, f"{ratios[0]:.2f}", f"{min(each):.2f}", f"{max(each):.2f}", goal)

    if "mlp" in chosen.what:
        data = digits()
        work = bench(data, MLP, 20)

        def network() -> nn.Module:
            return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

        hand: Side = (lambda: [by_hand(data, network, 20, 128) for _ in range(4)] and None, 4)
        stack: Side = (lambda: run(work, 32, 20, rung=10), 32)
        row("MLP on digits, 32 members: times faster", ratio(hand, stack, chosen.repeats), ">= 10")
    if "heads" in chosen.what:
        data = features()
        for count in (32, 64):
            work = bench(data, LINEAR, 1)
            hand = (lambda: by_hand(data, lambda: nn.Linear(512, 10), 1, 128), 1)
            stack = (lambda: run(work, count, 1), count)  # noqa: B023
            found = ratio(hand, stack, chosen.repeats)
            row(f"{count} heads on 50,000 x 512: times faster", found, ">= 15")
    if "cnn" in chosen.what:
        data = images()
        for width, size in ((8, 32), (16, 128)):
            work = bench(data, Convolutions(width), 1, size)
            hand = (lambda: by_hand(data, lambda: Convolutions(width), 1, size), 1)  # noqa: B023
            stack = (lambda: run(work, 8, 1), 8)  # noqa: B023
            name = f"CNN {width}-{2 * width}-{4 * width}, batches of {size}, 8 members"
            row(f"{name}: times faster", ratio(hand, stack, chosen.repeats), ">= 3")
    if "floor" in chosen.what:
        data, work = digits(), bench(digits(), MLP, 20)
        cohort: Side = (lambda: run(work, 32, 20), 1)
        found = ratio(cohort, (lambda: bare(data, 32, 20), 1), chosen.repeats)
        row("MLP, 32 members: time over the bare stacked loop", found, "<= 1.25")
    if "memory" in chosen.what:
        lone, together = peak("lone"), peak("cohort")
        name = "MLP 64-512-512-10: MB alone, MB of 32"
        table.add_row(name, "", f"{lone:.1f}", f"{together:.1f}")
        row("and a member's over one's alone", [together / 32 / lone], "< 1")
    if "timm" in chosen.what:
        for name in ("resnet18", "vit_tiny_patch16_224"):
            model = ModelConfig.model_validate({"name": name})
            work = bench(images(), model, 1, batch_size=16)
            started = time.perf_counter()
            size = work.preferred_size(8)
            row(f"{name}: seconds to choose", [time.perf_counter() - started], "")
            row(f"{name}: gain measured", [work.choice.gain(8)], "")
            row(f"{name}: size chosen", [size], "never slower")
    Console(width=110).print(table)
    if "split" in chosen.what:
        Console(width=110).print(split(chosen.repeats))


if __name__ == "__main__":
    main()
