"""Runs units one after the other, on the bench beside the driver."""

from __future__ import annotations

from lossearch.executors.bench import Bench
from lossearch.executors.rescue import Rescue
from lossearch.executors.source import Source


class LocalExecutor:
    """The executor without a cluster: the driver waits while its bench works."""

    workers = 1
    devices = 1.0

    def run(self, bench: Bench, source: Source) -> None:
        source = Rescue(source)
        while not source.over:
            unit = source.next()
            if unit is None:
                if source.over:
                    break
                raise RuntimeError("the study has nothing to do, and is not over")
            source.report(unit, bench.run(unit))
