"""LegendreTron: the link from scores to probabilities is learned with the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lossearch import Choices, Given, Paper, Range, loss
from lossearch.components import raise_precision
from lossearch.errors import FieldError
from lossearch_classification._shared import check_multiclass, pick, softplus

_LEAST = 1e-6
_LEAST_SCALE = 1e-3
_ONE = math.log(math.e - 1)  # softplus of it is 1
_SMALL = -11.0  # softplus of it is 1.7e-5


@loss(
    name="legendretron",
    task="multiclass",
    vmap="it learns a network of its own",
    paper=Paper(
        "LegendreTron: Uprising Proper Multiclass Loss Learning", 2023, "arXiv:2301.11695"
    ),
    skips={"gradcheck": "its first batch sets the normalisation, which is held constant"},
)
class LegendreTron(nn.Module):
    r"""LegendreTron: cross-entropy behind a learned monotone map of the scores.

    :math:`x = (z_1 - z_C, ..., z_{C-1} - z_C)` passes ``blocks`` maps
    :math:`x \mapsto \nabla \Phi(x)`, each the gradient of a convex potential
    :math:`\Phi(x) = a N(x) + b \|x\|^2 / 2` with an input-convex network N and a, b > 0. Of the
    last map's u, :math:`p_c = e^{u_c} / (1 + \sum_k e^{u_k})` for c < C and the rest for class C;
    the loss is :math:`-\log p_y`. So it is a proper loss with an invertible link. With a = 0 it
    is the cross-entropy of b^blocks times the logits.

    Predictions go through the link: :meth:`predict_log_proba`; the largest logit may be another
    class. The first training batch sets the normalisation of the network's layers, so that their
    outputs have mean 0 and variance 1 there. It computes in float32 or float64, also under
    autocast.

    Args:
        num_classes: Number C >= 2 of classes; filled in.
        blocks: Maps one behind another, >= 1.
        depth: Hidden layers of each network, >= 1.
        hidden: Their width, even.
        trainable_quadratic: Whether b is learned; otherwise it stays as it begins.
        weight_decay: Of the link's parameters, >= 0; for the optimizer.
        lr_factor: Their learning rate, relative to the model's, > 0; for the optimizer.
        init: ``identity`` begins within 1e-4 of cross-entropy (a = 1.7e-5, b = 1, ours; the link
            leaves it only under an optimizer that is indifferent to a gradient's scale, as Adam
            is). ``random`` draws both as the authors do.
        seed: Of the initial weights.

    Checked against khflam/legendretron (lib/models.py, lib/icnn.py), which finds the map by
    automatic differentiation and is thus twice differentiated in training; here it is written
    out. Of the biases that a layer has there side by side, one is left.
    """

    def __init__(
        self,
        *,
        num_classes: Annotated[int, Field(ge=2), Given("num_classes")],
        blocks: Annotated[int, Field(ge=1), Choices(1, 2, 3)] = 1,
        depth: Annotated[int, Field(ge=1), Range(2, 4)] = 4,
        hidden: Annotated[int, Field(ge=2, multiple_of=2), Choices(2, 4, 8, 16)] = 4,
        trainable_quadratic: bool = True,
        weight_decay: Annotated[float, Field(ge=0), Range(1e-4, 1e-1, log=True)] = 1e-3,
        lr_factor: Annotated[float, Field(gt=0), Range(0.1, 10.0, log=True)] = 1.0,
        init: Annotated[Literal["identity", "random"], Choices()] = "identity",
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        # not attributes of those names: a schedule of them would do nothing
        self._group = {"weight_decay": weight_decay, "lr_factor": lr_factor}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.blocks = nn.ModuleList(
                ConvexGradient(num_classes - 1, depth, hidden, init == "random")
                for _ in range(blocks)
            )
        for block in self.blocks:
            block.w0.requires_grad_(trainable_quadratic)  # pyright: ignore

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The value of each sample.

        Args:
            logits: ``[B, C]``.
            targets: int64 ``[B]``.

        Returns:
            ``[B]``.

        Raises:
            FieldError: a shape or a target is not allowed, or C is not ``num_classes``.
        """
        check_multiclass("legendretron", logits, targets)
        return -pick(self.predict_log_proba(logits), targets)

    def predict_log_proba(self, logits: Tensor) -> Tensor:
        """The logarithms of the classes' probabilities, ``[B, C]``.

        Raises:
            FieldError: C is not ``num_classes``.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise FieldError(
                f"legendretron was made for {self.num_classes} classes: logits "
                f"[B, {self.num_classes}], not {list(logits.shape)}"
            )
        with torch.autocast(logits.device.type, enabled=False):
            z = raise_precision(logits)
            x = z[:, :-1] - z[:, -1:]
            for block in self.blocks:
                x = block(x)
            return F.pad(x, (0, 1)).log_softmax(1)  # the last class has score 0

    def predictions(self, fields: Mapping[str, Tensor]) -> Tensor:
        """What evaluation takes for the network's logits: :meth:`predict_log_proba` of them."""
        return self.predict_log_proba(fields["logits"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the link learns, with its weight decay and its rate relative to the model's."""
        learned = [p for p in self.parameters() if p.requires_grad]
        return [{"params": learned, **self._group}]


class ConvexGradient(nn.Module):
    r"""The gradient of a convex potential, :math:`a \nabla N(x) + b x`.

    N is an input-convex network. Each layer reads softplus of the layer before by positive
    weights, and x by any: the first half of a hidden layer's units both, scaled; the other half
    (and all of the first layer) x alone; N is one more unit of the first sort.

    Args:
        dim: Width D of x.
        depth: Hidden layers.
        hidden: Their width, even.
        random: Whether a and b begin at random, or at about 0 and 1.
    """

    def __init__(self, dim: int, depth: int, hidden: int, random: bool) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(()) if random else torch.tensor(_SMALL))
        self.w0 = nn.Parameter(torch.randn(()) if random else torch.tensor(_ONE))
        self.widths = [hidden] * depth + [1]
        self.on_x = nn.Linear(dim, sum(self.widths))  # what all layers read of x
        sums = [hidden // 2] * (depth - 1) + [1]
        self.on_z = nn.ParameterList(nn.Linear(hidden, n).weight for n in sums)
        self.log_scales = nn.ParameterList(torch.zeros(n) for n in sums)
        self.initialised = False

    def forward(self, x: Tensor) -> Tensor:
        """x ``[B, D]`` to the gradient there, ``[B, D]``."""
        # without any spread there is no scale to set
        if self.training and not self.initialised and bool((x != x[:1]).any()):
            with torch.no_grad():
                self._run(x, normalise=True)
            self.initialised = True
        layers, _ = self._run(x)
        # From N back through the layers: the slope of N at what each of them reads of x.
        slope = self._scale(-1, x).expand(len(x), 1)
        slopes = [slope]
        at_z = slope @ self._weight(-1, x)
        for layer in range(len(layers) - 1, 0, -1):
            inner, outer = (at_z * layers[layer].sigmoid()).chunk(2, 1)
            inner = inner * self._scale(layer - 1, x)
            slopes += [outer, inner]
            at_z = inner @ self._weight(layer - 1, x)
        slopes.append(at_z * layers[0].sigmoid())
        at_x = _positive(self.w1, x) * torch.cat(slopes[::-1], 1)
        return torch.addmm(_positive(self.w0, x) * x, at_x, self.on_x.weight.to(x))

    def potential(self, x: Tensor) -> Tensor:
        """The potential itself, up to a constant: x ``[B, D]`` to ``[B]``."""
        _, n = self._run(x)
        square = x.square().sum(1) / 2
        return _positive(self.w1, x) * n.squeeze(1) + _positive(self.w0, x) * square

    def _run(self, x: Tensor, normalise: bool = False) -> tuple[list[Tensor], Tensor]:
        """Each hidden layer before its softplus ``[B, hidden]``, and N ``[B, 1]``."""
        own = F.linear(x, self.on_x.weight.to(x), self.on_x.bias.to(x)).split(self.widths, 1)
        layers = [own[0]]
        for layer, read in enumerate(own[1:-1]):
            inner, outer = read.chunk(2, 1)
            inner = self._convex_sum(layer, layers[-1], inner, normalise)
            layers.append(torch.cat([inner, outer], 1))
        return layers, self._convex_sum(len(layers) - 1, layers[-1], own[-1], normalise)

    def _convex_sum(self, layer: int, before: Tensor, own: Tensor, normalise: bool) -> Tensor:
        total = softplus(before) @ self._weight(layer, before).T + own
        if normalise:  # to mean 0 and variance 1 over this batch
            mean, spread = total.mean(0), total.std(0, correction=0)
            total = total - mean
            start = sum(self.widths[: layer + 1])
            self.on_x.bias[start : start + len(mean)] -= mean
            log_scale = torch.where(spread > _LEAST, -(spread + _LEAST).log(), 0.0)
            self.log_scales[layer].copy_(log_scale)
        return total * self._scale(layer, total)

    def _weight(self, layer: int, like: Tensor) -> Tensor:
        return _positive(self.on_z[layer], like) / self.on_z[layer].shape[1]

    def _scale(self, layer: int, like: Tensor) -> Tensor:
        return self.log_scales[layer].to(like).exp() + _LEAST_SCALE

    def get_extra_state(self) -> bool:
        """What the state_dict holds beside parameters: whether the scales have been set."""
        return self.initialised

    def set_extra_state(self, state: bool) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.initialised = state


def _positive(parameter: Tensor, like: Tensor) -> Tensor:
    return softplus(parameter.to(like))
