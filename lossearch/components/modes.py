"""Modes for a while: evaluation, and what a component can change of its process."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluating(model: object, kind: type[nn.Module] = nn.Module) -> Iterator[None]:
    """The model's modules of this kind in evaluation mode, and each in its own mode afterwards.

    Nothing moves running statistics meanwhile. A model that is no module is left as it is.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = [m for m in modules if m.training and isinstance(m, kind)]
    for module in training:
        if module.training:  # not yet by one that holds it
            module.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def torch_modes_kept() -> Iterator[None]:
    """Put back what code in here changes of torch, in microseconds.

    Grad and autocast mode, the defaults of type, device, threads, determinism, precision and
    anomaly detection.
    """
    before, device = _torch_state(), torch.get_default_device()
    try:
        yield
    finally:
        now = _torch_state()
        for key, value in before.items():
            if now[key] != value:
                _SETTERS[key](value)
        if torch.get_default_device() != device:
            # "cpu" would leave a mode behind that every call goes through
            torch.set_default_device(None if device.type == "cpu" else device)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Put back what code in here changes of the process, so that nobody after it trains by it.

    Torch's modes, the random states of Python and NumPy and NumPy's handling of errors, the
    working directory and the environment. Torch's own random state is its user's to fork.
    """
    folder, environment = os.getcwd(), dict(os.environ)
    python, numpy, errors = random.getstate(), np.random.get_state(), np.geterr()
    try:
        with torch_modes_kept():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        np.seterr(**errors)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        with suppress(OSError):
            os.chdir(folder)


def _torch_state() -> dict[str, object]:
    return {key: get() for key, get in _GETTERS.items()}


_GETTERS = {
    "grad": torch.is_grad_enabled,
    "dtype": torch.get_default_dtype,
    "threads": torch.get_num_threads,
    "autocast": lambda: torch.is_autocast_enabled("cpu"),
    "autocast of GPUs": lambda: torch.is_autocast_enabled("cuda"),
    "deterministic": torch.get_deterministic_debug_mode,
    "precision": torch.get_float32_matmul_precision,
    "anomaly": lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
    "benchmark": lambda: torch.backends.cudnn.benchmark,
}
_SETTERS: dict[str, Callable[[Any], object]] = {
    "grad": torch.set_grad_enabled,
    "dtype": torch.set_default_dtype,
    "threads": torch.set_num_threads,
    "autocast": lambda on: torch.set_autocast_enabled("cpu", on),
    "autocast of GPUs": lambda on: torch.set_autocast_enabled("cuda", on),
    "deterministic": torch.set_deterministic_debug_mode,
    "precision": torch.set_float32_matmul_precision,
    "anomaly": lambda modes: torch.autograd.set_detect_anomaly(*modes),
    "benchmark": lambda on: setattr(torch.backends.cudnn, "benchmark", on),
}
