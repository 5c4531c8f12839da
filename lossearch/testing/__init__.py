"""Conformance: what a component has to pass, for its author, for pytest and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lossearch.testing.checks import CheckResult, checks, run_checks
from lossearch.testing.subject import CheckFailure

if TYPE_CHECKING:
    from lossearch.testing.pytest import parametrize_with_checks

__all__ = ["CheckFailure", "CheckResult", "checks", "parametrize_with_checks", "run_checks"]


def __getattr__(name: str) -> Any:
    if name == "parametrize_with_checks":  # pytest is not there for a plugin's user
        from lossearch.testing.pytest import parametrize_with_checks

        return parametrize_with_checks
    raise AttributeError(f"module 'lossearch.testing' has no attribute '{name}'")
