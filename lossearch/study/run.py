"""A study under way: proposes, hands out units, records results, confirms, judges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossearch.feasibility import objective_problems
from lossearch.report.text import verdict_text
from lossearch.spec import ObjectiveSpec
from lossearch.study.confirm import (
    best_first,
    confirmation_seeds,
    finalists,
    next_in_line,
    verdict,
)
from lossearch.study.folder import Folder
from lossearch.study.setup import Setup
from lossearch.training import Job, JobResult, Unit
from lossearch.training.trainer import facts_of
from lossearch.trials.fingerprint import fingerprint
from lossearch.trials.ledger import Ledger, Row, State, Trial, apply
from lossearch.trials.preflight import preflight
from lossearch.trials.proposer import Proposal

Listener = Callable[[State, Row], None]


class Run:
    """The source of a study's units (see :class:`lossearch.executors.Source`).

    Two phases: the search, which proposes and prunes until the budget is spent, and the
    confirmation, which trains the finalists and the baseline again on fresh seeds. Every event
    goes to the ledger first, then to the listeners (the tracker, the display).
    """

    def __init__(
        self, setup: Setup, folder: Folder, ledger: Ledger, state: State, listeners: list[Listener]
    ) -> None:
        self.setup, self.folder, self.ledger, self.state = setup, folder, ledger, state
        self.listeners = listeners
        self.proposer = setup.proposer()
        self.proposer.restore(state.trials.values())
        self.rungs = setup.rungs
        self.probe, self.bf16 = setup.probe(), setup.bf16
        self.known = setup.fingerprints()
        for trial in state.trials.values():
            if trial.status != "rejected":
                spec = ObjectiveSpec.parse(trial.objective)
                found = fingerprint(spec, setup.registry, self.probe)
                self.known.add(trial.number, spec, found, trial.training)
        self.maximize = setup.metric.maximize
        self._units = 0
        self._flying: set[tuple[int, int]] = set()  # (trial, seed) of the jobs handed out
        self._waiting: list[tuple[Trial, int]] | None = None  # what is still to be confirmed
        # what was under way when the study was killed goes on first
        self._unfinished = [
            t for t in state.trials.values() if t.status == "running" and not self._paused(t)
        ]

    def record(self, event: str, **values: Any) -> None:
        """Write an event to the ledger, take it into the state, tell the listeners."""
        row = self.ledger.append(event, **values)
        apply(self.state, row)
        for listener in self.listeners:
            listener(self.state, row)

    # --- the source ------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.state.verdict is not None

    def next(self) -> Unit | None:
        if self.over:
            return None
        if self._waiting is None:
            job = self._next_search()
            if job is not None:
                return self._hand_out(job)
            if self._flying:
                return None
            self._end_search()
        return self._next_confirmation()

    def report(self, unit: Unit, results: list[JobResult]) -> None:
        for result in results:
            self._flying.discard((result.trial, result.seed))
            if self._waiting is None:
                self._report_search(result)
            else:
                self._report_confirmation(result)
        if self._waiting is not None and not self._waiting and not self._flying:
            self._judge()

    def _hand_out(self, *jobs: Job) -> Unit:
        self._units += 1
        self._flying.update((j.trial, j.seed) for j in jobs)
        return Unit(self._units, jobs)

    # --- search ----------------------------------------------------------------------------

    def _next_search(self) -> Job | None:
        if self._unfinished:
            return self._job(self._unfinished.pop(0))
        going = self.rungs.promotable(
            [t for t in self.state.trials.values() if t.role != "baseline"],
            self.maximize,
            busy={number for number, _ in self._flying},
        )
        if going is not None:
            return self._job(going)
        while self.proposer.left > 0:
            trial = self._propose()
            if trial.status == "running":
                return self._job(trial)
        if not self._flying and not self.finalists()[1]:
            # a small budget may promote nothing but the baseline's equals to the end
            last = next_in_line(self.state, self.setup.metric)
            return self._job(last) if last is not None else None
        return None

    def _propose(self) -> Trial:
        proposal = self.proposer.propose()
        number = max(self.state.trials, default=-1) + 1
        problems = objective_problems(
            proposal.objective,
            self.setup.registry,
            self.setup.available,
            {**facts_of(self.setup.data), "seed": self.setup.config.seed},
        )
        what = self._describe(number, proposal)
        why = (
            {"reason": "infeasible", "detail": "; ".join(problems)}
            if problems
            else self._refusal(number, proposal)
        )
        if why:
            self.record("rejected", **what, **why)
        else:
            self.record("proposed", **what)
        self.proposer.register(self.state.trials[number])
        return self.state.trials[number]

    def _refusal(self, number: int, proposal: Proposal) -> dict[str, Any]:
        """Why a proposal is not trained: it cannot teach, or repeats a trial; else nothing."""
        spec, registry = proposal.objective, self.setup.registry
        found = fingerprint(spec, registry, self.probe)
        if proposal.role != "baseline":  # what everything is measured against is always trained
            refused = preflight(spec, registry, self.probe, self.setup.metric, bf16=self.bf16)
            if refused:
                return {"reason": refused.reason, "detail": refused.detail}
            twin = self.known.equal(spec, found, proposal.training)
            if twin:
                detail = f"equals {twin.label} (trial {twin.trial})"
                return {"reason": "equal", "detail": detail, "equals": twin.trial}
        self.known.add(number, spec, found, proposal.training)
        return {}

    def _describe(self, number: int, proposal: Proposal) -> dict[str, Any]:
        return {
            "trial": number,
            "role": proposal.role,
            "objective": proposal.objective.document(),
            "label": proposal.objective.label(),
            "training": proposal.training,
            "params": proposal.params,
            "distributions": proposal.distributions,
        }

    def _job(self, trial: Trial) -> Job:
        # The baseline is never pruned: it is what everything is measured against.
        last = self.rungs.levels[-1]
        until = last if trial.role == "baseline" else self.rungs.after(trial.epoch)
        seed = self.setup.config.seed
        return Job(trial.number, trial.objective, trial.training, seed, until)

    def _paused(self, trial: Trial) -> bool:
        # one killed after its last rung and before its end is recorded trains again
        return trial.epoch in trial.rungs and trial.epoch in self.rungs.levels[:-1]

    def _report_search(self, result: JobResult) -> None:
        trial = self.state.trials[result.trial]
        if result.curve:
            self.record(
                "rung",
                trial=trial.number,
                epoch=result.epoch,
                score=result.score,
                seconds=round(result.seconds, 4),
                curve=[row for row in result.curve if row["epoch"] > trial.epoch],
            )
        if result.reason is not None:
            self.record(
                "failed",
                trial=trial.number,
                reason=result.reason,
                detail=result.detail,
                epoch=result.epoch,
            )
        elif result.done:
            self.record(
                "finished",
                trial=trial.number,
                score=result.score,
                metrics=result.metrics,
                epochs=result.epoch,
                seconds=round(trial.seconds, 4),
            )

    def _end_search(self) -> None:
        for trial in self.state.trials.values():
            if trial.status == "running":
                self.record(
                    "pruned", trial=trial.number, epoch=trial.epoch, score=trial.score
                )
                name = f"{trial.number}-{self.setup.config.seed}.pt"
                (self.folder.checkpoints / name).unlink(missing_ok=True)
        baseline, candidates = self.finalists()
        wanted = [t for t in (baseline, *candidates) if t is not None]
        config = self.setup.config
        seeds = confirmation_seeds(config.seed, config.confirm.seeds)
        have = {(c.trial, c.seed) for c in self.state.confirmations}
        self._waiting = [
            (t, s) for s in seeds for t in wanted if (t.number, s) not in have
        ]
        if baseline is None or not candidates:
            self._waiting = []
        if not self._waiting:
            self._judge()

    # --- confirmation and verdict ------------------------------------------------------------

    def finalists(self) -> tuple[Trial | None, list[Trial]]:
        """The tuned baseline and the finalists."""
        return finalists(self.state, self.setup.metric, self.setup.config.confirm.top)

    def _next_confirmation(self) -> Unit | None:
        if not self._waiting:
            return None
        trial, seed = self._waiting.pop(0)
        epochs = self.setup.config.training.epochs
        return self._hand_out(
            Job(trial.number, trial.objective, trial.training, seed, epochs, test=True)
        )

    def _report_confirmation(self, result: JobResult) -> None:
        self.record(
            "confirmed",
            trial=result.trial,
            seed=result.seed,
            validation=result.score,
            test=result.test,
            curve=result.curve,
            seconds=round(result.seconds, 4),
            reason=result.reason or "",
            detail=result.detail,
        )

    def _judge(self) -> None:
        baseline, candidates = self.finalists()
        found = verdict(self.state, baseline, candidates, self.setup.metric)
        self.record("verdict", **found, text=verdict_text(found))

    # --- what others show --------------------------------------------------------------------

    def best(self) -> Trial | None:
        """The best finished trial so far, by validation score."""
        return next(iter(best_first(self.state.trials.values(), self.setup.metric)), None)

    def expected_confirmations(self) -> int:
        confirm = self.setup.config.confirm
        return (confirm.top + 1) * confirm.seeds
