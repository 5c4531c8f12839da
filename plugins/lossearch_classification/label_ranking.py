"""Multilabel losses that rank: positive labels above negative ones, or into the first k.

All three may draw at random, which labels of a sample or which classes of the step take part;
they do so in training only, from a generator of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Given, Paper, Range, When, loss
from lossearch.components import Drawing
from lossearch.errors import FieldError
from lossearch_classification._shared import check_binary, given, reduce_labels, softplus
from lossearch_classification.cosines import all_cosines

DUAL_ENCODERS = Paper(
    "Dual-Encoders for Extreme Multi-Label Classification", 2024, "arXiv:2310.10636"
)


class _Drawing(Drawing):
    """Draws, where numbers were not handed in."""

    def draw(self, draws: Tensor | None, like: Tensor, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1): those handed in, or new ones."""
        if draws is None:
            return torch.rand(shape, generator=self.generator).to(like.device)
        if draws.shape != shape:
            raise FieldError(f"draws here are of shape {list(shape)}, not {list(draws.shape)}")
        return draws


def _mlcd_reads(params: Any) -> Iterable[str]:
    return ("embeddings", "weight", "targets") if params.cosine else ("logits", "targets")


@loss(
    name="mlcd",
    task="multilabel",
    vmap="it may draw negatives, and what it reads of the head depends on the draw",
    reads=_mlcd_reads,
    paper=Paper(
        "Multi-label Cluster Discrimination for Visual Representation Learning",
        2024,
        "arXiv:2407.17331",
    ),
)
class Mlcd(_Drawing):
    r"""MLCD: :math:`\log(1 + \sum_{neg} e^{s_j}) + \log(1 + \sum_{pos} e^{-s_i})`.

    s are the logits, or with ``cosine`` the cosines of embedding and class vector, times
    ``scale``; positives have :math:`s_i - \mathrm{scale}\cdot\mathrm{margin}`. So no positive acts
    on a negative. ``joint`` is :math:`\log(1 + \sum_{neg} e^{s_j} \sum_{pos} e^{-s_i})`, never
    above it, which for one positive is the cross-entropy over the known labels.

    Args:
        cosine: Read ``embeddings`` and ``weight`` instead of ``logits``.
        scale: What logits or cosines are multiplied by, > 0; None is 1 for logits, 64 for cosines.
        margin: Taken off a positive's logit or cosine before it is scaled, >= 0.
        negative_rate: Share, in (0, 1], of the classes that are negative for any sample of the
            batch, drawn in each training step for all samples together: at least one class, and
            for a sample with none of its negatives among them one of its own besides. The paper
            takes 0.1 of a million clusters.
        joint: Compare each negative with each positive instead.
        seed: Of its own generator.

    Checked against a summary of the paper with its formulas (papernotes, ECCV 2024): ``joint`` is
    its MLC, which has no margin; the scale and the margin are those of the cosine heads. Its
    targets are the 8 nearest of a million clusters, found offline.
    """

    def __init__(
        self,
        *,
        cosine: bool = False,
        scale: Annotated[
            float | None, Field(gt=0), Range(8.0, 128.0, log=True), When(cosine=True)
        ] = None,
        margin: Annotated[float, Field(ge=0), Range(0.0, 0.5)] = 0.0,
        negative_rate: Annotated[float, Field(gt=0, le=1), Range(0.01, 1.0)] = 1.0,
        joint: bool = False,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        self.cosine, self.scale, self.margin = cosine, scale, margin
        self.negative_rate, self.joint = negative_rate, joint

    def forward(
        self,
        targets: Tensor,
        logits: Tensor | None = None,
        embeddings: Tensor | None = None,
        weight: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> Tensor:
        """The loss of each sample.

        Args:
            targets: ``[B, C]`` in {0, 1}; -1, unknown, is in neither sum.
            logits: ``[B, C]``, without ``cosine``.
            embeddings: ``[B, E]``, of any length but zero, with ``cosine``.
            weight: Class or cluster centres ``[C, E]``, with ``cosine``.
            draws: A number for each class, ``[C]``, instead of its own: of the classes that are
                negative for any sample those with the lowest are drawn, and a sample without one
                of them takes the lowest of its negatives.

        Returns:
            ``[B]``; a side without labels counts 0.

        Raises:
            FieldError: a field is missing, a shape does not match, or a target is not allowed.
        """
        drawn = None
        if self.training and self.negative_rate < 1 and targets.ndim == 2:
            drawn = self._drawn(targets == 0, draws)
            if self.cosine and weight is not None and len(weight) == targets.shape[1]:
                # the other classes' cosines are not even computed
                needed = (drawn | (targets == 1)).any(0)
                targets, weight, drawn = targets[:, needed], weight[needed], drawn[:, needed]
        scores = self._scores(logits, embeddings, weight)
        s, t, known = check_binary("mlcd", scores, targets)
        scale = self.scale if self.scale is not None else 64.0 if self.cosine else 1.0
        s = scale * s
        negative = known & (t == 0) if drawn is None else drawn
        high = s.masked_fill(~negative, -math.inf).logsumexp(1)
        low = (scale * self.margin - s).masked_fill(t == 0, -math.inf).logsumexp(1)
        return softplus(high + low) if self.joint else softplus(high) + softplus(low)

    def _drawn(self, negative: Tensor, draws: Tensor | None) -> Tensor:
        """Which of the negatives ``[B, C]`` are in the step's sums."""
        order = self.draw(draws, negative, negative.shape[1]).argsort()
        rank = order.argsort()
        able = negative.any(0)
        count = (self.negative_rate * able.sum()).round().clamp(min=1)
        drawn = (able[order].cumsum(0) <= count)[rank]
        # each sample's first, which is drawn already where any of its negatives is
        first = torch.where(negative, rank, len(rank)).argmin(1, keepdim=True)
        return (negative & drawn).scatter(1, first, True) & negative

    def _scores(
        self, logits: Tensor | None, embeddings: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        if not self.cosine:
            return given("mlcd(cosine=False)", logits=logits)[0]
        return all_cosines(
            "mlcd", *given("mlcd(cosine=True)", embeddings=embeddings, weight=weight)
        )


@loss(
    name="decoupled_softmax",
    task="multilabel",
    vmap="it may draw positives from a generator of its own",
    paper=DUAL_ENCODERS,
)
class DecoupledSoftmax(_Drawing):
    r"""Decoupled softmax: each positive's cross-entropy against the negatives alone, averaged.

    :math:`-\log(e^{s_i} / (e^{s_i} + \sum_{neg} e^{s_j}))` with s = z / temperature: positives do
    not compete. For one positive it is the cross-entropy over the known labels.

    Args:
        temperature: What the logits are divided by, > 0; 0.05 for cosines.
        sample_positive: In training, take one positive of each sample at random (not under vmap).
        seed: Of its own generator.

    Checked against the authors' code, nilesh2797/DEXML (losses.py), which puts the logits of other
    positives at -100 where they are left out here.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0), Range(0.01, 10.0, log=True)] = 1.0,
        sample_positive: bool = False,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        self.temperature, self.sample_positive = temperature, sample_positive

    def forward(self, logits: Tensor, targets: Tensor, draws: Tensor | None = None) -> Tensor:
        """The loss of each sample.

        Args:
            logits: ``[B, C]``.
            targets: ``[B, C]`` in {0, 1}, -1 for unknown.
            draws: A number in [0, 1) for each sample, ``[B]``, instead of its own.

        Returns:
            ``[B]``; 0 without a positive.

        Raises:
            FieldError: a shape or a target is not allowed.
        """
        z, t, known = check_binary("decoupled_softmax", logits, targets)
        s, positive = z / self.temperature, t == 1
        rivals = s.masked_fill(positive | ~known, -math.inf).logsumexp(1, keepdim=True)
        if self.sample_positive and self.training:
            u = self.draw(draws, z, len(z))
            nth = (u * positive.sum(1)).long() + 1
            positive = positive & (positive.cumsum(1) == nth[:, None])
        return reduce_labels(softplus(rivals - s), positive, "mean")


@loss(
    name="soft_top_k",
    task="multilabel",
    vmap="it may draw positives from a generator of its own",
    paper=DUAL_ENCODERS,
    cost="32 divisions of every logit, to find the threshold",
)
class SoftTopK(_Drawing):
    r"""Soft top-k: :math:`-\log\sigma(\alpha(s_i + t))`, averaged over the positives.

    t is the row's threshold, :math:`\sum_c \sigma(\alpha(s_c + t)) = k`, and s = z / temperature:
    the positives are to be among the first k. t is found by bisection and differentiated as the
    implicit function that it is, :math:`\partial t/\partial s_c = -v_c / \sum v` with
    :math:`v = \sigma'(\alpha(s + t))`. With more positives than k the loss cannot reach 0.

    Args:
        k: How many labels count as the first, >= 1. C labels allow at most C - 1, which then
            takes its place; a row with no more than k known labels costs 0.
        alpha: Sharpness, > 0.
        temperature: What the logits are divided by, > 0.
        iterations: Bisection steps, followed by one of Newton's.
        sample_positives: In training, where there are more than k positives, draw k of them and
            drop the others from the row (not under vmap).
        seed: Of its own generator.

    Checked against the authors' code, nilesh2797/DEXML (losses.py, utils/topk_utils.py). Its
    bracket for t lacks log C and misses the root for very many classes.
    """

    def __init__(
        self,
        *,
        k: Annotated[int, Field(ge=1), Range(1, 20)] = 5,
        alpha: Annotated[float, Field(gt=0), Range(0.5, 20.0, log=True)] = 2.0,
        temperature: Annotated[float, Field(gt=0), Range(0.01, 10.0, log=True)] = 1.0,
        iterations: Annotated[int, Field(ge=1), Range(16, 64)] = 32,
        sample_positives: bool = False,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        self.k, self.alpha, self.temperature = k, alpha, temperature
        self.iterations, self.sample_positives = iterations, sample_positives

    def forward(self, logits: Tensor, targets: Tensor, draws: Tensor | None = None) -> Tensor:
        """The loss of each sample.

        Args:
            logits: ``[B, C]``, C >= 2.
            targets: ``[B, C]`` in {0, 1}, -1 for unknown.
            draws: A number for each label, ``[B, C]``, instead of its own: of the positives those
                with the lowest are drawn.

        Returns:
            ``[B]``; 0 without a positive.

        Raises:
            FieldError: a shape or a target is not allowed.
        """
        z, t, known = check_binary("soft_top_k", logits, targets)
        if z.shape[1] < 2:
            raise FieldError("soft_top_k ranks labels: it reads logits [B, C] with C >= 2")
        k = min(self.k, z.shape[1] - 1)
        positive = t == 1
        if self.sample_positives and self.training:
            u = self.draw(draws, z, *z.shape).masked_fill(~positive, math.inf)
            drawn = positive & (u.argsort(1).argsort(1) < k)
            known, positive = known & (drawn | ~positive), drawn
        beyond = known.sum(1, keepdim=True) > k
        x = z * (self.alpha / self.temperature)
        # a row that fits whole has no threshold: zeros in its place, which have
        among = torch.where(beyond, x, 0.0).masked_fill(beyond & ~known, -math.inf)
        centre, threshold, share = self._threshold(among.detach(), k)
        # the value of a constant, with the slope of the implicit function
        threshold = threshold - (share * (x - x.detach())).sum(1, keepdim=True)
        return reduce_labels(softplus(centre - x - threshold), positive & beyond, "mean")

    @torch.no_grad()
    def _threshold(self, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """A centre and alpha t + centre, ``[B, 1]``, and minus its slope by each alpha s.

        The root is where what the rest adds equals what the k largest lack,
        sum sigma(x - centre + d) = sum sigma(centre - x - d): small numbers, which do not cancel
        as k - sum p does. The centre is midway between the two sides and d within log C of 0, and
        both sums are scaled by e^gap, so that neither vanishes.
        """
        best, places = x.topk(k + 1, dim=1)
        last, first = best[:, k - 1 : k], best[:, k:]  # of the k largest, of the rest
        gap = (last - first) / 2
        top = (last - best[:, :k]).exp()
        rest = (x - first).exp().scatter(1, places[:, :k], 0.0)
        bound = (-gap).exp()
        top_bound, rest_bound = top * bound, rest * bound
        high = torch.full_like(gap, math.log(x.shape[1]))
        low = -high
        for _ in range(self.iterations):
            middle = (low + high) / 2
            w = middle.exp()
            adds = (rest / (1 / w + rest_bound)).sum(1, keepdim=True)
            short = adds < (top / (w + top_bound)).sum(1, keepdim=True)
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)

        def slopes(w: Tensor) -> tuple[Tensor, Tensor]:
            return rest / w / (1 / w + rest_bound) ** 2, top * w / (w + top_bound) ** 2

        middle = (low + high) / 2
        w = middle.exp()
        excess = (rest / (1 / w + rest_bound)).sum(1) - (top / (w + top_bound)).sum(1)
        step = excess / torch.cat(slopes(w), 1).sum(1)
        middle = torch.clamp(middle - step.unsqueeze(1), min=low, max=high)
        of_rest, of_top = slopes(middle.exp())
        share = of_rest.scatter(1, places[:, :k], of_top)
        return last - gap, middle, share / share.sum(1, keepdim=True)
