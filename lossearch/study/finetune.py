"""The second stage: the best objectives of a search on frozen embeddings train in full."""

from __future__ import annotations

from lossearch.study.confirm import finalists
from lossearch.study.journal import Journal
from lossearch.study.phase import training_row
from lossearch.study.setup import Setup
from lossearch.training import Job, JobResult


class Finetune:
    """The phase that trains them and the tuned baseline, each at every learning rate asked for."""

    def __init__(self, setup: Setup, journal: Journal) -> None:
        self.journal = journal
        config, state = setup.config, journal.state
        assert config.finetune is not None
        have = {(row["trial"], row["variant"]) for row in state.finetuned}
        baseline, candidates = finalists(state, setup.deciding, config.finetune.top, stage=1)
        trials = [baseline, *candidates] if baseline is not None and candidates else []
        self._waiting = [
            Job(t.number, t.objective, values, config.seed, config.finetune.epochs,
                full=True, variant=i)
            for t in trials
            if t is not None
            for i, values in enumerate(config.finetune.values(t.training))
            if (t.number, i) not in have
        ]  # fmt: skip
        self._done = 0
        self._values = {(j.trial, j.variant): j.values for j in self._waiting}

    @property
    def left(self) -> int:
        return len(self._values) - self._done

    def jobs(self, most: int) -> list[Job]:
        # one by one: what makes heads cheap to stack is not there any more
        found, self._waiting = self._waiting[:1], self._waiting[1:]
        return found

    def report(self, result: JobResult) -> None:
        self._done += 1
        self.journal.record(
            "finetuned",
            **training_row(result),
            variant=result.variant,
            values=self._values[result.trial, result.variant],
            score=result.score,
            metrics=result.metrics,
        )

    def end(self) -> None:
        """Nothing is left to do."""
