"""Attacked inputs, for adversarial training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import lossearch
from lossearch import Choices, Given, Range
from lossearch.errors import ModelError, ParameterError
from lossearch_dynamics.providers import Drawing, check_real


@lossearch.provider(
    name="attack", gives="logits_adv", cost="`steps` forwards and backwards, and one more forward"
)
class Attack(Drawing):
    r"""The logits of attacked inputs: projected gradient ascent on cross-entropy.

    :math:`x \leftarrow \Pi(x + \alpha\, \mathrm{sign} \nabla_x \ell)` in the linf ball, and with
    the gradient over its norm in the l2 ball; binary and multilabel tasks ascend on binary
    cross-entropy, without unknown labels. The network attacks itself in evaluation mode, with
    neither statistics nor gradients of parameters touched; the attacked inputs then go through it
    as in ordinary training, with gradients. The ball alone bounds them: the range of the inputs is
    not known here. (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks",
    2018, arXiv:1706.06083, section 2.)

    Args:
        norm: Of the ball around each input.
        epsilon: Its radius, in the scale of ``inputs`` (which images are normalised to), > 0.
        steps: Of the ascent, >= 1.
        step_size: Of each step, > 0; a quarter of epsilon where left out.
        random_start: Start at a random place in the ball rather than at the input.
        seed: Of its own generator.
        task: The study's.

    Raises:
        ParameterError: the task has no classes.
        FieldError: the inputs are no real numbers, such as tokens.
        ModelError: no gradient reaches the inputs.
    """

    def __init__(
        self,
        *,
        norm: Annotated[Literal["linf", "l2"], Choices()] = "linf",
        epsilon: Annotated[float, Field(gt=0), Range(1 / 255, 16 / 255, log=True)] = 8 / 255,
        steps: Annotated[int, Field(ge=1), Range(1, 20)] = 10,
        step_size: Annotated[float, Field(gt=0)] | None = None,
        random_start: Annotated[bool, Choices()] = True,
        seed: Annotated[int, Given("seed")] = 0,
        task: Annotated[str, Given("task")] = "multiclass",
    ) -> None:
        super().__init__(seed)
        if task == "regression":
            raise ParameterError(
                "attack ascends on cross-entropy, and task regression has no classes"
            )
        self.norm, self.epsilon, self.steps = norm, epsilon, steps
        self.step_size = epsilon / 4 if step_size is None else step_size
        self.random_start, self.task = random_start, task

    def forward(self, inputs: Tensor, targets: Tensor, model: nn.Module) -> Tensor:
        return model(self.attacked(inputs, targets, model))["logits"]

    def attacked(self, inputs: Tensor, targets: Tensor, model: nn.Module) -> Tensor:
        """The attacked inputs, without gradient."""
        check_real("attack", inputs)
        start = inputs.detach()
        x = start + self._start(start) if self.random_start else start
        with _evaluating(model), torch.enable_grad():
            for _ in range(self.steps):
                x = x.detach().requires_grad_()
                loss = self._loss(model(x)["logits"], targets)
                used = loss.requires_grad
                grad = torch.autograd.grad(loss, x, allow_unused=True)[0] if used else None
                if grad is None:
                    raise ModelError(
                        "attack: no gradient reaches the inputs through this model; attack a "
                        "network that is not frozen, or the heads on its embeddings"
                    )
                step = grad.sign() if self.norm == "linf" else _unit(grad)
                x = start + self._in_ball(x.detach() + self.step_size * step - start)
        return x.detach()

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over samples, whose gradients are each sample's own."""
        if self.task == "multiclass":
            return F.cross_entropy(logits, targets, reduction="sum")
        targets = targets.to(logits.dtype).view_as(logits)
        known = targets >= 0
        values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return torch.where(known, values, 0.0).sum()

    def _start(self, inputs: Tensor) -> Tensor:
        """A random place in the ball, each equally likely."""
        if self.norm == "linf":
            return self.epsilon * (2 * self.uniform(inputs, *inputs.shape) - 1)
        width = inputs[0].numel()
        radius = self.uniform(inputs, len(inputs)) ** (1 / width)
        return self.epsilon * _per_sample(radius, inputs) * _unit(self.normal(inputs))

    def _in_ball(self, change: Tensor) -> Tensor:
        if self.norm == "linf":
            return change.clamp(-self.epsilon, self.epsilon)
        norms = change.flatten(1).norm(dim=1)
        return change * _per_sample(self.epsilon / norms.clamp(min=self.epsilon), change)


def _unit(vectors: Tensor) -> Tensor:
    """Each sample over its norm; a sample of zeros stays."""
    norms = vectors.flatten(1).norm(dim=1)
    return vectors / _per_sample(torch.where(norms > 0, norms, 1.0), vectors)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode, then each part in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
