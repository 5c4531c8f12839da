"""Agreement of what should look alike: the two halves of a face."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lossearch import Paper, Range, loss
from lossearch.components import raise_precision
from lossearch.errors import FieldError


@loss(
    task=("multiclass", "binary", "multilabel"),
    auxiliary=True,
    paper=Paper(
        "SymFace: Additional Facial Symmetry Loss for Deep Face Recognition",
        2024,
        "arXiv:2409.11816",
    ),
    cost="two further forwards, one for each half of the image",
)
def symface(
    embeddings: Tensor,
    embeddings_b: Tensor,
    rho: Tensor | None = None,
    embeddings_left: Tensor | None = None,
    *,
    threshold: Annotated[float, Field(ge=0, le=1), Range(0.0, 1.0)] = 0.7,
    normalize: bool = True,
) -> Tensor:
    r"""SymFace: :math:`\|e_a - e_b\|^2` of the two halves of a frontal face, else 0.

    Beside a loss of the whole image; a weight of about 1 is usual. Normalised it is
    :math:`2 - 2\cos(e_a, e_b)`, at most 4. For other data than faces: of any two halves that
    should agree.

    Args:
        embeddings: Of the left half, ``[B, E]``, of any length but zero where normalised; not
            read where ``embeddings_left`` is there.
        embeddings_b: Of the right half, mirrored, ``[B, E]``.
        rho: How frontal each face is, 0 to 1, ``[B]``; without it all count.
        embeddings_left: Of the left half, where ``embeddings`` are the whole image's, as the
            provider half_images leaves them.
        threshold: From which ``rho`` on a sample counts, in [0, 1].
        normalize: Bring both embeddings to length 1.

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: shapes that do not match.

    Written from the catalogue's formula, which summaries of the paper bear out (a distance of the
    halves' embeddings, added to the face loss where rho is high enough); the paper's norm and
    threshold could not be read.
    """
    if embeddings_left is not None:
        embeddings = embeddings_left
    if embeddings.ndim != 2 or embeddings.shape != embeddings_b.shape:
        raise FieldError(
            "symface reads embeddings and embeddings_b of one shape [B, E], not "
            f"{list(embeddings.shape)} and {list(embeddings_b.shape)}"
        )
    if rho is not None and rho.shape != embeddings.shape[:1]:
        raise FieldError(
            f"symface reads rho {list(embeddings.shape[:1])}, one for each sample, "
            f"not {list(rho.shape)}"
        )
    a = raise_precision(embeddings)
    b = raise_precision(embeddings_b).to(a.dtype)
    if normalize:
        a, b = F.normalize(a), F.normalize(b)
    values = (a - b).square().sum(1)
    return values if rho is None else torch.where(rho >= threshold, values, 0.0)
