"""Networks that end in softmax, log-softmax or sigmoid: seen, and brought back to their scores.

A loss of this field wants scores, and squashes them itself. Of a network that has done so already
it would train on something else, without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lossearch.components.tensors import raise_precision
from lossearch.models.network import scores

Ending = Literal["softmax", "log_softmax", "sigmoid"]
_MODULES = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)
_NODES: dict[str, Ending] = {
    "SoftmaxBackward": "softmax",
    "LogSoftmaxBackward": "log_softmax",
    "SigmoidBackward": "sigmoid",
}
# What may follow and leaves the values as they are, or bounds them.
_THROUGH = (
    "Squeeze", "Unsqueeze", "View", "Reshape", "UnsafeView", "Select", "Slice", "Alias", "Clone",
    "ToCopy", "Clamp",
)  # fmt: skip
_SAME = 1e-4  # by how much a row may miss the sum of 1
WORDS = {"softmax": "softmax", "log_softmax": "log-softmax", "sigmoid": "sigmoid"}


class Scores(nn.Module):
    """A network that gives probabilities, brought back to scores.

    Args:
        network: Inputs to probabilities.
        ending: ``softmax``: their logarithm, which is the scores up to a constant in each row.
            ``sigmoid``: their log-odds.
    """

    def __init__(self, network: nn.Module, ending: Ending) -> None:
        super().__init__()
        self.network, self.ending = network, ending

    @property
    def wrapped(self) -> nn.Module:
        """The network whose arguments these are."""
        return self.network

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        given = raise_precision(scores(self.network(*inputs, **named)))
        bounds = torch.finfo(given.dtype)
        if self.ending == "sigmoid":
            return given.logit(eps=bounds.eps)
        return given.clamp(min=bounds.tiny).log()


def possible(output: Tensor) -> bool:
    """Whether an output may be of probabilities, or of their logarithms."""
    return bool((((output >= 0) & (output <= 1)).all() | (output <= 0).all()).item())


def shown(output: Tensor) -> Ending | None:
    """What an output shows to be its last step: by its graph, or by rows that sum to 1.

    Args:
        output: Scores, or what has been made of them, with their graph.
    """
    node = output.grad_fn
    while node is not None:
        name = node.name()
        found: Ending | None = next((e for n, e in _NODES.items() if name.startswith(n)), None)
        if found is not None:
            return found
        if not name.startswith(_THROUGH):
            break
        node = node.next_functions[0][0]
    if sums_to_one(output, "softmax"):
        return "softmax"
    return "log_softmax" if sums_to_one(output, "log_softmax") else None


def sums_to_one(output: Tensor, ending: Ending) -> bool:
    """Whether each row is a distribution over several classes, or the logarithm of one."""
    if output.ndim != 2 or output.shape[1] < 2:
        return False
    shares = output.detach().double()
    shares = shares.exp() if ending == "log_softmax" else shares
    return bool(((shares >= 0).all() & ((shares.sum(1) - 1).abs() < _SAME).all()).item())


def last_modules(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Copies of a network that lack one module which may be its ending, each with that module."""
    paths = [path for path, m in module.named_modules() if path and isinstance(m, _MODULES)]
    for path in reversed(paths):
        bare = copy.deepcopy(module)
        above, _, leaf = path.rpartition(".")
        parent = bare.get_submodule(above)
        inside = list(parent._modules)
        if isinstance(parent, nn.Sequential) and len(inside) > 1 and inside[-1] == leaf:
            delattr(parent, leaf)  # what stands before it is the last then, and may be the head
        else:
            setattr(parent, leaf, nn.Identity())
        yield bare, module.get_submodule(path)
