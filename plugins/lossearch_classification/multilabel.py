"""Asymmetric losses: one focusing power for what should be high, another for the rest."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lossearch import Paper, Range, loss
from lossearch.components import raise_precision
from lossearch_classification._shared import (
    LabelReduction,
    check_binary,
    check_multiclass,
    dense_mean,
    pick,
    reduce_labels,
)
from lossearch_classification._slices import sliced

PAPER = Paper("Asymmetric Loss For Multi-Label Classification", 2021, "arXiv:2009.14119")


@loss(
    task=("binary", "multilabel"),
    paper=PAPER,
    skips={"gradcheck": "detach_weight, the default, holds the powers constant"},
)
@sliced("logits", "targets")
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
    :math:`-(1-p)^{\gamma_+} \log p`, a negative :math:`-p_m^{\gamma_-} \log(1 - p_m)`. With both
    powers and clip 0 it is binary_cross_entropy; with equal powers, clip 0 and the weight
    differentiated, focal.

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
    values = asymmetric_values(z, t, gamma_neg, gamma_pos, clip, detach_weight)
    return reduce_labels(values, known, label_reduction)


def asymmetric_values(
    z: Tensor,
    t: Tensor,
    gamma_neg: float | Tensor,
    gamma_pos: float,
    clip: float,
    detach_weight: bool,
) -> Tensor:
    """What each logit ``[B, L]`` costs where t is 1 or 0; the power of negatives may differ by L.

    Written in kernels that are quick on a CPU: lerp is where() for such t, and relu is clamp.
    """
    x = (2 * t - 1) * z  # the logit of what the label says, of probability q
    log_q = F.logsigmoid(x)
    held = x.detach() if detach_weight else x
    log_miss = (log_q.detach() if detach_weight else log_q) - held  # log(1 - q)
    if isinstance(clip, Tensor):
        cut = clip.to(z.dtype)
        log_p_m = _log((log_miss.exp() - cut).relu())
        log_rest = torch.logaddexp(log_q, cut.log()).clamp(max=0)
    elif clip == 0:
        log_p_m, log_rest = log_miss, log_q
    else:  # the same for less: clip keeps the logarithm off 0
        p_m = ((1 - clip) - x.sigmoid()).relu()
        log_p_m = _log(p_m.detach() if detach_weight else p_m)
        log_rest = (1 - p_m).log()
    weight = torch.lerp(gamma_neg * log_p_m, gamma_pos * log_miss, t).exp()
    return -weight * torch.lerp(log_rest, log_q, t)


def _log(x: Tensor) -> Tensor:
    """Finite at 0: a power below 1 has an infinite slope there."""
    return (x + torch.finfo(x.dtype).tiny).log()


@loss(task="multiclass", paper=PAPER)
@sliced("logits", "targets")
def asymmetric_single_label(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_pos: Annotated[float, Field(ge=0), Range(0.0, 3.0)] = 0.0,
    gamma_neg: Annotated[float, Field(ge=0), Range(0.0, 8.0)] = 4.0,
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.3)] = 0.1,
) -> Tensor:
    r"""Asymmetric loss for one label, :math:`-\sum_c q_c w_c \log p_c`, of a smoothed target q.

    :math:`q = (1-\varepsilon)\,\mathrm{onehot}(y) + \varepsilon/C`, and the weight, which is
    differentiated, is :math:`(1-p_y)^{\gamma_+}` at y and :math:`p_c^{\gamma_-}` elsewhere. With
    both powers 0 it is cross_entropy(label_smoothing); without smoothing ``gamma_neg`` has no
    effect and it is focal(gamma_pos).

    Args:
        logits: ``[B, C]``.
        targets: Class of each sample, int64 ``[B]``.
        gamma_pos: Focusing of the target class, >= 0.
        gamma_neg: Focusing of the other classes, >= 0.
        label_smoothing: Mass spread evenly over the classes, in [0, 1).

    Returns:
        Loss of each sample, ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed.

    Checked against ``ASLSingleLabel`` of the authors' code, Alibaba-MIIL/ASL
    (src/loss_functions/losses.py).
    """
    check_multiclass("asymmetric_single_label", logits, targets)
    log_p = raise_precision(logits).log_softmax(1)
    log_y = pick(log_p, targets)
    # a power below 1 has an infinite slope at 0
    rest = (-log_y.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)  # 1 - p_y
    every = (torch.exp(gamma_neg * log_p) * log_p).sum(1)
    others = every - torch.exp(gamma_neg * log_y) * log_y
    spread = label_smoothing / log_p.shape[1]
    return dense_mean(-(1 - label_smoothing + spread) * rest**gamma_pos * log_y - spread * others)
