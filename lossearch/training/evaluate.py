"""Metrics over a whole split, in eval mode, in float64 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lossearch.components import Bound
from lossearch.data import Data, Split
from lossearch.errors import FieldError, InfeasibleError, LossearchError
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
    """Each metric's value on these predictions.

    Raises:
        FieldError: the first, which decides, has no finite value; or a metric refuses them.
    """
    fields = {**predicted, "predictions": predicted["logits"]}
    found = {name: float(metric(fields)) for name, metric in metrics.items()}
    decides = next(iter(found), "")
    if found and not math.isfinite(found[decides]):
        raise FieldError(
            f"metric {decides}, by which trials are compared, is {found[decides]} on these "
            f"{len(predicted['targets'])} samples; take a metric that has a value there"
        )
    return found


def refuse_valueless(data: Data, metrics: Mapping[str, Bound]) -> None:
    """Refuse a metric that can have no value on validation or test, since all targets are one.

    Raises:
        InfeasibleError: it raises there or is not finite; with the split and the reason.
    """
    info = data.info
    for part in ("validation", "test"):
        targets: Tensor = getattr(data, part).targets
        rows = targets if targets.ndim > 1 else targets[:, None]
        if not (rows == rows[:1]).all():
            continue
        shape = targets.shape if info.task != "multiclass" else (len(targets), info.num_outputs)
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
        for name, metric in metrics.items():
            try:
                score({"logits": logits, "targets": targets}, {name: metric})
            except LossearchError as error:
                what = "one class" if info.num_classes else "one value"
                raise InfeasibleError(
                    f"metric {name} can have no value on the {part} data, where all "
                    f"{len(targets)} samples are of {what}: {error}. Take another metric, or "
                    f"other {part} data"
                ) from error
