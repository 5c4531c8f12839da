"""Balancers that look at the terms' values: ``losses`` [K] to the one number to minimise."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchjd.scalarization import UW

from lossearch import Choices, Given, Paper, Range, balancer
from lossearch.components import raise_precision, readable
from lossearch.errors import FieldError, ParameterError


@balancer()
def fixed_weights(
    losses: Tensor,
    *,
    weights: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] | None = None,
    normalize: Annotated[Literal["none", "sum_to_k"], Choices()] = "none",
) -> Tensor:
    r"""The weighted sum :math:`\sum_k w_k l_k`: what every other balancer has to beat.

    Args:
        losses: Value of each term, ``[K]``.
        weights: :math:`w_k`, one for each term; all 1 where left out. They multiply the terms'
            own weights.
        normalize: ``sum_to_k`` scales the weights to a sum of K.

    Returns:
        The scalar to minimise.

    Raises:
        ParameterError: there are not K weights, or all are 0 and cannot be scaled.
    """
    losses = raise_precision(losses)
    if weights is None:
        return losses.sum()
    if len(weights) != losses.shape[0]:
        raise ParameterError(
            f"fixed_weights: weights = {weights} is not allowed: {losses.shape[0]} terms need as "
            "many weights"
        )
    scale = 1.0
    if normalize == "sum_to_k":
        if sum(weights) == 0:
            raise ParameterError(
                f"fixed_weights: weights = {weights} cannot be scaled to a sum of {len(weights)}; "
                "at least one must be above 0"
            )
        scale = len(weights) / sum(weights)
    # a sum of scalars, so that no list of numbers goes to the device at each step
    return torch.stack([scale * w * loss for w, loss in zip(weights, losses, strict=True)]).sum()


@balancer(
    name="uncertainty",
    paper=Paper(
        "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
        2018,
        "arXiv:1705.07115",
    ),
)
class Uncertainty(nn.Module):
    r"""Learned log-variances, :math:`\sum_k \frac12 e^{-s_k} l_k + \frac12 s_k`.

    At a fixed loss the minimum is at :math:`s_k = \log l_k`, where each weighted loss is one half.
    ``s`` is a parameter of the balancer: give it to the optimizer, without weight decay. Wraps
    torchjd's ``UW``.

    Args:
        init: :math:`s` at the start.
        num_terms: K, which the engine fills in.
    """

    def __init__(
        self,
        *,
        init: Annotated[float, Range(-1.0, 1.0)] = 0.0,
        num_terms: Annotated[int, Field(ge=1), Given("num_terms")],
    ) -> None:
        super().__init__()
        self.rule = UW(num_terms)
        nn.init.constant_(self.rule.log_var, init)

    def forward(self, losses: Tensor) -> Tensor:
        """The scalar to minimise, from the value of each term, ``[K]``.

        Raises:
            FieldError: there are not K losses, or one is negative, at which ``s`` runs away
                (looked at on the CPU only).
        """
        _check_terms("uncertainty", losses, len(self.rule.log_var))
        if readable(losses) and bool((losses < 0).any()):
            value, term = losses.detach().min(0)
            raise FieldError(
                f"uncertainty: the loss of term {int(term)} is {float(value):g}, and a negative "
                "loss drives its learned weight to infinity; use another balancer, or a loss that "
                "is never negative"
            )
        return self.rule(raise_precision(losses))


@balancer(
    name="dwa",
    paper=Paper("End-to-End Multi-Task Learning with Attention", 2019, "arXiv:1803.10704"),
)
class DynamicWeightAverage(nn.Module):
    r"""Terms that fall slowly count more, :math:`\lambda_k = K\,\mathrm{softmax}_k(r_k/T)`.

    :math:`r_k` is the mean loss of the last epoch by that of the epoch before; the weights are 1
    until two epochs have ended. Means are taken in training mode only, and ``end_epoch`` must be
    called. By hand, since torchjd's ``DWA`` keeps its means out of ``state_dict`` and also counts
    evaluations; it gives the same numbers.

    Args:
        temperature: :math:`T`; large values level the weights.
        num_terms: K, which the engine fills in.
    """

    weights: Tensor
    mean: Tensor
    previous: Tensor
    batches: Tensor
    epochs: Tensor

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0), Range(0.2, 10.0, log=True)] = 2.0,
        num_terms: Annotated[int, Field(ge=1), Given("num_terms")],
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("weights", torch.ones(num_terms))
        self.register_buffer("mean", torch.zeros(num_terms))  # of the epoch under way
        self.register_buffer("previous", torch.zeros(num_terms))  # of the last epoch that ended
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Tensor) -> Tensor:
        """The scalar to minimise, from the value of each term, ``[K]``.

        Raises:
            FieldError: there are not K losses.
        """
        _check_terms("dwa", losses, len(self.weights))
        losses = raise_precision(losses)
        if self.training:
            self.batches += 1
            self.mean += (losses.detach() - self.mean) / self.batches
        return (self.weights * losses).sum()

    def end_epoch(self, epoch: int) -> None:
        """Turn the epoch's means into the weights of the next.

        Raises:
            FieldError: a mean loss is 0, or changed its sign, so that no ratio tells its rate.
        """
        if not self.batches:
            return
        if self.epochs:
            rates = self.mean / self.previous
            bad = ((rates <= 0) | ~rates.isfinite()).nonzero()
            if len(bad):
                term = int(bad[0])
                raise FieldError(
                    f"dwa: the mean loss of term {term} went from {float(self.previous[term]):g} "
                    f"to {float(self.mean[term]):g} in epoch {epoch}; it must keep one sign and "
                    "not be 0. Use another balancer for this loss"
                )
            self.weights.copy_(len(rates) * (rates / self.temperature).softmax(0))
        self.previous.copy_(self.mean)
        self.mean.zero_()
        self.batches.zero_()
        self.epochs += 1


def _check_terms(name: str, losses: Tensor, expected: int) -> None:
    if losses.shape != (expected,):
        raise FieldError(
            f"{name} was made for {expected} terms (num_terms) and reads losses [{expected}], "
            f"not {list(losses.shape)}"
        )
