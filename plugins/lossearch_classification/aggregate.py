"""Losses for labels of whole bags: mean responses, label proportions, one label for a set.

The bags of a batch are numbered into B slots, of which as many are used as there are bags: no
shape depends on a value, so nothing waits for the device and ``vmap`` goes through. A bag that the
loader split over batches is averaged over what is there; keeping bags whole is the sampler's work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lossearch import ByTask, Choices, Paper, Range, loss
from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError
from lossearch_classification._shared import (
    all_known,
    check_binary,
    check_classes,
    check_multiclass,
    expect,
    given,
    pick,
    reduce_labels,
)

TASKS = ("multiclass", "binary", "multilabel", "regression")
AGGREGATE = Paper(
    "Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions",
    2024,
    "https://openreview.net/forum?id=E60SIDItyT",
)
Base = Annotated[
    Literal["squared", "bce", "cross_entropy"],
    ByTask(regression="squared", binary="bce", multilabel="bce", multiclass="cross_entropy"),
]


def _reads(params: Any) -> Iterable[str]:
    return "bag", "targets", "predictions" if params.base == "squared" else "logits"


@loss(task=TASKS, returns="batch", paper=AGGREGATE, reads=_reads)
def bag_loss(
    bag: Tensor,
    targets: Tensor,
    predictions: Tensor | None = None,
    logits: Tensor | None = None,
    *,
    base: Base = "squared",
) -> Tensor:
    r"""Loss of each bag's mean output against its mean response, :math:`\ell(\bar y_a, \bar f_a)`.

    f is the prediction (``squared``), :math:`\sigma(z)` (``bce``) or softmax(z)
    (``cross_entropy``). The mean of a probability is taken by logsumexp of its logarithm, so that
    the value and its slope are finite where every member of the bag is sure and wrong.

    Args:
        bag: int64 ``[B]``, the bag of each sample.
        targets: Each sample carries its bag's mean response: float ``[B]`` or ``[B, D]``; for
            ``bce`` in [0, 1] in the shape of the logits, -1 where unknown; for ``cross_entropy``
            the bag's class proportions ``[B, C]``, or int64 ``[B]`` where the bag has one class.
        predictions: ``[B]`` or ``[B, D]``, for ``squared``.
        logits: ``[B]``, ``[B, 1]`` or ``[B, C]``, for the others.
        base: ``squared`` (mean over D), ``bce`` (mean over labels) or ``cross_entropy``.

    Returns:
        One number, the mean over the bags that are there; 0 without any.

    Raises:
        FieldError: samples of one bag with different targets, a shape or target not allowed, or
            the output that ``base`` reads is missing.

    Written from the catalogue's formula (the paper's abstract and a public review of it); the
    paper's text could not be read.
    """
    bags, *seen = _read("bag_loss", base, bag, targets, predictions, logits)
    return bags.average(_of_bags(base, bags, *seen))


@loss(task=TASKS, paper=AGGREGATE, reads=_reads)
def instance_loss(
    bag: Tensor,
    targets: Tensor,
    predictions: Tensor | None = None,
    logits: Tensor | None = None,
    *,
    base: Base = "squared",
) -> Tensor:
    r"""Loss of each sample against its bag's mean response, :math:`\ell(\bar y_a, f_i)`.

    With ``squared``, the mean over a bag is :func:`bag_loss` plus the variance of f in the bag;
    by Jensen's inequality it is never below :func:`bag_loss`, whatever the base.

    Args:
        bag: int64 ``[B]``, the bag of each sample; here only to check the targets.
        targets: Each sample's bag's mean response, as in :func:`bag_loss`.
        predictions: ``[B]`` or ``[B, D]``, for ``squared``.
        logits: ``[B]``, ``[B, 1]`` or ``[B, C]``, for the others.
        base: ``squared`` (mean over D), ``bce`` (mean over labels) or ``cross_entropy``.

    Returns:
        ``[B]``.

    Raises:
        FieldError: as :func:`bag_loss`.

    Written from the catalogue's formula; the paper's text could not be read.
    """
    _, *seen = _read("instance_loss", base, bag, targets, predictions, logits)
    return _of_samples(base, *seen)


@loss(task=TASKS, returns="batch", paper=AGGREGATE, reads=_reads)
def interpolated_bag_loss(
    bag: Tensor,
    targets: Tensor,
    predictions: Tensor | None = None,
    logits: Tensor | None = None,
    *,
    base: Base = "squared",
    rho: Annotated[float, Field(ge=0, le=1), Range(0.0, 1.0)] = 0.5,
) -> Tensor:
    r"""Between bag and instance loss: for each bag, (1 - rho) bag + rho mean of its instances.

    rho = 0 is :func:`bag_loss`. With ``squared`` it is :func:`bag_loss` plus rho times the
    variance of f in the bag (the paper's own lemma is off by a constant there).

    Args:
        bag: int64 ``[B]``, the bag of each sample.
        targets: Each sample's bag's mean response, as in :func:`bag_loss`.
        predictions: ``[B]`` or ``[B, D]``, for ``squared``.
        logits: ``[B]``, ``[B, 1]`` or ``[B, C]``, for the others.
        base: ``squared`` (mean over D), ``bce`` (mean over labels) or ``cross_entropy``.
        rho: Share of the instances, in [0, 1].

    Returns:
        One number, the mean over the bags that are there (not over samples); 0 without any.

    Raises:
        FieldError: as :func:`bag_loss`.

    Written from the catalogue's formula; the paper's text could not be read.
    """
    bags, *seen = _read("interpolated_bag_loss", base, bag, targets, predictions, logits)
    whole, single = _of_bags(base, bags, *seen), bags.mean(_of_samples(base, *seen))
    return bags.average((1 - rho) * whole + rho * single)


@loss(
    task="multiclass",
    returns="batch",
    paper=Paper(
        "Enhancing Instance-Level Image Classification with Set-Level Labels",
        2024,
        "arXiv:2311.05659",
    ),
)
def set_level(
    logits: Tensor,
    bag: Tensor,
    targets: Tensor,
    *,
    pool: Annotated[Literal["mean", "max", "logsumexp"], Choices()] = "mean",
) -> Tensor:
    r"""Cross-entropy of each bag's pooled logits against the bag's one label.

    For a stage before the instance labels: a network learns from labels of sets, then a plain
    classifier is fitted on its embeddings. Pooling stands for the paper's set-input head; one that
    learns is a matter of the model.

    Args:
        logits: ``[B, C]``.
        bag: int64 ``[B]``, the bag of each sample.
        targets: int64 ``[B]``, the bag's label, repeated for each of its samples.
        pool: ``mean`` or ``max`` of each class's logit over the bag, or its ``logsumexp`` minus
            the log of the bag's size.

    Returns:
        One number, the mean over the bags that are there; 0 without any.

    Raises:
        FieldError: samples of one bag with different labels, a shape or target not allowed.

    Written from the catalogue's formula; the paper's text could not be read.
    """
    check_multiclass("set_level", logits, targets)
    bags = _Bags("set_level", bag, targets)
    z = raise_precision(logits)
    how = {"mean": bags.mean, "max": bags.max, "logsumexp": bags.log_mean_exp}
    return bags.average(-pick(how[pool](z).log_softmax(1), targets[bags.member]))


class _Bags:
    """The bags of a batch: ``slot`` of each sample, and a ``member`` of each slot, both [B]."""

    def __init__(self, name: str, bag: Tensor, targets: Tensor) -> None:
        if bag.ndim != 1 or bag.is_floating_point() or len(bag) != len(targets):
            raise FieldError(
                f"{name} reads bag as int64 [B], one for each of {len(targets)} targets, not "
                f"{bag.dtype} {list(bag.shape)}"
            )
        order = bag.argsort()
        ranked = bag[order]
        number = (ranked != ranked.roll(1)).cumsum(0)
        number = number - number[:1]  # the first differs from the last, unless all are one bag
        self.slot = torch.empty_like(number).scatter(0, order, number)
        self.size = torch.zeros_like(number).index_add(0, self.slot, torch.ones_like(number))
        self.used = self.size > 0
        self.member = torch.zeros_like(number).scatter(0, number, order)
        if readable(targets, bag):
            unlike = (targets != targets[self.member[self.slot]]).reshape(len(bag), -1).any(1)
            if unlike.any():
                raise FieldError(
                    f"{name}: samples of bag {int(bag[unlike][0])} have different targets; each "
                    "carries the label of its bag"
                )

    def mean(self, values: Tensor) -> Tensor:
        """Of each slot, ``[B, ...]``; 0 where it is not used."""
        total = torch.zeros_like(values).index_add(0, self.slot, values)
        size = self.size.clamp(min=1).to(values.dtype)
        return total / size.reshape(-1, *(1,) * (values.ndim - 1))

    def max(self, values: Tensor) -> Tensor:
        """Of each slot, ``[B, ...]``; 0 where it is not used."""
        slot = self.slot.reshape(-1, *(1,) * (values.ndim - 1)).expand_as(values)
        blank = torch.zeros_like(values)
        return blank.scatter_reduce(0, slot, values, "amax", include_self=False)

    def log_mean_exp(self, values: Tensor) -> Tensor:
        """Of each slot, ``[B, ...]``; 0 where it is not used."""
        top = self.max(values.detach())
        mean = self.mean((values - top.index_select(0, self.slot)).exp())
        unused = (~self.used).to(mean.dtype).reshape(-1, *(1,) * (values.ndim - 1))
        return (mean + unused).log() + top  # log 1 where there is no bag

    def average(self, values: Tensor) -> Tensor:
        """Of the slots' values ``[B]``, over the bags that are there."""
        return torch.where(self.used, values, 0.0).sum() / self.used.sum().clamp(min=1)


def _read(
    name: str,
    base: str,
    bag: Tensor,
    targets: Tensor,
    predictions: Tensor | None,
    logits: Tensor | None,
) -> tuple[_Bags, Tensor, Tensor, Tensor]:
    """The bags; of each sample its output (f, logits or log f), targets, and which are known."""
    field = {"predictions": predictions} if base == "squared" else {"logits": logits}
    (output,) = given(f"{name}(base='{base}')", **field)
    bags = _Bags(name, bag, targets)
    if base == "squared":
        f = raise_precision(output)
        f, t = (x.unsqueeze(1) if x.ndim == 1 else x for x in (f, targets))
        if f.shape != t.shape:
            raise FieldError(
                f"{name}: predictions {list(output.shape)} go with targets of that shape, "
                f"not {list(targets.shape)}"
            )
        return bags, f, t.to(f.dtype), all_known(t)
    if base == "bce":
        z, t, known = check_binary(name, output, targets, soft=True)
        return bags, z, t, known
    check_classes(name, output, targets)
    return bags, raise_precision(output).log_softmax(1), targets, all_known(targets)


def _of_bags(base: str, bags: _Bags, outputs: Tensor, t: Tensor, known: Tensor) -> Tensor:
    """The loss of each bag's mean output, ``[B]`` slots."""
    t, known = t[bags.member], known[bags.member]
    if base == "bce":
        pair = torch.stack((F.logsigmoid(outputs), F.logsigmoid(-outputs)), dim=-1)
        log_f, log_rest = bags.log_mean_exp(pair).unbind(-1)
        return reduce_labels(-(t * log_f + (1 - t) * log_rest), known, "mean")
    pool = bags.mean if base == "squared" else bags.log_mean_exp
    return _of_samples(base, pool(outputs), t, known)


def _of_samples(base: str, outputs: Tensor, t: Tensor, known: Tensor) -> Tensor:
    """The loss of each row's own output, ``[B]``."""
    if base == "squared":
        return (outputs - t).square().flatten(1).mean(1)
    if base == "bce":
        values = F.binary_cross_entropy_with_logits(outputs, t, reduction="none")
        return reduce_labels(values, known, "mean")
    return -expect(outputs, t)
