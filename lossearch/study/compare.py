"""Given objectives side by side, without a search: same seeds, weights and order of samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lossearch.data import Dataset
from lossearch.errors import StudyError, unknown
from lossearch.executors import make_executor
from lossearch.executors.bench import open_bench
from lossearch.feasibility import read_objective
from lossearch.models import Factory
from lossearch.space import Between
from lossearch.spec import ObjectiveSpec
from lossearch.study.config import StudyConfig
from lossearch.study.confirm import fresh_seeds
from lossearch.study.setup import Setup, set_up
from lossearch.training import Job, JobResult, Unit, UnitResult
from lossearch.training.config import TUNABLE
from lossearch.training.config import Between as Range

RATES = 3  # of a range of learning rates
# Neither the seeds of a search nor those of its confirmation.
_OFFSET = 2_000_003

Heard = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """One objective on one seed.

    Attributes:
        objective: Its name in the comparison.
        seed: Of the initial weights and the order of samples.
        lr: The learning rate that it was trained with.
        validation: The first metric's value on the validation split; ``None`` where it failed.
        test: Each metric's value on the test split, at the end of training.
        problem: Why it failed.
    """

    objective: str
    seed: int
    lr: float
    validation: float | None = None
    test: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def run_comparison(
    config: StudyConfig,
    objectives: Sequence[Any] | Mapping[str, Any],
    seeds: int,
    *,
    dataset: Dataset | None = None,
    module: nn.Module | Factory | None = None,
    heard: Heard = lambda done, total: None,
) -> list[Row]:
    """Train each objective on each seed; see :func:`lossearch.compare`.

    Args:
        heard: Told after each unit how many trainings are done, and of how many.
    """
    if seeds < 1:
        raise StudyError(f"seeds = {seeds} is not allowed: one is the least")
    if config.finetune is not None:
        raise StudyError("finetune is the second stage of a search; leave it out of a comparison")
    setup = set_up(config, dataset=dataset, module=module)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="lossearch-compare-"))
        setup = setup.with_features(Path(scratch) / "study", lambda done, total: None)
        given = _read(objectives, setup)
        bench = stack.enter_context(closing(open_bench(setup.recipe(Path(scratch)))))
        specs = [setup.bare(spec) for spec, _ in given.values()]
        looks = zip(specs, bench.look(specs), strict=True)
        documents = [look.scaled(bare).document() for bare, look in looks]
        tries = [values for _, values in given.values()]
        first, *fresh = fresh_seeds(config.seed, seeds + 1, _OFFSET)
        probes = [
            Job(i, documents[i], values, first, config.training.epochs, variant=n)
            for i, each in enumerate(tries)
            for n, values in enumerate(each)
            if len(each) > 1
        ]
        total = len(probes) + seeds * len(given)

        def train(units: list[list[Job]], before: int) -> list[JobResult]:
            source = _Units(units, lambda done: heard(before + done, total))
            make_executor(config.executor).run(bench, source)
            return source.results

        by_rate = [[job for job in probes if job.variant == n] for n in range(RATES)]
        probed = train(by_rate, 0) if probes else []
        values = [
            each[_best((r for r in probed if r.trial == i), setup.metric.maximize)]
            for i, each in enumerate(tries)
        ]
        units = [
            [
                Job(i, documents[i], values[i], seed, config.training.epochs, test=True)
                for i in range(len(given))
            ]
            for seed in fresh
        ]
        results = sorted(train(units, len(probes)), key=lambda r: (r.trial, r.seed))
    names = list(given)
    return [
        Row(names[r.trial], r.seed, values[r.trial]["lr"], r.score, r.test, _problem(r))
        for r in results
    ]


class _Units:
    """The source of given units: jobs that share weights and batches, since they share a seed."""

    def __init__(self, units: list[list[Job]], heard: Callable[[int], None]) -> None:
        self.waiting = [Unit(n, tuple(jobs)) for n, jobs in enumerate(units)]
        self.left, self.heard = len(units), heard
        self.results: list[JobResult] = []

    @property
    def over(self) -> bool:
        return self.left == 0

    def next(self) -> Unit | None:
        return self.waiting.pop(0) if self.waiting else None

    def report(self, unit: Unit, result: UnitResult) -> None:
        self.results += result.jobs
        self.left -= 1
        self.heard(len(self.results))


def _best(probed: Iterable[JobResult], maximize: bool) -> int:
    """Which of an objective's learning rates did best on validation; the first where none was."""
    sign = 1 if maximize else -1
    scored = {r.variant or 0: sign * r.score for r in probed if r.score is not None}
    scored = {n: s for n, s in scored.items() if not math.isnan(s)}
    return max(scored, key=lambda n: scored[n], default=0)


def _problem(result: JobResult) -> str:
    return f"{result.reason}: {result.detail}" if result.reason is not None else ""


# --- what is compared ------------------------------------------------------------------------


def _read(
    objectives: Sequence[Any] | Mapping[str, Any], setup: Setup
) -> dict[str, tuple[ObjectiveSpec, list[dict[str, float]]]]:
    """Each objective by its name, with the training values that it is to be tried at."""
    named: list[tuple[str, Any]] = (
        list(objectives.items())
        if isinstance(objectives, Mapping)
        else [("", given) for given in objectives]
    )
    if not named:
        raise StudyError("there is no objective to compare; give one at least")
    found: dict[str, tuple[ObjectiveSpec, list[dict[str, float]]]] = {}
    for number, (name, given) in enumerate(named):
        where = f"objective '{name}'" if name else f"objectives.{number}"
        training: dict[str, float] = {}
        if isinstance(given, Mapping) and "objective" in given:
            given, training = given["objective"], dict(given.get("training") or {})
        spec = _objective(given, where, setup)
        if (label := name or spec.label()) in found:
            raise StudyError(f"two objectives are called '{label}'; give a dict of other names")
        found[label] = spec, _values(training, where, setup)
    return found


def _objective(given: Any, where: str, setup: Setup) -> ObjectiveSpec:
    """An objective in any of its forms, checked against the data and the model."""
    if isinstance(given, ObjectiveSpec):
        given = given.document()
    if isinstance(given, str) or (isinstance(given, Mapping) and "name" in given):
        given = {"loss": given}
    if isinstance(given, Mapping) and "loss" in given:
        given = {"terms": [given]}
    return read_objective(
        given,
        where,
        setup.data.info.task,
        registry=setup.registry,
        available=setup.available,
        facts=setup.facts,
    )


def _values(own: dict[str, float], where: str, setup: Setup) -> list[dict[str, float]]:
    """Its own training values; for a range of learning rates several, to be tried."""
    for key in own:
        if key not in TUNABLE:
            raise StudyError(f"{where}: {unknown('training value', key, TUNABLE)}")
    training = setup.config.training
    middle = {
        name: float(node.default if isinstance(node, Between) else node.value)
        for name, node in training.tuning().items()
    }
    lr = training.lr
    if "lr" in own or not isinstance(lr, Range):
        return [{**middle, **own}]
    spread = np.geomspace if lr.log else np.linspace
    return [{**middle, **own, "lr": float(rate)} for rate in spread(lr.low, lr.high, RATES)]
