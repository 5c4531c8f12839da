"""What tests of several layers share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests run is trusted by the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real data beside the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LOSSEARCH_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the data folder is not here: {folder} (set LOSSEARCH_DATA)")
    return folder.resolve()
