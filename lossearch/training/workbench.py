"""The unit of work, and the bench that runs it: the same under every executor.

What crosses a process is data: a recipe once, units after that, results back. A unit is a list of
objectives on one data and model.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lossearch import registry as registries
from lossearch.components import Bound
from lossearch.data import Data
from lossearch.errors import LossearchError, PluginError
from lossearch.models import Model
from lossearch.plugins import FilePlugin, PluginInfo, load_plugins
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.training.choice import Choice
from lossearch.training.cohort import Cohort
from lossearch.training.config import TrainingConfig
from lossearch.training.groups import stack_problem
from lossearch.training.member import Member
from lossearch.training.plan import CurveRow, Diverged, Plan
from lossearch.training.trainer import Trainer

_TORCH = Path(nn.__file__).parents[1]
Reason = Literal["diverged", "out_of_memory", "infeasible", "error", "worker_died"]


@dataclass(frozen=True)
class Recipe:
    """All that the units of a study share."""

    data: Data
    model: Model
    training: TrainingConfig
    metrics: tuple[ComponentSpec, ...]  # the first one decides
    checkpoints: Path
    providers: tuple[ComponentSpec, ...] = ()
    files: tuple[FilePlugin, ...] = ()
    plugins: tuple[PluginInfo, ...] = ()
    full: Recipe | None = None  # the second stage: the whole network, where this one has heads


@dataclass(frozen=True)
class Job:
    """Train one objective up to an epoch: on from its checkpoint, or from the start."""

    trial: int
    objective: dict[str, Any]
    values: dict[str, float]
    seed: int
    until: int
    test: bool = False  # a confirmation: measure the test split at the end
    full: bool = False  # of the second stage
    variant: int | None = None  # of the trial: which learning rate is probed, what is left out

    @property
    def name(self) -> str:
        name = f"{self.trial}-{self.seed}"
        return name if self.variant is None else f"{name}-{self.variant}"


@dataclass(frozen=True)
class Unit:
    """Objectives to train together on one worker.

    With ``measure``, a number of jobs, the worker also finds out how many of up to so many it
    should be given at a time.
    """

    number: int
    jobs: tuple[Job, ...] = ()
    measure: int = 0


@dataclass
class JobResult:
    """What became of a job. ``done`` is false where it reached a rung and may go on."""

    trial: int
    seed: int
    epoch: int = 0
    done: bool = False
    score: float | None = None
    curve: list[CurveRow] = field(default_factory=list)  # from the first epoch on
    metrics: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: Reason | None = None
    detail: str = ""
    variant: int | None = None


@dataclass
class UnitResult:
    """What became of a unit's jobs; the size that it was asked to measure, and why not more."""

    jobs: list[JobResult] = field(default_factory=list)
    size: int | None = None
    problem: str | None = None


class Workbench:
    """Runs units of one recipe; an executor makes one in each of its processes."""

    def __init__(self, recipe: Recipe, registry: Registry | None = None) -> None:
        self.recipe = recipe
        if registry is None:
            loaded = load_plugins(recipe.files, strict_files=True)
            _same_plugins(recipe.plugins, tuple(loaded.loaded))
            registry = loaded.registry
            registries.use(registry)
        self.registry = registry
        task = recipe.data.info.task
        self.metrics: dict[str, Bound] = {
            m.name: registry.build(m.name, m.params, kind="metric", task=task)
            for m in recipe.metrics
        }
        self.first = next(iter(self.metrics.values()))
        self.plan = Plan(
            recipe.data, recipe.model, recipe.training, self.first, registry, recipe.providers
        )
        self.choice = Choice(self.plan)
        self._full: Workbench | None = None
        made = (registry.get(p.name, "provider").gives for p in recipe.providers)
        self._provided = frozenset(name for names in made for name in names)

    def run(self, unit: Unit) -> UnitResult:
        """Train every job of a unit; a job that fails is a result, never an exception.

        Jobs that can be stacked, and are faster so, are trained together.
        """
        if unit.jobs and unit.jobs[0].full:
            jobs = tuple(replace(job, full=False) for job in unit.jobs)
            return self._second().run(replace(unit, jobs=jobs))
        torch.set_num_threads(self.recipe.training.threads)
        results: dict[int, JobResult] = {}
        if len(unit.jobs) > 1 and self.choice.pays(len(unit.jobs)):
            self._run_cohorts(dict(enumerate(unit.jobs)), results)
        done = [results[i] if i in results else self._run(job) for i, job in enumerate(unit.jobs)]
        if not unit.measure:
            return UnitResult(done)
        return UnitResult(done, self.preferred_size(unit.measure), self.choice.problem)

    def preferred_size(self, wanted: int) -> int:
        """How many jobs a unit should hold, of up to so many; measured once for a model."""
        torch.set_num_threads(self.recipe.training.threads)
        return self.choice.preferred(wanted)

    def stack_problem(self, job: Job) -> str | None:
        """Why a job trains alone, or ``None`` where it can join a cohort."""
        self.choice.gain(2)
        if self.choice.problem is not None:
            return self.choice.problem
        with torch.random.fork_rng():
            objective = self.plan.objective(ObjectiveSpec.parse(job.objective), job.seed)
        return stack_problem(objective, self._provided)

    def _second(self) -> Workbench:
        """The bench of the second stage."""
        if self._full is None:
            assert self.recipe.full is not None
            self._full = Workbench(self.recipe.full, self.registry)
        return self._full

    # --- cohorts ---------------------------------------------------------------------------

    def _run_cohorts(self, jobs: dict[int, Job], results: dict[int, JobResult]) -> None:
        """Train what stacks, and add its results; what is left out trains alone."""
        streams: dict[Any, dict[int, Member]] = {}
        for i, job in jobs.items():
            member = self._member(job)
            if member is not None:
                streams.setdefault((job.until, member.stream), {})[i] = member
        for (until, _), members in streams.items():
            numbers = list(members)
            while numbers:  # memory may refuse a size on the way
                size = self.choice.most
                part = {i: members.pop(i) for i in numbers[:size]}
                numbers = numbers[size:]
                if self.choice.pays(len(part)):
                    self._run_cohort({i: jobs[i] for i in part}, part, until, results)

    def _member(self, job: Job) -> Member | None:
        """The job as a member of a cohort; None where it must train alone."""
        try:
            with _quietly():
                spec = ObjectiveSpec.parse(job.objective)
                member = Member(
                    self.plan, spec, job.values, job.seed, self._path(job), test=job.test
                )
        except Exception:  # alone it will say why
            return None
        return None if stack_problem(member.objective, self._provided) else member

    def _run_cohort(
        self,
        jobs: dict[int, Job],
        members: dict[int, Member],
        until: int,
        results: dict[int, JobResult],
    ) -> None:
        started = time.perf_counter()
        halve = False
        try:
            with _quietly():
                Cohort(self.plan, list(members.values()), self.metrics).run(until)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.choice.refuse(len(members))
            halve = True
        except Exception as error:  # a model that a stack cannot follow; its jobs train alone
            self.choice.problem = f"the model cannot be stacked: {_where(error)}"
        rest = time.perf_counter() - started - sum(m.seconds for m in members.values())
        for i, member in members.items():
            if member.over:
                results[i] = self._result(jobs[i], member, rest / len(members))
        if halve and self.choice.most > 1:
            # from the checkpoints that they started from
            self._run_cohorts({i: j for i, j in jobs.items() if i not in results}, results)

    def _result(self, job: Job, member: Member, seconds: float) -> JobResult:
        result = JobResult(job.trial, job.seed, curve=member.curve, done=member.done)
        result.variant = job.variant
        result.epoch = int(member.curve[-1]["epoch"]) if member.curve else 0
        result.seconds = member.seconds + seconds
        result.metrics, result.test = member.metrics, member.tested
        result.score = member.metrics.get(self.first.component.name)
        if member.error is not None:
            self._fail(job, result, member.error)
        return result

    # --- one job ---------------------------------------------------------------------------

    def _path(self, job: Job) -> Path:
        return self.recipe.checkpoints / f"{job.name}.pt"

    def _fail(self, job: Job, result: JobResult, error: Exception) -> None:
        """Say in a result why its job failed."""
        if isinstance(error, Diverged):
            result.reason, result.detail = "diverged", str(error)
        elif isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
            result.reason, result.detail = "out_of_memory", str(error).splitlines()[0]
        elif isinstance(error, LossearchError):
            result.reason, result.detail = "infeasible", str(error)
        else:
            result.reason, result.detail = "error", _where(error)
        result.done, result.score = True, None
        self._path(job).unlink(missing_ok=True)

    def _run(self, job: Job) -> JobResult:
        started = time.perf_counter()
        result = JobResult(job.trial, job.seed, variant=job.variant)
        try:
            with _quietly():
                self._train(job, result)
        except Exception as error:  # a bad loss must not cost the worker
            self._fail(job, result, error)
        result.seconds = time.perf_counter() - started
        return result

    def _train(self, job: Job, result: JobResult) -> None:
        recipe = self.recipe
        trainer = Trainer(
            ObjectiveSpec.parse(job.objective),
            recipe.data,
            recipe.model,
            recipe.training,
            job.values,
            self.first,
            self.registry,
            job.seed,
            recipe.providers,
        )
        path = self._path(job)
        if path.exists():
            trainer.load(path)
        result.epoch, result.curve = trainer.epoch, trainer.curve
        while trainer.epoch < job.until and not trainer.stopped:
            trainer.run_epoch()
            result.epoch, result.curve = trainer.epoch, trainer.curve
        if trainer.stopped:
            trainer.restore_best()
            result.done = True
        elif trainer.epoch:
            trainer.save(path)
        result.metrics = trainer.measure("validation", self.metrics)
        result.score = result.metrics[self.first.component.name]
        if job.test:
            result.test = trainer.measure("test", self.metrics)
        if result.done:
            path.unlink(missing_ok=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """The caller's own random draws go on as if nothing had been trained."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hundred trials must not warn a hundred times
        yield


def _where(error: Exception) -> str:
    """The error's last line, with the place that raised it: of ours rather than of torch's."""
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not Path(f.filename).is_relative_to(_TORCH)]
    frame = own[-1] if own else None
    return f"{text} ({Path(frame.filename).name}, line {frame.lineno})" if frame else text


def _same_plugins(driver: tuple[PluginInfo, ...], worker: tuple[PluginInfo, ...]) -> None:
    """A worker with other code would give results that mean something else."""
    if driver and set(driver) != set(worker):
        differing = sorted({p.name for p in set(driver) ^ set(worker)})
        raise PluginError(
            "this worker has other plugins than the driver: "
            f"{', '.join(differing)}. Install the same versions everywhere"
        )
