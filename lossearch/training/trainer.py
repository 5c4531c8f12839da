"""Training one objective on one network: epochs, schedule, early stop, checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lossearch.components import Bound
from lossearch.data import Data
from lossearch.models import CosineHead, Model
from lossearch.objective import cosine_scale
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.training import checkpoint
from lossearch.training.config import TrainingConfig
from lossearch.training.evaluate import predict, score
from lossearch.training.plan import (
    CurveRow,
    Diverged,
    Plan,
    Progress,
    facts_of,
    pick_device,
    pick_precision,
)
from lossearch.training.providers import Fields

__all__ = [
    "CurveRow",
    "Diverged",
    "Trainer",
    "facts_of",
    "pick_device",
    "pick_precision",
]


class Trainer(Progress):
    """One network under one objective.

    The same seed gives the same initial weights, data order and random draws, on any executor:
    trials of one search differ in nothing but their objective.

    Args:
        spec: The objective.
        data: The splits.
        model: The model's config, or the user's own module, or what makes it.
        training: The training config.
        values: The tunable settings as the search chose them: ``lr`` and ``weight_decay``.
        metric: The metric that early stop and rungs look at.
        seed: Of weights, order and draws.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        data: Data,
        model: Model,
        training: TrainingConfig,
        values: dict[str, float],
        metric: Bound,
        registry: Registry,
        seed: int,
        providers: tuple[ComponentSpec, ...] = (),
    ) -> None:
        plan = Plan(data, model, training, metric, registry, providers)
        super().__init__(plan)
        self.data, self.training, self.metric = data, training, metric
        self.device, self.total_steps = plan.device, plan.total_steps
        torch.manual_seed(seed)
        self.order = torch.Generator().manual_seed(seed)
        self.objective = plan.objective(spec, seed)
        # seeded again in there: the objective must not shift the weights' draws
        self.network = plan.network(seed, cosine_scale(self.objective))
        self.fields = Fields(
            self.network,
            providers,
            registry,
            self.objective.reads | self.objective.uses,
            {**facts_of(data), "task": data.info.task, "seed": seed},
        ).to(self.device)
        self.parameters = [p for p in self.fields.parameters() if p.requires_grad]
        own = self.objective.parameter_groups()
        self.optimizer = plan.optimizer(self.parameters, own, values)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, plan.factor)

    def run_epoch(self) -> None:
        """Train for one epoch, measure the validation metric, and add a row to the curve.

        Raises:
            Diverged: the loss or the outputs are not finite.
        """
        self.fields.train()
        self.objective.train()
        self.objective.start_epoch(self.epoch)
        total = torch.zeros((), device=self.device)
        for batch in self.plan.batches(self.order, self.epoch):
            with self.plan.autocast():
                fields = self.fields(batch)
                self.optimizer.zero_grad(set_to_none=True)
                value = self.objective.backward(fields, self.parameters)
            if self.training.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
            self.optimizer.step()
            self.objective.after_step()
            self.scheduler.step()
            total += value.float()
        mean = (total / self.plan.steps_per_epoch).item()
        self.check_loss(mean)
        self.objective.end_epoch(self.epoch)
        self.epoch += 1
        name = self.metric.component.name
        measured = self.measure("validation", {name: self.metric})[name]
        if self.add(mean, measured):
            self.best_weights = copy.deepcopy(self.network.state_dict())

    def measure(self, split: str, metrics: dict[str, Bound]) -> dict[str, float]:
        """Metrics of the network as it stands on ``validation`` or ``test``.

        Raises:
            Diverged: the outputs are not finite.
        """
        head, scale = self.network.head, cosine_scale(self.objective)
        if isinstance(head, CosineHead) and scale is not None:
            head.scale.fill_(scale)  # learned, or on a schedule
        predicted = predict(
            self.network,
            getattr(self.data, split),
            batch_size=max(self.training.batch_size, 1024),
            device=self.device,
            objective=self.objective,
        )
        self.check_outputs(split, predicted["logits"].isfinite())
        return score(predicted, metrics)

    def restore_best(self) -> None:
        """Go back to the best epoch's weights, where early stop kept them."""
        if self.best_weights is not None:
            self.network.load_state_dict(self.best_weights)

    def save(self, path: Path) -> None:
        """Write all that a resumed run needs to give the same numbers.

        Raises:
            StorageError: the system refuses it.
        """
        checkpoint.write(path, self._state())

    def load(self, path: Path) -> None:
        """Go on from :meth:`save`; where the file is damaged, or of another model, from here.

        Raises:
            StorageError: the system refuses to read it.
        """
        state = checkpoint.read(path)
        if state is None:
            return
        now = copy.deepcopy(self._state())
        try:
            self._become(state)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            checkpoint.put_aside(path, error)
            self._become(now)

    def _state(self) -> dict[str, Any]:
        return {
            "fields": self.fields.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            **checkpoint.random_state(self.device, self.order),
            **self.progress(),
        }

    def _become(self, state: dict[str, Any]) -> None:
        self.fields.load_state_dict(state["fields"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        last = state["scheduler"]["last_epoch"]
        self.scheduler.last_epoch = last
        for group, base in zip(
            self.optimizer.param_groups, self.scheduler.base_lrs, strict=True
        ):
            group["lr"] = base * self.plan.factor(last)
        checkpoint.set_random_state(state, self.device, self.order)
        self.resume(state)
