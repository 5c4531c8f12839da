"""What balancers and metrics have to pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lossearch.testing import batches
from lossearch.testing import common_checks as common
from lossearch.testing.common_checks import Rule, close, shared_rules
from lossearch.testing.subject import Subject

# Balancers ------------------------------------------------------------------------------------


def balancer_rules(subject: Subject) -> Iterator[tuple[str, Rule]]:
    """The checks that apply to this balancer."""
    yield "one term", one_term
    yield "agreeing terms", agreeing_terms
    yield "equal terms", equal_terms
    yield "unequal scales", unequal_scales
    yield from shared_rules(subject)
    if subject.component.signature.domains:
        yield "range ends", common.at_range_ends(agreeing_terms)


def _combines_gradients(subject: Subject) -> bool:
    return "gradients" in subject.component.reads(subject.params)


def _combined(subject: Subject, batch: dict[str, Any], on: str) -> Tensor:
    """What training follows: the combined gradient, or the weight that each value gets."""
    batch = dict(batch)
    if _combines_gradients(subject):
        found = subject(batch, on)
        fine = isinstance(found, Tensor) and found.shape == batch["gradients"].shape[1:]
        shape = list(getattr(found, "shape", ()))
        wanted = list(batch["gradients"].shape[1:])
        subject.expect(fine, f"returns shape {shape}; the combined gradient is {wanted}")
        subject.expect(not found.requires_grad, "returns a gradient that itself has a gradient")
    else:
        batch["losses"] = batch["losses"].clone().requires_grad_()
        value = subject(batch, on)
        fine = isinstance(value, Tensor) and value.ndim == 0
        subject.expect(fine, "returns no single number to minimise")
        subject.expect_finite(value, f"value on {on}")
        with subject.reporting(f"has no gradient at the losses on {on}"):
            (found,) = torch.autograd.grad(value, batch["losses"])
    subject.expect_finite(found, f"result on {on}")
    return found


def _expect_along(subject: Subject, found: Tensor, wanted: Tensor, problem: str) -> None:
    cosine = torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0).item()
    subject.expect(cosine > 0.999, f"{problem} (cosine {cosine:.4g})")


def one_term(subject: Subject) -> None:
    """With one term it acts like plain training: a positive multiple of that term's gradient."""
    alone = Subject(subject.component, subject.task, subject.values, terms=1)
    batch = alone.batch()
    found = _combined(alone, batch, "a single term")
    wanted = batch["gradients"][0] if _combines_gradients(alone) else torch.ones(1)
    _expect_along(subject, found, wanted, "with one term does not follow that term's gradient")


def agreeing_terms(subject: Subject) -> None:
    """Where the terms agree, following the result makes no term worse."""
    batch = subject.batch()
    found = _combined(subject, batch, "two agreeing terms")
    rows = batch["gradients"].flatten(1) if _combines_gradients(subject) else torch.eye(2)
    gains = rows @ found.flatten()
    subject.expect(
        (gains >= -1e-6).all() and (gains > 0).any(),
        f"does not descend where the terms agree: the terms change by {(-gains).tolist()}",
    )


def equal_terms(subject: Subject) -> None:
    """Equal terms count: the result is a positive multiple of their common gradient."""
    batch = subject.batch()
    batch["losses"] = torch.ones(2)
    if "gradients" in batch:
        batch["gradients"] = batch["gradients"][:1].repeat(2, *[1] * (batch["gradients"].ndim - 1))
    found = _combined(subject, batch, "two equal terms")
    if _combines_gradients(subject):
        wanted = batch["gradients"][0]
        _expect_along(
            subject, found, wanted, "with two equal terms does not follow their gradient"
        )
    else:
        subject.expect((found >= 0).all() and found.sum() > 0, "weighs two equal terms below 0")


def unequal_scales(subject: Subject) -> None:
    """Finite where one term is far larger than the other, and where one has no gradient."""
    batch = subject.batch()
    batch["losses"] = torch.tensor([80.0, 1e-3])
    _combined(subject, batch, "losses of 80 and 0.001")
    if "gradients" in batch:
        batch["gradients"] = batch["gradients"].clone()
        batch["gradients"][1] = 0
        _combined(subject, batch, "a term without a gradient")


# Metrics --------------------------------------------------------------------------------------


def metric_rules(subject: Subject) -> Iterator[tuple[str, Rule]]:
    """The checks that apply to this metric."""
    yield "number", number
    yield "metric permutation", metric_permutation
    yield "perfect beats worst", perfect_beats_worst
    yield from shared_rules(subject)
    if subject.component.signature.domains:
        yield "range ends", common.at_range_ends(number)


def _split(subject: Subject) -> dict[str, Any]:
    batch = subject.batch(size=24)
    return batches.cast(batch, torch.float64, tuple(batch))


def number(subject: Subject) -> None:
    """A Python float, finite on an ordinary split."""
    value = subject(_split(subject), "an ordinary split")
    subject.expect(isinstance(value, float), f"returns {type(value).__name__}, not a float")
    subject.expect_finite(torch.tensor(value), "value on an ordinary split")


def metric_permutation(subject: Subject) -> None:
    """The order of the samples does not matter."""
    batch = _split(subject)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    found = torch.tensor(subject(batches.permuted(batch, order), "a permuted split"))
    expected = torch.tensor(subject(batch))
    close(subject, found, expected, "depends on the order of the samples")


def perfect_beats_worst(subject: Subject) -> None:
    """Right and sure scores are better than wrong and sure ones, by ``maximize``."""
    batch = _split(subject)
    right = subject(batches.perfect(batch), "perfect scores")
    wrong = subject(batches.perfect(batch, right=False), "scores that are all wrong")
    better = right > wrong if subject.component.maximize else right < wrong
    word = "larger" if subject.component.maximize else "smaller"
    subject.expect(
        better,
        f"rates perfect scores {right:.4g} and wrong ones {wrong:.4g}, and {word} is better",
        "Set maximize in the decorator.",
    )
