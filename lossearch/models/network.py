"""The network of a study: a backbone that embeds, a head that scores, and what they can give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossearch.components.inputs import Inputs, fed
from lossearch.errors import ModelError


class LinearHead(nn.Linear):
    """Affine scores of the embeddings, :math:`W e + b`: embeddings ``[B, E]`` to ``[B, C]``.

    Args:
        num_features: Width E of the embeddings.
        num_outputs: Number C of scores.
    """

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__(num_features, num_outputs)


class CosineHead(nn.Module):
    r"""Scaled cosines between embeddings and class weights, :math:`s \cos(e, w_c)`, without bias.

    Margin losses train on cosines, so their probabilities mean something only under the loss's
    own scale.

    Args:
        num_features: Width E of the embeddings.
        num_outputs: Number C of scores.
        scale: The factor s of the cosines, that of the loss.
    """

    def __init__(self, num_features: int, num_outputs: int, scale: float) -> None:
        super().__init__()
        # A buffer, so that heads of several scales stack; float64, to scale as the number would.
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64), persistent=False)
        # A linear layer's initial weight, so that one seed starts both heads alike.
        self.weight = nn.Linear(num_features, num_outputs, bias=False).weight

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(embeddings), F.normalize(self.weight))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, scale={float(self.scale)}"


class Frozen(nn.Module):
    """A backbone that no longer learns: no gradient, and always in evaluation mode.

    Running statistics of its batch norms stay as they are, so its embeddings of a sample never
    change and may be cached.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def wrapped(self) -> nn.Module:
        """The backbone, whose arguments these are."""
        return getattr(self.backbone, "wrapped", self.backbone)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        with torch.no_grad():
            return self.backbone(*inputs, **named)


class Network(nn.Module):
    """A backbone that embeds and a head that scores.

    Args:
        backbone: Inputs to embeddings ``[B, E]``; without a head, inputs to scores.
        head: Embeddings to scores ``[B, C]``; ``None`` where the backbone is a module that cannot
            be split, which then gives its scores alone.
        squeeze: Give a single score as ``[B]`` rather than ``[B, 1]``.
        two: It scores both classes of a binary task, ``[B, 2]``: the second score less the first
            is the one that counts, as their softmax has it.

    Attributes:
        notes: What a person should know of how the network was taken, a sentence each.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module | None,
        *,
        squeeze: bool = True,
        two: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.squeeze, self.two = squeeze, two
        self.notes: tuple[str, ...] = ()

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """``logits`` (``[B, C]``, a single one as ``[B]``) and, with a head, ``embeddings``."""
        if self.head is None:
            return {"logits": self.shaped(scores(fed(self.backbone, inputs)))}
        embeddings = fed(self.backbone, inputs)
        return {"logits": self.shaped(self.head(embeddings)), "embeddings": embeddings}

    def shaped(self, scores: Tensor) -> Tensor:
        """The logits, from what the head or the module gives."""
        if self.two:
            return scores[:, 1] - scores[:, 0]
        single = self.squeeze and scores.ndim == 2 and scores.shape[1] == 1
        return scores[:, 0] if single else scores

    @property
    def weight(self) -> nn.Parameter | None:
        """The classifier's weight ``[C, E]``, if the head has one."""
        if self.two:  # a row for each class, and there is one score
            return None
        weight = getattr(self.head, "weight", None)
        return weight if isinstance(weight, nn.Parameter) and weight.ndim == 2 else None

    @property
    def frozen(self) -> bool:
        """Whether the head alone learns."""
        return isinstance(self.backbone, Frozen)

    @property
    def gives(self) -> tuple[str, ...]:
        """Which of ``logits``, ``embeddings`` and ``weight`` it can give."""
        if self.head is None:
            return ("logits",)
        return ("logits", "embeddings") + (("weight",) if self.weight is not None else ())


def scores(output: Any) -> Tensor:
    """The scores in what a user's module returns: a tensor, or what holds one.

    Mappings and objects (a dataclass, a ``ModelOutput``) hold it as ``logits``, tuples as their
    first part.

    Raises:
        ModelError: there is no tensor where the scores belong.
    """
    first = getattr(output, "logits", output)
    if isinstance(output, Mapping):
        first = output["logits"] if "logits" in output else next(iter(output.values()), None)
    elif isinstance(output, (tuple, list)):
        first = output[0] if output else None
    if not isinstance(first, Tensor):
        raise ModelError(
            f"the model returns {type(output).__name__}; return the scores as a tensor, as the "
            "first of a tuple, or as 'logits' of a dict or a dataclass"
        )
    return first
