"""A classifier that is an energy model too, trained by attacks on both sides."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lossearch import Paper, Range, loss
from lossearch.components import raise_precision
from lossearch.components.attacks import Model, logits_of, pgd
from lossearch.components.modes import evaluating
from lossearch.errors import FieldError
from lossearch_classification._shared import check_multiclass, softplus

T = TypeVar("T")

_AUC = 0.8  # of real and contrast inputs, from which the attack grows
_WINDOW = 1000  # real inputs that it is taken over


@loss(
    name="jem_dat_bce",
    task="multiclass",
    vmap="it attacks the network, by a number of steps that grows with its success",
    returns="batch",
    paper=Paper(
        "Joint Discriminative-Generative Modeling via Dual Adversarial Training",
        2025,
        "arXiv:2510.13872",
    ),
    cost="up to contrast_steps + 11 forwards and backwards of the network beyond its own",
    skips={
        "required fields only": "it needs model, inputs and features, or logits_b and logits_adv",
    },
)
class JemDatBce(nn.Module):
    r"""Dual adversarial training of a joint classifier and energy model.

    With :math:`g = \log\sum_c e^{z_c}`: ``bce_weight`` times the binary cross-entropy of g that
    tells real inputs (1) from contrast inputs (0), plus ``ce_weight`` times the cross-entropy of
    attacked real inputs, plus ``r1`` times
    :math:`\tfrac12 E \|\partial g / \partial x\|^2` at real inputs. Contrast inputs are
    out-of-distribution ones from which an attack climbs g.

    The attack on g grows: its number of steps starts at 0 and rises by one whenever g told the
    last 1000 real inputs from contrast with an AUC of 0.8 on average, up to ``contrast_steps``.

    ``logits`` are the clean real inputs', ``logits_adv`` the contrast inputs', ``logits_b`` the
    attacked real inputs'. What is not given of the last two it makes itself of ``model``,
    ``inputs`` and ``features`` (which here are raw out-of-distribution inputs), in one forward
    with batch norms held at their running statistics, together with the real inputs that are to
    be told from contrast: contrast inputs must not move those statistics, nor betray themselves
    by their own. As for the rest of the authors' recipe (it begins with an adversarially trained
    classifier, and averages weights with decay 0.999), that is the training loop's.

    Args:
        bce_weight: Weight >= 0 of the binary cross-entropy.
        ce_weight: Weight >= 0 of the cross-entropy.
        r1: Weight >= 0 of the gradient penalty; above 0 it calls the model on ``inputs``.
        contrast_steps: The most steps of the attack on g.
        contrast_step_size: Length (l2) of its steps, in the scale of ``inputs``.

    Checked against xuwangyin/DAT (rebm/training/metrics.py, train.py), which multiplies r1 by
    ``bce_weight`` too.
    """

    def __init__(
        self,
        *,
        bce_weight: Annotated[float, Field(ge=0), Range(0.01, 10.0, log=True)] = 1.0,
        ce_weight: Annotated[float, Field(ge=0)] = 1.0,
        r1: Annotated[float, Field(ge=0), Range(1e-4, 1.0, log=True)] = 0.0,
        contrast_steps: Annotated[int, Field(ge=0)] = 40,
        contrast_step_size: Annotated[float, Field(gt=0)] = 0.1,
    ) -> None:
        super().__init__()
        self.bce_weight, self.ce_weight, self.r1 = bce_weight, ce_weight, r1
        self.contrast_steps, self.contrast_step_size = contrast_steps, contrast_step_size
        self.steps = 0  # of the attack on g, as it stands
        self.window: list[tuple[float, int]] = []  # AUC and number of real inputs of a batch

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        logits_b: Tensor | None = None,
        logits_adv: Tensor | None = None,
        model: Model | None = None,
        inputs: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """The value of the batch.

        Args:
            logits: ``[B, C]``, of the clean real inputs.
            targets: int64 ``[B]``.
            logits_b: ``[B, C]``, of the real inputs under attack.
            logits_adv: ``[N, C]``, of the contrast inputs.
            model: The network.
            inputs: ``[B, ...]``, the real inputs.
            features: ``[N, ...]``, out-of-distribution inputs, shaped like ``inputs``.

        Returns:
            A single number.

        Raises:
            FieldError: a shape or a target is not allowed, or something to attack is missing.
            ModelError: the network passes no gradient to its inputs.
        """
        check_multiclass("jem_dat_bce", logits, targets)
        calls: dict[str, Tensor] = {}
        if logits_b is None or logits_adv is None or self.r1 > 0:
            model, inputs = _need("model", model), _need("inputs", inputs)
            if logits_b is None:
                calls["attacked"] = self.attacked_inputs(model, inputs, targets)
            if logits_adv is None:
                calls["contrast"] = self.contrast_inputs(model, _outside(inputs, features))
            if logits_adv is None or self.r1 > 0:
                calls["real"] = inputs.detach().clone().requires_grad_(self.r1 > 0)
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.r1 > 0):
            found = _forward(model, calls) if model is not None and calls else {}
            g = raise_precision(found.get("real", logits)).logsumexp(1)
            penalty = _penalty(g, calls["real"]) if self.r1 > 0 else None
        contrast = raise_precision(found["contrast"] if logits_adv is None else logits_adv)
        attacked = raise_precision(found["attacked"] if logits_b is None else logits_b)
        g_contrast = contrast.logsumexp(1)
        if self.training:
            self._watch(g.detach(), g_contrast.detach())
        bce = _mean(torch.cat([softplus(-g), softplus(g_contrast)]))
        ce = _mean(F.cross_entropy(attacked, targets, reduction="none"))
        value = self.bce_weight * bce + self.ce_weight * ce
        return value if penalty is None else value + self.r1 * penalty

    def contrast_inputs(self, model: Model, features: Tensor) -> Tensor:
        """Out-of-distribution inputs ``[N, ...]`` after the attack that climbs g, at its steps."""
        with evaluating(model):
            return pgd(
                lambda x: raise_precision(logits_of(model, x)).logsumexp(1),
                features,
                norm="l2",
                epsilon=math.inf,
                step_size=self.contrast_step_size,
                steps=self.steps,
            )

    def attacked_inputs(self, model: Model, inputs: Tensor, targets: Tensor) -> Tensor:
        """Real inputs ``[B, ...]`` after the attack on the classifier, in an l2 ball of 0.5."""

        def score(x: Tensor) -> Tensor:
            z = raise_precision(logits_of(model, x))
            return F.cross_entropy(z, targets, reduction="none")

        with evaluating(model):
            return pgd(score, inputs, norm="l2", epsilon=0.5, step_size=0.1, steps=10)

    def _watch(self, real: Tensor, contrast: Tensor) -> None:
        """Note how well g tells the two apart, and harden the attack where that is too easy."""
        if self.steps >= self.contrast_steps or min(len(real), len(contrast)) == 0:
            return
        self.window.append((_auc(real, contrast), len(real)))
        seen = sum(n for _, n in self.window)
        while seen - self.window[0][1] >= _WINDOW:
            seen -= self.window.pop(0)[1]
        if seen >= _WINDOW and sum(auc for auc, _ in self.window) >= _AUC * len(self.window):
            self.steps += 1
            self.window.clear()

    def get_extra_state(self) -> dict[str, Any]:
        """What the state_dict holds: the attack's steps and the AUCs that decide on more."""
        return {"steps": self.steps, "window": list(self.window)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.steps = state["steps"]
        self.window = list(state["window"])


def _need(name: str, value: T | None) -> T:
    if value is None:
        raise FieldError(
            f"jem_dat_bce lacks '{name}': it reads 'logits_b' and 'logits_adv', or in their place "
            "attacks 'inputs' and 'features' (out-of-distribution inputs) through 'model'; with "
            "r1 > 0 it needs 'model' and 'inputs' always"
        )
    return value


def _outside(inputs: Tensor, features: Tensor | None) -> Tensor:
    """The out-of-distribution inputs, shaped like the real ones."""
    outside = _need("features", features)
    if outside.shape[1:] != inputs.shape[1:]:
        raise FieldError(
            "jem_dat_bce: 'features' hold out-of-distribution inputs, each of shape "
            f"{list(inputs.shape[1:])} as 'inputs' are, not {list(outside.shape[1:])}"
        )
    return outside


def _forward(model: Model, calls: dict[str, Tensor]) -> dict[str, Tensor]:
    """The logits of several inputs, in one forward with batch norms held."""
    with evaluating(model, _BatchNorm):
        z = logits_of(model, torch.cat(list(calls.values())))
    return dict(zip(calls, z.split([len(x) for x in calls.values()]), strict=True))


def _penalty(g: Tensor, inputs: Tensor) -> Tensor:
    """Half the mean squared length of g's slope at the inputs."""
    (slope,) = torch.autograd.grad(g.sum(), inputs, create_graph=True)
    return 0.5 * _mean(slope.flatten(1).square().sum(1))


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)


def _auc(positive: Tensor, negative: Tensor) -> float:
    """The odds that a positive's score is the higher one, ties counting half."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive)
    not_above = torch.searchsorted(ordered, positive, right=True)
    return float((below + not_above).double().mean() / (2 * len(negative)))
