"""Example batches for a component, from the fields that it reads and the task it serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from lossearch.components import FIELDS, Component
from lossearch.errors import FieldError, did_you_mean

B, C, E, N, P = 8, 4, 6, 10, 5  # samples, classes, embedding width, memory rows, parameters
CLASS_COUNTS = (150, 60, 15, 5)  # many, medium and few shots, and none without a sample
TRAIN_SIZE = sum(CLASS_COUNTS)
EXTREME = 80.0

# What a network's training differentiates by.
OUTPUTS = (
    *("logits", "logits_b", "logits_adv", "predictions", "embeddings", "embeddings_b"),
    *("embeddings_left", "weight", "noise_scores"),
)
# Every field of the network's or a teacher's making, which half precision and extremes reach.
COMPUTED = (*OUTPUTS, "teacher_logits", "teacher_embeddings", "features")
# Fields with one row a sample.
PER_SAMPLE = frozenset(
    {
        *("logits", "logits_b", "logits_adv", "targets", "predictions", "embeddings"),
        *("embeddings_b", "embeddings_left", "rho", "data_logq"),
        *("teacher_logits", "teacher_embeddings", "index", "bag", "event", "time", "inputs"),
        *("draws", "losses", "losses_b"),
    }
)


def facts(task: str, terms: int = 2) -> dict[str, Any]:
    """What the engine would give of these batches to ``Given`` hyperparameters."""
    known: dict[str, Any] = {
        "train_size": TRAIN_SIZE,
        "num_terms": terms,
        "term_weights": [1.0] * terms,
        "seed": 0,
        "total_steps": 100,
    }
    known["num_classes"] = {"binary": 2, "regression": 0}.get(task, C)
    return known


def example(
    component: Component,
    task: str,
    params: BaseModel,
    *,
    size: int = B,
    terms: int = 2,
    seed: int = 0,
    optional: bool = True,
) -> dict[str, Any]:
    """A batch with every field that the component names, in float32, on the CPU.

    Args:
        component: What will be called with it.
        task: One of the component's tasks.
        params: The component's hyperparameters: they may decide what it reads.
        size: Number of samples; 0 for an empty batch.
        terms: Number of terms, for a balancer.
        seed: Of the generator that draws the values.
        optional: Whether the fields that it can do without are there too.

    Raises:
        FieldError: the component reads a field that does not exist.
    """
    wanted = set(component.reads(params)) | set(component.fields)
    if optional:  # a study has these two only where a miner or a test makes them
        wanted |= set(component.optional_fields) - {"selection", "draws"}
    at = getattr(params, "at", "parameters")
    known = _all_fields(task, size, terms, str(at), torch.Generator().manual_seed(seed))
    for field in sorted(wanted):
        if field not in known:
            raise FieldError(
                f"{component.name} reads '{field}', which is not a field"
                f"{did_you_mean(field, FIELDS)}. A hyperparameter belongs after *"
            )
    batch = {field: known[field] for field in known if field in wanted}
    if {"bag", "targets"} <= batch.keys():  # a bag has one target
        batch["targets"] = batch["targets"][batch["bag"]]
    if component.kind == "balancer":
        batch["losses"] = known["term_values"]
    return {field: value for field, value in batch.items() if field in wanted}


def _all_fields(
    task: str, size: int, terms: int, at: str, generator: torch.Generator
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = torch.arange(size)
    outputs = {"multiclass": (C,), "multilabel": (C,), "binary": (), "regression": ()}[task]
    counts = torch.tensor(CLASS_COUNTS)
    if task == "multiclass":
        targets = rows % C
    elif task == "binary":
        targets = (rows % 2).float()
        counts = torch.stack([counts[0], counts[1:].sum()])
    elif task == "multilabel":  # every row and every column holds a 1 and a 0
        targets = ((rows[:, None] + torch.arange(C)) % C < 2).float()
    else:
        targets, counts = normal(size), counts[:0]
    classes = C if outputs else 1
    inputs = normal(size, E)
    # A common direction in all gradients, so that no two of them conflict.
    lead = normal(1, *((size, *outputs) if at == "output" else (P,)))
    spread = normal(terms, *lead.shape[1:])
    dot = (spread * lead).flatten(1).sum(1) / lead.square().sum().clamp(min=1e-6)
    spread = spread - dot.view(-1, *[1] * (lead.ndim - 1)) * lead
    return {
        "logits": normal(size, *outputs),
        "targets": targets,
        "embeddings": normal(size, E),
        "embeddings_b": normal(size, E),
        "embeddings_left": normal(size, E),
        "logits_b": normal(size, *outputs),
        "logits_adv": normal(size, *outputs),
        "rho": torch.rand(size, generator=generator),
        "noise_scores": normal(N),
        "noise_logq": normal(N) - 1,
        "data_logq": normal(size) - 1,
        "predictions": normal(size),
        "weight": normal(classes, E),
        "teacher_logits": normal(size, *outputs),
        "teacher_embeddings": normal(size, E),
        "features": normal(N, E),
        "index": rows,
        "bag": rows % C,
        "event": (rows % 3 > 0).float(),
        "time": torch.rand(size, generator=generator) + 0.1,
        "class_counts": counts,
        "epoch": 1,
        "step": 3,
        "total_steps": 100,
        "model": ToyModel(classes, squeeze=not outputs),
        "inputs": inputs,
        "selection": _pairs(targets, size),
        "draws": torch.rand(size, generator=generator),
        "losses": torch.rand(size, generator=generator) * 2 + 0.1,
        "gradients": lead + 0.2 * spread,
        "term_values": torch.rand(terms, generator=generator) + 0.5,
        "losses_b": torch.rand(size, generator=generator) * 2 + 0.1,
    }


class ToyModel(nn.Module):
    """Stands for the network, for a component that calls it again."""

    def __init__(self, outputs: int, squeeze: bool) -> None:
        super().__init__()
        self.squeeze = squeeze
        grid = torch.arange(outputs * E, dtype=torch.float32).view(outputs, E)
        self.weight = nn.Parameter(torch.sin(grid))

    def head(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self.weight.to(embeddings).T

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        embeddings = torch.tanh(inputs)
        logits = self.head(embeddings)
        return {"logits": logits[:, 0] if self.squeeze else logits, "embeddings": embeddings}


def _pairs(targets: Tensor, size: int) -> tuple[Tensor, ...]:
    """Positive pairs (a1, p) and negative pairs (a2, n), by equal and unequal targets."""
    rows = targets if targets.ndim > 1 else targets[:, None]
    same = (rows[:, None] == rows[None]).all(-1)
    one, two = torch.triu_indices(size, size, offset=1)
    alike = same[one, two]
    return one[alike], two[alike], one[~alike], two[~alike]


# Variants -------------------------------------------------------------------------------------


def extreme(batch: Mapping[str, Any], size: float = EXTREME) -> dict[str, Any]:
    """Every computed value at ``+size`` or ``-size``: right, wrong, all high, all low, mixed."""
    generator = torch.Generator().manual_seed(1)
    changed = dict(batch)
    for field in COMPUTED:
        if field in batch:
            value: Tensor = batch[field]
            signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            changed[field] = size * signs.to(value.dtype)
    targets = batch.get("targets")
    for field in ("logits", "logits_b", "logits_adv"):
        if field in batch and isinstance(targets, Tensor) and len(targets) >= 4:
            logits = changed[field]
            wins = _signs(targets, logits)
            if wins is not None:
                logits[0], logits[1] = size * wins[0], -size * wins[1]
            if logits.ndim > 1:
                logits[2], logits[3] = size, -size
    return changed


def _signs(targets: Tensor, logits: Tensor) -> Tensor | None:
    """+1 where a perfect score is high and -1 where it is low."""
    if targets.shape == logits.shape:
        return 2 * targets - 1
    if targets.dtype == torch.int64 and logits.ndim == 2:
        return 2 * nn.functional.one_hot(targets, logits.shape[1]).to(logits.dtype) - 1
    return None


def perfect(batch: Mapping[str, Any], right: bool = True) -> dict[str, Any]:
    """The best scores that there are for the targets, or the worst."""
    changed = dict(batch)
    targets = batch.get("targets")
    for field in ("logits", "predictions"):
        if field in batch and isinstance(targets, Tensor):
            if field == "predictions":
                changed[field] = targets.clone() if right else -3 * targets
                continue
            signs = _signs(targets, batch[field])
            if signs is not None:
                changed[field] = 8.0 * signs * (1 if right else -1)
    return changed


def cast(batch: Mapping[str, Any], dtype: torch.dtype, fields: tuple[str, ...]) -> dict[str, Any]:
    """These fields in another precision."""
    return {
        k: v.to(dtype) if k in fields and isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in batch.items()
    }


def permuted(batch: Mapping[str, Any], order: Tensor) -> dict[str, Any]:
    """The samples in another order."""
    changed = {k: v[order] if k in PER_SAMPLE else v for k, v in batch.items()}
    if "selection" in batch:
        changed["selection"] = tuple(order.argsort()[index] for index in batch["selection"])
    return changed


def differentiable(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The batch with its outputs as leaves that require a gradient, and these leaves by name."""
    leaves = {
        k: v.detach().clone().requires_grad_()
        for k, v in batch.items()
        if k in OUTPUTS and isinstance(v, Tensor)
    }
    return {**batch, **leaves}, leaves
