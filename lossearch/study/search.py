"""The search phase: proposes, probes learning rates, promotes, prunes, until the budget ends."""

from __future__ import annotations

import math
import time
from itertools import islice
from typing import Any

from lossearch.executors.bench import Bench
from lossearch.study.confirm import best_first, finalists, next_in_line
from lossearch.study.folder import Folder
from lossearch.study.gate import Gate
from lossearch.study.journal import Journal
from lossearch.study.setup import Setup
from lossearch.training import Job, JobResult
from lossearch.training.config import Between
from lossearch.trials.budget import Stop, spent, stop
from lossearch.trials.fingerprint import SAME_TRAINING
from lossearch.trials.ledger import Trial
from lossearch.trials.proposer import Proposal

POINTS = (10**-0.5, 1.0, 10**0.5)  # of a proposed learning rate, where three are probed
MANY = 64  # proposals that are looked at together
TIMED = 100  # trials that a budget of time is taken for, until it is known


class Search:
    """Every trial of a study, up to the rung that it earns.

    Args:
        setup: The study.
        folder: Where checkpoints lie.
        journal: What happened so far, and where the rest is written.
        bench: Where objectives are looked at before they train.
        devices: GPUs of one worker.
    """

    def __init__(
        self, setup: Setup, folder: Folder, journal: Journal, bench: Bench, devices: float = 1.0
    ) -> None:
        self.setup, self.folder, self.journal = setup, folder, journal
        self.devices = devices
        self.state, self.rungs = journal.state, setup.rungs
        self.maximize = setup.maximize
        self.stopped: Stop | None = None  # why no more is proposed
        self.gate = Gate(setup, self.state.trials.values(), bench)
        self.proposer = setup.proposer()
        self.proposer.restore(self.state.trials.values())
        self._ahead = MANY  # fewer where many are refused, and those after them proposed anew
        self._flying: set[int] = set()
        self._probed: dict[int, list[JobResult]] = {}
        # what was under way when the study was killed goes on first
        self._unfinished = [
            t for t in self.state.trials.values() if t.status == "running" and not self._paused(t)
        ]

    @property
    def left(self) -> int:
        return 0  # the budget knows, in its own units

    def jobs(self, most: int) -> list[Job]:
        """The next unit: jobs that begin and end at the same epoch, and so can be one stack.

        Args:
            most: How many; more where the learning rates of one trial are probed.
        """
        stopped = self._spent()
        enough = stopped is not None and stopped.at_once
        first = self._unfinished or ([] if enough else self._promoted(most))
        first = first or ([] if stopped else self._proposed(most))
        if not first and not self._flying:
            first = self._last()
        together = [t for t in first if t.epoch == first[0].epoch]
        self._unfinished = [t for t in self._unfinished if t not in together[:most]]
        found: list[Job] = []
        for trial in together[:most]:
            jobs = self._jobs_of(trial)
            if found and len(found) + len(jobs) > most:
                self._unfinished.append(trial)
                continue
            self._flying.add(trial.number)
            found += jobs
        return found

    def report(self, result: JobResult) -> None:
        """Take what became of a job."""
        trial = self.state.trials[result.trial]
        if result.variant is not None and trial.point is None:
            self._probed.setdefault(trial.number, []).append(result)
            if len(self._probed[trial.number]) < len(self._rates(trial)):
                return
            result = self._probe_ended(trial, self._probed.pop(trial.number))
        self._flying.discard(trial.number)
        self._record(trial, result)

    def end(self) -> None:
        """Prune what waits at a rung."""
        if self.stopped is not None and self.state.stopped is None:
            self.journal.record("searched", reason=self.stopped.reason)
        for trial in self.state.trials.values():
            if trial.status == "running":
                self.journal.record(
                    "pruned", trial=trial.number, epoch=trial.epoch, score=trial.score
                )
                self._forget(self._job(trial, trial.tuned, trial.point))

    # --- which trials ----------------------------------------------------------------------

    def _promoted(self, most: int) -> list[Trial]:
        """Trials that go on from the highest rung that lets some through.

        The baseline is never pruned: it is what everything is measured against.
        """
        trials = list(self.state.trials.values())
        own = [t for t in trials if t.role == "baseline" and self._waits(t)]
        others = [t for t in trials if t.role != "baseline"]
        going = self.rungs.promotions(others, self.maximize, self._flying)
        found = list(islice(going, most))
        found = [t for t in found if t.epoch == found[0].epoch]
        if own:
            highest = max(t.epoch for t in own)
            if not found or found[0].epoch <= highest:
                same = found if found and found[0].epoch == highest else []
                found = [t for t in own if t.epoch == highest] + same
        return found[:most]

    def _proposed(self, most: int) -> list[Trial]:
        """New trials, as many as fill a unit."""
        wanted = max(1, most // self.points) if self._probes else most
        found: list[Trial] = []
        while len(found) < wanted and self.proposer.left > 0:
            # looked at together as they come if all are let through; the first that is not may
            # change those after it
            ahead = self.proposer.ahead(min(wanted - len(found), self._ahead))
            self.gate.look(ahead)
            for proposal in ahead:
                trial = self._enter(proposal)
                if trial.status == "rejected":
                    self._ahead = max(1, self._ahead // 2)
                    break
                found.append(trial)
            else:
                self._ahead = min(MANY, 2 * self._ahead)
        return found

    def _spent(self) -> Stop | None:
        """Why no more is proposed, if the budget is spent."""
        if self.stopped is None:
            used = spent(self.state, self.maximize, now=time.time(), devices=self.devices)
            self.stopped = stop(self.setup.config.search, used)
        return self.stopped

    def _last(self) -> list[Trial]:
        """What the verdict still needs once the budget is spent."""
        deciding = self.setup.deciding
        _, candidates = finalists(self.state, deciding, self.setup.config.confirm.top, stage=1)
        if not candidates:
            # a small budget may promote nothing but the baseline's equals to the end
            last = next_in_line(self.state, deciding[0])
            return [last] if last is not None else []
        return self._controls(candidates)

    def _controls(self, candidates: list[Trial]) -> list[Trial]:
        """The baseline at the finalists' training hyperparameters, where it was not tried yet.

        A finalist whose only merit is a luckier learning rate must not win.
        """
        own = [t for t in self.state.trials.values() if t.role == "baseline"]
        best = next(iter(best_first(own, self.setup.deciding)), None)
        if best is None:
            return []
        tried = [t.tuned for t in own]
        found: list[Trial] = []
        for candidate in candidates:
            if any(_close(candidate.tuned, values) for values in tried):
                continue
            tried.append(candidate.tuned)
            row = {"trial": self._number, "role": "baseline", "objective": best.objective,
                   "label": best.label, "training": candidate.tuned, "params": {},
                   "distributions": {}, "control": candidate.number}  # fmt: skip
            self.journal.record("proposed", **row)
            self.proposer.register(self.state.trials[row["trial"]])
            found.append(self.state.trials[row["trial"]])
        return found

    def _enter(self, proposal: Proposal) -> Trial:
        number = self._number
        event, row = self.gate.describe(number, proposal)
        self.journal.record(event, **row)
        self.proposer.register(self.state.trials[number])
        return self.state.trials[number]

    @property
    def _number(self) -> int:
        return max(self.state.trials, default=-1) + 1

    def _waits(self, trial: Trial) -> bool:
        free = trial.status == "running" and trial.number not in self._flying
        return free and self._paused(trial)

    def _paused(self, trial: Trial) -> bool:
        # one killed after its last rung and before its end is recorded trains again
        return trial.epoch in trial.rungs and trial.epoch in self.rungs.levels[:-1]

    # --- their jobs ------------------------------------------------------------------------

    @property
    def expected(self) -> int:
        """About how many trials the budget allows for."""
        config = self.setup.config.search
        if config.epochs is not None:
            return min(config.trials, config.epochs // self.rungs.levels[0])
        timed = config.hours is not None or config.gpu_hours is not None
        return min(config.trials, TIMED) if timed else config.trials

    @property
    def points(self) -> int:
        """How many learning rates each trial is to be probed at."""
        config = self.setup.config
        tuned = isinstance(config.training.lr, Between) and len(self.rungs.levels) > 1
        return len(POINTS) if tuned and config.fairness.probe_lr else 1

    @property
    def _probes(self) -> bool:
        """Whether learning rates are probed: where a stack makes that cheap."""
        stacks = self.state.unit is not None and self.state.unit["jobs"] > 1
        return stacks and self.points > 1

    def _rates(self, trial: Trial) -> list[float]:
        lr = self.setup.config.training.lr
        assert isinstance(lr, Between)
        return [min(max(trial.training["lr"] * p, lr.low), lr.high) for p in POINTS]

    def _jobs_of(self, trial: Trial) -> list[Job]:
        known = trial.epoch or trial.point is not None  # the latter: killed before its first rung
        if known or trial.control is not None or not self._probes:
            return [self._job(trial, trial.tuned, trial.point)]
        rates = enumerate(self._rates(trial))
        return [self._job(trial, {**trial.training, "lr": r}, i) for i, r in rates]

    def _job(self, trial: Trial, values: dict[str, Any], point: int | None) -> Job:
        until = self.rungs.after(trial.epoch)
        seed = self.setup.config.seed
        return Job(trial.number, trial.objective, values, seed, until, variant=point)

    def _probe_ended(self, trial: Trial, results: list[JobResult]) -> JobResult:
        """The learning rate that does best at the first rung goes on."""
        sign = 1 if self.setup.metric.maximize else -1
        scores = [r.score if r.reason is None else None for r in results]
        best = max(
            range(len(results)),
            key=lambda i: -math.inf if scores[i] is None else sign * (scores[i] or 0.0),
        )
        rates = self._rates(trial)
        for i, rate in enumerate(rates):
            if i != best:
                self._forget(self._job(trial, {**trial.training, "lr": rate}, i))
        self.journal.record(
            "probed", trial=trial.number, rates=rates, scores=scores, point=results[best].variant
        )
        results[best].seconds = sum(r.seconds for r in results)
        return results[best]

    def _forget(self, job: Job) -> None:
        (self.folder.checkpoints / f"{job.name}.pt").unlink(missing_ok=True)

    # --- what became of them -----------------------------------------------------------------

    def _record(self, trial: Trial, result: JobResult) -> None:
        record = self.journal.record
        several = [m.name for m in self.setup.deciding] if len(self.maximize) > 1 else []
        scores = {m: result.metrics[m] for m in several if m in result.metrics}
        decided = {"scores": scores} if scores else {}
        if result.curve:
            record(
                "rung",
                trial=trial.number,
                epoch=result.epoch,
                score=result.score,
                seconds=round(result.seconds, 4),
                curve=[row for row in result.curve if row["epoch"] > trial.epoch],
                **decided,
            )
        if result.reason is not None:
            record(
                "failed",
                trial=trial.number,
                reason=result.reason,
                detail=result.detail,
                epoch=result.epoch,
            )
        elif result.done:
            record(
                "finished",
                trial=trial.number,
                score=result.score,
                metrics=result.metrics,
                epochs=result.epoch,
                seconds=round(trial.seconds, 4),
                **decided,
            )


def _close(one: dict[str, float], other: dict[str, float]) -> bool:
    return all(math.isclose(one[k], other[k], rel_tol=SAME_TRAINING) for k in one)
