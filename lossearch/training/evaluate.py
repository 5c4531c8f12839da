"""Metrics over a whole split, in eval mode, in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lossearch.components import Bound
from lossearch.data import Split
from lossearch.models import Network


def predict(
    network: Network, split: Split, *, batch_size: int, device: torch.device
) -> dict[str, Tensor]:
    """Logits and targets of a whole split, float64 on the CPU."""
    was_training = network.training
    network.eval()
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    with torch.inference_mode():
        for batch in split.batches(batch_size, device=device):
            logits.append(network(batch["inputs"])["logits"].to("cpu", torch.float64))
            targets.append(batch["targets"].cpu())
    network.train(was_training)
    return {"logits": torch.cat(logits), "targets": torch.cat(targets)}


def score(predicted: Mapping[str, Tensor], metrics: Mapping[str, Bound]) -> dict[str, float]:
    """Each metric's value on these predictions."""
    fields = {**predicted, "predictions": predicted["logits"]}
    return {name: float(metric(fields)) for name, metric in metrics.items()}
