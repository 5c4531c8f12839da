"""Metrics over a whole split, in eval mode, in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lossearch.components import Bound
from lossearch.data import Split
from lossearch.models import Network
from lossearch.objective import Objective


def predict(
    network: Network,
    split: Split,
    *,
    batch_size: int,
    device: torch.device,
    objective: Objective | None = None,
) -> dict[str, Tensor]:
    """Logits (by the objective's rule, if it has one) and targets of a split, in float64."""
    was_training = network.training
    network.eval()
    rule = objective if objective is not None and objective.predicts else None
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    # a rule may take a gradient inside, which inference mode would forbid
    with torch.no_grad() if rule else torch.inference_mode():
        for batch in split.batches(batch_size, device=device):
            fields = network(batch["inputs"])
            if rule:
                fields["logits"] = rule.predictions({**fields, "weight": network.weight})
            logits.append(fields["logits"].to("cpu", torch.float64))
            targets.append(batch["targets"].cpu())
    network.train(was_training)
    return {"logits": torch.cat(logits), "targets": torch.cat(targets)}


def score(predicted: Mapping[str, Tensor], metrics: Mapping[str, Bound]) -> dict[str, float]:
    """Each metric's value on these predictions."""
    fields = {**predicted, "predictions": predicted["logits"]}
    return {name: float(metric(fields)) for name, metric in metrics.items()}
