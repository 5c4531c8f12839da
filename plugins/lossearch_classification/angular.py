"""Cosine heads without an additive margin: the plain one, and one that multiplies the angle."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lossearch import Choices, Paper, Range, When, loss
from lossearch.components import raise_precision
from lossearch_classification.cosines import cosine_cross_entropy, cosines

_EDGE = 1 - 1e-5  # the authors' own bound of |cos| here


@loss(
    name="normalized_softmax",
    task="multiclass",
    vmap="it may learn its scale",
    paper=Paper(
        "Hyperspherical embedding for novel class classification", 2021, "arXiv:2102.03243"
    ),
)
class NormalizedSoftmax(nn.Module):
    r"""Normalised softmax, cross_entropy(scale·cos): what every margin head is without a margin.

    Its least value, with C classes as far apart as they can be and each sample on its class's
    vector, is :math:`\log(1 + (C-1)\exp(-s\,C/(C-1)))`: a small scale keeps it away from 0.

    Args:
        scale: Inverse temperature s, > 0.
        learn_scale: Learn the scale, starting from ``scale``. What is learned is the logarithm of
            a factor, so that it stays positive under any optimizer; ours.

    The standard form (NormFace, and the proxy softmax with temperature 0.05); the cited paper
    names it, its text adds a constraint that is not part of this loss.
    """

    log_factor: nn.Parameter | None

    def __init__(
        self,
        *,
        scale: Annotated[float, Field(gt=0), Range(4.0, 128.0, log=True)] = 20.0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.learn_scale = learn_scale
        factor = nn.Parameter(torch.zeros(())) if learn_scale else None
        self.register_parameter("log_factor", factor)

    @property
    def current_scale(self) -> float | Tensor:
        """The scale as it is now, with what was learned."""
        return self.scale if self.log_factor is None else self.scale * self.log_factor.exp()

    def forward(self, embeddings: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            embeddings: ``[B, E]``, of any length but zero.
            weight: The head's class vectors, ``[C, E]``.
            targets: Class of each sample, int64 ``[B]``.

        Returns:
            ``[B]``.

        Raises:
            FieldError: shapes that do not match, or a target outside [0, C).
        """
        cos, _ = cosines("normalized_softmax", embeddings, weight, targets)
        return F.cross_entropy(self.current_scale * cos, targets, reduction="none")


@loss(
    task="multiclass",
    paper=Paper(
        "SphereFace: Deep Hypersphere Embedding for Face Recognition", 2017, "arXiv:1704.08063"
    ),
    skips={"gradcheck": "detach takes the slope of the target's logit by its cosine as 1"},
)
def sphereface(
    embeddings: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    scale: Annotated[
        float, Field(gt=0), Range(8.0, 64.0, log=True), When(normalize_features=True)
    ] = 30.0,
    margin: Annotated[float, Field(ge=1), Range(1.0, 4.0)] = 1.7,
    normalize_features: bool = True,
    detach: Annotated[bool, Choices()] = True,
) -> Tensor:
    r"""SphereFace: cross_entropy(scale·c), with :math:`c_y = \psi(\theta_y)` at the target.

    :math:`\psi(\theta) = (-1)^k \cos(m\theta) - 2k` with :math:`k = \lfloor m\theta/\pi \rfloor`
    falls all the way from 1 at angle 0, continuously. m = 1 is the normalised softmax. The
    target's cosine is clamped to :math:`\pm(1 - 10^{-5})`.

    Args:
        embeddings: ``[B, E]``, of any length but zero.
        weight: The head's class vectors, ``[C, E]``.
        targets: Class of each sample, int64 ``[B]``.
        scale: Inverse temperature, > 0.
        margin: What the target's angle is multiplied by, m >= 1.
        normalize_features: Otherwise each embedding's own length stands in place of ``scale``.
        detach: Characteristic gradient detachment: the target's logit is
            :math:`\cos\theta + (\psi - \cos\theta)` with the bracket held constant.

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: shapes that do not match, or a target outside [0, C).

    Checked against the authors' code, ydwen/opensphere (opensphere/module/head/sphereface.py),
    which has no form without detachment.
    """
    cos, target = cosines("sphereface", embeddings, weight, targets)
    turned = margin * target.clamp(-_EDGE, _EDGE).acos()
    k = (turned.detach() / math.pi).floor()
    psi = (1 - 2 * (k % 2)) * turned.cos() - 2 * k
    if detach:
        psi = target + (psi - target).detach()
    length = scale
    if not normalize_features:
        length = torch.linalg.vector_norm(raise_precision(embeddings), dim=1, keepdim=True)
    return cosine_cross_entropy(cos, psi, targets, length)
