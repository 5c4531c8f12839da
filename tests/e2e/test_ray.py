"""The Ray executor's own behaviour: clusters that are not there, and workers that do not fit."""

from __future__ import annotations

import time

import pytest

from lossearch.errors import StudyError
from lossearch.executors import ExecutorConfig, make_executor

pytestmark = pytest.mark.slow


def test_no_cluster_at_the_address() -> None:
    started = time.monotonic()
    with pytest.raises(StudyError, match=r"no Ray cluster answers at '127\.0\.0\.1:9'.*ray start"):
        make_executor(ExecutorConfig(name="ray", address="127.0.0.1:9"))
    assert time.monotonic() - started < 30


def test_a_worker_that_fits_nowhere() -> None:
    with pytest.raises(StudyError, match=r"a worker with 4096 and 0 fits nowhere"):
        make_executor(ExecutorConfig(name="ray", cpus=4096))
