"""Losses on the angles between the embeddings of a batch."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, loss
from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError


@loss(
    task="multiclass",
    returns="batch",
    auxiliary=True,
    paper=Paper("Orthogonal Projection Loss", 2021, "arXiv:2103.14021"),
)
def orthogonal_projection(
    embeddings: Tensor,
    targets: Tensor,
    *,
    gamma: Annotated[float, Field(ge=0), Range(0.25, 4.0)] = 2.0,
    negative: Annotated[Literal["mean_abs", "mean", "abs_mean"], Choices()] = "mean_abs",
    eps: Annotated[float, Field(gt=0)] = 1e-6,
) -> Tensor:
    r"""Orthogonal projection loss: classes at right angles, samples of a class together.

    :math:`(1 - s) + \gamma d`, with s the mean cosine over the same-class pairs of the batch and
    d that over the different-class pairs. Beside cross-entropy, a weight of about 0.1 is usual.

    Args:
        embeddings: ``[B, E]``, of any length but zero.
        targets: Class of each sample, int64 ``[B]``.
        gamma: Weight of the different-class pairs, >= 0 (0.5 in the authors' stand-alone loss.py).
        negative: d as the mean of ``|cos|`` (``mean_abs``), the mean (``mean``, which rewards
            opposed classes) or its absolute value (``abs_mean``).
        eps: Added to either count of pairs, > 0; a mean over no pair is 0.

    Returns:
        One number.

    Raises:
        FieldError: shapes that do not match, or targets that are no class indices.

    Checked against the authors' code, kahnchana/opl (loss.py: ``mean``, 0.5;
    cifar/losses.py: ``mean_abs``, 2).
    """
    if embeddings.ndim != 2 or targets.shape != embeddings.shape[:1]:
        raise FieldError(
            "orthogonal_projection reads embeddings [B, E] and targets [B], not "
            f"{list(embeddings.shape)} and {list(targets.shape)}"
        )
    if targets.dtype != torch.int64 or (readable(targets) and (targets < 0).any()):
        least = "" if targets.dtype != torch.int64 else f", and one is {int(targets.min())}"
        raise FieldError(
            "orthogonal_projection reads targets as class indices (int64) from 0 on; these are "
            f"{targets.dtype}{least}. Leave samples out whose class is unknown"
        )
    e = F.normalize(raise_precision(embeddings))
    with torch.autocast(e.device.type, enabled=False):
        cos = e @ e.T
    same = targets.unsqueeze(1) == targets
    pairs = same & ~torch.eye(len(targets), dtype=torch.bool, device=e.device)
    between = _mean(cos.abs() if negative == "mean_abs" else cos, ~same, eps)
    between = between.abs() if negative == "abs_mean" else between
    return 1 - _mean(cos, pairs, eps) + gamma * between


def _mean(values: Tensor, mask: Tensor, eps: float) -> Tensor:
    return torch.where(mask, values, 0).sum() / (mask.to(values).sum() + eps)
