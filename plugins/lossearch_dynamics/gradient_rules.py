"""Balancers that look at the terms' gradients [K, ...] and return one gradient [...].

``at`` says of what: ``parameters``, a flat vector over the shared parameters, at the price of one
backward for each term; or ``output``, the model's output, which costs one cheap gradient for each
term and a single backward through the model.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torchjd.aggregation
from pydantic import Field
from torch import Tensor, nn

from lossearch import Choices, Given, Paper, Range, balancer
from lossearch.components import Drawing, raise_precision
from lossearch.errors import FieldError, ParameterError


@balancer(
    name="pcgrad",
    paper=Paper("Gradient Surgery for Multi-Task Learning", 2020, "arXiv:2001.06782"),
    cost="K gradients in place of one, and memory for them",
)
class PCGrad(Drawing):
    r"""Project each gradient off those it conflicts with, and sum (Algorithm 1).

    For each :math:`v = g_i` and each :math:`j \ne i` in random order: where
    :math:`v \cdot g_j < 0`, :math:`v \leftarrow v - (v \cdot g_j)/|g_j|^2\, g_j`. Without a
    conflict it is the plain sum. Wraps torchjd's ``PCGrad``, which solves the K x K problem on the
    CPU. A gradient so small that its squared norm is no normal number counts as zero.

    Args:
        at: Combine the gradients of the ``parameters`` or those at the ``output``.
        seed: Of the generator that draws the orders, which the balancer owns; its state is in the
            ``state_dict``, and the global one is left as it was.
    """

    def __init__(
        self,
        *,
        at: Literal["parameters", "output"] = "parameters",
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        self.at = at
        self.rule = torchjd.aggregation.PCGrad()

    @torch.no_grad()
    def forward(self, gradients: Tensor) -> Tensor:
        """The combined gradient ``[P]`` or ``[B, ...]``, from ``[K, P]`` or ``[K, B, ...]``."""
        rows = _rows("pcgrad", gradients)
        tiny = torch.finfo(rows.dtype).tiny ** 0.5
        rows = torch.where(rows.norm(dim=1, keepdim=True) < tiny, 0.0, rows)
        with torch.random.fork_rng(devices=[]):  # torchjd draws from the CPU's global generator
            torch.set_rng_state(self.generator.get_state())
            combined = self.rule(rows)
            if self.training:
                self.generator.set_state(torch.get_rng_state())
        return combined.reshape(gradients.shape[1:]).to(gradients.dtype)


@balancer(
    name="encodec_balancer",
    paper=Paper("High Fidelity Neural Audio Compression", 2022, "arXiv:2210.13438"),
    cost="K gradients at the output, and one backward through the model",
)
class EncodecBalancer(nn.Module):
    r"""Gradients at the output, each brought to its share of one norm by a moving average.

    :math:`\sum_k g_k \frac{w_k}{\sum w} \frac{R}{\epsilon + N_k}`, with :math:`N_k` the
    bias-corrected moving average of the norm of :math:`g_k`. The weights are then shares of the
    gradient, and the scale of a loss means nothing; so one term alone is rescaled too. Formula as
    in the authors' ``balancer.py``.

    Args:
        weights: Weight of each term; the terms' own weights where left out, and 1 without those.
        total_norm: :math:`R`, the norm to which all are brought together.
        ema_decay: Decay of the moving averages.
        per_batch_item: Take the mean norm of a sample's gradient, not the norm of the batch's.
        epsilon: :math:`\epsilon`, against division by zero.
        rescale: Without it, the plain sum :math:`\sum_k w_k g_k`.
        at: It acts at the model's output.
        num_terms: K, which the engine fills in.
    """

    total: Tensor
    fix: Tensor
    shares: Tensor

    def __init__(
        self,
        *,
        weights: Annotated[
            list[Annotated[float, Field(ge=0)]] | None, Given("term_weights")
        ] = None,
        total_norm: Annotated[float, Field(gt=0), Range(0.1, 10.0, log=True)] = 1.0,
        ema_decay: Annotated[float, Field(ge=0, lt=1), Choices(0.9, 0.99, 0.999, 0.9999)] = 0.999,
        per_batch_item: bool = True,
        epsilon: Annotated[float, Field(gt=0)] = 1e-12,
        rescale: bool = True,
        at: Literal["output"] = "output",
        num_terms: Annotated[int, Field(ge=1), Given("num_terms")],
    ) -> None:
        super().__init__()
        if weights is None:
            weights = [1.0] * num_terms
        if len(weights) != num_terms or sum(weights) == 0:
            raise ParameterError(
                f"encodec_balancer: weights = {weights} is not allowed: {num_terms} terms need as "
                "many weights, one of them above 0"
            )
        self.total_norm = total_norm
        self.ema_decay = ema_decay
        self.per_batch_item = per_batch_item
        self.epsilon = epsilon
        self.rescale = rescale
        self.at = at
        whole = sum(weights) if rescale else 1.0
        self.register_buffer(
            "shares", torch.tensor([w / whole for w in weights]), persistent=False
        )
        self.register_buffer("total", torch.zeros(num_terms))
        self.register_buffer("fix", torch.zeros(()))

    @torch.no_grad()
    def forward(self, gradients: Tensor) -> Tensor:
        """The combined gradient ``[B, ...]``, from ``[K, B, ...]``.

        Raises:
            FieldError: there are not K gradients.
        """
        rows = _rows("encodec_balancer", gradients)
        if len(rows) != len(self.shares):
            raise FieldError(
                f"encodec_balancer was made for {len(self.shares)} terms (num_terms), not for "
                f"gradients of {len(rows)}"
            )
        scale = self.shares
        if self.rescale:
            if self.per_batch_item:
                norms = rows.reshape(*gradients.shape[:2], -1).norm(dim=2).mean(1)
            else:
                norms = rows.norm(dim=1)
            total = self.ema_decay * self.total + norms
            fix = self.ema_decay * self.fix + 1
            if self.training:
                self.total.copy_(total)
                self.fix.copy_(fix)
            scale = scale * self.total_norm / (self.epsilon + total / fix)
        combined = (scale.to(rows.dtype).unsqueeze(1) * rows).sum(0)
        return combined.reshape(gradients.shape[1:]).to(gradients.dtype)


def _rows(name: str, gradients: Tensor) -> Tensor:
    if gradients.ndim < 2:
        raise FieldError(
            f"{name} reads gradients [K, P] or [K, B, ...], not {list(gradients.shape)}"
        )
    return raise_precision(gradients).flatten(1)
