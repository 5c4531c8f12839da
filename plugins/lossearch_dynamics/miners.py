"""Which samples a step learns from: a bool mask over the losses, never without a sample.

Samples are ranked by a stable sort, so ties go by index, and the mask is the comparison of a rank
with a number: a miner runs under ``vmap`` over losses and over its own hyperparameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Paper, Range, miner
from lossearch.errors import FieldError

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


def _small_loss_reads(params: Any) -> Iterable[str]:
    return ("losses", "epoch") if params.peers == 1 else ("losses", "losses_b", "epoch")


@miner(
    reads=_small_loss_reads,
    paper=Paper(
        "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
        2018,
        "arXiv:1804.06872",
    ),
)
def small_loss(
    losses: Tensor,
    epoch: int,
    losses_b: Tensor | None = None,
    *,
    forget_rate: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.6)] = 0.2,
    num_gradual: Annotated[int, Field(ge=1), Choices(5, 10, 15)] = 10,
    exponent: Annotated[float, Field(gt=0), Choices(0.5, 1.0, 2.0)] = 1.0,
    peers: Literal[1, 2] = 1,
) -> Tensor:
    r"""Keep the :math:`\lfloor(1 - rate(t)) B\rfloor` samples of smallest loss: small-loss trick.

    Networks learn clean labels first, so a large loss hints at a wrong label. The rate grows as
    :math:`forget\_rate^{exponent}\, t/(num\_gradual - 1)` over the first ``num_gradual`` epochs
    and is ``forget_rate`` from then on, as in the authors' code (with an exponent other than 1 it
    jumps there). With two peers it is co-teaching: each network learns from what is small for the
    other. No study trains two networks, so there it is refused.

    Args:
        losses: Loss of each sample, ``[B]``.
        epoch: The epoch, from 0.
        losses_b: Loss of each sample by the second network, ``[B]``; with two peers.
        forget_rate: The share left out in the end; the noise rate, where it is known.
        num_gradual: The number of epochs over which the rate grows.
        exponent: Shapes the rate of the first epochs.
        peers: 1, and a network selects for itself; or 2, and each selects for the other.

    Returns:
        Bool mask, ``[B]``, of one sample at least; of equal losses the earlier is kept. With two
        peers ``[2, B]``, a mask for each network, of the other's losses.

    Raises:
        FieldError: there are two peers, and no ``losses_b`` of the losses' shape.
    """
    if epoch < num_gradual:
        rate = forget_rate**exponent * epoch / max(num_gradual - 1, 1)
    else:
        rate = forget_rate
    if peers == 1:
        return _smallest(losses, 1 - rate)
    if losses_b is None or losses_b.shape != losses.shape:
        found = "none" if losses_b is None else list(losses_b.shape)
        raise FieldError(
            "small_loss with peers = 2 reads 'losses_b', the second network's losses "
            f"{list(losses.shape)}; given: {found}"
        )
    return torch.stack([_smallest(losses_b, 1 - rate), _smallest(losses, 1 - rate)])


def _smallest(losses: Tensor, share: float) -> Tensor:
    """The share of smallest losses, one at least."""
    rank = _rank(losses, largest_first=False)
    # the same as rank < floor(share * size)
    return (rank + 1 <= (share + _SLACK) * losses.shape[0]) | (rank < 1)


def _rank(losses: Tensor, *, largest_first: bool) -> Tensor:
    """Each sample's place in the order of losses, from 0; ties by index."""
    order = losses.detach().argsort(descending=largest_first, stable=True)
    return order.argsort()
