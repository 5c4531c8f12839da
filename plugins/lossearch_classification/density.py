"""Likelihood of a density known up to its normaliser, by samples from a known one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lossearch import Choices, Paper, Range, When, loss
from lossearch.components import raise_precision
from lossearch.errors import FieldError
from lossearch_classification._shared import softplus


def _reads(params: Any) -> Iterable[str]:
    fields = ("logits", "noise_scores", "noise_logq")
    return fields if params.mode == "meco" else (*fields, "data_logq")


@loss(
    name="unnormalized_nll",
    task="binary",
    vmap="the running normaliser that it keeps is renewed at each step",
    returns="batch",
    paper=Paper(
        "Learning Unnormalized Statistical Models via Compositional Optimization",
        2023,
        "arXiv:2306.07485",
    ),
    reads=_reads,
)
class UnnormalizedNll(nn.Module):
    r"""Negative log-likelihood of exp(f) / Z, with Z estimated by noise from a known density q.

    ``meco``: :math:`-\overline{f(x)} + \log u`, where u is the running average of the
    importance-sampled normaliser, :math:`\ell = \log\overline{\exp(f(\tilde x)-\log q(\tilde x))}`
    and :math:`u \leftarrow (1-\gamma)u + \gamma e^\ell` (the first step: :math:`e^\ell`), held in
    logarithms. The gradient takes 1/u for the derivative of the logarithm,
    :math:`-\overline{\nabla f(x)} + e^{\ell - \log u} \nabla\ell`, so a batch whose estimate is
    off weighs at most :math:`1/\gamma`. gamma = 1 is the plain importance-sampled likelihood.

    ``nce``, noise-contrastive estimation with k = N/B: the mean of
    :math:`\mathrm{softplus}(-(f(x) - \log q(x) - \log k))` plus k times the mean of
    :math:`\mathrm{softplus}(f(\tilde x) - \log q(\tilde x) - \log k)`. It fixes f's constant too,
    to which ``meco`` is blind.

    The task is ``binary`` for its shape, one score a sample; no label is read.

    Args:
        mode: ``meco`` or ``nce``.
        gamma: The running average's step, in (0, 1].

    Written from the catalogue's formula, the plain moving average; the paper's own estimator is
    variance-reduced, and its text could not be read.
    """

    log_u: Tensor

    def __init__(
        self,
        *,
        mode: Annotated[Literal["meco", "nce"], Choices()] = "meco",
        gamma: Annotated[float, Field(gt=0, le=1), Range(0.05, 1.0), When(mode="meco")] = 0.9,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.gamma = gamma
        self.register_buffer("log_u", torch.tensor(-math.inf))  # u = 0: no step yet

    def forward(
        self,
        logits: Tensor,
        noise_scores: Tensor,
        noise_logq: Tensor,
        data_logq: Tensor | None = None,
    ) -> Tensor:
        """The loss of the batch; in evaluation log u is not kept.

        Args:
            logits: f(x), ``[B]`` or ``[B, 1]``.
            noise_scores: f of the noise, ``[N]``, N >= 1, through the same network.
            noise_logq: log q of the noise, ``[N]``.
            data_logq: log q(x), ``[B]``, which ``nce`` needs.

        Returns:
            One number, in nats.

        Raises:
            FieldError: shapes that do not match, no noise, or ``nce`` without ``data_logq``.
        """
        if noise_scores.numel() != noise_logq.numel() or not noise_scores.numel():
            raise FieldError(
                "unnormalized_nll reads noise_scores [N] and noise_logq [N] with N >= 1, not "
                f"{list(noise_scores.shape)} and {list(noise_logq.shape)}"
            )
        f = _flat("logits", logits)
        ratio = _flat("noise_scores", noise_scores) - _flat("noise_logq", noise_logq)
        size = max(len(f), 1)
        if self.mode == "meco":
            estimate = ratio.logsumexp(0) - math.log(len(ratio))
            log_u = self._average(estimate.detach())
            pull = (estimate.detach() - log_u).exp()
            return log_u - f.sum() / size + pull * (estimate - estimate.detach())
        if data_logq is None or data_logq.numel() != len(f):
            found = "none" if data_logq is None else list(data_logq.shape)
            raise FieldError(
                f"unnormalized_nll in mode nce reads data_logq [{len(f)}], one for each sample; "
                f"given: {found}"
            )
        k = len(ratio) / size
        real = softplus(_flat("data_logq", data_logq) + math.log(k) - f).sum() / size
        return real + k * softplus(ratio - math.log(k)).mean()

    @torch.no_grad()
    def _average(self, estimate: Tensor) -> Tensor:
        """log u after this estimate, which stays where it is training."""
        old, gamma = self.log_u.to(estimate), estimate.new_tensor(self.gamma)
        log_u = torch.logaddexp(torch.log1p(-gamma) + old, gamma.log() + estimate)
        log_u = torch.where(old == -math.inf, estimate, log_u)
        if self.training:
            self.log_u.copy_(log_u)
        return log_u


def _flat(field: str, values: Tensor) -> Tensor:
    if values.ndim > 1 and values.shape[1:].numel() != 1:
        raise FieldError(
            f"unnormalized_nll reads one number a sample of {field}, not {list(values.shape)}"
        )
    return raise_precision(values).flatten()
