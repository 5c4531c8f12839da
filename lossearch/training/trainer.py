"""Training one objective on one network: epochs, schedule, early stop, checkpoints."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossearch.components import Bound
from lossearch.data import Data
from lossearch.models import ModelConfig, build_network
from lossearch.objective import Objective
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.training.config import TrainingConfig
from lossearch.training.evaluate import predict, score
from lossearch.training.providers import Fields

CurveRow = dict[str, float]


class Diverged(Exception):
    """The loss or the outputs stopped being finite."""


class Trainer:
    """One network under one objective.

    The same seed gives the same initial weights, data order and random draws, on any executor:
    trials of one search differ in nothing but their objective.

    Args:
        spec: The objective.
        data: The splits.
        model: The model's config, or the user's own module.
        training: The training config.
        values: The tunable settings as the search chose them: ``lr`` and ``weight_decay``.
        metric: The metric that early stop and rungs look at.
        seed: Of weights, order and draws.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        data: Data,
        model: ModelConfig | nn.Module,
        training: TrainingConfig,
        values: dict[str, float],
        metric: Bound,
        registry: Registry,
        seed: int,
        providers: tuple[ComponentSpec, ...] = (),
    ) -> None:
        self.data, self.training, self.metric = data, training, metric
        self.device = pick_device(training.device)
        self.dtype = pick_precision(training.precision, self.device)
        torch.manual_seed(seed)
        self.order = torch.Generator().manual_seed(seed)
        self.steps_per_epoch = math.ceil(len(data.train) / training.batch_size)
        self.total_steps = self.steps_per_epoch * training.epochs
        self.objective = Objective(
            spec,
            registry,
            {**facts_of(data), "total_steps": self.total_steps, "seed": seed},
        ).to(self.device)
        scale = cosine_scale(self.objective)
        # the objective must not shift the weights' draws
        torch.manual_seed(seed)
        network = build_network(model, data.info, registry, cosine_scale=scale)
        self.fields = Fields(
            network,
            providers,
            registry,
            self.objective.reads | self.objective.uses,
            {**facts_of(data), "task": data.info.task, "seed": seed},
        ).to(self.device)
        self.network = network
        self.class_counts = torch.tensor(data.info.class_counts, device=self.device)
        self.parameters = [p for p in self.fields.parameters() if p.requires_grad]
        self.optimizer = self._optimizer(values)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        self.epoch = 0
        self.curve: list[CurveRow] = []
        self.best: tuple[float, int] | None = None
        self._best_weights: dict[str, Tensor] | None = None

    def _optimizer(self, values: dict[str, float]) -> torch.optim.Optimizer:
        t = self.training
        lr, decay = values["lr"], values["weight_decay"]
        groups: list[dict[str, Any]] = [{"params": self.parameters, "weight_decay": decay}]
        own = [p for p in self.objective.parameters() if p.requires_grad]
        if own:  # a loss's own parameters are not weights: they do not decay
            groups.append({"params": own, "weight_decay": 0.0})
        if t.optimizer == "sgd":
            momentum = t.momentum
            return torch.optim.SGD(
                groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True
            )
        kind = torch.optim.AdamW if t.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=lr, fused=True)  # one kernel a step, on the CPU as on a GPU

    def _factor(self, step: int) -> float:
        """The schedule: the learning rate's factor at a step."""
        warm = self.training.warmup * self.total_steps
        if step < warm:
            return min((step + 1) / warm, 1.0)
        done = min((step - warm) / max(self.total_steps - warm, 1), 1.0)
        if self.training.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.training.schedule == "linear" else 1.0

    def run_epoch(self) -> None:
        """Train for one epoch, measure the validation metric, and add a row to the curve.

        Raises:
            Diverged: the loss or the outputs are not finite.
        """
        self.fields.train()
        self.objective.train()
        self.objective.start_epoch(self.epoch)
        total = torch.zeros((), device=self.device)
        step = self.epoch * self.steps_per_epoch
        amp = (
            torch.autocast(self.device.type, self.dtype)
            if self.dtype is not torch.float32
            else nullcontext()
        )
        for batch in self.data.train.batches(
            self.training.batch_size, generator=self.order, device=self.device
        ):
            with amp:
                fields = self.fields(
                    {
                        **batch,
                        "class_counts": self.class_counts,
                        "epoch": self.epoch,
                        "step": step,
                        "total_steps": self.total_steps,
                    }
                )
                self.optimizer.zero_grad(set_to_none=True)
                value = self.objective.backward(fields, self.parameters)
            if self.training.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            total += value.float()
            step += 1
        mean = (total / self.steps_per_epoch).item()
        if not math.isfinite(mean):
            raise Diverged(f"the training loss is {mean} in epoch {self.epoch + 1}")
        self.objective.end_epoch(self.epoch)
        self.epoch += 1
        name = self.metric.component.name
        measured = self.measure("validation", {name: self.metric})[name]
        self._keep_best(measured)
        self.curve.append({"epoch": self.epoch, "train_loss": mean, name: measured})

    def measure(self, split: str, metrics: dict[str, Bound]) -> dict[str, float]:
        """Metrics of the network as it stands on ``validation`` or ``test``.

        Raises:
            Diverged: the outputs are not finite.
        """
        predicted = predict(
            self.network,
            getattr(self.data, split),
            batch_size=max(self.training.batch_size, 1024),
            device=self.device,
        )
        if not torch.isfinite(predicted["logits"]).all():
            raise Diverged(f"the {split} outputs are not finite after epoch {self.epoch}")
        return score(predicted, metrics)

    def _keep_best(self, measured: float) -> None:
        if self.training.early_stop is None:
            return
        better = self.best is None or (
            measured > self.best[0] if self.metric.component.maximize else measured < self.best[0]
        )
        if better:
            self.best = (measured, self.epoch)
            self._best_weights = copy.deepcopy(self.network.state_dict())

    @property
    def stopped(self) -> bool:
        """Whether training is over: all epochs done, or early stop."""
        patience = self.training.early_stop
        waited = self.best is not None and self.epoch - self.best[1]
        return self.epoch >= self.training.epochs or bool(patience and waited >= patience)

    def restore_best(self) -> None:
        """Go back to the best epoch's weights, where early stop kept them."""
        if self._best_weights is not None:
            self.network.load_state_dict(self._best_weights)

    def save(self, path: Path) -> None:
        """Write all that a resumed run needs to give the same numbers."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "fields": self.fields.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            "order": self.order.get_state(),
            "random": torch.get_rng_state(),
            "epoch": self.epoch,
            "curve": self.curve,
            "best": self.best,
            "best_weights": self._best_weights,
        }
        if self.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self.device)
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)  # a kill in the middle leaves the old file whole

    def load(self, path: Path) -> None:
        """Go on from :meth:`save`."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.fields.load_state_dict(state["fields"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        last = state["scheduler"]["last_epoch"]
        self.scheduler.last_epoch = last
        for group, base in zip(
            self.optimizer.param_groups, self.scheduler.base_lrs, strict=True
        ):
            group["lr"] = base * self._factor(last)
        self.order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.epoch, self.curve = state["epoch"], state["curve"]
        self.best = tuple(state["best"]) if state["best"] is not None else None
        self._best_weights = state["best_weights"]


def facts_of(data: Data) -> dict[str, Any]:
    """What components may be given of the data."""
    return {
        "train_size": data.info.train_size,
        "num_classes": data.info.num_classes,
        "class_counts": list(data.info.class_counts),
    }


def cosine_scale(objective: Objective) -> float | None:
    """The scale of the first margin loss (one that reads the classifier's weight), if any."""
    for module in objective.modules():
        if isinstance(module, Bound) and "weight" in module.component.reads(module.params):
            return float(getattr(module.params, "scale", 1.0))
    return None


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
