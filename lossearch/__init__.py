"""Search over loss functions: compose, train, compare, and prove it.

The public names load on first use, so that ``import lossearch`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "hookimpl": "lossearch.hookspecs",
    "LossearchError": "lossearch.errors",
    "Bound": "lossearch.components",
    "ByTask": "lossearch.components",
    "Choices": "lossearch.components",
    "Component": "lossearch.components",
    "Given": "lossearch.components",
    "Paper": "lossearch.components",
    "Range": "lossearch.components",
    "When": "lossearch.components",
    "balancer": "lossearch.components",
    "dataset": "lossearch.components",
    "loss": "lossearch.components",
    "metric": "lossearch.components",
    "miner": "lossearch.components",
    "model": "lossearch.components",
    "provider": "lossearch.components",
    "reweighting": "lossearch.components",
    "build": "lossearch.registry",
    "get": "lossearch.registry",
    "Objective": "lossearch.objective",
    "ObjectiveSpec": "lossearch.spec",
    "load_objective": "lossearch.objective",
    "Space": "lossearch.space",
    "search": "lossearch.api",
    "compare": "lossearch.api",
}

__all__ = [
    "Bound",
    "ByTask",
    "Choices",
    "Component",
    "Given",
    "LossearchError",
    "Objective",
    "ObjectiveSpec",
    "Paper",
    "Range",
    "Space",
    "When",
    "__version__",
    "balancer",
    "build",
    "compare",
    "dataset",
    "get",
    "hookimpl",
    "load_objective",
    "loss",
    "metric",
    "miner",
    "model",
    "provider",
    "reweighting",
    "search",
]

if TYPE_CHECKING:
    from lossearch.api import compare, search
    from lossearch.components import (
        Bound,
        ByTask,
        Choices,
        Component,
        Given,
        Paper,
        Range,
        When,
        balancer,
        dataset,
        loss,
        metric,
        miner,
        model,
        provider,
        reweighting,
    )
    from lossearch.errors import LossearchError
    from lossearch.hookspecs import hookimpl
    from lossearch.objective import Objective, load_objective
    from lossearch.registry import build, get
    from lossearch.space import Space
    from lossearch.spec import ObjectiveSpec


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lossearch' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
