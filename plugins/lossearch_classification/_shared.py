"""What every loss of this package does alike: precision, checks, stable pieces, reductions.

The class axis is 1 throughout, so logits ``[B, C]`` and dense logits ``[B, C, H, W]`` take one
path. Values are only checked where looking costs nothing: on the CPU, outside ``vmap`` and
``compile``. Shapes are always checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError, ParameterError

T = TypeVar("T")
LabelReduction = Literal["mean", "sum"]
ClassWeights = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]


def check_multiclass(name: str, logits: Tensor, targets: Tensor) -> None:
    """Logits ``[B, C, ...]`` with C >= 2, and int64 targets ``[B, ...]`` in [0, C).

    Raises:
        FieldError: a shape, a dtype or a target is not so.
    """
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise FieldError(
            f"{name} reads logits [B, C] with C >= 2 classes, not {list(logits.shape)}; for one "
            "logit a sample take a binary loss"
        )
    if targets.dtype != torch.int64:
        raise FieldError(f"{name} reads targets as class indices (int64), not {targets.dtype}")
    positions = logits.shape[:1] + logits.shape[2:]
    if targets.shape != positions:
        raise FieldError(
            f"{name}: logits {list(logits.shape)} go with targets {list(positions)}, "
            f"not {list(targets.shape)}"
        )
    if readable(targets):
        low, high = torch.aminmax(targets)
        if low < 0 or high >= logits.shape[1]:
            bad = int(low if low < 0 else high)
            raise FieldError(f"{name}: target {bad} is outside [0, {logits.shape[1]})")


def check_soft(name: str, logits: Tensor, targets: Tensor) -> None:
    """Soft targets ``[B, C]``: of the logits' shape, not negative, and of sum 1 over the classes.

    Raises:
        FieldError: they are not.
    """
    if logits.ndim < 2 or logits.shape[1] < 2 or targets.shape != logits.shape:
        raise FieldError(
            f"{name}: soft (float) targets have the shape of the logits, [B, C] with C >= 2; got "
            f"logits {list(logits.shape)}, targets {list(targets.shape)}. Class indices are int64"
        )
    if readable(targets):
        sums = targets.sum(1)
        if (targets < 0).any() or ((sums - 1).abs() > 1e-4).any():
            worst = sums.flatten()[(sums - 1).abs().argmax()].item()
            raise FieldError(
                f"{name}: soft targets are >= 0 and sum to 1 over the classes; the least is "
                f"{targets.min().item():g}, and a sum is {worst:g}"
            )


def check_classes(name: str, logits: Tensor, targets: Tensor) -> None:
    """:func:`check_multiclass`, or :func:`check_soft` where the targets are float."""
    if targets.is_floating_point():
        check_soft(name, logits, targets)
    else:
        check_multiclass(name, logits, targets)


def check_binary(
    name: str, logits: Tensor, targets: Tensor, *, soft: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Binary and multilabel fields in one layout, unknown labels (-1) told apart.

    Args:
        name: The loss, for the message.
        logits: ``[B]``, ``[B, L]`` or dense ``[B, L, ...]``; half precision is raised.
        targets: Of the same shape; ``[B]`` (``[B, ...]``) will also do where L = 1.
        soft: Whether targets may lie anywhere in [0, 1].

    Returns:
        Logits ``[B, L, ...]``, targets alike with 0 where unknown, and the bool mask of the known,
        which is one True expanded where all are seen to be known.

    Raises:
        FieldError: the shapes do not match, or a target is not allowed.
    """
    z = raise_precision(logits)
    if z.ndim == 0:
        raise FieldError(f"{name} reads logits [B], [B, 1] or [B, L], not a single number")
    z = z.unsqueeze(1) if z.ndim == 1 else z
    t = targets.unsqueeze(1) if targets.ndim == z.ndim - 1 and z.shape[1] == 1 else targets
    if t.shape != z.shape:
        raise FieldError(
            f"{name}: logits {list(logits.shape)} go with targets of that shape, "
            f"not {list(targets.shape)}"
        )
    if readable(t):
        labels = t.to(z.dtype)
        if _all_within(labels) if soft else _all_binary(labels):  # the usual, in few passes
            return z, labels, all_known(z)
        legal = (t == -1) | ((t >= 0) & (t <= 1) if soft else (t == 0) | (t == 1))
        if not legal.all():
            allowed = "in [0, 1], or -1 for unknown" if soft else "0, 1, or -1 for unknown"
            raise FieldError(f"{name}: target {t[~legal][0].item():g} is not {allowed}")
    known = t >= 0
    return z, torch.where(known, t, 0).to(z.dtype), known


def _all_within(t: Tensor) -> bool:
    low, high = torch.aminmax(t)
    return bool(low >= 0 and high <= 1)


def _all_binary(t: Tensor) -> bool:
    gap = torch.addcmul(t, t, t, value=-1).flatten()  # t - t², and no comparison, which is slow
    return bool(torch.dot(gap, gap) == 0)


def all_known(z: Tensor) -> Tensor:
    """The mask of labels ``[B, L, ...]`` that are all known: one True expanded."""
    return torch.ones((), dtype=torch.bool, device=z.device).expand(z.shape)


def are_all(known: Tensor) -> bool:
    """Whether a mask is that of :func:`all_known`; no value is looked at."""
    return not any(known.stride())


def of_known(values: Tensor, known: Tensor) -> Tensor:
    """Label values ``[B, L, ...]``, 0 where the label is unknown."""
    return values if are_all(known) else torch.where(known, values, 0.0)


def reduce_labels(values: Tensor, known: Tensor, how: LabelReduction) -> Tensor:
    """Label values ``[B, L, ...]`` to ``[B]``; unknown labels count neither way."""
    if are_all(known):
        return dense_mean(values.mean(1) if how == "mean" else values.sum(1))
    total = of_known(values, known).sum(1)
    return dense_mean(total / known.sum(1).clamp(min=1) if how == "mean" else total)


def dense_mean(values: Tensor) -> Tensor:
    """Values per position ``[B, ...]`` to each sample's mean ``[B]``."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def check_counts(name: str, class_counts: Tensor, shape: torch.Size, why: str) -> None:
    """Class counts of the given shape, ``[C]``, all > 0.

    Args:
        name: The loss, for the message.
        class_counts: What was given.
        shape: The logits' own, without the batch.
        why: What is said of a class whose count is not > 0: ``has no sample``.

    Raises:
        FieldError: they are not.
    """
    if class_counts.shape != shape:
        raise FieldError(
            f"{name}: logits of {shape[0]} classes go with class_counts [{shape[0]}], not "
            f"{list(class_counts.shape)}"
        )
    if readable(class_counts) and (class_counts <= 0).any():
        raise FieldError(f"{name}: class {int((class_counts <= 0).int().argmax())} {why}")


def given(reader: str, **fields: T | None) -> tuple[T, ...]:
    """The fields, in their order.

    Args:
        reader: The loss, and what decides that it reads them, for the message.
        fields: By name, what it reads.

    Raises:
        FieldError: one was not given.
    """
    for name, field in fields.items():
        if field is None:
            raise FieldError(f"{reader} reads '{name}', which it was not given")
    return tuple(field for field in fields.values() if field is not None)


def class_vector(
    name: str, parameter: str, values: Sequence[float] | Tensor, logits: Tensor
) -> Tensor:
    """One number for each class, ``[C]``, of the logits' dtype and device.

    Raises:
        ParameterError: there are not C of them.
    """
    vector = torch.as_tensor(values, dtype=logits.dtype, device=logits.device)
    if vector.shape[-1:] != logits.shape[1:2]:
        raise ParameterError(
            f"{name}: {parameter} has {vector.numel()} values for {logits.shape[1]} classes"
        )
    return vector


def along_classes(vector: Tensor, logits: Tensor) -> Tensor:
    """``[C]`` shaped to broadcast over logits ``[B, C, ...]``."""
    return vector.reshape(-1, *(1,) * (logits.ndim - 2))


def pick(values: Tensor, targets: Tensor) -> Tensor:
    """The target class's entry: ``[B, C, ...]`` to ``[B, ...]``."""
    return values.gather(1, targets.unsqueeze(1)).squeeze(1)


def expect(values: Tensor, targets: Tensor) -> Tensor:
    """:func:`pick`, or the mean over the classes by soft targets, as :math:`\\sum_c q_c v_c`."""
    if targets.is_floating_point():
        return (values * targets.to(values.dtype)).sum(1)
    return pick(values, targets)


def drop(values: Tensor, targets: Tensor, fill: float) -> Tensor:
    """``fill`` in place of the target class's entry, which then has no gradient."""
    return values.scatter(1, targets.unsqueeze(1), fill)


def centred(logits: Tensor) -> Tensor:
    """Logits ``[B, C, ...]`` less each sample's largest, in at least float32.

    What depends on their differences alone keeps its digits so where all of them are large.
    """
    z = raise_precision(logits)
    return z - z.detach().amax(1, keepdim=True)


def log_rest(log_p: Tensor, targets: Tensor) -> Tensor:
    """log(1 - p_y), as the logsumexp of the other classes: finite, with a finite slope."""
    return drop(log_p, targets, -math.inf).logsumexp(1)


def log_others(log_p: Tensor) -> Tensor:
    """log(1 - p_c) of every class, ``[B, C, ...]``.

    By log1p, save for the likeliest class, which may round to 1: that by the others' logsumexp.
    """
    top = log_p.detach().argmax(1)
    others = torch.log1p(-drop(log_p.exp(), top, 0.0))
    return others.scatter(1, top.unsqueeze(1), log_rest(log_p, top).unsqueeze(1))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact in float64 too: past 40 it is x, which torch says from 20 on."""
    return F.softplus(x, threshold=40.0)
