"""The made-up study, as a fixture."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LEDGERS = Path(__file__).parents[1] / "ledgers.py"


@pytest.fixture
def study_rows() -> Callable[..., list[dict[str, Any]]]:
    return runpy.run_path(str(LEDGERS))["study_rows"]
