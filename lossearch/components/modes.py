"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
