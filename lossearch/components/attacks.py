"""Attacks on a network's inputs: projected gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lossearch.errors import FieldError, ModelError

Norm = Literal["linf", "l2"]
Model = Callable[[Tensor], Any]


def logits_of(model: Model, inputs: Tensor) -> Tensor:
    """The network's logits, of the mapping that it returns or as it returns them."""
    output = model(inputs)
    return output["logits"] if isinstance(output, Mapping) else output


def pgd(
    score: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    norm: Norm,
    epsilon: float,
    step_size: float,
    steps: int,
    clip_min: float | None = None,
    clip_max: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Projected gradient ascent on a score of the inputs.

    A step goes along the gradient's signs (linf) or along the gradient at length 1 (l2), then back
    into the ball of radius ``epsilon`` around the inputs, then into the clip range. No parameter's
    ``.grad`` is touched; the mode of the network is the caller's matter
    (:func:`~lossearch.components.modes.evaluating`).
    Madry et al. 2018, arXiv:1706.06083.

    Args:
        score: Inputs ``[B, ...]`` to one value for each, ``[B]``, to be raised.
        inputs: ``[B, ...]``, where the attack begins, and the centre of the ball.
        norm: ``linf`` or ``l2``, of the ball and the steps.
        epsilon: The ball's radius >= 0, in the scale of the inputs; ``math.inf`` is no ball.
        step_size: Length of a step, in that scale.
        steps: Number of steps; 0 gives the (perturbed) start.
        clip_min: The least legal input, or ``None``.
        clip_max: The greatest legal input, or ``None``.
        generator: Draws a start uniformly from the ball; without it the start is the inputs
            themselves. Needs a finite ``epsilon``.

    Returns:
        The attacked inputs ``[B, ...]``, without a gradient.

    Raises:
        FieldError: the inputs are not floating-point numbers.
        ModelError: no gradient reaches the inputs.
    """
    if not inputs.is_floating_point():
        raise FieldError(f"inputs of {inputs.dtype} cannot be moved by a gradient")
    centre = inputs.detach()

    def legal(x: Tensor) -> Tensor:
        x = centre + _into_ball(x - centre, norm, epsilon)
        return x if clip_min is None and clip_max is None else x.clamp(clip_min, clip_max)

    x = centre
    if generator is not None:
        x = legal(centre + epsilon * _in_unit_ball(centre, norm, generator))
    for _ in range(steps):
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            value = score(leaf)
            slope = _slope(value, leaf)
        x = legal(x + step_size * (slope.sign() if norm == "linf" else _unit(slope)))
    return x


def _slope(value: Tensor, leaf: Tensor) -> Tensor:
    slope = None
    if value.requires_grad:
        (slope,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if slope is None:
        raise ModelError(
            "the network passes no gradient to its inputs, so they cannot be attacked; train it "
            "with a backbone that is not frozen"
        )
    return slope


def _lengths(x: Tensor) -> Tensor:
    """Each row's length, shaped to divide it, and never 0."""
    length = x.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    return length.view(-1, *(1,) * (x.ndim - 1))


def _unit(x: Tensor) -> Tensor:
    return x / _lengths(x)


def _into_ball(x: Tensor, norm: Norm, epsilon: float) -> Tensor:
    if norm == "linf":
        return x.clamp(-epsilon, epsilon)
    return x * (epsilon / _lengths(x)).clamp(max=1)


def _in_unit_ball(like: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """Uniform in the ball of radius 1."""
    if norm == "linf":
        return _uniform(like, like.shape, generator) * 2 - 1
    direction = torch.randn(
        like.shape, generator=generator, device=generator.device, dtype=like.dtype
    )
    rows = (len(like), *(1,) * (like.ndim - 1))
    radius = _uniform(like, rows, generator) ** (1 / max(like[:1].numel(), 1))
    return _unit(direction.to(like.device)) * radius


def _uniform(like: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)
