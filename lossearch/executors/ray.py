"""Places units on a Ray cluster: a Tune trial is a unit of work. The only file that knows Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from lossearch.errors import StudyError
from lossearch.executors import ExecutorConfig
from lossearch.executors.bench import Bench
from lossearch.executors.rescue import Rescue
from lossearch.executors.source import Source
from lossearch.executors.watch import last_words, watched
from lossearch.training import Recipe, Unit, UnitResult, Workbench

# Set before Ray is imported: no logger files for each trial, no second Ctrl-C handler, no
# telemetry, and accelerators hidden only where a worker asks for none.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "600")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "100000")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.search import Searcher

_WORDS = ".words-"  # how the names of files begin in which workers say how they ended
_PATIENCE = 60.0  # seconds that a worker waits for the others


@ray.remote(num_cpus=0)
class _Start:
    """Lets no worker finish its first unit before the others are there.

    Tune gives a unit that waits for a worker under way to one that is free, and ends the other
    before it has begun: with short units one worker would do all the work.
    """

    def __init__(self) -> None:
        self.wanted, self.there = 1, 0
        self.changed = asyncio.Condition()

    async def expect(self, workers: int) -> None:
        self.wanted = max(self.wanted, workers)

    async def arrive(self) -> None:
        async with self.changed:
            self.there += 1
            self.changed.notify_all()
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self.changed.wait_for(lambda: self.there >= self.wanted), _PATIENCE
                )


class _UnitTrainable(tune.Trainable):
    """Runs the unit that its config holds; the actor, and all that it loaded, is reused."""

    bench: Workbench

    def setup(
        self, config: dict[str, Any], recipe: Recipe | None = None, start: Any = None
    ) -> None:
        assert recipe is not None
        self.bench = Workbench(recipe)
        self.unit: Unit = config["unit"]
        self.start = start

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.unit = new_config["unit"]
        return True

    def step(self) -> dict[str, Any]:
        if self.start is not None:
            with suppress(RayActorError):  # killed itself: then nobody waits
                ray.get(self.start.arrive.remote())
            self.start = None
        with watched(_words(self.bench.recipe, self.unit), self.bench.limit(self.unit)):
            return {"done": True, "unit_result": self.bench.run(self.unit)}


def _words(recipe: Recipe, unit: Unit) -> Path:
    """Where a worker says how it ended: it lies with the checkpoints, which all nodes share."""
    first = unit.jobs[0].name if unit.jobs else "measure"
    return recipe.checkpoints / f"{_WORDS}{unit.number}-{first}"


class _Feed(Searcher):
    """Hands Tune the source's units, and the source their results."""

    def __init__(self, source: Source, recipe: Recipe, workers: int, start: Any) -> None:
        super().__init__(metric="training_iteration", mode="max")
        self.source, self.recipe = source, recipe
        self.workers, self.start = workers, start
        self.running: dict[str, Unit] = {}
        self.error: BaseException | None = None

    def suggest(self, trial_id: str) -> Any:
        if self.error is not None or self.source.over:
            return Searcher.FINISHED
        try:
            unit = self.source.next()
        except BaseException as error:  # Tune would swallow or wrap it
            self.error = error
            return Searcher.FINISHED
        if unit is None:
            return Searcher.FINISHED if self.source.over else None
        self.running[trial_id] = unit
        self.start.expect.remote(min(len(self.running), self.workers))
        return {"unit": unit}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        unit = self.running.pop(trial_id, None)
        if unit is None:
            return
        if error or result is None or "unit_result" not in result:
            reason, detail = last_words(_words(self.recipe, unit))
            found = UnitResult(died=reason, detail=detail)
        else:
            found = result["unit_result"]
        try:
            self.source.report(unit, found)
        except BaseException as failed:
            self.error = failed

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher, to restore it; a study resumes from the ledger

    def save(self, checkpoint_path: str) -> None:
        """The ledger is the only record."""

    def restore(self, checkpoint_path: str) -> None:
        """The ledger is the only record."""


class RayExecutor:
    """Ray Tune with reused actors, fractional GPUs, and an existing cluster by address."""

    def __init__(self, config: ExecutorConfig) -> None:
        self.config = config
        self._started = False
        self._connect()
        total = ray.cluster_resources()
        gpus = config.gpus
        if gpus is None:
            gpus = 1.0 if total.get("GPU", 0) else 0.0
        self.resources = {"cpu": config.cpus, "gpu": gpus}
        fits = int(total.get("CPU", 1) // config.cpus)
        if gpus:
            fits = min(fits, int(total.get("GPU", 0) // gpus))
        if fits < 1:
            self._stop()
            raise StudyError(
                f"the Ray cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} "
                f"GPUs; a worker with {config.cpus:g} and {gpus:g} fits nowhere. Lower "
                "executor.cpus or executor.gpus"
            )
        self.workers = min(fits, config.workers or fits)
        # One unit waits, to be ready when a worker is; where the cluster has room for more workers
        # than are wanted, it would get a worker of its own.
        self.ahead = int(self.workers == fits)
        self.devices = gpus or 1.0

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {
            "logging_level": logging.ERROR,
            "log_to_driver": False,
            "include_dashboard": False,
        }
        address = self.config.address
        silent = address is not None and not _answers(address)
        try:
            if silent:  # Ray itself would wait for minutes
                raise ConnectionError("nothing listens there")
            if address is None:
                ray.init(address="local", **quiet)
            else:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise StudyError(
                f"no Ray cluster answers at '{address}': {str(error).splitlines()[0]}. Start one "
                "with `ray start --head`, or leave executor.address out"
            ) from None
        self._started = True

    def run(self, bench: Bench, source: Source) -> None:
        recipe = bench.recipe
        for left in recipe.checkpoints.glob(f"{_WORDS}*"):  # of workers whose driver was killed
            left.unlink(missing_ok=True)
        start = _Start.remote()
        feed = _Feed(Rescue(source), recipe, self.workers, start)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(self.workers)  # all start at once
        # A result holds live objects; nothing but the ledger is to keep it.
        with tempfile.TemporaryDirectory(prefix="lossearch-ray-") as scratch:
            trainable = tune.with_resources(
                tune.with_parameters(_UnitTrainable, recipe=recipe, start=start), self.resources
            )
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=feed,
                    num_samples=-1,
                    max_concurrent_trials=self.workers + self.ahead,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="units",
                    storage_path=scratch,
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(
                        checkpoint_at_end=False, checkpoint_frequency=0
                    ),
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            )
            try:
                _quietly(tuner.fit)
            finally:
                self._stop()
        if feed.error is not None:
            raise feed.error

    def _stop(self) -> None:
        if self._started and ray.is_initialized():
            ray.shutdown()


def _answers(address: str) -> bool:
    """Whether something listens at ``host:port``; of other forms (``auto``) Ray has to say."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _quietly(call: Any) -> None:
    """Tune's own tables and errors say nothing of losses; the study tells what became of them."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.air", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        call()
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
