"""Losses for the area under the ROC curve: how the scores of positives and negatives compare."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lossearch import Choices, Given, Paper, Range, loss
from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError
from lossearch_classification._shared import check_binary, softplus

_PAIRS = 1 << 18  # pairs that are compared at a time


@loss(
    name="auc_margin",
    task="binary",
    vmap="its min-max modes learn three numbers of their own",
    returns="batch",
    paper=Paper(
        "Large-scale Robust Deep AUC Maximization: A New Surrogate Loss and Empirical Studies on "
        "Medical Image Classification",
        2021,
        "arXiv:2012.03173",
    ),
    skips=dict.fromkeys(("one class", "no positives"), "such a batch is warned of"),
)
class AucMargin(nn.Module):
    r"""AUC margin (AUCM): scores close to their class's mean, and these means a margin apart.

    With h the scores and :math:`E_\pm` means over a class in the batch, ``closed_form`` is
    :math:`\mathrm{Var}_+ h + \mathrm{Var}_- h + (m + E_- h - E_+ h)_+^2`. ``minmax`` is
    :math:`E_+(h-a)^2 + E_-(h-b)^2 + 2\alpha(m + E_- h - E_+ h) - \alpha^2` with a, b learned by
    descent and alpha >= 0 by ascent, so that small batches need not show the classes' means; at
    their optimum it is ``closed_form``. ``minmax_prior`` weighs it by the share p of positives,
    :math:`p(1-p)` times the same where p is the batch's own.

    The ascent needs no optimizer of its own: the gradient of alpha has its sign turned. After each
    step :meth:`after_step` brings alpha back to 0 or more.

    A batch without both classes gives 0, with no gradient: pair it with a balanced sampler.

    Args:
        margin: m > 0; h lies in [0, 1] with the sigmoid.
        mode: ``closed_form``, ``minmax`` or ``minmax_prior``.
        activation: ``sigmoid`` of the logits, or ``none``.
        prior: p, the share of positives in (0, 1), for ``minmax_prior``; None is the batch's.

    Checked against the documented formulas of ``AUCMLoss``, Optimization-AI/LibAUC
    (libauc/losses/auc.py). Its code of the second (``v2``, here ``minmax``) divides by the number
    of non-zero terms and not of class members, which is not followed.
    """

    a: nn.Parameter
    b: nn.Parameter
    alpha: nn.Parameter

    def __init__(
        self,
        *,
        margin: Annotated[float, Field(gt=0), Choices(0.1, 0.3, 0.5, 0.7, 0.9, 1.0)] = 1.0,
        mode: Annotated[
            Literal["closed_form", "minmax", "minmax_prior"], Choices()
        ] = "closed_form",
        activation: Annotated[Literal["sigmoid", "none"], Choices()] = "sigmoid",
        prior: Annotated[float, Field(gt=0, lt=1)] | None = None,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.mode = mode
        self.activation = activation
        self.prior = prior
        self.warned = False
        if mode != "closed_form":
            for name in ("a", "b", "alpha"):
                self.register_parameter(name, nn.Parameter(torch.zeros(())))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """One number of logits ``[B]`` or ``[B, 1]`` and targets alike in {0, 1}, -1 for unknown.

        Raises:
            FieldError: shapes that do not match, or a target outside {-1, 0, 1}.
        """
        z, t, known = check_binary("auc_margin", logits, targets)
        h = z.sigmoid() if self.activation == "sigmoid" else z
        positive, negative = known & (t == 1), known & (t == 0)
        n_pos, n_neg = positive.sum().to(h), negative.sum().to(h)
        both = (n_pos > 0) & (n_neg > 0)
        self._warn(targets, both)

        def mean_pos(x: Tensor) -> Tensor:
            return torch.where(positive, x, 0).sum() / n_pos.clamp(min=1)

        def mean_neg(x: Tensor) -> Tensor:
            return torch.where(negative, x, 0).sum() / n_neg.clamp(min=1)

        gap = self.margin + mean_neg(h) - mean_pos(h)
        if self.mode == "closed_form":
            spread = mean_pos((h - mean_pos(h)).square()) + mean_neg((h - mean_neg(h)).square())
            value = spread + gap.clamp(min=0).square()
        else:
            a, b, alpha = self.a.to(h), self.b.to(h), self.alpha.to(h)
            alpha = 2 * alpha.detach() - alpha  # its value, with the sign of its gradient turned
            pos, neg = mean_pos((h - a).square()), mean_neg((h - b).square())
            if self.mode == "minmax":
                value = pos + neg + 2 * alpha * gap - alpha.square()
            else:
                share = n_pos / (n_pos + n_neg).clamp(min=1)
                p = share if self.prior is None else self.prior
                up, down = (1 - p) * share, p * (1 - share)
                gap = p * (1 - p) * self.margin + down * mean_neg(h) - up * mean_pos(h)
                value = up * pos + down * neg + 2 * alpha * gap - p * (1 - p) * alpha.square()
        return torch.where(both, value, 0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring alpha back to 0 or more."""
        if self.mode != "closed_form":
            self.alpha.clamp_(min=0)

    def _warn(self, targets: Tensor, both: Tensor) -> None:
        if not self.warned and readable(targets, both) and not both:
            self.warned = True
            warnings.warn(
                "auc_margin: a batch without both classes gives 0 and no gradient; take larger "
                "batches, or a sampler that balances the classes",
                stacklevel=3,
            )


def _reads(params: Any) -> Iterable[str]:
    binary = params.form == "binary"
    fields = ("logits", "targets") if binary else ("embeddings", "embeddings_b")
    return fields if params.max_pairs is None else (*fields, "step")


@loss(
    task="binary",
    returns="batch",
    reads=_reads,
    paper=Paper(
        "Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval",
        2025,
        "arXiv:2510.00137",
    ),
    cost="every positive with every negative: up to B^2/4 pairs, and B^2 (B - 1) in retrieval",
)
def mann_whitney(
    logits: Tensor | None = None,
    targets: Tensor | None = None,
    embeddings: Tensor | None = None,
    embeddings_b: Tensor | None = None,
    step: int | None = None,
    *,
    temperature: Annotated[float, Field(gt=0), Range(0.01, 1.0, log=True)] = 1.0,
    max_pairs: Annotated[int, Field(ge=1)] | None = None,
    form: Literal["binary", "retrieval"] = "binary",
    seed: Annotated[int, Given("seed")] = 0,
) -> Tensor:
    r"""Mann-Whitney, the mean of :math:`\mathrm{softplus}((s_j - s_i)/T)` over pairs.

    The pairs are every positive i with every negative j of the whole batch, so unlike a
    contrastive loss it compares across queries. Divided by log 2 it is not below the share of
    misordered pairs (ties counted), one minus the area under the curve. Memory is linear in the
    scores.

    Args:
        logits: The scores of form ``binary``, ``[B]`` or ``[B, 1]``.
        targets: Of the same shape, in {0, 1}, -1 for unknown.
        embeddings: The queries of form ``retrieval``, ``[B, E]``.
        embeddings_b: What each query should find, ``[B, E]``.
        step: The optimizer step: with the seed it decides which pairs are drawn.
        temperature: T > 0; about 0.05 suits cosines (the paper's experiments have 0.01).
        max_pairs: Draw that many pairs at random, with replacement, instead of taking all.
        form: ``binary``; or ``retrieval``, where the scores are the cosines of all rows of
            ``embeddings`` and ``embeddings_b``, positive on the diagonal and negative elsewhere.
        seed: Of the draws.

    Returns:
        One number, >= 0; 0 where there is no positive or no negative.

    Raises:
        FieldError: a field of the form is missing, shapes that do not match, or a target outside
            {-1, 0, 1}.

    Checked against the paper's text: this is its loss over the distribution (equation 2, and
    lemma 2 for T); its batch formula (equation 3) is the sum over negatives instead of the mean.
    """
    if form == "binary":
        scores, n_pos, n_neg = _sorted(logits, targets)
    else:
        scores, n_pos, n_neg = _cosines(embeddings, embeddings_b)
    scores = scores / temperature
    if max_pairs is None:
        return _all_pairs(scores, n_pos, n_neg)
    draws = np.random.default_rng((seed, step or 0))  # a torch.Generator may not draw in a vmap
    u = torch.from_numpy(draws.random((2, max_pairs))).to(scores.device)
    n_pos, n_neg = (torch.as_tensor(n, device=scores.device) for n in (n_pos, n_neg))
    i, j = (torch.minimum((x * n).long(), n - 1) for x, n in zip(u, (n_pos, n_neg), strict=True))
    drawn = (n_pos > 0) & (n_neg > 0)
    i, j = torch.where(drawn, i, 0), torch.where(drawn, n_pos + j, 0)
    if scores.numel() == 0:
        return scores.sum()
    return torch.where(drawn, softplus(scores[j] - scores[i]).mean(), 0)


Count = Tensor | int


def _sorted(logits: Tensor | None, targets: Tensor | None) -> tuple[Tensor, Count, Count]:
    """The scores ``[N]``, positives first, then negatives, then unknown; how many of the two."""
    if logits is None or targets is None:
        raise FieldError("mann_whitney of form 'binary' reads 'logits' and 'targets'")
    z, t, known = check_binary("mann_whitney", logits, targets)
    kind = torch.where(known, 1 - t, 2).flatten()
    n_pos, n_neg = (kind == 0).sum(), (kind == 1).sum()
    scores = z.flatten()[kind.argsort(stable=True)]
    if readable(targets):
        return scores, int(n_pos), int(n_neg)
    return scores, n_pos, n_neg


def _cosines(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Count, Count]:
    """The diagonal of the cosine matrix and then the rest, ``[B * B]``; how many of the two."""
    if a is None or b is None:
        raise FieldError("mann_whitney of form 'retrieval' reads 'embeddings' and 'embeddings_b'")
    if a.ndim != 2 or a.shape != b.shape:
        raise FieldError(
            f"mann_whitney: embeddings {list(a.shape)} go with embeddings_b [B, E] of that "
            f"shape, not {list(b.shape)}"
        )
    with torch.autocast(a.device.type, enabled=False):
        cosines = F.normalize(raise_precision(a)) @ F.normalize(raise_precision(b)).T
    size = len(cosines)
    # Without its first entry, the matrix has the diagonal at the end of rows of B + 1.
    rest = cosines.flatten()[1:].reshape(max(size - 1, 0), size + 1)[:, :-1].flatten()
    return torch.cat([cosines.diagonal(), rest]), size, size * max(size - 1, 0)


def _all_pairs(scores: Tensor, n_pos: Count, n_neg: Count) -> Tensor:
    if isinstance(n_pos, int) and isinstance(n_neg, int):
        pos, neg = scores[:n_pos], scores[n_pos : n_pos + n_neg]
        return _PairMean.apply(pos, neg, torch.ones_like(pos), torch.ones_like(neg))[0]
    place = torch.arange(len(scores), device=scores.device)
    is_pos, is_neg = place < n_pos, (place >= n_pos) & (place < n_pos + n_neg)
    return _PairMean.apply(scores, scores, is_pos.to(scores), is_neg.to(scores))[0]


class _PairMean(torch.autograd.Function):
    """Weighted mean of softplus(neg_j - pos_i), some pairs at a time, with its gradients.

    Left to autograd, every pair would stay in memory until the backward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        pos: Tensor, neg: Tensor, pos_weight: Tensor, neg_weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        total = (pos_weight.sum() * neg_weight.sum()).clamp(min=1)
        rows = max(1, _PAIRS // max(1, len(neg)))
        value, by_neg = pos.new_zeros(()), torch.zeros_like(neg)
        by_pos: list[Tensor] = [pos[:0]]
        with torch.autocast(pos.device.type, enabled=False):
            for some, weight in zip(pos.split(rows), pos_weight.split(rows), strict=True):
                gaps = neg - some.unsqueeze(1)
                slopes = gaps.sigmoid()
                value = value + weight @ (softplus(gaps) @ neg_weight)
                by_pos.append(-weight * (slopes @ neg_weight))
                by_neg = by_neg + weight @ slopes
        return value / total, torch.cat(by_pos) / total, by_neg * neg_weight / total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, by_pos, by_neg = output
        ctx.mark_non_differentiable(by_pos, by_neg)
        ctx.save_for_backward(by_pos, by_neg)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_pos, by_neg = ctx.saved_tensors
        return slopes[0] * by_pos, slopes[0] * by_neg, None, None
