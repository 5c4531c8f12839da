"""Runs units one after the other in this process."""

from __future__ import annotations

from lossearch.executors import Source
from lossearch.registry import current
from lossearch.training import Recipe, Workbench


class LocalExecutor:
    """The executor without any moving part: no cluster, no extra process."""

    workers = 1
    devices = 1.0

    def run(self, recipe: Recipe, source: Source) -> None:
        bench = Workbench(recipe, current())
        while not source.over:
            unit = source.next()
            if unit is None:
                if source.over:
                    break
                raise RuntimeError("the study has nothing to do, and is not over")
            source.report(unit, bench.run(unit))
