"""Random numbers of a component's own, which a checkpoint keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Drawing(nn.Module):
    """A component with a random generator of its own, whose state is in the ``state_dict``.

    The generator lives on the CPU, so that a run draws the same numbers on every device.

    Args:
        seed: Of the generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, like: Tensor, *shape: int) -> Tensor:
        """Numbers in [0, 1), with the dtype of ``like`` and where it is."""
        return torch.rand(shape, generator=self.generator).to(like.device, like.dtype)

    def normal(self, like: Tensor, *shape: int) -> Tensor:
        """Standard normal numbers, with the dtype of ``like`` and where it is."""
        return torch.randn(shape, generator=self.generator).to(like.device, like.dtype)

    def get_extra_state(self) -> dict[str, Any]:
        """What the state_dict holds beside parameters and buffers: the generator's state."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        self.generator.set_state(state["generator"].cpu())


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on ``device`` for one step, seeded by a draw of ``generator``.

    So many numbers are drawn where they are used, while the state to be kept in a checkpoint is
    that of one generator on the CPU.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
