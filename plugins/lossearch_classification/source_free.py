"""Adapting to unlabelled data, without the data that the model was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, loss
from lossearch.components import raise_precision
from lossearch.errors import FieldError
from lossearch_classification._shared import along_classes, check_counts, class_vector


def _reads(params: Any) -> Iterable[str]:
    return ("logits",) if params.prior is not None else ("logits", "class_counts")


@loss(
    task="multiclass",
    returns="batch",
    auxiliary=True,
    paper=Paper("Source-Free Domain Adaptation for Image Segmentation", 2021, "arXiv:2108.03152"),
    reads=_reads,
)
def source_free_entropy_prior(
    logits: Tensor,
    class_counts: Tensor | None = None,
    *,
    prior_weight: Annotated[float, Field(ge=0), Range(0.01, 10.0, log=True)] = 1.0,
    prior: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2)] | None = None,
    class_weighting: Annotated[Literal["none", "inverse_prior"], Choices()] = "none",
    eps: Annotated[float, Field(gt=0)] = 1e-10,
) -> Tensor:
    r"""Entropy of the predictions, and how far their proportions are from a known prior.

    The mean over positions of :math:`-\sum_c \nu_c p_c \log(p_c + \epsilon)`, plus
    :math:`w \sum_c \hat p_c (\log(\hat p_c + \epsilon) - \log(\tau_c + \epsilon))`, with
    :math:`\hat p` the mean of p over the positions: KL(predicted || prior). It reads no label: a
    model with source-trained weights goes on with it on target data alone. Without such weights it
    has nothing to start from, so a space that asks for all losses offers it beside one that reads
    labels.

    Args:
        logits: Dense ``[B, C, H, W]``, for which the proportions are each image's; or ``[B, C]``,
            for which they are the batch's.
        class_counts: int64 ``[C]``, whose proportions are the prior where ``prior`` is None.
        prior_weight: w >= 0.
        prior: One number > 0 for each class; they are brought to sum to 1.
        class_weighting: :math:`\nu` is 1 (``none``), or :math:`\tau^{-1} / \sum \tau^{-1}`
            (``inverse_prior``), so that rare classes count more.
        eps: Added inside the logarithms, > 0. The slope stays finite, about log eps.

    Returns:
        One number for ``[B, C]``; ``[B]`` for dense logits. It is declared ``batch``: in
        classification that is what it returns.

    Raises:
        FieldError: neither a prior nor class counts, a count <= 0, or a shape is not allowed.
        ParameterError: a prior entry <= 0, or there are not C of them.

    Checked against the authors' code, mathilde-b/SFDA losses.py (``EntKLProp``).
    """
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise FieldError(
            "source_free_entropy_prior reads logits [B, C] or [B, C, H, W] with C >= 2 classes, "
            f"not {list(logits.shape)}"
        )
    z = raise_precision(logits)
    tau = _prior(z, prior, class_counts)
    p = z.softmax(1)
    terms = p * (p + eps).log()
    if class_weighting == "inverse_prior":
        terms = along_classes(1 / tau / (1 / tau).sum(), z) * terms
    if z.ndim == 2:  # one set of positions, the batch
        entropy, found = -terms.sum() / max(len(z), 1), p.sum(0) / max(len(z), 1)
    else:
        entropy, found = -terms.sum(1).flatten(1).mean(1), p.flatten(2).mean(2)
    kl = (found * ((found + eps).log() - (tau + eps).log())).sum(-1)
    return entropy + prior_weight * kl


def _prior(z: Tensor, prior: list[float] | None, class_counts: Tensor | None) -> Tensor:
    name = "source_free_entropy_prior"
    if prior is not None:
        tau = class_vector(name, "prior", prior, z)
        return tau / tau.sum()
    if class_counts is None:
        raise FieldError(f"{name} needs the parameter 'prior', or the field 'class_counts'")
    why = "has no sample, and a prior is > 0; pass the parameter 'prior'"
    check_counts(name, class_counts, z.shape[1:2], why)
    counts = class_counts.to(z.dtype)
    return counts / counts.sum()
