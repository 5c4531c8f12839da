"""Attacked inputs, for adversarial training."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import lossearch
from lossearch import Choices, Given, Range
from lossearch.components import Drawing
from lossearch.components.attacks import Norm, logits_of, pgd
from lossearch.components.modes import evaluating
from lossearch.errors import ParameterError
from lossearch_dynamics.providers import check_real


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
        norm: Annotated[Norm, Choices()] = "linf",
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
        self.norm: Norm = norm
        self.epsilon, self.steps = epsilon, steps
        self.step_size = epsilon / 4 if step_size is None else step_size
        self.random_start, self.task = random_start, task

    def forward(self, inputs: Tensor, targets: Tensor, model: nn.Module) -> Tensor:
        return logits_of(model, self.attacked(inputs, targets, model))

    def attacked(self, inputs: Tensor, targets: Tensor, model: nn.Module) -> Tensor:
        """The attacked inputs, without gradient."""
        check_real("attack", inputs)
        generator = self.generator if self.random_start else None
        with evaluating(model):
            return pgd(
                lambda x: self._loss(logits_of(model, x), targets),
                inputs,
                norm=self.norm,
                epsilon=self.epsilon,
                step_size=self.step_size,
                steps=self.steps,
                generator=generator,
            )

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of each sample (or of each of its labels)."""
        if self.task == "multiclass":
            return F.cross_entropy(logits, targets, reduction="none")
        targets = targets.to(logits.dtype).view_as(logits)
        known = targets >= 0
        values = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return torch.where(known, values, 0.0)
