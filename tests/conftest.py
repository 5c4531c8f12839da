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


# What is tested there are the processes.
REAL = {"executors", "e2e", "faults"}


@pytest.fixture(autouse=True)
def _benches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies of a test train in its process: one more for each of them would take seconds."""
    if REAL & set(request.path.parts):
        return
    import lossearch.study  # noqa: F401
    from lossearch.registry import current
    from lossearch.training import Workbench

    for user in ("session", "compare"):
        monkeypatch.setattr(
            f"lossearch.study.{user}.open_bench", lambda recipe: Workbench(recipe, current())
        )


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real data beside the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LOSSEARCH_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the data folder is not here: {folder} (set LOSSEARCH_DATA)")
    return folder.resolve()
