"""Multilabel losses that treat positives and negatives differently."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Paper, Range, loss
from lossearch_classification._shared import (
    LabelReduction,
    check_binary,
    reduce_labels,
    softplus,
)


@loss(
    task=("binary", "multilabel"),
    paper=Paper("Asymmetric Loss For Multi-Label Classification", 2021, "arXiv:2009.14119"),
    skips={"gradcheck": "detach_weight, the default, holds the powers constant"},
)
def asymmetric(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_neg: Annotated[float, Field(ge=0), Range(0.0, 8.0)] = 4.0,
    gamma_pos: Annotated[float, Field(ge=0), Range(0.0, 3.0)] = 1.0,
    clip: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.3)] = 0.05,
    detach_weight: bool = True,
    label_reduction: LabelReduction = "sum",
) -> Tensor:
    r"""Asymmetric loss (ASL): focal with a power of its own for negatives, the easiest cut off.

    With :math:`p = \sigma(z)` and :math:`p_m = (p - \mathrm{clip})_+`: a positive costs
    :math:`-(1-p)^{\gamma_+} \log p`, a negative :math:`-p_m^{\gamma_-} \log(1 - p_m)`.

    Args:
        logits: ``[B]``, ``[B, 1]`` or ``[B, C]``.
        targets: Of the same shape, in {0, 1}, -1 for unknown.
        gamma_neg: Focusing of negatives, >= 0; advised not below ``gamma_pos``.
        gamma_pos: Focusing of positives, >= 0; the authors' trainings mostly use 0.
        clip: Probability below which a negative costs nothing, in [0, 1).
        detach_weight: Hold the powers constant in the gradient; the value is the same. (The
            authors' plain class was written to do so, their optimised one does not.)
        label_reduction: ``sum`` or ``mean`` over a sample's known labels.

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: shapes that do not match, or a target outside {-1, 0, 1}.

    Checked against the authors' code, Alibaba-MIIL/ASL
    (src/loss_functions/losses.py), whose clamp of the logarithm at 1e-8 is not followed.
    """
    z, t, known = check_binary("asymmetric", logits, targets)
    cut = torch.as_tensor(clip, dtype=z.dtype, device=z.device)
    p_m = (z.sigmoid() - cut).clamp(min=torch.finfo(z.dtype).tiny)
    weight_pos = (-gamma_pos * softplus(z)).exp()  # (1 - p)^gamma_pos
    weight_neg = p_m**gamma_neg
    if detach_weight:
        weight_pos, weight_neg = weight_pos.detach(), weight_neg.detach()
    positive = weight_pos * softplus(-z)
    # log(1 - p + clip), exact for every logit; clip = 0 gives log(1 - p)
    negative = -weight_neg * torch.logaddexp(-softplus(z), cut.log()).clamp(max=0)
    return reduce_labels(torch.where(t == 1, positive, negative), known, label_reduction)
