"""Toy components: one of each sort that the engine has to deal with, easy to compute by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

import lossearch
from lossearch import ByTask, Choices, Given, Paper, Range
from lossearch.components import component_of
from lossearch.objective import Objective
from lossearch.registry import Registry

ALL = ("multiclass", "binary", "multilabel")

# Losses ---------------------------------------------------------------------------------------


@lossearch.loss(task="multiclass", paper=Paper("A toy", 2020, "arXiv:0000.00000"))
def toy_ce(
    logits: Tensor,
    targets: Tensor,
    *,
    smoothing: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.5)] = 0.0,
) -> Tensor:
    """Cross-entropy with label smoothing."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")


@lossearch.loss(task=ALL)
def toy_power(
    logits: Tensor,
    class_counts: Tensor | None = None,
    *,
    exponent: Annotated[float, Field(ge=1), Range(1.0, 4.0)] = 2.0,
    rounds: Annotated[int, Field(ge=1), Range(1, 8, log=True)] = 1,
    mode: Annotated[
        Literal["sum", "mean"], Choices(), ByTask(multiclass="sum", binary="mean")
    ] = "sum",
    scale: float = 1.0,
) -> Tensor:
    """The logits' absolute values to a power, summed or averaged over classes."""
    values = rounds * scale * logits.abs().pow(exponent).flatten(1)
    if class_counts is not None:
        values = values / class_counts
    return values.sum(1) if mode == "sum" else values.mean(1)


@lossearch.loss(task=ALL, returns="batch")
def toy_batch(logits: Tensor, *, target: Annotated[float, Range(-1.0, 1.0)] = 0.0) -> Tensor:
    """The squared distance of the mean logit from a target: it exists only for a batch."""
    return (logits.mean() - target) ** 2


def _either(params: BaseModel) -> Literal["batch", "per_sample"]:
    return "batch" if getattr(params, "whole", False) else "per_sample"


@lossearch.loss(task=ALL, returns=_either)
def toy_either(logits: Tensor, *, whole: Annotated[bool, Choices()] = False) -> Tensor:
    """Squared logits, of each sample or of the whole batch."""
    values = logits.pow(2).flatten(1).sum(1)
    return values.mean() if whole else values


@lossearch.loss(task=ALL, auxiliary=True)
def toy_norm(embeddings: Tensor, *, radius: Annotated[float, Range(0.5, 2.0)] = 1.0) -> Tensor:
    """How far the squared norm of an embedding is from a radius; an auxiliary loss."""
    return (embeddings.pow(2).sum(1) - radius).abs()


@lossearch.loss(task=ALL, auxiliary=True)
def toy_distil(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The squared distance from a teacher that only some studies have."""
    return (logits - teacher_logits).pow(2).sum(1)


@lossearch.loss(name="toy_running", task=ALL)
class ToyRunning(nn.Module):
    """Logits over their running scale: it has a state, and counts its epochs."""

    scale: Tensor

    def __init__(
        self,
        *,
        decay: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.9)] = 0.5,
        num_classes: Annotated[int, Field(ge=1), Given("num_classes")],
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__()
        self.decay, self.seed = decay, seed
        self.register_buffer("scale", torch.ones(num_classes))
        self.epochs: list[tuple[str, int]] = []

    def forward(self, logits: Tensor) -> Tensor:
        if self.training:
            now = logits.detach().abs().mean(0)
            self.scale.mul_(self.decay).add_((1 - self.decay) * now)
        return (logits / self.scale).pow(2).sum(1)

    def start_epoch(self, epoch: int) -> None:
        self.epochs.append(("start", epoch))

    def end_epoch(self, epoch: int) -> None:
        self.epochs.append(("end", epoch))


@lossearch.loss(name="toy_learned", task=ALL)
class ToyLearned(nn.Module):
    """The squared distance of the logits from a learned centre."""

    def __init__(self, *, init: float = 0.0) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(init))

    def forward(self, logits: Tensor) -> Tensor:
        return (logits - self.centre).pow(2).sum(1)


@lossearch.loss(task="multiclass", returns="per_pair")
def toy_pairs(embeddings: Tensor, selection: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The squared distance of each pair: of the selection, else of all neighbours."""
    if selection is None:
        one = torch.arange(len(embeddings) - 1)
        selection = (one, one + 1)
    return (embeddings[selection[0]] - embeddings[selection[1]]).pow(2).sum(1)


# What acts on losses --------------------------------------------------------------------------


@lossearch.reweighting()
def toy_by_loss(
    losses: Tensor, *, power: Annotated[float, Field(ge=0), Range(0.0, 2.0)] = 1.0
) -> Tensor:
    """Weights in proportion to a power of the loss, of mean 1."""
    weights = losses.pow(power)
    return weights / weights.mean()


@lossearch.reweighting(task="multiclass")
def toy_by_class(targets: Tensor, class_counts: Tensor) -> Tensor:
    """Weights in inverse proportion to the class's count, of mean 1."""
    weights = 1.0 / class_counts[targets]
    return weights / weights.mean()


@lossearch.miner()
def toy_below(losses: Tensor, *, limit: Annotated[float, Range(0.1, 10.0)] = 1.0) -> Tensor:
    """The samples whose loss is below a limit."""
    return losses < limit


@lossearch.miner(task="multiclass", returns="selection")
def toy_ends(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """One pair: the first and the last sample."""
    return torch.tensor([0]), torch.tensor([len(embeddings) - 1])


@lossearch.balancer()
def toy_max(losses: Tensor) -> Tensor:
    """The largest term alone."""
    return losses.max()


@lossearch.balancer(name="toy_uncertainty")
class ToyUncertainty(nn.Module):
    """Learned log-variances: it has parameters of its own."""

    def __init__(self, *, num_terms: Annotated[int, Given("num_terms")]) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(num_terms))

    def forward(self, losses: Tensor) -> Tensor:
        return ((-self.s).exp() * losses + self.s).sum()


@lossearch.balancer(name="toy_weights")
class ToyWeights(nn.Module):
    """Takes the terms' weights as its own, and shows what it was given."""

    def __init__(self, *, weights: Annotated[tuple[float, ...], Given("term_weights")]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, losses: Tensor) -> Tensor:
        return (losses * torch.tensor(self.weights)).sum()


@lossearch.balancer()
def toy_normalised(gradients: Tensor, *, at: Literal["output", "parameters"] = "output") -> Tensor:
    """The sum of the terms' gradients, each brought to norm 1."""
    flat = gradients.flatten(1)
    norms = flat.norm(dim=1).clamp(min=1e-12)
    return (flat / norms[:, None]).sum(0).view_as(gradients[0])


@lossearch.balancer()
def toy_mean_gradient(gradients: Tensor, *, at: Literal["parameters"] = "parameters") -> Tensor:
    """The mean of the terms' gradients at the parameters."""
    return gradients.mean(0)


# The rest -------------------------------------------------------------------------------------


@lossearch.provider(gives="teacher_logits")
def toy_teacher(logits: Tensor) -> Tensor:
    """A teacher that says the opposite."""
    return -logits.detach()


@lossearch.metric(task="multiclass")
def toy_accuracy(logits: Tensor, targets: Tensor) -> float:
    """The share of right answers."""
    return float((logits.argmax(1) == targets).double().mean())


COMPONENTS: tuple[Callable[..., Any], ...] = (
    toy_ce,
    toy_power,
    toy_batch,
    toy_either,
    toy_norm,
    toy_distil,
    ToyRunning,
    ToyLearned,
    toy_pairs,
    toy_by_loss,
    toy_by_class,
    toy_below,
    toy_ends,
    toy_max,
    ToyUncertainty,
    ToyWeights,
    toy_normalised,
    toy_mean_gradient,
    toy_teacher,
    toy_accuracy,
)


def toy_registry() -> Registry:
    """A registry of the toys alone."""
    registry = Registry()
    for target in COMPONENTS:
        registry.add(component_of(target), "toys")
    return registry


def toy_objective(
    *terms: Any, balancer: Any = None, task: str = "multiclass", **facts: Any
) -> Objective:
    """An objective of toys, each term a mapping with ``loss`` or a loss alone."""
    listed = [t if isinstance(t, dict) and "loss" in t else {"loss": t} for t in terms]
    document = {"task": task, "terms": listed, "balancer": balancer}
    return Objective.from_spec(document, registry=toy_registry(), **{"num_classes": 3, **facts})


# A batch that toys give round numbers for.
LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 3.0], [-1.0, 1.0, 1.0]], dtype=torch.float64)
EMBEDDINGS = torch.tensor([[1.0, 1.0], [0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
TARGETS = torch.tensor([0, 2, 1])
BATCH = {"logits": LOGITS, "targets": TARGETS, "embeddings": EMBEDDINGS}
POWER = [5.25, 9.0, 3.0]  # toy_power: the squared logits' sum
NORM = [1.0, 3.0, 8.0]  # toy_norm: | ||e||^2 - 1 |

# A plugin in one file: PLUGIN.format(name="mine") offers the loss `mine`.
PLUGIN = """\
import lossearch

@lossearch.loss(task="multiclass")
def {name}(logits, targets):
    "A loss."
    return logits.sum(1)

@lossearch.hookimpl
def register_losses():
    return [{name}]
"""
