"""What reweightings and miners have to pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lossearch.testing import batches
from lossearch.testing import common_checks as common
from lossearch.testing.common_checks import Rule, close, shared_rules
from lossearch.testing.subject import Subject

# Reweightings ---------------------------------------------------------------------------------


def reweighting_rules(subject: Subject) -> Iterator[tuple[str, Rule]]:
    """The checks that apply to this reweighting."""
    yield "weights", weights
    yield "mean one", mean_one
    yield "detached", detached
    yield "weights at extremes", weights_at_extremes
    yield "permutation", permutation
    yield "empty batch", empty_batch
    yield from shared_rules(subject)
    if subject.component.signature.domains:
        yield "range ends", common.at_range_ends(weights)
    if subject.component.vmappable:
        yield "vmap over models", common.vmap_over_models
        if not subject.component.stateful:
            yield "vmap over hyperparameters", common.vmap_over_hyperparameters


def weights(subject: Subject, batch: dict[str, Any] | None = None, on: str = "") -> None:
    """A finite weight of at least 0 for each sample."""
    found = subject(batch or subject.batch(), f"a batch {on}" if on else "an ordinary batch")
    subject.expect(isinstance(found, Tensor), f"returns {type(found).__name__}, not a tensor")
    shape = list(found.shape)
    subject.expect(
        shape == [batches.B], f"returns shape {shape}; one weight a sample is [{batches.B}]"
    )
    subject.expect(found.is_floating_point(), f"returns {found.dtype}, and weights are floats")
    subject.expect_finite(found, f"weight {on}".strip())
    least = found.min().item()
    subject.expect(least >= 0, f"gives a weight of {least:g} {on}".rstrip())


def mean_one(subject: Subject) -> None:
    """Weights of mean 1 on a batch with equally many of each class: the scale stays the loss's."""
    mean = subject(subject.batch()).double().mean().item()
    subject.expect(
        abs(mean - 1) < 1e-4,
        f"gives weights of mean {mean:.4g}, not 1",
        "Divide by their mean. A scheme that means to change the scale says so: "
        'skips={"mean one": "why"}.',
    )


def detached(subject: Subject) -> None:
    """No gradient flows through a weight."""
    batch, _ = batches.differentiable(subject.batch())
    if "losses" in batch:
        batch["losses"] = batch["losses"].clone().requires_grad_()
    found = subject(batch)
    subject.expect(
        not found.requires_grad, "lets a gradient through its weights", "Return w.detach()."
    )


def weights_at_extremes(subject: Subject) -> None:
    """Weights where outputs are +80 or -80, and losses are huge, equal, or 0."""
    batch = batches.extreme(subject.batch())
    weights(subject, batch, "at outputs of +80 and -80")
    if "losses" in batch:
        steps = torch.arange(batches.B) % 2
        for losses, name in ((80.0 * steps, "0 and 80"), (0.0 * steps, "0"), (steps + 1e4, "1e4")):
            batch = {**subject.batch(), "losses": losses.float()}
            weights(subject, batch, f"at losses of {name}")


def permutation(subject: Subject) -> None:
    """The order of the samples does not matter."""
    batch = subject.batch()
    order = torch.randperm(batches.B, generator=torch.Generator().manual_seed(2))
    bound, again = subject.fresh(), subject.fresh()
    if common.draws_by_itself(subject):
        bound.eval()
        again.eval()
    found = subject.run(bound, batch, "an ordinary batch")
    moved = subject.run(again, batches.permuted(batch, order), "a permuted batch")
    close(subject, moved, found[order], "depends on the order of the samples in the batch")


def empty_batch(subject: Subject) -> None:
    """No samples, no weights."""
    shape = list(subject(subject.batch(size=0), "an empty batch").shape)
    subject.expect(shape == [0], f"returns shape {shape} for an empty batch, not [0]")


# Miners ---------------------------------------------------------------------------------------


def miner_rules(subject: Subject) -> Iterator[tuple[str, Rule]]:
    """The checks that apply to this miner."""
    if subject.component.returns_at(subject.params) == "selection":
        rule: Rule = selection
    else:
        rule = mask
        yield "permutation", permutation
        yield "hard cases", hard_cases
    yield ("mask" if rule is mask else "selection"), rule
    yield from shared_rules(subject)
    if subject.component.signature.domains:
        yield "range ends", common.at_range_ends(rule)
    if subject.component.vmappable:
        yield "vmap over models", common.vmap_over_models


def mask(
    subject: Subject, batch: dict[str, Any] | None = None, on: str = "an ordinary batch"
) -> None:
    """A bool for each sample, one of them True at least."""
    batch = batch or subject.batch()
    found = subject(batch, on)
    size = len(batch["losses"]) if "losses" in batch else batches.B
    kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
    subject.expect(kind == torch.bool, f"returns {kind}; a mask is a bool tensor")
    shape = list(found.shape)
    subject.expect(shape == [size], f"returns shape {shape}; one bool a sample is [{size}]")
    subject.expect(
        found.any(),
        f"keeps no sample of {on}",
        "An empty selection has no mean: keep one at least.",
    )


def hard_cases(subject: Subject) -> None:
    """It keeps something of a batch with equal, huge or zero losses, and of a single sample."""
    ordinary = subject.batch()
    mask(subject, batches.extreme(ordinary), "a batch with outputs of +80 and -80")
    if "losses" in ordinary:
        for value in (0.0, 1.0, 1e4):
            batch = {**ordinary, "losses": torch.full_like(ordinary["losses"], value)}
            mask(subject, batch, f"a batch with all losses {value:g}")
    mask(subject, subject.batch(size=1), "a batch of one sample")


def selection(subject: Subject) -> None:
    """Triplets (a, p, n) or pairs (a1, p, a2, n) of indices, true to the targets."""
    batch = subject.batch()
    found = subject(batch)
    fine = isinstance(found, tuple) and len(found) in (3, 4)
    fine = fine and all(isinstance(i, Tensor) and i.dtype == torch.int64 for i in found)
    subject.expect(fine, "returns no selection", "It is a tuple of 3 or 4 int64 index tensors.")
    anchors, positives, others, negatives = found if len(found) == 4 else (*found[:2], *found[::2])
    subject.expect(
        len(anchors) == len(positives) and len(others) == len(negatives),
        "returns index tensors whose lengths do not match",
    )
    for indices in found:
        inside = ((indices >= 0) & (indices < batches.B)).all()
        subject.expect(inside, f"selects indices outside the batch of {batches.B}")
    targets = batch.get("targets")
    if isinstance(targets, Tensor) and targets.ndim == 1:
        subject.expect(
            (targets[anchors] == targets[positives]).all(), "selects positives of another class"
        )
        subject.expect(
            (targets[others] != targets[negatives]).all(), "selects negatives of the same class"
        )
