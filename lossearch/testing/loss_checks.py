"""What a loss has to pass, and what reweightings share with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from lossearch.errors import LossearchError
from lossearch.testing import batches
from lossearch.testing import common_checks as common
from lossearch.testing.common_checks import Rule, close
from lossearch.testing.subject import CheckFailure, Subject

_SLOPE = (
    "Usual causes: (1 - p) ** gamma, whose slope is infinite at p = 1 for gamma < 1; the log of a "
    "clamped or a rounded probability; a norm or sqrt at 0; torch.where around a branch that "
    "overflows. Work in log space (log_softmax, logsigmoid, logsumexp)."
)


def rules(subject: Subject) -> Iterator[tuple[str, Rule]]:
    """The checks that apply to this loss."""
    component = subject.component
    yield "shape and dtype", shape_and_dtype
    yield "value and slope", value_and_slope
    if component.optional_fields:
        yield "required fields only", required_fields_only
    yield "extremes", extremes
    yield "bfloat16", bfloat16
    yield "gradcheck", gradcheck
    yield "permutation", permutation
    yield "empty batch", empty_batch
    yield "one class", one_class
    if subject.task in ("binary", "multilabel"):
        yield "no positives", no_positives
        yield "unknown labels", unknown_labels
    soft = component.soft_targets and component.soft_at(subject.params)
    if soft and subject.task != "multilabel" and not common.draws_by_itself(subject):
        yield "soft targets", soft_targets
    yield from common.shared_rules(subject)
    if component.signature.domains:
        yield "range ends", common.at_range_ends(value_and_slope)
        yield "extremes at range ends", common.at_range_ends(extremes)
    if component.vmappable:
        yield "vmap over models", common.vmap_over_models
        if not component.stateful:
            yield "vmap over hyperparameters", common.vmap_over_hyperparameters


def returns(subject: Subject) -> str | None:
    return subject.component.returns_at(subject.params)


def shape_and_dtype(subject: Subject) -> None:
    """A value for each sample (or what ``returns`` says), as precise as the outputs."""
    for dtype in (torch.float32, torch.float64):
        batch = subject.batch()
        batch = batches.cast(batch, dtype, tuple(batch))
        value = subject(batch, f"a {dtype} batch")
        subject.expect(isinstance(value, Tensor), f"returns {type(value).__name__}, not a tensor")
        expect_shape(subject, value)
        subject.expect(value.dtype == dtype, f"returns {value.dtype} for {dtype} fields")


def expect_shape(subject: Subject, value: Tensor, size: int = batches.B) -> None:
    declared = returns(subject)
    found = list(value.shape)
    if declared == "per_sample":
        subject.expect(
            found == [size],
            f"returns shape {found}, and a value for each of {size} samples is [{size}]",
            'Do not reduce; a loss that exists only for the whole batch says returns="batch".',
        )
    elif declared == "batch":
        subject.expect(
            found == [], f'returns shape {found}, and returns="batch" means a single number'
        )
    else:
        subject.expect(value.ndim == 1, f"returns shape {found}, and {declared} is a vector")


def value_and_slope(subject: Subject, batch: dict[str, Any] | None = None, on: str = "") -> None:
    """A finite value, and a finite slope that reaches at least one output."""
    what = f"a batch {on}" if on else "an ordinary batch"
    value, slopes = subject.slopes(batch or subject.batch(), what)
    where = f" {on}" if on else ""
    subject.expect_finite(value, f"value{where}", _SLOPE)
    for name, slope in slopes.items():
        subject.expect_finite(slope, f"slope at {name}{where}", _SLOPE)
    if not on:
        subject.expect(
            slopes,
            "has no slope at any output that it reads, so nothing can learn from it",
            "Look for detach(), no_grad(), argmax, rounding, or a comparison.",
        )


def soft_targets(subject: Subject) -> None:
    """Probabilities as targets: at one-hot rows the class's value, finite between them."""
    batch = subject.batch()
    targets, hard = batch["targets"], subject(batch)
    if subject.task == "multiclass":
        rows = torch.nn.functional.one_hot(targets, batches.C).float()
        found = subject({**batch, "targets": rows}, "a batch of one-hot rows")
        close(subject, found, hard, "has another value at one-hot rows than at their classes")
        between = 0.7 * rows + 0.3 / batches.C
    else:
        between = 0.15 + 0.7 * targets.clamp(min=0)
    value_and_slope(subject, {**batch, "targets": between}, "of soft targets")
    expect_shape(subject, subject({**batch, "targets": between}, "a batch of soft targets"))


def required_fields_only(subject: Subject) -> None:
    """It does without the fields that default to None."""
    value_and_slope(subject, subject.batch(optional=False))


def extremes(subject: Subject) -> None:
    """Finite value and slope where all outputs are +80 or -80, in float32."""
    value_and_slope(subject, batches.extreme(subject.batch()), "at outputs of +80 and -80")


def bfloat16(subject: Subject) -> None:
    """In bfloat16 it gives what float32 gives of the same rounded outputs."""
    half = batches.cast(subject.batch(), torch.bfloat16, batches.COMPUTED)
    value, slopes = subject.slopes(half, "a bfloat16 batch")
    subject.expect(value.is_floating_point(), f"returns {value.dtype} in bfloat16")
    subject.expect_finite(value, "value in bfloat16", _SLOPE)
    for name, slope in slopes.items():
        subject.expect_finite(slope, f"slope at {name} in bfloat16", _SLOPE)
    single = subject(batches.cast(half, torch.float32, batches.COMPUTED), "a float32 batch")
    gap = (value.detach().double() - single.detach().double()).abs()
    subject.expect(
        (gap <= 0.02 * single.detach().double().abs() + 0.02).all(),
        f"is off by up to {gap.max().item():.3g} in bfloat16",
        "Raise half precision to float32 before any arithmetic.",
    )


def gradcheck(subject: Subject) -> None:
    """Its gradient is the slope of its value, by finite differences in float64."""
    batch = subject.batch()
    batch = batches.cast(batch, torch.float64, tuple(batch))
    inputs, leaves = batches.differentiable(batch)
    names = list(leaves)

    def value(*tensors: Tensor) -> Tensor:
        return subject.fresh()({**inputs, **dict(zip(names, tensors, strict=True))})

    with subject.reporting("raises in gradcheck"):
        try:
            torch.autograd.gradcheck(
                value, tuple(leaves.values()), atol=1e-5, rtol=1e-3, nondet_tol=1e-9
            )
        except GradcheckError as error:
            first = str(error).strip().splitlines()[0].rstrip(",:")
            first = re.sub(r"input (\d+)", lambda m: names[int(m[1])], first)
            raise CheckFailure(
                f"{subject.label} has a gradient that is not the slope of its value: {first}\n"
                "  A loss that holds a part constant on purpose (detach) says so: "
                'skips={"gradcheck": "why"}.'
            ) from None


def permutation(subject: Subject) -> None:
    """The order of the samples does not matter."""
    batch = subject.batch()
    order = torch.randperm(batches.B, generator=torch.Generator().manual_seed(2))
    bound, again = subject.fresh(), subject.fresh()
    if common.draws_by_itself(subject):
        bound.eval()
        again.eval()
    value = subject.run(bound, batch, "an ordinary batch").detach()
    moved = subject.run(again, batches.permuted(batch, order), "a permuted batch").detach()
    declared = returns(subject)
    if declared == "batch":
        expected = value
    elif declared in ("per_anchor", "per_pair"):
        expected, moved = value.sort().values, moved.sort().values
    else:
        expected = value[order]
    close(subject, moved, expected, "depends on the order of the samples in the batch")


def empty_batch(subject: Subject) -> None:
    """No samples, no values: a filter may leave a batch empty."""
    if returns(subject) != "per_sample":
        return
    batch = subject.batch(size=0)
    value, _ = subject.slopes(batch, "an empty batch")
    expect_shape(subject, value, 0)


def one_class(subject: Subject) -> None:
    """Finite where all samples of the batch have one class (or one target value)."""
    batch = subject.batch()
    if "targets" in batch:
        batch["targets"] = batch["targets"][:1].expand_as(batch["targets"]).clone()
    value_and_slope(subject, batch, "where all samples have one class")
    if subject.task == "binary" and "targets" in batch:
        batch["targets"] = torch.ones_like(batch["targets"])
        value_and_slope(subject, batch, "where all samples are positive")


def no_positives(subject: Subject) -> None:
    """Finite where no label is positive."""
    batch = subject.batch()
    if "targets" in batch:
        batch["targets"] = torch.zeros_like(batch["targets"])
    value_and_slope(subject, batch, "where no label is positive")


def unknown_labels(subject: Subject) -> None:
    """-1 means unknown: a finite value, or a FieldError that says that it needs every label."""
    batch = subject.batch()
    if "targets" not in batch:
        return
    batch["targets"] = batch["targets"].clone()
    batch["targets"][0] = -1
    try:
        value_and_slope(subject, batch, "where a label is -1 (unknown)")
        known, _ = subject.slopes(batch)
    except CheckFailure as failure:
        if isinstance(failure.__cause__, LossearchError):
            return
        raise
    changed = dict(batch)
    for name in ("logits", "logits_b"):
        if name in batch:
            changed[name] = batch[name].clone()
            changed[name][0] += 1
    if returns(subject) == "per_sample" and "logits" in batch:
        moved, _ = subject.slopes(changed)
        close(
            subject,
            moved[:1],
            known[:1],
            "takes an unknown label (-1) for a known one",
            "Mask it: the value of a sample must not depend on a score whose label is unknown.",
        )
