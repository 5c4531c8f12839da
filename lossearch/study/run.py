"""A study under way: the source of its units, phase by phase, to the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lossearch.executors.bench import Bench
from lossearch.study.attribution import Attribution
from lossearch.study.confirm import Confirmation, best_first, finalists
from lossearch.study.finetune import Finetune
from lossearch.study.folder import Folder
from lossearch.study.journal import Journal
from lossearch.study.phase import Phase
from lossearch.study.search import Search
from lossearch.study.setup import Setup
from lossearch.training import Job, Unit, UnitResult
from lossearch.trials.ledger import Ledger, State, Trial

# A sampler learns from a batch of proposals only when it is done, so a search takes at least so
# many batches. Fixed, rather than measured, so that a seed gives one search.
BATCHES = 6
LEAST, MOST = 3, 128  # jobs of a unit


class Run(Journal):
    """The source of a study's units (see :class:`lossearch.executors.Source`).

    First every worker measures how many jobs a unit should hold; the first answer counts. Then
    come the search; the confirmation, which trains the finalists and the baseline again on fresh
    seeds; and the attribution, which trains the winner without each of its parts and ends with
    the verdict. Every event goes to the ledger first, then to the listeners.

    Args:
        setup: The study.
        folder: Its folder.
        ledger: Its ledger.
        state: What that says.
        bench: Where objectives are looked at before they train.
        workers: How many units run side by side.
        devices: GPUs of one of them.
    """

    def __init__(
        self,
        setup: Setup,
        folder: Folder,
        ledger: Ledger,
        state: State,
        bench: Bench,
        workers: int = 1,
        devices: float = 1.0,
    ) -> None:
        super().__init__(ledger, state, [])
        self.setup, self.folder = setup, folder
        search = Search(setup, folder, self, bench, devices)
        trials = max(1, search.expected // (BATCHES * workers))
        self.wanted = min(MOST, trials * search.points)
        second = (lambda: Finetune(setup, self),) if setup.config.finetune is not None else ()
        later: tuple[Callable[[], Phase], ...] = (
            *second,
            lambda: Confirmation(setup, self),
            lambda: Attribution(setup, self, bench),
        )
        self._later: Iterator[Callable[[], Phase]] = iter(later)
        self._phase: Phase = search
        self.workers = workers
        self._units = 0
        self._flying: set[int] = set()  # the units handed out

    # --- the source ------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.state.verdict is not None

    def next(self) -> Unit | None:
        if self.over:
            return None
        if self.state.unit is None:
            if self.wanted < LEAST:
                self.record("measured", jobs=1, problem=None)
            elif self._units < self.workers:  # each has to know what pays
                return self._hand_out([], measure=self.wanted)
            else:
                return None
        while not self.over:
            with self.together():
                jobs = self._phase.jobs(self.size)
            if jobs:
                return self._hand_out(jobs)
            if self._flying:
                return None
            self._advance()
        return None

    def report(self, unit: Unit, result: UnitResult) -> None:
        self._flying.discard(unit.number)
        if unit.measure and self.state.unit is None:
            self.record("measured", jobs=result.size or 1, problem=result.problem)
        with self.together():
            for each in result.jobs:
                self._phase.report(each)

    @property
    def size(self) -> int:
        """How many jobs a unit holds."""
        return int(self.state.unit["jobs"]) if self.state.unit is not None else 1

    def _hand_out(self, jobs: list[Job], measure: int = 0) -> Unit:
        self._units += 1
        self._flying.add(self._units)
        return Unit(self._units, tuple(jobs), measure)

    def _advance(self) -> None:
        """To the next phase; the last one ends with the verdict."""
        self._phase.end()
        phase = next(self._later, None)
        if phase is not None:
            self._phase = phase()

    @property
    def left(self) -> int:
        """How many jobs this phase still knows of, besides those that are reported."""
        return self._phase.left

    # --- what others show --------------------------------------------------------------------

    def finalists(self) -> tuple[Trial | None, list[Trial]]:
        """The tuned baseline and the finalists."""
        return finalists(self.state, self.setup.deciding, self.setup.config.confirm.top)

    def best(self) -> Trial | None:
        """The best finished trial so far, by validation score."""
        return next(iter(best_first(self.state.trials.values(), self.setup.deciding)), None)
