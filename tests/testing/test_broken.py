"""Each broken toy is caught by the check that is there for its mistake."""

from __future__ import annotations

import random
from typing import Annotated, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossearch
from lossearch import Range
from lossearch.components import component_of
from lossearch.testing import CheckFailure, checks

# Broken losses --------------------------------------------------------------------------------


def _p(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, targets[:, None])[:, 0]


def _ce(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


@lossearch.loss(task="multiclass")
def nan_slope(
    logits: Tensor, targets: Tensor, *, gamma: Annotated[float, Range(0.5, 5.0)] = 0.5
) -> Tensor:
    return (1 - _p(logits, targets)) ** gamma * _ce(logits, targets)


@lossearch.loss(task="multiclass")
def nan_at_an_end(
    logits: Tensor, targets: Tensor, *, gamma: Annotated[float, Range(0.5, 5.0)] = 2.0
) -> Tensor:
    return (1 - _p(logits, targets)) ** gamma * _ce(logits, targets)


@lossearch.loss(task="multiclass")
def log_of_rounded(logits: Tensor, targets: Tensor) -> Tensor:
    return -_p(logits, targets).log()


@lossearch.loss(task="multiclass")
def in_place(logits: Tensor, targets: Tensor) -> Tensor:
    targets[targets == 3] = 0
    return _ce(logits, targets)


@lossearch.loss(task="multiclass")
def global_noise(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits + 0 * torch.randn(logits.shape), targets)


@lossearch.loss(task="multiclass")
def python_noise(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits + 0 * random.random(), targets)


@lossearch.loss(task="multiclass")
def with_item(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits, targets) * (1 + logits.detach().abs().mean().item())


@lossearch.loss(task="multiclass")
def branch_on_hyperparameter(
    logits: Tensor, targets: Tensor, *, q: Annotated[float, Range(0.0, 1.0)] = 0.5
) -> Tensor:
    return _ce(logits, targets) if q == 0 else (1 - _p(logits, targets) ** q) / q


@lossearch.loss(task="multiclass")
def reduced(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


@lossearch.loss(task="multiclass", returns="batch")
def not_reduced(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits, targets)


@lossearch.loss(task="multiclass")
def other_dtype(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits, targets).float()


@lossearch.loss(task="multiclass")
def no_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) != targets).to(logits.dtype)


@lossearch.loss(task="multiclass")
def held_constant(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits, targets) * (1 - _p(logits, targets)).detach()


@lossearch.loss(task="multiclass")
def by_position(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits, targets) * torch.arange(len(logits), dtype=logits.dtype)


@lossearch.loss(task="multiclass")
def by_running_sum(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits, targets).cumsum(0)


@lossearch.loss(task="multiclass")
def coarse(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits + 256, targets)  # which bfloat16 rounds to even numbers


@lossearch.loss(task="multiclass")
def no_empty_batch(logits: Tensor, targets: Tensor) -> Tensor:
    return _ce(logits, targets) + 0 * logits.max()


@lossearch.loss(task="multiclass")
def needs_two_classes(logits: Tensor, targets: Tensor) -> Tensor:
    spread = (targets.max() - targets.min()).to(logits.dtype)
    return _ce(logits, targets) / spread


@lossearch.loss(task="binary")
def needs_positives(logits: Tensor, targets: Tensor) -> Tensor:
    values = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    return torch.where(targets < 0, 0.0, values / targets.clamp(min=0).sum())


@lossearch.loss(task="binary")
def takes_unknown_for_known(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@lossearch.loss(task="multiclass")
def needs_an_optional(
    logits: Tensor, targets: Tensor, class_counts: Tensor | None = None
) -> Tensor:
    return _ce(logits / class_counts.max(), targets)  # type: ignore[union-attr]


@lossearch.loss(task="multiclass")
def bad_end(
    logits: Tensor, targets: Tensor, *, power: Annotated[float, Range(-1.0, 1.0)] = 1.0
) -> Tensor:
    return torch.as_tensor(power + 1.0).log() * _ce(logits, targets)


@lossearch.loss(name="forgetful", task="multiclass")
class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 1.0  # not a buffer

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.steps += 1
        return self.steps * _ce(logits, targets)


@lossearch.loss(name="learns_from_validation", task="multiclass")
class LearnsFromValidation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.mean = self.mean + 1
        return _ce(logits, targets)


@lossearch.loss(task="multiclass")
def unknown_field(logit: Tensor, targets: Tensor) -> Tensor:
    return _ce(logit, targets)


BROKEN = [
    (nan_slope, "extremes", "NaN slope at logits at outputs of \\+80 and -80.*\n.*log space"),
    (nan_at_an_end, "extremes at range ends", r"nan_at_an_end\(gamma=0.5\) has a NaN slope"),
    (log_of_rounded, "extremes", "infinite value"),
    (in_place, "inputs untouched", "changes the field 'targets'"),
    (global_noise, "global state untouched", "torch's global random state"),
    (python_noise, "global state untouched", "Python's global random state"),
    (with_item, "vmap over models", r"does not run under vmap.*line \d+ of .*test_broken.py"),
    (branch_on_hyperparameter, "vmap over hyperparameters", "under vmap over 'q'"),
    (
        reduced,
        "shape and dtype",
        r"returns shape \[\].*8 samples is \[8\](.|\n)*returns=\"batch\"",
    ),
    (not_reduced, "shape and dtype", "means a single number"),
    (other_dtype, "shape and dtype", "returns torch.float32 for torch.float64 fields"),
    (no_gradient, "value and slope", "no slope at any output"),
    (held_constant, "gradcheck", "not the slope of its value.*respect to logits"),
    (by_position, "permutation", "order of the samples"),
    (by_running_sum, "permutation", "order of the samples"),
    (coarse, "bfloat16", "off by up to"),
    (no_empty_batch, "empty batch", "raises on an empty batch"),
    (needs_two_classes, "one class", "where all samples have one class"),
    (needs_positives, "no positives", "where no label is positive"),
    (takes_unknown_for_known, "unknown labels", "takes an unknown label"),
    (needs_an_optional, "required fields only", "raises on an ordinary batch"),
    (bad_end, "range ends", r"bad_end\(power=-1.0\) has an infinite value"),
    (Forgetful, "state round trip", "goes on differently"),
    (LearnsFromValidation, "evaluation keeps state", "Update state only"),
    (unknown_field, "shape and dtype", "'logit', which is not a field; did you mean 'logits'"),
]


@pytest.mark.parametrize(
    ("component", "check", "message"), BROKEN, ids=[component_of(b[0]).name for b in BROKEN]
)
def test_broken_loss_is_caught(component: Any, check: str, message: str) -> None:
    with pytest.raises(CheckFailure, match=message):
        dict(checks(component))[check]()


# Broken components of the other kinds -----------------------------------------------------------


@lossearch.reweighting(task="multiclass")
def total_one(losses: Tensor) -> Tensor:
    return losses.detach().softmax(0)


@lossearch.reweighting(task="multiclass")
def attached(losses: Tensor) -> Tensor:
    return losses.softmax(0) * len(losses)


@lossearch.reweighting(task="multiclass")
def negative(losses: Tensor) -> Tensor:
    return losses.detach() - losses.mean().detach() + 1 - 2 * (losses.detach() > 1)


@lossearch.reweighting(task="multiclass")
def divides_by_spread(losses: Tensor) -> Tensor:
    w = (losses.detach() - losses.detach().min()) / losses.detach().std()
    return w / w.mean()


@lossearch.miner(task="multiclass")
def keeps_none(losses: Tensor) -> Tensor:
    return losses > losses.mean()


@lossearch.miner(task="multiclass")
def not_bool(losses: Tensor) -> Tensor:
    return (losses >= 0).float()


@lossearch.miner(task="multiclass", returns="selection", vmap=False)
def wrong_pairs(targets: Tensor) -> tuple[Tensor, ...]:
    rows = torch.arange(len(targets) - 1)
    return rows, rows + 1, rows, rows + 1


@lossearch.balancer()
def climbs(losses: Tensor) -> Tensor:
    return -losses.sum()


@lossearch.balancer()
def divides_by_norm(gradients: Tensor) -> Tensor:
    return (gradients / gradients.flatten(1).norm(dim=1)[:, None]).sum(0)


@lossearch.balancer()
def ignores_equal(gradients: Tensor) -> Tensor:
    return gradients[0] - 0.9 * gradients[-1] if len(gradients) > 1 else -gradients[0]


@lossearch.metric(task="multiclass")
def returns_tensor(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets).double().mean()


@lossearch.metric(task="multiclass")
def upside_down(logits: Tensor, targets: Tensor) -> float:
    return (logits.argmax(1) != targets).double().mean().item()


@lossearch.metric(task="multiclass")
def only_the_first(logits: Tensor, targets: Tensor) -> float:
    return (logits.softmax(1)[:8].argmax(1) == targets[:8]).double().mean().item()


OTHERS = [
    (total_one, "mean one", "mean 0.125, not 1"),
    (attached, "detached", "lets a gradient through"),
    (negative, "weights", "gives a weight of -"),
    (divides_by_spread, "weights at extremes", "NaN weight at losses of 0"),
    (keeps_none, "hard cases", "keeps no sample of a batch with all losses 0"),
    (not_bool, "mask", "a mask is a bool tensor"),
    (wrong_pairs, "selection", "positives of another class"),
    (climbs, "agreeing terms", "does not descend"),
    (divides_by_norm, "unequal scales", "NaN result on a term without a gradient"),
    (ignores_equal, "one term", "with one term does not follow"),
    (returns_tensor, "number", "not a float"),
    (upside_down, "perfect beats worst", "rates perfect scores 0 and wrong ones 1"),
    (only_the_first, "metric permutation", "order of the samples"),
]


@pytest.mark.parametrize(
    ("component", "check", "message"), OTHERS, ids=[component_of(b[0]).name for b in OTHERS]
)
def test_broken_component_is_caught(component: Any, check: str, message: str) -> None:
    with pytest.raises(CheckFailure, match=message):
        dict(checks(component))[check]()
