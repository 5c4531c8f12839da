"""What margin heads share: cosines, angles moved by a margin, cross-entropy over scaled cosines.

All read ``embeddings`` [B, E] and the head's ``weight`` [C, E] instead of logits, and own no
weight. Without a margin each is the normalised softmax, cross_entropy(scale·cos); evaluation uses
the plain cosines.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lossearch import Range
from lossearch.components import raise_precision
from lossearch.errors import FieldError
from lossearch_classification._shared import check_multiclass, pick

Scale = Annotated[float, Field(gt=0), Range(8.0, 128.0, log=True)]
Guard = Literal["linear", "none", "easy"]

_EDGE = 1 - 1e-7  # |cos| at which the slope of arccos is taken where cos lies beyond


def cosines(
    name: str, embeddings: Tensor, weight: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines ``[B, C]``, and the target's ``[B]``; in float32 also under autocast.

    Only the target's are clamped to [-1, 1], for the angle's sake: in the others, rounding beyond
    it does no harm, and a clamp of them all would cost as much as the softmax.

    Args:
        name: The loss, for the message.
        embeddings: ``[B, E]``.
        weight: The head's class vectors, ``[C, E]``.
        targets: int64 ``[B]``, checked.

    Raises:
        FieldError: shapes that do not match, or a target outside [0, C).
    """
    cos = all_cosines(name, embeddings, weight)
    check_multiclass(name, cos, targets)
    return cos, pick(cos, targets).clamp(-1, 1)


def all_cosines(name: str, embeddings: Tensor, weight: Tensor) -> Tensor:
    """Cosines ``[B, C]`` of embeddings ``[B, E]`` and class vectors ``[C, E]``, up to rounding.

    Raises:
        FieldError: shapes that do not match.
    """
    check_head(name, embeddings, weight)
    e = F.normalize(raise_precision(embeddings))
    w = F.normalize(raise_precision(weight).to(e.dtype))
    with torch.autocast(e.device.type, enabled=False):  # scale would magnify the rounding
        return e @ w.T


def check_head(name: str, embeddings: Tensor, weight: Tensor) -> None:
    """Embeddings ``[B, E]`` and a head's class vectors ``[C, E]``.

    Raises:
        FieldError: they are not.
    """
    if embeddings.ndim != 2 or weight.ndim != 2 or embeddings.shape[1] != weight.shape[1]:
        raise FieldError(
            f"{name} reads embeddings [B, E] and weight [C, E], not {list(embeddings.shape)} and "
            f"{list(weight.shape)}"
        )


def cosine_cross_entropy(
    cos: Tensor, target: Tensor, targets: Tensor, scale: float | Tensor
) -> Tensor:
    """Cross-entropy of the scaled cosines, ``target`` [B] in place of the target class's."""
    # one expression: no copy of [B, C] outlives its use
    return F.cross_entropy(
        scale * cos.scatter(1, targets.unsqueeze(1), target.unsqueeze(1)),
        targets,
        reduction="none",
    )


def add_angle(cos: Tensor, margin: float | Tensor, guard: Guard = "none") -> Tensor:
    r""":math:`\cos(\theta + m)` of :math:`\cos\theta`, each ``[B]``; the margin one number or B.

    The guards are those of :func:`~lossearch_classification.margin.arcface`.
    """
    # margin may be a tensor: one for each sample, or a member's under vmap
    m = torch.as_tensor(margin, dtype=cos.dtype, device=cos.device)
    moved = cos * m.cos() - sine(cos) * m.sin()
    if guard == "linear":
        moved = torch.where(cos > -m.cos(), moved, cos - m * m.sin())
    elif guard == "easy":
        moved = torch.where(cos > 0, moved, cos)
    return moved


def sine(cos: Tensor) -> Tensor:
    """sin(arccos(cos)): the exact value, with the slope at the nearest |cos| <= 1 - 1e-7."""
    inside = cos + (cos.clamp(-_EDGE, _EDGE) - cos).detach()
    finite = ((1 - inside) * (1 + inside)).sqrt()
    exact = ((1 - cos) * (1 + cos)).detach().sqrt()
    return finite + (exact - finite).detach()
