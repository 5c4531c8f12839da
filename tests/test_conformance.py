"""Every component of every installed plugin passes the checks that lossearch ships."""

from __future__ import annotations

from collections.abc import Callable

from lossearch.plugins import load_plugins
from lossearch.testing import parametrize_with_checks

PLUGINS = load_plugins()
KINDS = ("loss", "reweighting", "miner", "balancer", "metric")


def test_every_plugin_loads() -> None:
    assert not PLUGINS.errors


@parametrize_with_checks([c for kind in KINDS for c in PLUGINS.registry.list(kind)])
def test_conformance(check: Callable[[], None]) -> None:
    check()
