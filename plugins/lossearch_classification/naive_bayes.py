"""Naive Bayes on embeddings: a linear classifier fitted in closed form, beside a linear probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lossearch import Given, Paper, Range, loss
from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError, ModelError


@loss(
    name="naive_bayes_head",
    task="multiclass",
    vmap="its statistics take in each batch before its value is taken",
    paper=Paper(
        "Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
        2023,
        "arXiv:2302.02334",
    ),
    skips={
        "gradcheck": "the statistics move with the batch and are constants to the gradient",
        "evaluation keeps state": "it refuses to predict before it has seen data",
    },
)
class NaiveBayesHead(nn.Module):
    r"""Gaussian naive Bayes with one variance a feature, shared by all classes.

    Class means :math:`\mu_k`, priors :math:`\pi_k = n_k/n` and the pooled population variance
    :math:`v = \sum_k \pi_k \mathrm{var}_k + \epsilon` of every sample seen so far give
    :math:`\log\pi_k - \frac12\sum_e (x_e - \mu_{ke})^2 / v_e`. The logits leave out
    :math:`-\frac12\sum_e (x_e - m_e)^2 / v_e`, m the mean of all: it is common to the classes, so
    probabilities are the same, and where a feature hardly varies it would drown their differences
    in float32. What is left is linear in x.

    One pass over the data fits it, in training mode and without an optimizer; any split into
    batches gives the same state, and further passes over the same embeddings the same classifier.
    Each batch joins the statistics before its own value is taken.
    :meth:`predictions` is the classifier's rule in evaluation.

    Args:
        var_epsilon: Added to every variance, > 0.
        differentiable: Whether the value has a slope at the embeddings, that of the logits at
            constant statistics. Otherwise the slope is 0.
        num_classes: C.

    Checked against the authors' code, ML-GSAI/Revisiting-Dis-vs-Gen-Classifiers
    models/gaussnb.py.
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor

    def __init__(
        self,
        *,
        var_epsilon: Annotated[float, Field(gt=0), Range(1e-9, 1e-1, log=True)] = 1e-9,
        differentiable: bool = False,
        num_classes: Annotated[int, Field(ge=2), Given("num_classes")],
    ) -> None:
        super().__init__()
        self.var_epsilon = var_epsilon
        self.differentiable = differentiable
        self.num_classes = num_classes
        # float64, so that the order of the batches leaves no trace; of width 0 before any data
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("means", torch.zeros(num_classes, 0, dtype=torch.float64))
        self.register_buffer("scatter", torch.zeros(num_classes, 0, dtype=torch.float64))

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each sample, after the batch has joined the statistics if training.

        Args:
            embeddings: ``[B, E]``.
            targets: int64 ``[B]``.

        Returns:
            ``[B]``, in nats; infinite for a class that was never seen.

        Raises:
            FieldError: a shape or a target is not allowed, or E has changed.
            ModelError: in evaluation, before any data.
        """
        self._check(embeddings)
        if targets.shape != embeddings.shape[:1] or targets.is_floating_point():
            raise FieldError(
                f"naive_bayes_head reads targets as class indices (int64) [{len(embeddings)}], "
                f"not {targets.dtype} {list(targets.shape)}"
            )
        if readable(targets) and not ((targets >= 0) & (targets < self.num_classes)).all():
            low, high = torch.aminmax(targets)
            raise FieldError(
                f"naive_bayes_head: target {int(low if low < 0 else high)} is outside "
                f"[0, {self.num_classes})"
            )
        x = raise_precision(embeddings)
        if not len(x):
            return x.sum(1)
        if self.training:
            self.update(x, targets)
        if self.differentiable:
            return F.cross_entropy(self.predict(x), targets, reduction="none")
        value = F.cross_entropy(self.predict(x.detach()), targets, reduction="none")
        return value + 0.0 * x.sum(1)  # a slope of 0, so that backward() has something to do

    @torch.no_grad()
    def update(self, embeddings: Tensor, targets: Tensor) -> None:
        """Merge a batch into the counts, the means and the sums of squared deviations.

        Args:
            embeddings: ``[B, E]``.
            targets: int64 ``[B]``, in [0, C).
        """
        x = embeddings.double()
        if not self.means.shape[1]:
            self.means = self.means.new_zeros(self.num_classes, x.shape[1])
            self.scatter = torch.zeros_like(self.means)
        counts = torch.zeros_like(self.counts).index_add(0, targets, x.new_ones(len(x)))
        size = counts.clamp(min=1).unsqueeze(1)
        means = torch.zeros_like(self.means).index_add(0, targets, x) / size
        scatter = torch.zeros_like(means).index_add(0, targets, (x - means[targets]).square())
        gap = means - self.means
        total = self.counts + counts
        share = (counts / total.clamp(min=1)).unsqueeze(1)
        self.scatter += scatter + gap.square() * share * self.counts.unsqueeze(1)
        self.means += gap * share
        self.counts.copy_(total)

    def predict(self, embeddings: Tensor) -> Tensor:
        """The logits of each class, ``[B, C]``; minus infinity for a class that was never seen.

        Args:
            embeddings: ``[B, E]``.

        Raises:
            FieldError: E is not that of the data.
            ModelError: there was no data yet.
        """
        if not self.means.shape[1]:
            raise ModelError(
                "naive_bayes_head cannot predict before it has seen data: make a pass over the "
                "training data in training mode first"
            )
        self._check(embeddings)
        x = raise_precision(embeddings)
        prior = self.counts / self.counts.sum()
        centre = prior @ self.means
        variance = self.scatter.sum(0) / self.counts.sum() + self.var_epsilon
        apart = self.means - centre
        weight = apart / variance
        bias = prior.log() - 0.5 * (apart * weight).sum(1)
        with torch.autocast(x.device.type, enabled=False):
            return (x - centre.to(x.dtype)) @ weight.to(x.dtype).T + bias.to(x.dtype)

    def predictions(self, fields: Mapping[str, Tensor]) -> Tensor:
        """Its own prediction rule: :meth:`predict` of the field ``embeddings``."""
        return self.predict(fields["embeddings"])

    def _check(self, embeddings: Tensor) -> None:
        width = self.means.shape[1]
        if embeddings.ndim != 2 or (width and embeddings.shape[1] != width):
            raise FieldError(
                f"naive_bayes_head reads embeddings [B, {width or 'E'}], "
                f"not {list(embeddings.shape)}"
            )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in ("means", "scatter"):  # their width is the data's
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                setattr(self, name, getattr(self, name).new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
