"""Margins that follow training: by each sample's quality (AdaFace), by its progress (Curricular).

Both keep running statistics, renewed in training only and before they are used.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from lossearch import Paper, Range, loss
from lossearch.components import raise_precision
from lossearch.errors import FieldError
from lossearch_classification.cosines import Scale, add_angle, cosine_cross_entropy, cosines


@loss(
    name="adaface",
    task="multiclass",
    vmap="the mean and deviation of lengths that it keeps are renewed at each step",
    paper=Paper("AdaFace: Quality Adaptive Margin for Face Recognition", 2022, "arXiv:2204.00964"),
    skips={"gradcheck": "the embeddings' lengths are constants of the gradient"},
)
class AdaFace(nn.Module):
    r"""AdaFace: a margin by image quality, as the embedding's length tells it.

    The length n of each embedding, clipped to [0.001, 100] and held constant, is ranked among
    the others: :math:`q = \mathrm{clip}(h(n - \mu)/(\sigma + \epsilon), -1, 1)`, with running
    mean and standard deviation. The target's cosine becomes
    :math:`\cos(\mathrm{clip}(\theta - mq, \epsilon, \pi - \epsilon)) - (m + mq)`: CosFace at
    q = 0, ArcFace at q = -1, and at q = 1 a negative angle with twice the margin. All cosines
    are clamped to :math:`\pm(1 - \epsilon)`.

    Args:
        scale: Inverse temperature, > 0.
        margin: m, in [0, 1).
        h: Share of a standard deviation's reach in q, >= 0; at 0 every q is 0.
        momentum: Share of the batch in the running statistics, in [0, 1]; 1 forgets the past.
        eps: Added to the standard deviation, and the distance that cosines and angles keep from
            their ends, in (0, 1).

    Checked against the authors' code, mk-minchul/AdaFace (head.py, where ``momentum`` is
    ``t_alpha``: 1.0 in the signature, 0.01 in training).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        scale: Scale = 64.0,
        margin: Annotated[float, Field(ge=0, lt=1), Range(0.2, 0.6)] = 0.4,
        h: Annotated[float, Field(ge=0), Range(0.1, 0.6)] = 0.333,
        momentum: Annotated[float, Field(ge=0, le=1), Range(0.001, 1.0, log=True)] = 0.01,
        eps: Annotated[float, Field(gt=0, lt=1)] = 1e-3,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.h = h
        self.momentum = momentum
        self.eps = eps
        # float64: where all lengths are equal, their rounding would be all that q sees
        self.register_buffer("mean", torch.tensor(20.0, dtype=torch.float64))
        self.register_buffer("std", torch.tensor(100.0, dtype=torch.float64))

    def forward(self, embeddings: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            embeddings: ``[B, E]``, of any length but zero.
            weight: The head's class vectors, ``[C, E]``.
            targets: Class of each sample, int64 ``[B]``.

        Returns:
            ``[B]``.

        Raises:
            FieldError: shapes that do not match, a target outside [0, C), or in training a batch
                of one sample, which has no standard deviation.
        """
        cos, target = cosines("adaface", embeddings, weight, targets)
        edge = 1 - self.eps
        q = self._quality(raise_precision(embeddings.detach())).to(cos.dtype)
        theta = target.clamp(-edge, edge).acos() - self.margin * q
        moved = theta.clamp(self.eps, math.pi - self.eps).cos() - self.margin * (1 + q)
        return cosine_cross_entropy(cos.clamp(-edge, edge), moved, targets, self.scale)

    @torch.no_grad()
    def _quality(self, embeddings: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(embeddings, dim=1).double().clamp(0.001, 100)
        if self.training and len(lengths) == 1:
            raise FieldError(
                "adaface compares the lengths of a batch's embeddings, and one sample has none to "
                "compare with; take a batch size that leaves no last batch of one"
            )
        if self.training and len(lengths) > 0:
            self.mean.lerp_(lengths.mean(), self.momentum)
            self.std.lerp_(lengths.std(), self.momentum)
        return (self.h * (lengths - self.mean) / (self.std + self.eps)).clamp(-1, 1)


@loss(
    name="curricularface",
    task="multiclass",
    vmap="the mean cosine that it keeps is renewed at each step",
    paper=Paper(
        "CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition",
        2020,
        "arXiv:2004.00288",
    ),
    skips={"gradcheck": "the running mean of the target's cosine is a constant of the gradient"},
)
class CurricularFace(nn.Module):
    r"""CurricularFace: ArcFace in which hard negatives count more as training proceeds.

    The target's cosine is moved as in ``arcface(guard="linear")``. A class with
    :math:`\cos\theta_c > \cos(\theta_y + m)` is a hard negative, and its cosine becomes
    :math:`\cos\theta_c (t + \cos\theta_c)`; t is the running mean of the target's cosine, which
    starts at 0 and rises as the model learns. Without a hard negative it is ArcFace.

    Args:
        scale: Inverse temperature, > 0.
        margin: Angle m added to the target's, radians in [0, pi/2).
        momentum: Share of the batch in t, in [0, 1].

    Checked against the authors' code, HuangYG123/CurricularFace (head/metrics.py).
    """

    t: Tensor

    def __init__(
        self,
        *,
        scale: Scale = 64.0,
        margin: Annotated[float, Field(ge=0, lt=math.pi / 2), Range(0.2, 0.7)] = 0.5,
        momentum: Annotated[float, Field(ge=0, le=1), Range(0.001, 0.1, log=True)] = 0.01,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.momentum = momentum
        self.register_buffer("t", torch.zeros((), dtype=torch.float64))

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
        cos, target = cosines("curricularface", embeddings, weight, targets)
        if self.training and len(target) > 0:
            self.t.lerp_(target.detach().double().mean(), self.momentum)
        hard = cos > add_angle(target.detach(), self.margin).unsqueeze(1)
        # the target's own column is overwritten with what follows here
        cos = cos * torch.where(hard, cos + self.t, 1.0)
        moved = add_angle(target, self.margin, "linear")
        return cosine_cross_entropy(cos, moved, targets, self.scale)
