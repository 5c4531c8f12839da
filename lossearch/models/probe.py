"""What a model is tried on before anything trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lossearch.components.inputs import Inputs, described, each, fed
from lossearch.components.modes import evaluating
from lossearch.errors import ModelError
from lossearch.models.network import Network
from lossearch.models.zoo import DataLike

_OF_INTEGERS = (nn.Embedding, nn.EmbeddingBag)


class WantsIntegers(ModelError):
    """A model that holds an embedding does not take real numbers."""


@dataclass(frozen=True)
class Probe:
    """What a model is tried on: samples of the data, or noise that looks like them."""

    name: str
    info: DataLike
    samples: Inputs | None

    def inputs(self, like: nn.Module) -> Inputs:
        """A few samples, where the module's parameters are."""
        device = next(like.parameters(), torch.empty(0)).device
        samples = self.samples
        if samples is None:
            seeded = torch.Generator().manual_seed(0)
            samples = torch.randn(2, *self.info.input_shape, generator=seeded)
        return each(lambda tensor: tensor.to(device), samples)

    def run(self, module: nn.Module, *, graph: bool = False) -> Any:
        """What a module gives for them, in evaluation mode.

        Raises:
            ModelError: it does not take them.
        """
        inputs = self.inputs(module)
        with evaluating(module), torch.set_grad_enabled(graph):
            try:
                return module(inputs) if isinstance(module, Network) else fed(module, inputs)
            except ModelError:
                raise
            except Exception as error:
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                words = f"model '{self.name}' does not take inputs of {self._words(inputs)}"
                real = isinstance(inputs, Tensor) and inputs.is_floating_point()
                if real and any(isinstance(m, _OF_INTEGERS) for m in module.modules()):
                    raise WantsIntegers(
                        f"{words}: {reason}. It holds an embedding, which takes whole numbers"
                    ) from error
                raise ModelError(f"{words}: {reason}") from error

    def _words(self, inputs: Inputs) -> str:
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            return f"shape {batch_shape(inputs.shape)} (kind '{self.info.kind}')"
        return f"the form {described(inputs)} (kind '{self.info.kind}')"


def batch_shape(shape: tuple[int, ...]) -> str:
    """A batch's shape in words."""
    return f"[{', '.join(['B', *map(str, shape[1:])])}]"
