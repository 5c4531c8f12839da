"""Label-distributionally robust losses: the worst class weighting near the uniform one.

Both come from "Label Distributionally Robust Losses for Multi-class Classification" and differ in
the temperature: one for all samples, or one for each, kept between visits.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lossearch import Choices, Given, Paper, Range, loss
from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError
from lossearch_classification._shared import check_multiclass, drop, softplus
from lossearch_classification._slices import sliced

PAPER = Paper(
    "Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness "
    "and Adaptivity",
    2023,
    "arXiv:2112.14869",
)
_DEEP = -40.0  # softplus(z) is exp(z) from here downwards, to the last digit
Margin = Annotated[float, Field(ge=0), Choices(0.1, 1.0, 10.0)]


def _normalise(name: str, z: Tensor, softly: bool, divide: bool) -> Tensor:
    """Logits, softplus of them where ``softly``, over their mean size where ``divide``."""
    if softly and divide:
        # down there softplus is exp, of which a common factor cancels: none is left to underflow
        z = z + (_DEEP - z.detach().amax(1, keepdim=True)).relu()
    f = softplus(z) if softly else z
    if not divide:
        return f
    size = (f if softly else f.abs()).mean(1, keepdim=True)
    if readable(size) and (size == 0).any():
        raise FieldError(
            f"{name}: a row of logits is all zero, and this normalize divides by its size; take "
            "normalize 'none', or a head that does not start at zero"
        )
    return f / torch.where(size == 0, 1.0, size)  # unread on a GPU, it must not be NaN


def _value(f: Tensor, targets: Tensor, lam: Tensor | float, margin: float) -> Tensor:
    """lam * log of the class mean of exp((margin of c != y + f_c - f_y) / lam); lam is [B, 1]."""
    u = f * (1 / lam)
    others = drop(u, targets, -math.inf).logsumexp(1, keepdim=True)
    gap = others + margin / lam - u.gather(1, targets.unsqueeze(1))
    # c = y: 0, whatever the margin
    return (lam * (softplus(gap) - math.log(f.shape[1])))[:, 0]


@loss(task="multiclass", paper=PAPER)
@sliced("logits", "targets")
def ldr_kl(
    logits: Tensor,
    targets: Tensor,
    *,
    lam: Annotated[float, Field(gt=0), Range(0.01, 100.0, log=True)] = 1.0,
    margin: Margin = 0.1,
    normalize: Annotated[Literal["softplus_mean", "l1", "none"], Choices()] = "softplus_mean",
) -> Tensor:
    r"""LDR-KL, :math:`\lambda\log\frac1C\sum_c\exp\frac{m[c\ne y] + f_c - f_y}{\lambda}`.

    It is the maximum over class weightings p of
    :math:`\sum_c p_c(m[c \ne y] + f_c - f_y) - \lambda \sum_c p_c \log(C p_c)`: the Crammer-Singer
    maximum (multiclass_hinge) as lambda goes to 0, the mean over the classes as it grows. With
    lambda = 1, no margin and no normalisation it is cross-entropy - log C. Checked against
    ``LDRLoss_V1`` of Optimization-AI/ICML2023_LDR loss.py.

    Args:
        logits: ``[B, C]``.
        targets: int64 ``[B]``.
        lam: Temperature > 0.
        margin: m >= 0, in the scale of f.
        normalize: f from z: ``softplus_mean``, softplus(z) over its mean; ``l1``, z over the mean
            of abs(z); ``none``, z. The first two make the value blind to the scale of f.

    Returns:
        ``[B]``.

    Raises:
        FieldError: a shape or a target is not allowed, or ``l1`` meets a row of zeros.
    """
    check_multiclass("ldr_kl", logits, targets)
    z = raise_precision(logits)
    f = _normalise("ldr_kl", z, normalize == "softplus_mean", normalize != "none")
    return _value(f, targets, lam, margin)


@loss(
    name="aldr_kl",
    task="multiclass",
    vmap="it keeps a temperature for each training sample, renewed at each visit",
    paper=PAPER,
    skips={"gradcheck": "lambda_i is a constant of the gradient"},
)
class AldrKl(nn.Module):
    r"""ALDR-KL: LDR-KL with a temperature for each sample, lower where the model is confident.

    On each visit of sample i in training,
    :math:`\lambda_i \leftarrow \lambda_0 - \lambda_0\,\mathrm{KL}(p\,\|\,1/C)/(\alpha\log C)` with
    p = softmax(f / old lambda_i), a constant for the gradient; the value is that of
    :func:`ldr_kl` at :math:`\lambda_i`, less
    :math:`\frac{\alpha\log C}{2\lambda_0}(\lambda_i - \lambda_0)^2`. In eval mode the stored
    lambda_i is read and none is written. Checked against ``ALDRLoss_V1`` of
    Optimization-AI/ICML2023_LDR loss.py, defaults from its experiment.py.

    Args:
        train_size: The number of training samples.
        lam0: Temperature > 0 that every sample starts from, and the highest.
        alpha: > 1; no lambda falls below lam0 (1 - 1/alpha).
        margin: m >= 0, in the scale of f.
        normalize: f from z: ``l1``, z over the mean of abs(z); ``softplus_l1``, the same of
            softplus(z); ``none``, z.
        eps: Added to each p before its logarithm, > 0.

    Raises:
        FieldError: a shape, a target or an index is not allowed, or ``l1`` meets a row of zeros.
    """

    lam: Tensor

    def __init__(
        self,
        *,
        train_size: Annotated[int, Field(ge=1), Given("train_size")],
        lam0: Annotated[float, Field(gt=0), Range(0.1, 10.0, log=True)] = 1.0,
        alpha: Annotated[float, Field(gt=1), Range(1.1, 10.0, log=True)] = 2.0,
        margin: Margin = 0.1,
        normalize: Annotated[Literal["l1", "softplus_l1", "none"], Choices()] = "l1",
        eps: Annotated[float, Field(gt=0)] = 1e-5,
    ) -> None:
        super().__init__()
        self.lam0, self.alpha, self.margin = lam0, alpha, margin
        self.normalize, self.eps = normalize, eps
        self.register_buffer("lam", torch.full((train_size,), float(lam0)))

    def forward(self, logits: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """Values ``[B]`` of logits ``[B, C]``, targets int64 ``[B]`` and index int64 ``[B]``."""
        check_multiclass("aldr_kl", logits, targets)
        self._check_index(index, targets)
        z = raise_precision(logits)
        f = _normalise("aldr_kl", z, self.normalize == "softplus_l1", self.normalize != "none")
        classes = f.shape[1]
        lam = self.lam[index].to(f.dtype)[:, None]
        if self.training:
            with torch.no_grad():
                p = (f / lam).softmax(1) + self.eps
                p = p / p.sum(1, keepdim=True)
                kl = (p * (classes * p).log()).sum(1, keepdim=True).clamp(min=0)
                lam = self.lam0 - self.lam0 * kl / (self.alpha * math.log(classes))
                self.lam[index] = lam[:, 0].to(self.lam.dtype)
        pull = self.alpha * math.log(classes) / (2 * self.lam0) * (lam[:, 0] - self.lam0).square()
        return _value(f, targets, lam, self.margin) - pull

    def _check_index(self, index: Tensor, targets: Tensor) -> None:
        if index.shape != targets.shape:
            raise FieldError(
                f"aldr_kl: targets {list(targets.shape)} go with an index of that shape, "
                f"not {list(index.shape)}"
            )
        if readable(index) and (index.min() < 0 or index.max() >= len(self.lam)):
            raise FieldError(
                f"aldr_kl: index {int(index.max() if index.min() >= 0 else index.min())} is "
                f"outside the training split of {len(self.lam)} samples (train_size)"
            )

    def extra_repr(self) -> str:
        return f"train_size={len(self.lam)}, lam0={self.lam0}, alpha={self.alpha}"
