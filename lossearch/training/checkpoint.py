"""Checkpoint files: the same for a training alone and for a member of a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def random_state(device: torch.device, order: torch.Generator) -> dict[str, Any]:
    """Where the data order and the global generators stand."""
    state = {"order": order.get_state(), "random": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda_random"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(
    state: dict[str, Any], device: torch.device, order: torch.Generator
) -> None:
    """Put them back there."""
    order.set_state(state["order"])
    torch.set_rng_state(state["random"])
    if "cuda_random" in state:
        torch.cuda.set_rng_state(state["cuda_random"], device)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a kill in the middle leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)
