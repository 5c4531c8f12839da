"""EnsLoss: every batch follows another random calibrated loss, of which only the slope exists."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from lossearch import Choices, Given, Paper, Range, loss
from lossearch.components import Drawing, raise_precision
from lossearch.errors import FieldError
from lossearch_classification._shared import (
    check_binary,
    check_multiclass,
    drop,
    pick,
    reduce_labels,
    softplus,
)


@loss(
    name="ensloss",
    task=("multiclass", "binary", "multilabel"),
    vmap="it draws derivatives from a generator of its own, one for each known label",
    paper=Paper(
        "EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in "
        "Classification",
        2025,
        "arXiv:2409.00908",
    ),
    skips={"gradcheck": "only its slope is defined, not its value"},
)
class EnsLoss(Drawing):
    r"""EnsLoss: random negative slopes, the steepest for the most wrong sample.

    Each batch draws one standard normal r for each margin :math:`s = (2t-1)z`. The slopes
    :math:`g = \max(-B_\lambda^{-1}(r), -\mathrm{floor})`, with the inverse Box-Cox
    :math:`B_\lambda^{-1}(r) = (1 + \lambda r)_+^{1/\lambda}` (:math:`e^r` at 0), are sorted and
    the k-th smallest goes to the k-th smallest margin. So they are the slopes
    :math:`\varphi'(s)` of some convex :math:`\varphi` with :math:`\varphi'(0) < 0`, which is
    calibrated. In training the value is :math:`g s` with g constant: its gradient is the method,
    the value itself means nothing and need not fall.

    In evaluation, unless ``draws`` are given, it is the loss to display: cross-entropy, or binary
    cross-entropy.

    Args:
        period: lambda is drawn anew from U(-1, 1) in every ``period``-th epoch; -1 never does.
        lam_init: The first lambda, in [-1, 1].
        floor: The steepest slope, > 0.
        tail: ``superlinear`` divides the slope by the margin where that exceeds 1, so that
            the loss is bounded below.
        floor_shift: Taken off every slope, >= 0, so that none is 0.
        multiclass: ``one_vs_rest`` ranks the margins of all samples and classes together and
            averages over classes; ``margin`` takes :math:`z_y - \max_{c \ne y} z_c`. Ours: the
            paper is binary.
        seed: Of its own generator.

    Checked against the author's code, statmlben/ensLoss (losses.py, train.py).
    """

    def __init__(
        self,
        *,
        period: Annotated[Literal[-1] | PositiveInt, Choices(-1, 1, 2, 5, 10)] = -1,
        lam_init: Annotated[float, Field(ge=-1, le=1), Range(-1.0, 1.0)] = 0.0,
        floor: Annotated[float, Field(gt=0)] = 1.0,
        tail: Annotated[Literal["superlinear", "none"], Choices()] = "superlinear",
        floor_shift: Annotated[float, Field(ge=0)] = 1e-6,
        multiclass: Annotated[Literal["one_vs_rest", "margin"], Choices()] = "one_vs_rest",
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        self.period = period
        self.lam_init = lam_init
        self.floor = floor
        self.tail = tail
        self.floor_shift = floor_shift
        self.multiclass = multiclass
        self.drawn: float | None = None
        self.drawn_at = -1

    @property
    def lam(self) -> float:
        """The lambda in force: the last one drawn, and before that ``lam_init``."""
        return self.lam_init if self.drawn is None else self.drawn

    def start_epoch(self, epoch: int) -> None:
        """Draw lambda where its epoch has come; once, also if a resumed run begins it again."""
        if self.period > 0 and (epoch + 1) % self.period == 0 and epoch != self.drawn_at:
            self.drawn = 2 * torch.rand((), generator=self.generator).item() - 1
            self.drawn_at = epoch

    def forward(self, logits: Tensor, targets: Tensor, draws: Tensor | None = None) -> Tensor:
        """The surrogate of each sample, or in evaluation the loss to display.

        Args:
            logits: ``[B]``, ``[B, 1]`` or ``[B, C]``.
            targets: int64 ``[B]`` beside ``[B, C]`` is multiclass; otherwise of the logits' shape
                in {0, 1}, -1 for unknown.
            draws: One standard normal for each known margin, instead of its own.

        Returns:
            ``[B]``, the mean over a sample's labels.

        Raises:
            FieldError: shapes that do not match, or an illegal target.
        """
        display = not self.training and draws is None
        if logits.ndim == 2 and logits.shape[1] > 1 and targets.ndim == 1:
            check_multiclass("ensloss", logits, targets)
            z = raise_precision(logits)
            if display:
                return F.cross_entropy(z, targets, reduction="none")
            if self.multiclass == "margin":
                margins = (pick(z, targets) - drop(z, targets, -torch.inf).amax(1)).unsqueeze(1)
            else:
                margins = torch.where(F.one_hot(targets, z.shape[1]) == 1, z, -z)
            known = torch.ones_like(margins, dtype=torch.bool)
        else:
            z, t, known = check_binary("ensloss", logits, targets)
            margins = torch.where(t == 1, z, -z)
            if display:
                return reduce_labels(softplus(-margins), known, "mean")
        slopes = torch.zeros_like(margins)
        slopes[known] = self.slopes(margins.detach()[known], draws)
        return reduce_labels(slopes * margins, known, "mean")

    @torch.no_grad()
    def slopes(self, margins: Tensor, draws: Tensor | None = None) -> Tensor:
        """The slope for each margin, both ``[n]``: negative, and none below a smaller margin's."""
        if draws is None:
            r = torch.randn(len(margins), generator=self.generator).to(margins)
        elif draws.numel() == len(margins):
            r = draws.flatten().to(margins)
        else:
            raise FieldError(
                f"ensloss needs one draw for each known margin: {len(margins)}, "
                f"not {draws.numel()}"
            )
        if self.lam == 0:
            r = r.exp()
        else:  # ((1 + lam r)_+)^(1 / lam), exact for tiny lam too
            r = ((self.lam * r).clamp(min=-1).log1p() / self.lam).exp()
        ranked = (-r).clamp(min=-self.floor).sort().values
        slopes = torch.empty_like(ranked).scatter(0, margins.argsort(stable=True), ranked)
        if self.tail == "superlinear":
            slopes = slopes / margins.clamp(min=1)
        return slopes - self.floor_shift

    def get_extra_state(self) -> dict[str, Any]:
        """What the state_dict holds: the lambda drawn, when it was, the generator's state."""
        return {**super().get_extra_state(), "drawn": self.drawn, "drawn_at": self.drawn_at}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        super().set_extra_state(state)
        self.drawn = state["drawn"]
        self.drawn_at = state["drawn_at"]
