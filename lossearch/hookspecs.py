"""The hooks of a plugin: one for each kind of component. A plugin implements those it needs.

.. code-block:: python

    import lossearch

    @lossearch.loss(task="multiclass")
    def my_loss(logits, targets):
        "Cross-entropy, once more."
        ...

    @lossearch.hookimpl
    def register_losses():
        return [my_loss]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import typer

PROJECT = "lossearch"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Components = Iterable[Callable[..., Any]]


@hookspec
def register_losses() -> Components:
    """Losses, each decorated with ``@lossearch.loss``."""
    return ()


@hookspec
def register_miners() -> Components:
    """Miners, each decorated with ``@lossearch.miner``."""
    return ()


@hookspec
def register_reweightings() -> Components:
    """Reweighting schemes, each decorated with ``@lossearch.reweighting``."""
    return ()


@hookspec
def register_balancers() -> Components:
    """Balancers, each decorated with ``@lossearch.balancer``."""
    return ()


@hookspec
def register_metrics() -> Components:
    """Metrics, each decorated with ``@lossearch.metric``."""
    return ()


@hookspec
def register_datasets() -> Components:
    """Datasets, each decorated with ``@lossearch.dataset``."""
    return ()


@hookspec
def register_models() -> Components:
    """Models, each decorated with ``@lossearch.model``."""
    return ()


@hookspec
def register_providers() -> Components:
    """Providers of further batch fields, each decorated with ``@lossearch.provider``."""
    return ()


@hookspec
def register_spaces() -> Mapping[str, Path | str]:
    """Search spaces: a name for each, and its YAML file (a path) or its text."""
    return {}


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Add commands to the ``lossearch`` command line."""
