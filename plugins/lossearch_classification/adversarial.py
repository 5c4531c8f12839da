"""The smooth adversarial comp-sum loss: clean inputs right, and attacked ones not far off."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lossearch import Choices, Given, Paper, Range, loss
from lossearch.components import Drawing, raise_precision
from lossearch.components.attacks import Model, Norm, logits_of, pgd
from lossearch.components.drawing import on_device
from lossearch.components.modes import evaluating
from lossearch.errors import FieldError, ParameterError
from lossearch_classification._shared import check_multiclass, pick
from lossearch_classification.robust import comp_sum


@loss(
    name="smooth_adversarial_comp_sum",
    task="multiclass",
    vmap="it attacks the network, from starts that it draws",
    paper=Paper(
        "Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
        2023,
        "arXiv:2304.07288",
    ),
    cost="steps + 2 forwards of the network beyond its own, and steps + 1 backwards",
    skips={
        "required fields only": "it needs model and inputs, or logits_adv in their place",
        "extremes at range ends": "for tau < 1 it grows like exp((1 - tau) s) by definition",
    },
)
class SmoothAdversarialCompSum(Drawing):
    r"""A comp-sum loss plus how far an attack moves the margins.

    :math:`\Phi_\tau(\sum_{c \ne y} e^{-\Delta_c / \rho}) + \nu \|\Delta' - \Delta\|_2` with the
    margins :math:`\Delta_c = z_y - z_c` of the clean and :math:`\Delta'` of the attacked input and
    :math:`\Phi_\tau` of ``comp_sum``: ``nu = 0, rho = 1`` is comp_sum. With
    :math:`\nu \ge \sqrt{C - 1}/\rho` it bounds the adversarial rho-margin loss from above.

    The attack is :func:`pgd <lossearch.components.attacks.pgd>` on that norm from a random
    start, with the network in evaluation mode throughout (for the clean logits to compare with
    too, so that dropout and batch statistics are no part of the difference); then the attacked
    inputs pass the network in its own mode, with gradients. Where ``logits_adv`` are given, no
    model is called. In evaluation the random start is the same each time.

    Args:
        tau: From 0 (sum-exponential) over 1 (cross-entropy) to 2 (1 - p_y), >= 0.
        rho: Scale > 0 of the margins.
        nu: Weight >= 0 of the moved margins.
        norm: ``linf`` or ``l2``, of the attack's ball.
        epsilon: The ball's radius >= 0, in the scale of ``inputs`` (which a study standardises).
        steps: Steps of the attack, at least 1.
        step_size: Length of a step; ``None``: epsilon / 4.
        clip_min: The least legal input, in the scale of ``inputs``; ``None``: no limit.
        clip_max: The greatest legal input, not below ``clip_min``; ``None``: no limit.
        seed: Of its own generator.

    Raises:
        ParameterError: ``clip_min`` is above ``clip_max``.

    Written from the catalogue's formula; the paper's text could not be read. That it bounds the
    adversarial margin loss is tested.
    """

    def __init__(
        self,
        *,
        tau: Annotated[float, Field(ge=0), Range(0.0, 2.0)] = 1.0,
        rho: Annotated[float, Field(gt=0), Range(0.1, 10.0, log=True)] = 1.0,
        nu: Annotated[float, Field(ge=0), Range(0.01, 10.0, log=True)] = 1.0,
        norm: Annotated[Norm, Choices()] = "linf",
        epsilon: Annotated[float, Field(ge=0), Range(1 / 255, 16 / 255, log=True)] = 8 / 255,
        steps: Annotated[int, Field(ge=1), Range(1, 20)] = 10,
        step_size: Annotated[float, Field(gt=0)] | None = None,
        clip_min: float | None = None,
        clip_max: float | None = None,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        if clip_min is not None and clip_max is not None and clip_min > clip_max:
            raise ParameterError(
                f"smooth_adversarial_comp_sum: clip_min = {clip_min:g} is above clip_max = "
                f"{clip_max:g}: no input would be legal"
            )
        self.tau, self.rho, self.nu = tau, rho, nu
        self.norm: Norm = norm
        self.epsilon, self.steps, self.step_size = epsilon, steps, step_size
        self.clip_min, self.clip_max = clip_min, clip_max
        self.seed = seed

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        model: Model | None = None,
        inputs: Tensor | None = None,
        logits_adv: Tensor | None = None,
    ) -> Tensor:
        """The value of each sample.

        Args:
            logits: ``[B, C]``, of the clean inputs.
            targets: int64 ``[B]``.
            model: The network, to be attacked.
            inputs: ``[B, ...]``, what it was given.
            logits_adv: ``[B, C]``, of inputs that were attacked already.

        Returns:
            ``[B]``.

        Raises:
            FieldError: a shape or a target is not allowed, or there is nothing to attack.
            ModelError: the network passes no gradient to its inputs.
        """
        check_multiclass("smooth_adversarial_comp_sum", logits, targets)
        if logits_adv is None and (model is None or inputs is None):
            raise FieldError(
                "smooth_adversarial_comp_sum reads 'model' and 'inputs', to attack them, or "
                "'logits_adv' in their place"
            )
        if logits_adv is None:
            assert model is not None and inputs is not None
            logits_adv = logits_of(model, self.attack(model, inputs, targets))
        if logits_adv.shape != logits.shape:
            raise FieldError(
                f"smooth_adversarial_comp_sum: logits {list(logits.shape)} go with logits_adv of "
                f"that shape, not {list(logits_adv.shape)}"
            )
        z = raise_precision(logits)
        moved = _moved(z, raise_precision(logits_adv), targets)
        return comp_sum(z / self.rho, targets, tau=self.tau) + self.nu * moved

    def attack(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Inputs ``[B, ...]`` nearby whose margins are far from those of the inputs."""
        draws = self.generator if self.training else torch.Generator().manual_seed(self.seed)
        with evaluating(model):
            with torch.no_grad():
                clean = raise_precision(logits_of(model, inputs))
            return pgd(
                lambda x: _moved(clean, raise_precision(logits_of(model, x)), targets),
                inputs,
                norm=self.norm,
                epsilon=self.epsilon,
                step_size=self.epsilon / 4 if self.step_size is None else self.step_size,
                steps=self.steps,
                clip_min=self.clip_min,
                clip_max=self.clip_max,
                # where nothing has moved there is no slope: a random start is needed
                generator=on_device(draws, inputs.device),
            )


def _moved(z: Tensor, z_adv: Tensor, targets: Tensor) -> Tensor:
    """The length of the margins' difference: 0 where there is none, with a finite slope there."""
    shift = z_adv - z
    squared = (pick(shift, targets).unsqueeze(1) - shift).square().sum(1)
    return squared / ((squared + 1e-12).sqrt() + 1e-6)  # = sqrt(squared + 1e-12) - 1e-6
