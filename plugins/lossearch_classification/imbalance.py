"""Losses that know how often each class occurs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from lossearch import Paper, Range, loss
from lossearch.components import raise_precision
from lossearch_classification._shared import (
    along_classes,
    check_counts,
    check_multiclass,
    dense_mean,
    pick,
)
from lossearch_classification._slices import sliced


@loss(
    task="multiclass",
    paper=Paper("Long-tail Learning via Logit Adjustment", 2021, "arXiv:2007.07314"),
)
@sliced("logits", "targets")
def logit_adjusted(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor,
    *,
    tau: Annotated[float, Field(ge=0), Range(0.0, 3.0)] = 1.0,
    smoothing: Annotated[float, Field(ge=0), Range(0.0, 10.0)] = 0.0,
) -> Tensor:
    r"""Cross-entropy of :math:`z + \tau \log \pi`, :math:`\pi_c = (n_c + s)/\sum_k (n_k + s)`.

    tau = 1 is the balanced softmax (arXiv:2007.10740); tau = 0, or equal counts, is
    cross_entropy. Only training adds the prior: evaluation takes z as it is. Checked against
    usagisukisuki/Imbalanced-Classification utils/loss/logitadjust.py and bs.py, not against the
    authors' own code.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        targets: int64 ``[B]`` (``[B, H, W]``).
        class_counts: int64 ``[C]``, the training samples of each class.
        tau: Strength >= 0 of the adjustment.
        smoothing: s >= 0, added to every count.

    Returns:
        ``[B]``, in nats.

    Raises:
        FieldError: a shape or a target is not allowed, or a class has no sample and ``smoothing``
            is 0.
    """
    check_multiclass("logit_adjusted", logits, targets)
    z = raise_precision(logits)
    counts = class_counts.to(z.dtype) + smoothing
    why = "has no sample; set smoothing above 0"
    check_counts("logit_adjusted", counts, z.shape[1:2], why)
    prior = (counts / counts.sum()).log()
    log_p = (z + tau * along_classes(prior, z)).log_softmax(1)
    return dense_mean(-pick(log_p, targets))
