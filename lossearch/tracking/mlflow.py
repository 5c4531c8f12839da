"""A study in MLflow: one run for the study, and under it one for each trial and confirmation.

A run's status follows MLflow's own convention for Optuna studies: ``FINISHED`` for a trial with a
final score, ``KILLED`` for one that was stopped on purpose (pruned, rejected, interrupted),
``FAILED`` for one that broke. The tag ``lossearch.status`` tells which of them it was.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lossearch.documents import without_password
from lossearch.errors import StudyError
from lossearch.tracking.records import Update, run_key
from lossearch.tracking.writer import Writer, short

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///runs/mlflow.db"
_TAG_LIMIT, _PARAM_LIMIT = 4900, 6000  # what every MLflow since 3.1 takes
_SETTINGS = {  # set where the user has not set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}


class MlflowTracker(Writer):
    """Writes a study to MLflow from a side thread; never blocks and never raises.

    Args:
        uri: An MLflow tracking URI; a relative SQLite path is made absolute, its folder is made,
            and artifacts go beside the database.
        experiment: Name of the MLflow experiment; made when there is none.
        folder: The study's folder; how far MLflow is written is kept in its ``tracking.json``.

    Attributes:
        problem: What went wrong, for a person to read; ``None`` as long as nothing did.
    """

    def __init__(self, uri: str, experiment: str, folder: Path) -> None:
        _load()
        super().__init__(_Store(_absolute(uri), experiment), folder)


def _load() -> None:
    """Import MLflow, quietly, in the caller's thread: its modules import each other in circles,
    and two threads that import at once meet half-made ones."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow.tracking  # noqa: F401


@dataclass
class _Run:
    """A run that stands in MLflow, and what is known to stand in it."""

    id: str
    status: str
    tags: dict[str, str]


class _Store:
    """The MLflow side: finds or makes runs and writes updates to them, each without harm twice."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.refused: str | None = None
        self._uri = uri
        self._experiment = experiment
        self._study = ""
        self._runs: dict[str, _Run] = {}
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._sure = True  # no write has been cut off since the runs were listed

    @property
    def place(self) -> str:
        return f"MLflow at {without_password(self._uri)}"

    def identity(self) -> dict[str, str]:
        uri, run = without_password(self._uri), self._runs["study"].id
        return {"uri": uri, "experiment": self._experiment, "run": run}

    def running(self) -> list[str]:
        return [key for key, run in self._runs.items() if run.status == "RUNNING"]

    @property
    def client(self) -> MlflowClient:
        assert self._client is not None, "connect() comes first"
        return self._client

    def connect(self) -> None:
        """Load MLflow, quietly, and find or make the experiment."""
        if self._experiment_id:
            return
        _load()
        from mlflow import MlflowClient

        for name in ("alembic", "urllib3.connectionpool"):  # migrations; every single retry
            logging.getLogger(name).setLevel(logging.ERROR)
        # a traceback of each write that a full disk refuses; the writer tells of it in a line
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        location = None
        if database := _sqlite_path(self._uri):
            database.parent.mkdir(parents=True, exist_ok=True)
            location = (database.parent / "mlartifacts").as_uri()
        client = MlflowClient(self._uri)
        known = client.get_experiment_by_name(self._experiment)
        if known is not None and known.lifecycle_stage == "deleted":
            raise StudyError(
                f"its experiment '{self._experiment}' was deleted; restore it or name another"
            )
        self._client = client
        self._experiment_id = (
            known.experiment_id
            if known is not None
            else client.create_experiment(self._experiment, location)
        )

    def open(self, study: str) -> bool:
        self._study = study
        self._runs.clear()
        for parent in self._search(f"tags.`lossearch.id` = '{study}'"):
            self._runs["study"] = _known(parent)
            for run in self._search(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"):
                self._runs[run_key(run.data.tags)] = _known(run)
            break
        self._sure = True
        return bool(self._runs)

    def _search(self, where: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self._experiment_id], where, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def write(self, updates: dict[str, Update]) -> None:
        """Write every update; what MLflow refuses for its content is noted and left out."""
        from mlflow.exceptions import MlflowException

        if not self._sure:
            self.open(self._study)
        self._sure = False
        for key, update in updates.items():
            try:
                self._write(key, update)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE" or key not in self._runs:
                    raise
                self.refused = f"MLflow refused a part of {key}: {short(error)}"
        self._sure = True

    def _write(self, key: str, update: Update) -> None:
        from mlflow.entities import Metric, Param, RunTag

        tags = {k: v[:_TAG_LIMIT] for k, v in update.tags.items()}
        run = self._runs.get(key) or self._create(key, update, tags)
        tags = {k: v for k, v in tags.items() if run.tags.get(k) != v}
        params = [Param(k, v[:_PARAM_LIMIT]) for k, v in update.params.items()]
        metrics = [Metric(n, v, int(t * 1000), s) for (n, v, s), t in update.metrics]
        changed = [RunTag(k, v) for k, v in tags.items()]
        calls = max(len(metrics) / 800, len(params) / 100, len(changed) / 100)  # MLflow's limits
        for i in range(math.ceil(calls)):
            self.client.log_batch(
                run.id,
                metrics=metrics[800 * i : 800 * (i + 1)],
                params=params[100 * i : 100 * (i + 1)],
                tags=changed[100 * i : 100 * (i + 1)],
                synchronous=True,
            )
        run.tags |= tags
        if update.objective is not None:
            text = yaml.safe_dump(update.objective, sort_keys=False, allow_unicode=True)
            self.client.log_text(run.id, text, "objective.yaml")
        if update.status != run.status:
            if update.ended is None:
                self.client.update_run(run.id, update.status)
            else:
                self.client.set_terminated(run.id, update.status, int(update.ended * 1000))
            run.status = update.status

    def _create(self, key: str, update: Update, tags: dict[str, str]) -> _Run:
        own = {"mlflow.source.name": "lossearch", "mlflow.source.type": "LOCAL", **tags}
        if key != "study":
            own["mlflow.parentRunId"] = self._runs["study"].id
        run = self.client.create_run(
            self._experiment_id, int(update.started * 1000), own, update.name[:250]
        )
        self._runs[key] = _Run(run.info.run_id, "RUNNING", own)
        return self._runs[key]

    def log_files(self, paths: Iterable[Path]) -> None:
        run = self._runs["study"].id
        for path in paths:
            if path.is_dir():
                self.client.log_artifacts(run, str(path), path.name)
            elif path.is_file():
                self.client.log_artifact(run, str(path))

    def register(self, name: str, artifact: str) -> None:
        """Make a version of the model ``name`` from an artifact, once a study."""
        from mlflow.exceptions import MlflowException

        run = self.client.get_run(self._runs["study"].id)
        if self.client.search_model_versions(f"run_id = '{run.info.run_id}'"):
            return
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self.client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{artifact}".rstrip("/"),
            run.info.run_id,
            tags={k: v for k, v in run.data.tags.items() if k.startswith("lossearch.")},
            description=run.data.tags.get("mlflow.note.content"),
        )


def _known(run: Any) -> _Run:
    return _Run(run.info.run_id, run.info.status, dict(run.data.tags))


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _absolute(uri: str) -> str:
    path = _sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path.absolute()}"
