"""The Z-loss, of the spherical family, and the penalty on log Z that shares its nickname."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Paper, Range, loss
from lossearch.components import raise_precision
from lossearch.errors import FieldError
from lossearch_classification._shared import check_multiclass, dense_mean, given, pick, softplus
from lossearch_classification.cosines import check_head


def _z_reads(params: Any) -> Iterable[str]:
    return ("embeddings", "weight", "targets") if params.factored else ("logits", "targets")


@loss(
    task="multiclass",
    reads=_z_reads,
    paper=Paper(
        "The Z-loss: a shift and scale invariant classification loss belonging to the Spherical "
        "Family",
        2016,
        "arXiv:1604.08859",
    ),
)
def z_loss(
    targets: Tensor,
    logits: Tensor | None = None,
    embeddings: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    a: Annotated[float, Field(gt=0), Range(0.01, 10.0, log=True)] = 0.1,
    b: Annotated[float, Range(0.0, 30.0)] = 10.0,
    eps: Annotated[float, Field(gt=0)] = 1e-6,
    factored: bool = False,
) -> Tensor:
    r"""Z-loss, :math:`\frac1a \mathrm{softplus}(a(b - \bar z_y))`, of the standardised logit.

    :math:`\bar z_y = (z_y - \mu)/\sqrt{\max(v, \epsilon)}`, mu and v the mean and the variance of
    the sample's C logits. Blind to the shift and the scale of the logits, and no likelihood: the
    prediction is the argmax, and probabilities have to be fitted afterwards. As
    :math:`\bar z_y \le \sqrt{C-1}`, the value is at least
    :math:`\mathrm{softplus}(a(b - \sqrt{C-1}))/a`. Where all logits are equal the slope is of the
    order of :math:`1/\sqrt\epsilon`: a head that starts at zero needs its gradient clipped.

    It depends on the logits by their sum, their sum of squares and z_y alone. ``factored`` takes
    these from the head's class vectors (logits = embeddings @ weight.T, without a bias), in
    O(E²) a sample and O(C E²) a batch, and never makes a [B, C] tensor; its value and gradients
    are those of the plain form. (A bias is one more column of ``weight``, with a constant
    embedding.) Checked against pascal20100/factored_output_layer example/timing_example.py, which
    fixes a = 1, b = 0 and adds 1e-12 to the deviation; the defaults of a and b are the
    catalogue's, as the paper's text could not be read.

    Args:
        targets: int64 ``[B]`` (dense ``[B, H, W]``).
        logits: ``[B, C]`` or dense ``[B, C, H, W]``, where not factored.
        embeddings: ``[B, E]``, where factored.
        weight: The head's class vectors, ``[C, E]``, where factored.
        a: Sharpness > 0.
        b: Where it bends, in standard deviations; which is best depends on the k of a top-k.
        eps: The least variance, > 0.
        factored: Whether to read embeddings and weight in place of logits.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed, or what it reads was not given.
    """
    if factored:
        head = given("z_loss(factored=True)", embeddings=embeddings, weight=weight)
        gap, variance = _factored(targets, *head)
        deviation = variance.clamp(min=eps).sqrt()
    else:
        (scores,) = given("z_loss(factored=False)", logits=logits)
        check_multiclass("z_loss", scores, targets)
        z = raise_precision(scores)
        centred = z - z.mean(1, keepdim=True)
        gap = pick(centred, targets)
        deviation = torch.linalg.vector_norm(centred, dim=1) / z.shape[1] ** 0.5
    standard = gap / deviation.clamp(min=eps**0.5)
    return dense_mean(softplus(a * (b - standard)) / a)


def _factored(targets: Tensor, embeddings: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """z_y - mean(z) and the variance of z = W h, ``[B]`` each.

    Centring W over the classes first leaves h' W' W h / C as the variance, with nothing to cancel.
    """
    check_head("z_loss", embeddings, weight)
    h = raise_precision(embeddings)
    w = raise_precision(weight).to(h.dtype)
    check_multiclass("z_loss", h[:, :1].expand(-1, len(w)), targets)  # a view of logits' shape
    w = w - w.mean(0)
    with torch.autocast(h.device.type, enabled=False):
        variance = (h @ (w.T @ w / len(w)) * h).sum(1)
    return (w[targets] * h).sum(1), variance


@loss(
    task="multiclass",
    auxiliary=True,
    paper=Paper(
        "Small-scale proxies for large-scale Transformer training instabilities",
        2023,
        "arXiv:2309.14322",
    ),
)
def log_z_penalty(
    logits: Tensor,
    *,
    coefficient: Annotated[float, Field(ge=0), Range(1e-6, 1e-1, log=True)] = 1e-4,
) -> Tensor:
    r"""Penalty on the log-partition, :math:`\lambda\,\mathrm{logsumexp}(z)^2`; log Z for short.

    Beside cross_entropy it leaves the predictions alone and takes away the freedom to shift all
    logits: log Z is drawn to 0, where the logits are log-probabilities. Often called "z-loss",
    which is not :func:`z_loss`. Written from the catalogue's formula, which is the form of the
    router penalty in Hugging Face transformers (``router_z_loss_func``); the paper's text could
    not be read.

    Args:
        logits: ``[B, C]`` or dense ``[B, C, H, W]``.
        coefficient: lambda >= 0.

    Returns:
        ``[B]``.

    Raises:
        FieldError: logits of a shape that is not allowed.
    """
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise FieldError(
            f"log_z_penalty reads logits [B, C] with C >= 2 classes, not {list(logits.shape)}"
        )
    return dense_mean(coefficient * raise_precision(logits).logsumexp(1).square())
