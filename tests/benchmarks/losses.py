"""What each loss costs, forward and backward: against cross-entropy and against kept libraries.

    python tests/benchmarks/losses.py [names ...] [--shapes 1024x10 4096x1000 256x100000]
                                      [--device cuda] [--repeats 7] [--markdown]

Each loss and its rival run in turns in one process on one thread; the time is the median of the
repeats (CPU time; on a GPU the wall clock around a synchronisation), the memory the peak of what
is allocated between the logits and their gradient. Cross-entropy is torch's, over the same logits;
for losses of labels it is torch's binary cross-entropy of as many. Losses that read the head's
weight are set against torch's cross-entropy of the head's product, and those that read
embeddings alone are left out.

Goals: a closed-form loss of each sample takes at most 3 times cross-entropy's time and 2 times its
peak memory, and never longer than the library. Rivals: torch, torchvision, timm and
pytorch-metric-learning; segmentation-models-pytorch where it is installed (no dependency of ours).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lossearch.components import Bound, Component
from lossearch.registry import current

SHAPES = ("1024x10", "4096x1000", "256x100000")
WIDTH = 64  # of the embeddings, for losses that read the head's weight
TIME, MEMORY = 3.0, 2.0
# At the scale of logits; and what the losses can do without.
OUTPUTS = ("logits", "logits_b", "logits_adv", "embeddings", "embeddings_b", "weight")
PAIRS = ("hybrid_multilabel", "unpg")  # a sample's value is over its pairs with all others
Run = Callable[[dict[str, Tensor]], Tensor]


def rivals(name: str, task: str) -> dict[str, Run]:
    """The plainest public implementations of a loss, by library."""
    found: dict[str, Run] = {}
    if name == "cross_entropy":
        found["torch"] = lambda b: F.cross_entropy(b["logits"], b["targets"])
    if name == "binary_cross_entropy":
        found["torch"] = lambda b: F.binary_cross_entropy_with_logits(b["logits"], b["targets"])
    if name == "multiclass_hinge":
        found["torch"] = lambda b: F.multi_margin_loss(b["logits"], b["targets"])
    if name == "focal" and task != "multiclass":
        from torchvision.ops import sigmoid_focal_loss

        found["torchvision"] = lambda b: sigmoid_focal_loss(
            b["logits"], b["targets"], alpha=-1, reduction="mean"
        )
    if name.startswith("asymmetric"):
        from timm.loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel

        one = name == "asymmetric_single_label"
        asymmetric = AsymmetricLossSingleLabel() if one else AsymmetricLossMultiLabel()
        found["timm"] = lambda b: asymmetric(b["logits"], b["targets"])
    found.update(_metric_learning(name))
    found.update(_segmentation(name, task))
    return found


def _metric_learning(name: str) -> dict[str, Run]:
    kinds = {"cosface": "CosFaceLoss", "arcface": "ArcFaceLoss", "sphereface": "SphereFaceLoss"}
    kinds["normalized_softmax"] = "NormalizedSoftmaxLoss"
    if name not in kinds:
        return {}
    from pytorch_metric_learning import losses

    made: dict[int, Any] = {}

    def run(batch: dict[str, Tensor]) -> Tensor:
        weight = batch["weight"]
        if len(weight) not in made:
            made[len(weight)] = getattr(losses, kinds[name])(len(weight), weight.shape[1])
        loss = made[len(weight)]
        del loss.W  # its own weight: the batch's takes its place
        loss.W = torch.nn.Parameter(weight.detach().T)
        value = loss(batch["embeddings"], batch["targets"])
        return value + 0 * loss.W.sum()

    return {"pytorch-metric-learning": run}


def _segmentation(name: str, task: str) -> dict[str, Run]:
    if find_spec("segmentation_models_pytorch") is None or task == "multiclass":
        return {}
    from segmentation_models_pytorch import losses

    kinds = {
        "tversky_index": lambda: losses.TverskyLoss("multilabel", smooth=1.0),
        "self_adjusting_dice": lambda: losses.DiceLoss("multilabel", smooth=1.0),
        "sorensen_dice": lambda: losses.DiceLoss("multilabel"),
        "focal": lambda: losses.FocalLoss("multilabel"),
    }
    if name not in kinds:
        return {}
    loss = kinds[name]()
    return {"segmentation-models": lambda b: loss(b["logits"][..., None], b["targets"][..., None])}


def batch(size: int, classes: int, task: str, device: str) -> dict[str, Any]:
    """A batch with every field that a loss of outputs may read."""
    draw = torch.Generator().manual_seed(0)
    shape = (size,) if task == "binary" else (size, classes)
    bag = torch.arange(size) // 4
    targets = torch.randint(0, classes, (size,), generator=draw)[bag]  # a bag has one label
    if task == "multilabel":
        targets = torch.zeros(size, classes).scatter_(1, targets[:, None], 1.0)
    elif task == "binary":
        targets = (targets % 2).float()
    fields = {
        **{name: torch.randn(shape, generator=draw) for name in OUTPUTS[:3]},
        **{name: torch.randn(size, WIDTH, generator=draw) for name in OUTPUTS[3:5]},
        "weight": torch.randn(classes, WIDTH, generator=draw),
        "targets": targets,
        "index": torch.arange(size),
        "class_counts": torch.arange(classes) + 5,
        "bag": bag,
    }
    fields = {name: value.to(device) for name, value in fields.items()}
    return {**fields, "epoch": 1, "step": 3, "total_steps": 100}


def floor(reads: set[str], task: str) -> Run:
    """What the loss is set against: torch's cross-entropy of the same outputs."""
    if "weight" in reads:
        return lambda b: F.cross_entropy(b["embeddings"] @ b["weight"].T, b["targets"])
    if task == "multiclass":
        return lambda b: F.cross_entropy(b["logits"], b["targets"])
    return lambda b: F.binary_cross_entropy_with_logits(b["logits"], b["targets"])


class Cost:
    """Seconds of each repeat, and the peak of memory in bytes."""

    def __init__(self, run: Run, fields: dict[str, Any], reads: set[str]) -> None:
        self.run, self.seconds = run, list[float]()
        self.fields = dict(fields)
        self.leaves = [name for name in OUTPUTS if name in reads]
        self.memory = 0

    def once(self) -> None:
        self.run(self.fields).backward()

    def fresh(self) -> None:
        """New leaves, so that no old slope is freed while the next run is measured."""
        for name in self.leaves:
            self.fields[name] = self.fields[name].detach().requires_grad_()

    def time(self) -> None:
        self.fresh()
        if self._cuda:
            torch.cuda.synchronize()
        started = time.perf_counter() if self._cuda else time.process_time()
        self.once()
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds.append((time.perf_counter() if self._cuda else time.process_time()) - started)

    @property
    def _cuda(self) -> bool:
        return self.fields["targets"].device.type == "cuda"

    def measure_memory(self) -> None:
        self.fresh()
        gc.collect()
        if self._cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.once()
            self.memory = torch.cuda.max_memory_allocated() - before
            return
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiled:
            self.once()
        live = peak = 0
        events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
        moves = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        for _, change in sorted(moves):
            live += change
            peak = max(peak, live)
        self.memory = peak


def compare(
    component: Component, task: str, shape: tuple[int, int], device: str, repeats: int
) -> list[str] | None:
    """A row of the table; ``None`` where the loss has nothing to do with outputs of this shape."""
    facts = {"num_classes": shape[1], "train_size": shape[0], "seed": 0}
    bound: Bound = component.build(task=task, facts=facts).to(device)
    reads = set(bound.reads)
    fields = batch(*shape, task, device)
    if not {"logits", "weight"} & reads or not reads <= fields.keys():
        return None
    kept: Any = rivals(component.name, task)
    rival, its = next(iter(kept.items())) if kept else ("", None)
    cost = Cost(lambda b: bound(b).mean(), fields, reads)
    plain = Cost(floor(reads, task), fields, reads | {"embeddings"} & {*reads})
    other = Cost(its, fields, reads) if its is not None else None
    sides = [c for c in (cost, plain, other) if c is not None]
    for side in sides:
        side.time()  # the first one loads what is loaded once
        side.seconds.clear()
        side.measure_memory()
    for _ in range(repeats):
        for side in sides:
            side.time()
    times = [statistics.median(side.seconds) for side in sides]
    slower, larger = times[0] / times[1], cost.memory / plain.memory
    against = times[0] / times[2] if other is not None else None
    closed = component.returns_at(bound.params) == "per_sample" and not component.stateful
    closed = closed and component.name not in PAIRS
    return [
        component.name + ("" if task == "multiclass" else f" ({task})"),
        f"{shape[0]} x {shape[1]}",
        f"{1e3 * times[0]:.2f}",
        _marked(slower, TIME if closed else None),
        _marked(larger, MEMORY if closed else None),
        "" if against is None else f"{_marked(against, 1.1)} {rival}",
    ]


def _marked(ratio: float, goal: float | None) -> str:
    return f"{ratio:.2f}" + (" !" if goal is not None and ratio > goal else "")


def markdown(rows: list[list[str]], shapes: Sequence[str]) -> str:
    """One row a loss and task: time / memory at each shape, and the time to the library's."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, shape, *costs in rows:
        found.setdefault(name, {})[shape.replace(" ", "")] = costs
    lines = [
        f"| loss | {' | '.join(shapes)} | time to library |",
        "|---" * (len(shapes) + 2) + "|",
    ]
    for name, by_shape in found.items():
        cells = [by_shape.get(shape) for shape in shapes]
        ratios = [f"{c[1]} / {c[2]}" if c and c[1] else "-" for c in cells]
        libraries = [c[3].rpartition(" ") for c in cells if c and c[3]]
        against = ", ".join(ratio for ratio, _, _ in libraries)
        library = f"{libraries[0][2]}: {against}" if libraries else ""
        lines.append(f"| {name} | {' | '.join(ratios)} | {library} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--markdown", action="store_true", help="a row a loss, for the docs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    registry = current()
    table = Table("loss", "shape", "ms", "time to CE", "memory to CE", "time to library")
    console = Console(width=120, stderr=given.markdown)
    rows: list[list[str]] = []
    for component in registry.list("loss"):
        if given.names and component.name not in given.names:
            continue
        tasks = [t for t in component.tasks if t in ("multiclass", "multilabel")]
        for task in tasks or ["binary"]:
            for shape in given.shapes:
                size, _, classes = shape.partition("x")
                try:
                    row = compare(
                        component, task, (int(size), int(classes)), given.device, given.repeats
                    )
                except Exception as error:  # one that fails is a row, not the end
                    row = [component.name, shape, str(error).split("\n")[0][:60], "", "", ""]
                if row is not None:
                    table.add_row(*row)
                    rows.append(row)
                    console.print(" | ".join(row), style="dim")
    if given.markdown:
        print(markdown(rows, given.shapes))
        return
    console.print(table)
    console.print("! beyond the goal: time 3, memory 2 (closed form, per sample), library 1.1")


if __name__ == "__main__":
    main()
