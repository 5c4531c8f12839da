"""Unified negative pairs: the other samples of the batch are negatives too, beside the classes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, When, loss
from lossearch.components import raise_precision
from lossearch_classification._shared import softplus
from lossearch_classification.cosines import Scale, add_angle, cosine_cross_entropy, cosines

_NOTHING = -1e30  # a logit that adds nothing; -inf would give NaN slopes where all are left out


@loss(
    task="multiclass",
    paper=Paper(
        "Unified Negative Pair Generation toward Well-discriminative Feature Space for Face "
        "Recognition",
        2022,
        "arXiv:2203.11593",
    ),
    cost="the cosines of all pairs of the batch, and their order",
)
def unpg(
    embeddings: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    head: Annotated[Literal["cosface", "arcface", "none"], Choices()] = "cosface",
    scale: Scale = 64.0,
    margin: Annotated[
        float, Field(ge=0, lt=1), Range(0.0, 0.7), When(head=("cosface", "arcface"))
    ] = 0.35,
    whisker: Annotated[float | None, Field(ge=0), Choices(1.0, 1.5, 2.0, 3.0)] = 1.5,
) -> Tensor:
    r"""UNPG: a margin head whose negatives are the classes and the batch's different-class pairs.

    cross_entropy(scale·[modified cosines, kept]), where *kept* are the cosines between samples of
    different classes, the same further columns for every row. A box-and-whisker filter leaves
    out the too easy and the too hard (maybe mislabelled): of the l cosines, sorted to s, those in
    :math:`[Q_1 - r\,\mathrm{IQR}, Q_3 + r\,\mathrm{IQR}]` are kept, with
    :math:`Q_1 = s_{\lfloor l/4 \rfloor}, Q_3 = s_{\lfloor 3l/4 \rfloor}`. Gradients flow through
    what is kept. With one class in the batch it is the plain head, and never below it.

    Args:
        embeddings: ``[B, E]``, of any length but zero.
        weight: The head's class vectors, ``[C, E]``.
        targets: Class of each sample, int64 ``[B]``.
        head: The target's cosine as in ``cosface``, as in ``arcface`` with guard ``none`` (the
            authors' head has none), or unmodified.
        scale: Inverse temperature, > 0.
        margin: Of the head, in [0, 1) (0.5 in the authors' settings for both).
        whisker: r >= 0; 0 keeps the middle half, None keeps all.

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: shapes that do not match, or a target outside [0, C).

    Checked against the authors' code, Jung-Jun-Uk/UNPG (recognition/models/build.py, head.py).
    """
    cos, target = cosines("unpg", embeddings, weight, targets)
    if head == "cosface":
        target = target - margin
    elif head == "arcface":
        target = add_angle(target, margin)
    values = cosine_cross_entropy(cos, target, targets, scale)
    if len(targets) < 2:
        return values
    pairs, kept = _negatives(raise_precision(embeddings), targets, whisker)
    further = torch.where(kept, scale * pairs, _NOTHING).logsumexp(0)
    # log(sum over both) - scale target, and the row's own logsumexp is scale target + value
    return values + softplus(further - scale * target - values)


def _negatives(
    embeddings: Tensor, targets: Tensor, whisker: float | None
) -> tuple[Tensor, Tensor]:
    """The cosines of all pairs, ``[B (B - 1) / 2]``, and the mask of those that are kept."""
    e = F.normalize(embeddings)
    one, two = torch.triu_indices(len(e), len(e), 1, device=e.device)
    with torch.autocast(e.device.type, enabled=False):
        pairs = (e @ e.T)[one, two]
    kept = targets[one] != targets[two]
    if whisker is None:
        return pairs, kept
    order = torch.where(kept, pairs.detach(), torch.inf).sort().values
    count = kept.sum()
    first, third = (order.gather(0, (n * count // 4).unsqueeze(0)) for n in (1, 3))
    reach = whisker * (third - first)
    return pairs, kept & (pairs >= first - reach) & (pairs <= third + reach)
