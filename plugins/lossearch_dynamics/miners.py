"""Which samples a step learns from: a bool mask over the losses, never without a sample.

Samples are ranked by a stable sort, so ties go by index, and the mask is the comparison of a rank
with a number: a miner runs under ``vmap`` over losses and over its own hyperparameters.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, miner

# Room for the rounding of a product such as 0.1 * 30 = 3.0000000000000004, by share of B.
_SLACK = 1e-6


@miner(
    paper=Paper(
        "Training Region-based Object Detectors with Online Hard Example Mining",
        2016,
        "arXiv:1604.03540",
    )
)
def ohem(
    losses: Tensor,
    *,
    keep_ratio: Annotated[float, Field(gt=0, le=1), Range(0.1, 1.0)] = 0.7,
    threshold: float | None = None,
    min_kept: Annotated[int, Field(ge=1)] = 1,
) -> Tensor:
    r"""Keep the samples of largest loss, :math:`k = \max(min\_kept, \lceil keep\_ratio B\rceil)`.

    Args:
        losses: Loss of each sample, ``[B]``.
        keep_ratio: The share that is kept; 1 keeps all.
        threshold: Where given, keep every sample whose loss is above it, in place of a share.
        min_kept: The least number of samples kept (all, where the batch has fewer).

    Returns:
        Bool mask, ``[B]``; of equal losses the earlier is kept.
    """
    rank = _rank(losses, largest_first=True)
    size = losses.shape[0]
    if threshold is not None:
        chosen = losses > threshold
    else:
        chosen = rank < (keep_ratio - _SLACK) * size  # the same as rank < ceil(keep_ratio * size)
    return chosen | (rank < min_kept)


@miner(
    paper=Paper(
        "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
        2018,
        "arXiv:1804.06872",
    )
)
def small_loss(
    losses: Tensor,
    epoch: int,
    *,
    forget_rate: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.6)] = 0.2,
    num_gradual: Annotated[int, Field(ge=1), Choices(5, 10, 15)] = 10,
    exponent: Annotated[float, Field(gt=0), Choices(0.5, 1.0, 2.0)] = 1.0,
    peers: Literal[1] = 1,
) -> Tensor:
    r"""Keep the :math:`\lfloor(1 - rate(t)) B\rfloor` samples of smallest loss: small-loss trick.

    Networks learn clean labels first, so a large loss hints at a wrong label. The rate grows as
    :math:`forget\_rate^{exponent}\, t/(num\_gradual - 1)` over the first ``num_gradual`` epochs
    and is ``forget_rate`` from then on, as in the authors' code (with an exponent other than 1 it
    jumps there).

    Args:
        losses: Loss of each sample, ``[B]``.
        epoch: The epoch, from 0.
        forget_rate: The share left out in the end; the noise rate, where it is known.
        num_gradual: The number of epochs over which the rate grows.
        exponent: Shapes the rate of the first epochs.
        peers: One network selects for itself. Co-teaching, in which each of two networks selects
            for the other, is not offered yet.

    Returns:
        Bool mask, ``[B]``, of one sample at least; of equal losses the earlier is kept.
    """
    if epoch < num_gradual:
        rate = forget_rate**exponent * epoch / max(num_gradual - 1, 1)
    else:
        rate = forget_rate
    rank = _rank(losses, largest_first=False)
    # the same as rank < floor((1 - rate) * size)
    return (rank + 1 <= (1 - rate + _SLACK) * losses.shape[0]) | (rank < 1)


def _rank(losses: Tensor, *, largest_first: bool) -> Tensor:
    """Each sample's place in the order of losses, from 0; ties by index."""
    order = losses.detach().argsort(descending=largest_first, stable=True)
    return order.argsort()
