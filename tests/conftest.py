"""What tests of several layers share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real data beside the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LOSSEARCH_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the data folder is not here: {folder} (set LOSSEARCH_DATA)")
    return folder.resolve()
