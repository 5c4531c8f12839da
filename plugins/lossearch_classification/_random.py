"""Random numbers of a component's own, on whatever device they are needed."""

from __future__ import annotations

import torch


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on ``device`` for one step, seeded by a draw of ``generator`` (on the CPU).

    So many numbers are drawn where they are used, while the state to be kept in a checkpoint is
    that of one generator on the CPU.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
