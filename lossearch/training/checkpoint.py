"""Checkpoint files: the same for a training alone and for a member of a cohort."""

from __future__ import annotations

import errno
import logging
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lossearch.errors import StorageError
from lossearch.storage import whole

logger = logging.getLogger(__name__)
_REST = (
    "No trial is at fault, and what is in the ledger is safe: put that right and run "
    "`lossearch resume`"
)
# What every checkpoint holds.
_KEYS = {
    "fields", "objective", "optimizer", "scheduler", "order", "random",
    "epoch", "curve", "best", "best_weights",
}  # fmt: skip


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
    """Write a checkpoint; a kill or a power cut in the middle leaves the old file whole.

    Raises:
        StorageError: the system refuses it: the study must stop.
    """
    try:
        with whole(path, "the checkpoint") as file:
            torch.save(state, file)
    except StorageError as error:
        raise StorageError(f"{error}. {_REST}") from None


def read(path: Path) -> dict[str, Any] | None:
    """A checkpoint, on the CPU; ``None`` where there is none, or one that is not whole.

    What is not whole is put aside, and the training begins anew: a seed gives the same numbers.

    Raises:
        StorageError: the system refuses to read it: the study must stop.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()  # torch itself looks at no checksum
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = _KEYS - state.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except FileNotFoundError:
        return None
    except Exception as error:  # of zip, pickle and torch, each with many
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise StorageError(
                f"the checkpoint {path} cannot be read: {error.strerror}. {_REST}"
            ) from None
        put_aside(path, error)  # what a damaged file has for offsets is EINVAL
        return None
    return state


def put_aside(path: Path, error: Exception) -> None:
    """Have a checkpoint that cannot be used out of the way of the next one."""
    aside = path.with_name(f"{path.name}.damaged")
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    logger.warning(
        "the checkpoint %s cannot be used (%s); it is now %s, and its training begins anew",
        path, why, aside.name,
    )  # fmt: skip
    with suppress(OSError):
        path.replace(aside)
