"""The checks as pytest tests. Only this module knows pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lossearch.components import component_of
from lossearch.testing.checks import checks, skip_reason


def parametrize_with_checks(components: Iterable[Any]) -> Callable[..., Any]:
    """Run a test once for each check of each component, as its argument ``check``.

    .. code-block:: python

        @parametrize_with_checks([my_loss])
        def test_conformance(check):
            check()

    Args:
        components: Decorated functions or classes, or their components.
    """
    cases = []
    for component in map(component_of, components):
        for name, check in checks(component):
            reason = skip_reason(component, name)
            marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
            cases.append(pytest.param(check, id=f"{component.name}-{name}", marks=marks))
    return pytest.mark.parametrize("check", cases)
