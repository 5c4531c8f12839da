"""What every training of a recipe shares, alone or in a cohort: device, schedule, batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lossearch.components import Bound
from lossearch.data import Data
from lossearch.models import Model, Network, build_network
from lossearch.objective import Objective
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.training.config import TrainingConfig

CurveRow = dict[str, float]


class Diverged(Exception):
    """The loss or the outputs stopped being finite."""


class Plan:
    """How objectives are trained on one model and data.

    Args:
        data: The splits.
        model: The model's config, or the user's own module, or what makes it.
        training: The training config.
        metric: The metric that early stop and rungs look at.
        providers: Components that make further batch fields.
    """

    def __init__(
        self,
        data: Data,
        model: Model,
        training: TrainingConfig,
        metric: Bound,
        registry: Registry,
        providers: tuple[ComponentSpec, ...] = (),
    ) -> None:
        self.data, self.model, self.training, self.metric = data, model, training, metric
        self.registry, self.providers = registry, providers
        self.device = pick_device(training.device)
        self.dtype = pick_precision(training.precision, self.device)
        self.steps_per_epoch = data.train.steps(training.batch_size)
        self.total_steps = self.steps_per_epoch * training.epochs
        self._samples = data.samples()
        self.class_counts = torch.tensor(data.info.class_counts, device=self.device)

    def objective(self, spec: ObjectiveSpec, seed: int) -> Objective:
        """The objective, told what its components may know."""
        facts = {**facts_of(self.data), "total_steps": self.total_steps, "seed": seed}
        return Objective(spec, self.registry, facts).to(self.device)

    def network(self, seed: int, cosine_scale: float | None = None) -> Network:
        """The network with a seed's weights; what training draws follows from the seed too."""
        torch.manual_seed(seed)
        return build_network(
            self.model,
            self.data.info,
            self.registry,
            cosine_scale=cosine_scale,
            samples=self._samples,
        )

    def optimizer(
        self,
        weights: Sequence[Tensor],
        own: Sequence[Mapping[str, Any]],
        values: Mapping[str, float],
    ) -> torch.optim.Optimizer:
        """One for a network's weights, and for the groups of what a loss learns itself."""
        t = self.training
        lr = values["lr"]
        groups: list[dict[str, Any]] = [{**g, "lr": lr * g["lr_factor"]} for g in own]
        if weights:
            decay = values["weight_decay"]
            groups.insert(0, {"params": weights, "weight_decay": decay, "lr_factor": 1.0})
        if t.optimizer == "sgd":
            return torch.optim.SGD(
                groups, lr=lr, momentum=t.momentum, nesterov=t.momentum > 0, fused=True
            )
        kind = torch.optim.AdamW if t.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=lr, fused=True)  # one kernel a step, on the CPU as on a GPU

    def factor(self, step: int) -> float:
        """The schedule: the learning rate's factor at a step."""
        warm = self.training.warmup * self.total_steps
        if step < warm:
            return min((step + 1) / warm, 1.0)
        done = min((step - warm) / max(self.total_steps - warm, 1), 1.0)
        if self.training.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.training.schedule == "linear" else 1.0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that forward and backward run in."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def batches(self, order: torch.Generator, epoch: int) -> Iterator[dict[str, Any]]:
        """An epoch's batches, with the fields that the data and the loop give."""
        step = epoch * self.steps_per_epoch
        for batch in self.data.train.batches(
            self.training.batch_size, generator=order, device=self.device
        ):
            yield {
                **batch,
                "class_counts": self.class_counts,
                "epoch": epoch,
                "step": step,
                "total_steps": self.total_steps,
            }
            step += 1


class Progress:
    """How far a training has come: its curve, and its best epoch where it may stop early."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoch = 0
        self.curve: list[CurveRow] = []
        self.best: tuple[float, int] | None = None
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def stopped(self) -> bool:
        """Whether training is over: all epochs done, or early stop."""
        patience = self.plan.training.early_stop
        waited = self.best is not None and self.epoch - self.best[1]
        over = self.epoch >= self.plan.training.epochs
        return over or bool(patience and waited >= patience)

    def check_loss(self, mean: float) -> None:
        """Refuse an epoch's mean loss that is not finite.

        Raises:
            Diverged: it is not.
        """
        if not math.isfinite(mean):
            raise Diverged(f"the training loss is {mean} in epoch {self.epoch + 1}")

    def check_outputs(self, split: str, finite: Tensor) -> None:
        """Refuse outputs of which not all are finite.

        Raises:
            Diverged: they are not.
        """
        if not finite.all():
            raise Diverged(f"the {split} outputs are not finite after epoch {self.epoch}")

    def add(self, mean: float, measured: float) -> bool:
        """Take an epoch's loss and score in; whether its weights are the ones to keep."""
        metric = self.plan.metric.component
        self.curve.append({"epoch": self.epoch, "train_loss": mean, metric.name: measured})
        if self.plan.training.early_stop is None:
            return False
        better = self.best is None or (
            measured > self.best[0] if metric.maximize else measured < self.best[0]
        )
        if better:
            self.best = (measured, self.epoch)
        return better

    def progress(self) -> dict[str, Any]:
        """This part of a checkpoint."""
        return {
            "epoch": self.epoch,
            "curve": self.curve,
            "best": self.best,
            "best_weights": self.best_weights,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`progress`."""
        self.epoch, self.curve = state["epoch"], state["curve"]
        self.best = tuple(state["best"]) if state["best"] is not None else None
        self.best_weights = state["best_weights"]


def facts_of(data: Data) -> dict[str, Any]:
    """What components may be given of the data."""
    return {
        "train_size": data.info.train_size,
        "num_classes": data.info.num_classes,
        "class_counts": list(data.info.class_counts),
    }


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU that has it, else float32."""
    if name == "auto":
        has = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32
