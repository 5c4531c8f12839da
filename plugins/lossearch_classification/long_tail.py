"""Multilabel losses for label counts with a long tail: what is rare weighs more."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from lossearch import Choices, Paper, Range, When, loss
from lossearch.components import raise_precision
from lossearch.errors import FieldError, ParameterError
from lossearch_classification._shared import (
    LabelReduction,
    check_binary,
    check_counts,
    reduce_labels,
    softplus,
)
from lossearch_classification.multilabel import asymmetric_values


@loss(
    name="multi_focal_modifier",
    task="multilabel",
    vmap="its exponents follow what it recalled in the last epoch",
    paper=Paper(
        "Learning in Imperfect Environment: Multi-Label Classification with Long-Tailed "
        "Distribution and Partial Labels",
        2023,
        "arXiv:2304.10539",
    ),
    skips={"gradcheck": "detach_weight, the default, holds the powers constant"},
)
class MultiFocalModifier(nn.Module):
    r"""Asymmetric loss whose weight and negative power grow with the rarity of the class.

    :math:`w_c = (1 - \log(n_c / \max_k n_k))^{\mathrm{exponent}}` is 1 for the most frequent class
    and more for the others. With :math:`p_m = (p - \mathrm{clip})_+` a positive costs
    :math:`-w_c (1-p)^{\gamma_+} \log p`, a negative
    :math:`-w_c\, p_m^{\gamma_- + w_c} \log(1 - p_m)`. Where all classes are as frequent it is
    asymmetric(gamma_neg + 1).

    ``correct`` is for labels of which many are missing: every positive logit is lowered by
    ``margin``, and from ``from_epoch`` on a negative or unknown label that is predicted above
    ``threshold`` and above the batch's mean for its class counts as a positive in that batch. In
    training these are added to the class counts, until the epoch ends. The engine tells the epoch
    by ``start_epoch``; without that it is 0.

    Args:
        gamma_neg: Focusing of negatives, >= 0; the authors' COCO configuration takes 3.
        gamma_pos: Focusing of positives, >= 0.
        clip: Probability below which a negative costs nothing, in [0, 1).
        exponent: How strongly rarity weighs, >= 0; 0 not at all.
        detach_weight: Hold the powers constant in the gradient; the value is the same.
        label_reduction: ``sum`` or ``mean`` over a sample's known labels.
        correct: Whether to correct missing labels as above.
        threshold: Probability in (0, 1) above which a missing label is recalled.
        margin: Taken off the logit of every given positive, >= 0.
        from_epoch: First epoch, from 0, in which labels are recalled.

    Checked against the authors' code, wannature/COMIC (loss/Multi-GrainedFocalLoss.py,
    loss/ReflectiveLabelCorrectorLoss.py). Its clamp of the logarithm at 1e-8 is not followed, nor
    are its corrector's division by the batch's positives and its 0 before ``from_epoch``.
    """

    def __init__(
        self,
        *,
        gamma_neg: Annotated[float, Field(ge=0), Range(0.0, 8.0)] = 4.0,
        gamma_pos: Annotated[float, Field(ge=0), Range(0.0, 3.0)] = 0.0,
        clip: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.3)] = 0.05,
        exponent: Annotated[float, Field(ge=0), Choices(1 / 6, 1 / 3, 1 / 2, 1.0)] = 1 / 6,
        detach_weight: bool = True,
        label_reduction: LabelReduction = "sum",
        correct: bool = False,
        threshold: Annotated[float, Field(gt=0, lt=1), Range(0.5, 0.95), When(correct=True)] = 0.7,
        margin: Annotated[float, Field(ge=0)] = 1.0,
        from_epoch: Annotated[int, Field(ge=0)] = 1,
    ) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.exponent, self.detach_weight = exponent, detach_weight
        self.label_reduction: LabelReduction = label_reduction
        self.correct, self.threshold, self.margin = correct, threshold, margin
        self.from_epoch = from_epoch
        self.epoch = 0
        self.recalled: Tensor | None = None  # [C], how many labels of each class this epoch

    def start_epoch(self, epoch: int) -> None:
        """Forget what the last epoch recalled; a resumed run may begin the same epoch again."""
        if epoch != self.epoch:
            self.epoch, self.recalled = epoch, None

    def forward(self, logits: Tensor, targets: Tensor, class_counts: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            logits: ``[B, C]``.
            targets: ``[B, C]`` in {0, 1}, -1 for unknown.
            class_counts: Positive training labels of each class, ``[C]``, > 0.

        Returns:
            ``[B]``.

        Raises:
            FieldError: shapes that do not match, a target outside {-1, 0, 1}, or a zero count.
        """
        z, t, known = check_binary("multi_focal_modifier", logits, targets)
        counts = _counts("multi_focal_modifier", class_counts, z)
        if self.correct:
            z = z - self.margin * t
            if self.epoch >= self.from_epoch:
                found = self._recall(z, t)
                t, known = torch.where(found, 1.0, t), known | found
            if self.recalled is not None:
                counts = counts + self.recalled.to(counts)
        weight = (1 - (counts / counts.max()).log()) ** self.exponent
        values = asymmetric_values(
            z, t, self.gamma_neg + weight, self.gamma_pos, self.clip, self.detach_weight
        )
        return reduce_labels(weight * values, known, self.label_reduction)

    @torch.no_grad()
    def _recall(self, z: Tensor, t: Tensor) -> Tensor:
        """Which labels not given as positives are taken for such; remembered in training."""
        p = z.sigmoid()
        found = (t == 0) & (p > self.threshold) & (p > p.mean(0))
        if self.training:
            now = found.sum(0)
            self.recalled = now if self.recalled is None else self.recalled.to(now) + now
        return found

    def get_extra_state(self) -> dict[str, Any]:
        """What the state_dict holds: the epoch and what it has recalled."""
        return {"epoch": self.epoch, "recalled": self.recalled}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.epoch, self.recalled = state["epoch"], state["recalled"]


def _counts(name: str, class_counts: Tensor, z: Tensor) -> Tensor:
    """The class counts in the logits' dtype, one > 0 for each label."""
    why = "has no positive training label, so it has no weight; leave it out of the labels"
    check_counts(name, class_counts, z.shape[1:], why)
    return class_counts.to(z)


def _square(value: list[list[float]] | None) -> list[list[float]] | None:
    if value is not None and any(len(row) != len(value) for row in value):
        raise ValueError("a correlation matrix has C rows of C numbers")
    return value


@loss(
    task="multilabel",
    paper=Paper(
        "Improving Arabic Multi-Label Emotion Classification using Stacked Embeddings and Hybrid "
        "Loss Function",
        2024,
        "arXiv:2410.03979",
    ),
)
def hybrid_multilabel(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    embeddings: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0), Range(0.0, 2.0)] = 1.0,
    beta: Annotated[float, Field(ge=0), Range(0.0, 2.0)] = 0.5,
    gamma: Annotated[float, Field(ge=0), Range(0.0, 2.0)] = 0.1,
    margin: Annotated[float, Field(gt=0), Range(0.2, 2.0)] = 1.0,
    correlation: Annotated[list[list[float]] | None, AfterValidator(_square)] = None,
) -> Tensor:
    r"""Weighted binary cross-entropy, agreement of correlated labels, and a contrastive term.

    .. math::
        \frac{\alpha}{C}\sum_c w_c\,\mathrm{BCE}_c
        + \frac{\beta}{C(C-1)}\sum_{j \ne k} R_{jk}(\sigma(z_j) - \sigma(z_k))^2
        + \frac{\gamma}{B-1}\sum_{k \ne i} [s\,d^2 + (1-s)(\mathrm{margin} - d)_+^2]

    with :math:`w_c = \sum_k n_k / (C n_c)`, R how often two labels are positive together in the
    batch, :math:`N_{jk}/\sqrt{N_j N_k}`, d the distance of two samples' normalised embeddings, and
    s whether they have a positive label in common; the pairs are of the B samples with any known
    label. A sample without one costs 0. With beta = gamma = 0 and equal counts it is
    alpha times binary_cross_entropy. The second term is over the C labels of a sample that are
    known.

    Args:
        logits: ``[B, C]``.
        targets: ``[B, C]`` in {0, 1}, -1 for unknown.
        class_counts: Positive training labels of each class, ``[C]``, > 0.
        embeddings: ``[B, E]``, of any length but zero.
        alpha: Weight of the cross-entropy, >= 0.
        beta: Weight of the agreement, >= 0.
        gamma: Weight of the contrast, >= 0.
        margin: Distance, > 0, that samples without a common label keep; at most 2 is reached.
        correlation: R, C rows of C numbers; its diagonal has no effect. None takes the batch's.

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: shapes that do not match, a target outside {-1, 0, 1}, or a zero count.
        ParameterError: ``correlation`` is not of C labels.

    The paper's abstract names the three parts; its formulas could not be read, and these are ours.
    """
    name = "hybrid_multilabel"
    z, t, known = check_binary(name, logits, targets)
    counts = _counts(name, class_counts, z)
    if embeddings.ndim != 2 or len(embeddings) != len(z):
        raise FieldError(
            f"{name}: logits {list(logits.shape)} go with embeddings [{len(z)}, E], not "
            f"{list(embeddings.shape)}"
        )
    weights = counts.mean() / counts
    value = alpha * reduce_labels(weights * softplus((1 - 2 * t) * z), known, "mean")
    value = value + beta * _disagreement(z.sigmoid(), t, known, correlation)
    return value + gamma * _contrast(embeddings, t, known, margin).to(z.dtype)


def _disagreement(
    p: Tensor, t: Tensor, known: Tensor, correlation: list[list[float]] | None
) -> Tensor:
    """The mean of R_jk (p_j - p_k)^2 over each row's pairs of known labels, ``[B]``.

    As 2 (sum_j p_j^2 (R 1)_j - p R p), so without ``[B, C, C]``. The batch's own R is Y'Y up to
    its diagonal, which has no effect; with more labels than samples it is not even formed.
    """
    if correlation is None:
        y = t / t.sum(0).clamp(min=1).sqrt()
        with torch.autocast(t.device.type, enabled=False):
            matrix = y.T @ y if t.shape[1] <= len(t) else None
    else:
        y = t
        matrix = torch.as_tensor(correlation, dtype=p.dtype, device=p.device)
        if len(matrix) != p.shape[1]:
            raise ParameterError(
                f"hybrid_multilabel: correlation is of {len(matrix)} labels, the logits of "
                f"{p.shape[1]}"
            )
        matrix = (matrix + matrix.T) / 2

    def times(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return (x @ y.T) @ y if matrix is None else x @ matrix

    mask = known.to(p.dtype)
    p = mask * (p - p.detach().mean(1, keepdim=True))  # a shift changes nothing but the rounding
    total = 2 * (p * (p * times(mask) - times(p))).sum(1)
    count = mask.sum(1)
    return total / (count * (count - 1)).clamp(min=1)


def _contrast(embeddings: Tensor, t: Tensor, known: Tensor, margin: float) -> Tensor:
    """Samples that share a label drawn together, others pushed ``margin`` apart: ``[B]``."""
    e = F.normalize(raise_precision(embeddings))
    with torch.autocast(e.device.type, enabled=False):
        squared = (2 - 2 * e @ e.T).clamp(min=0)
        shared = t @ t.T > 0
    labelled = known.any(1)
    others = labelled & labelled.unsqueeze(1)
    others = others & ~torch.eye(len(e), dtype=torch.bool, device=e.device)
    # the slope of a distance of 0 is infinite
    distance = squared.clamp(min=torch.finfo(e.dtype).eps ** 2).sqrt()
    apart = (margin - distance).clamp(min=0).square()
    pairs = torch.where(others, torch.where(shared, squared, apart), 0.0)
    return pairs.sum(1) / (labelled.sum() - 1).clamp(min=1)
