"""ElasticFace: margins drawn anew for each sample at each step."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Given, Paper, Range, loss
from lossearch.components import Drawing
from lossearch.errors import FieldError
from lossearch_classification.cosines import Scale, add_angle, cosine_cross_entropy, cosines

PAPER = Paper(
    "ElasticFace: Elastic Margin Loss for Deep Face Recognition", 2022, "arXiv:2109.09416"
)
Std = Annotated[float, Field(ge=0), Range(0.005, 0.1, log=True)]


class _Elastic(Drawing):
    """Draws a margin for each sample and moves its target's cosine by it, as ``moved`` says."""

    name: str

    def __init__(self, scale: float, margin: float, std: float, plus: bool, seed: int) -> None:
        super().__init__(seed)
        self.scale = scale
        self.margin = margin
        self.std = std
        self.plus = plus

    def forward(
        self, embeddings: Tensor, weight: Tensor, targets: Tensor, draws: Tensor | None = None
    ) -> Tensor:
        """The loss of each sample; in evaluation, without ``draws``, all have the mean margin.

        Args:
            embeddings: ``[B, E]``, of any length but zero.
            weight: The head's class vectors, ``[C, E]``.
            targets: Class of each sample, int64 ``[B]``.
            draws: The margins themselves, ``[B]``, instead of its own.

        Returns:
            ``[B]``.

        Raises:
            FieldError: shapes that do not match, or a target outside [0, C).
        """
        cos, target = cosines(self.name, embeddings, weight, targets)
        margins = self._margins(target.detach(), draws)
        return cosine_cross_entropy(cos, self.moved(target, margins), targets, self.scale)

    def moved(self, target: Tensor, margins: Tensor) -> Tensor:
        """The targets' cosines after their margins, ``[B]``."""
        raise NotImplementedError

    def _margins(self, target: Tensor, draws: Tensor | None) -> Tensor:
        if draws is not None:
            if draws.shape != target.shape:
                raise FieldError(
                    f"{self.name} needs one margin for each sample in draws: "
                    f"{list(target.shape)}, not {list(draws.shape)}"
                )
            margins = draws.to(target)
        elif self.training:
            margins = self.margin + self.std * self.normal(target, len(target))
        else:
            return torch.full_like(target, self.margin)
        if self.plus:  # the nearest to its class, of the largest cosine, gets the smallest
            order = target.argsort(descending=True, stable=True)
            margins = torch.empty_like(margins).scatter(0, order, margins.sort().values)
        return margins


@loss(
    name="elastic_arcface",
    task="multiclass",
    vmap="it draws margins from a generator of its own",
    paper=PAPER,
)
class ElasticArcFace(_Elastic):
    r"""Elastic ArcFace: :math:`\cos(\theta_y + m_i)` at the target, :math:`m_i \sim N(m, \sigma)`.

    With std 0, and in evaluation, it is ``arcface(guard="none")``.

    Args:
        scale: Inverse temperature, > 0.
        margin: Mean m of the angles, radians in [0, pi/2).
        std: Their standard deviation, >= 0 (the authors take 0.0175 with ``plus``).
        plus: Hand the drawn margins out by how near each sample is to its class's vector: the
            nearest gets the smallest.
        seed: Of its own generator.

    Checked against the authors' code, fdbtrs/ElasticFace (utils/losses.py, config/config.py),
    except for ``plus``: the code takes the sorting order for its inverse, which scrambles the
    margins; this is the paper's rule.
    """

    name = "elastic_arcface"

    def __init__(
        self,
        *,
        scale: Scale = 64.0,
        margin: Annotated[float, Field(ge=0, lt=math.pi / 2), Range(0.2, 0.7)] = 0.5,
        std: Std = 0.05,
        plus: bool = False,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(scale, margin, std, plus, seed)

    def moved(self, target: Tensor, margins: Tensor) -> Tensor:
        return add_angle(target, margins)


@loss(
    name="elastic_cosface",
    task="multiclass",
    vmap="it draws margins from a generator of its own",
    paper=PAPER,
)
class ElasticCosFace(_Elastic):
    r"""Elastic CosFace: :math:`\cos\theta_y - m_i` at the target, :math:`m_i \sim N(m, \sigma)`.

    With std 0, and in evaluation, it is ``cosface``.

    Args:
        scale: Inverse temperature, > 0.
        margin: Mean m of what is taken off the target's cosine, in [0, 1).
        std: Its standard deviation, >= 0 (the authors take 0.02 with ``plus``).
        plus: Hand the drawn margins out by how near each sample is to its class's vector: the
            nearest gets the smallest.
        seed: Of its own generator.

    Checked against the authors' code, as :class:`ElasticArcFace` is.
    """

    name = "elastic_cosface"

    def __init__(
        self,
        *,
        scale: Scale = 64.0,
        margin: Annotated[float, Field(ge=0, lt=1), Range(0.1, 0.6)] = 0.35,
        std: Std = 0.05,
        plus: bool = False,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(scale, margin, std, plus, seed)

    def moved(self, target: Tensor, margins: Tensor) -> Tensor:
        return target - margins
