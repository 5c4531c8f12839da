"""Imprecise label learning: expectation-maximisation over a true label that nobody saw."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lossearch import Choices, Given, Paper, Range, When, loss
from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError
from lossearch_classification._shared import check_multiclass, log_others, pick


@loss(
    name="imprecise_label",
    task="multiclass",
    vmap="it learns a transition matrix, or keeps a mean that is renewed at each step",
    paper=Paper(
        "Imprecise Label Learning: A Unified Framework for Learning with Various Imprecise Label "
        "Configurations",
        2024,
        "arXiv:2305.12715",
    ),
    skips={"gradcheck": "the posterior over the true label is held constant, as EM does"},
    cost="logits of a second view: two forwards a batch",
)
class ImpreciseLabel(nn.Module):
    r"""Imprecise labels by EM: the weak view gives the posterior q, the strong view learns it.

    With p from the weak view and r from the strong one, and q a constant:

    - ``partial``: :math:`q_c = p_c S_c / \sum p S` over the candidates S, and
      :math:`L = -\sum q_c \log r_c` plus the candidate term, which is
      :math:`-\log\sum_{c \in S} p_c` (``log_sum``) or :math:`-\sum_{c \notin S} \log(1 - p_c)`
      (``complement``). With one candidate and ``log_sum``: cross-entropy of both views, summed.
    - ``noisy``: Q, the row-wise softmax of a learned C x C matrix T, is the probability of seeing
      :math:`\tilde y` where c is true; :math:`q_c \propto p_c Q_{c\tilde y}`,
      :math:`\tilde r_c \propto r_c Q_{c\tilde y}`, and
      :math:`L = -\log\sum_c p_c Q_{c\tilde y} - \sum q_c \log\tilde r_c - \sum p_c \log r_c`. T
      learns from the first term alone; p is constant in the other two.
    - ``semi``: labelled rows take :math:`-\log p_y`, the others
      :math:`-\sum q_c \log r_c` with :math:`q_c \propto p_c / \bar p_c`, where :math:`\bar p` is
      the running mean of p over unlabelled rows.

    To every sample comes balance times :math:`-\frac1C\sum_c \log\hat p_c`, with
    :math:`\hat p` the mean of p over the batch; in logarithms, not clamped (the authors clamp at
    1e-6, which leaves a class that vanished without a slope).

    Args:
        mode: What the targets are: ``partial``, ``noisy`` or ``semi``. A fact of the data, so
            it is not searched.
        candidate_term: ``log_sum`` or ``complement`` (``partial``).
        balance: Weight >= 0 of the balance term; the authors' noisy runs have 0.1.
        noise_scale: T starts as this number, > 0, times the identity (``noisy``). The authors
            give T a group of plain SGD; here it joins the model's optimizer, without decay.
        average_decay: Of the running mean, in [0, 1) (``semi``).
        num_classes: C, the size of T and of the running mean.

    Checked against the same first author's code, Hhhhhhao/General-Framework-Weak-Supervision
    (imp_noisy_label.py, imp_partial_label.py, imp_semisup.py), which differs: it normalises T by
    rows for the posterior and by columns for the first term (here by rows in both, as a
    probability given the true class must be) after an L2 normalisation; its partial form is
    ``complement``, with q also taught to the weak view and to a third one; its semi form keeps
    the three largest entries of q. ``log_sum`` is the EM derivation's.
    """

    T: Tensor
    average: Tensor

    def __init__(
        self,
        *,
        mode: Literal["partial", "noisy", "semi"] = "noisy",
        candidate_term: Annotated[
            Literal["log_sum", "complement"], Choices(), When(mode="partial")
        ] = "log_sum",
        balance: Annotated[float, Field(ge=0), Range(0.0, 1.0)] = 0.0,
        noise_scale: Annotated[float, Field(gt=0), Range(0.5, 10.0), When(mode="noisy")] = 1.0,
        average_decay: Annotated[
            float, Field(ge=0, lt=1), Range(0.9, 0.9999), When(mode="semi")
        ] = 0.999,
        num_classes: Annotated[int, Field(ge=2), Given("num_classes")],
    ) -> None:
        super().__init__()
        self.mode = mode
        self.candidate_term = candidate_term
        self.balance = balance
        self.average_decay = average_decay
        self.num_classes = num_classes
        if mode == "noisy":
            self.T = nn.Parameter(noise_scale * torch.eye(num_classes))
        if mode == "semi":
            self.register_buffer("average", torch.full((num_classes,), 1 / num_classes))

    def forward(self, logits: Tensor, logits_b: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            logits: Of the weak view, ``[B, C]``.
            logits_b: Of the strong view, ``[B, C]``.
            targets: ``partial``: a mask of 0 and 1 (or bool), ``[B, C]``; ``noisy``: int64
                ``[B]``; ``semi``: int64 ``[B]``, -1 where unlabelled.

        Returns:
            ``[B]``, in nats.

        Raises:
            FieldError: shapes that do not match, C is not ``num_classes``, an illegal target, or
                a row without a candidate.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise FieldError(
                f"imprecise_label was built for {self.num_classes} classes and reads logits "
                f"[B, {self.num_classes}], not {list(logits.shape)}"
            )
        if logits_b.shape != logits.shape:
            raise FieldError(
                f"imprecise_label: logits_b {list(logits_b.shape)} is another view of logits "
                f"{list(logits.shape)}, row by row"
            )
        log_p = raise_precision(logits).log_softmax(1)
        log_r = raise_precision(logits_b).log_softmax(1)
        modes = {"partial": self._partial, "noisy": self._noisy, "semi": self._semi}
        values = modes[self.mode](log_p, log_r, targets)
        if self.balance == 0:
            return values
        mean = log_p.logsumexp(0) - math.log(max(len(log_p), 1))
        return values - self.balance * mean.mean()

    def _partial(self, log_p: Tensor, log_r: Tensor, targets: Tensor) -> Tensor:
        if targets.shape != log_p.shape:
            raise FieldError(
                "imprecise_label in mode partial reads targets as a candidate mask "
                f"{list(log_p.shape)} of 0 and 1, not {list(targets.shape)}"
            )
        candidate = targets == 1
        if readable(targets):
            if not (candidate | (targets == 0)).all():
                raise FieldError("imprecise_label: a candidate mask is of 0 and 1 alone")
            if not candidate.any(1).all():
                row = int((~candidate.any(1)).nonzero()[0])
                raise FieldError(f"imprecise_label: row {row} has no candidate class")
        masked = torch.where(candidate, log_p, -math.inf)
        mass = masked.logsumexp(1)
        teach = _cross((masked - mass.unsqueeze(1)).detach().exp(), log_r)
        if self.candidate_term == "log_sum":
            return teach - mass
        return teach - torch.where(candidate, 0.0, log_others(log_p)).sum(1)

    def _noisy(self, log_p: Tensor, log_r: Tensor, targets: Tensor) -> Tensor:
        check_multiclass("imprecise_label", log_p, targets)
        log_q = self.T.to(log_p.dtype).log_softmax(1).T[targets]  # [B, C]: log Q_{c, seen}
        seen = -(log_p + log_q).logsumexp(1)
        with torch.no_grad():
            posterior = (log_p + log_q).softmax(1)
        teach = _cross(posterior, (log_r + log_q.detach()).log_softmax(1))
        return seen + teach + _cross(log_p.detach().exp(), log_r)

    def _semi(self, log_p: Tensor, log_r: Tensor, targets: Tensor) -> Tensor:
        labelled = targets != -1
        y = torch.where(labelled, targets, 0)
        check_multiclass("imprecise_label", log_p, y)
        with torch.no_grad():
            average = self._averaged(log_p, ~labelled)
            q = (log_p - average.clamp(min=torch.finfo(average.dtype).tiny).log()).softmax(1)
        return torch.where(labelled, -pick(log_p, y), _cross(q, log_r))

    def _averaged(self, log_p: Tensor, unlabelled: Tensor) -> Tensor:
        """The running mean of p after this batch, which stays where it is training."""
        average = self.average.to(log_p.dtype)
        weight = unlabelled.to(log_p.dtype)
        found = weight @ log_p.exp() / weight.sum().clamp(min=1)
        moved = self.average_decay * average + (1 - self.average_decay) * found
        average = torch.where(unlabelled.any(), moved, average)
        if self.training:
            self.average.copy_(average)
        return average


def _cross(q: Tensor, log_r: Tensor) -> Tensor:
    """Cross-entropy of each row, ``[B]``."""
    return -(q * log_r).sum(1)
