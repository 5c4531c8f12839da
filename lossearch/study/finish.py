"""What a study ends with: the exported loss, the report, MLflow's last rows; also later, anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from lossearch.documents import HIDDEN, parse, read_yaml
from lossearch.errors import BusyError, StudyError
from lossearch.plugins import FilePlugin, load_plugins
from lossearch.registry import Registry
from lossearch.study import outputs
from lossearch.study.config import StudyConfig
from lossearch.study.folder import Folder
from lossearch.study.run import Run
from lossearch.study.setup import Setup
from lossearch.trials.ledger import State, read_ledger, replay
from lossearch.trials.proposer import importance
from lossearch.trust import remember, strange

if TYPE_CHECKING:
    from lossearch.tracking.mlflow import MlflowTracker

T = TypeVar("T")


def check_tracking(config: StudyConfig, folder: Folder) -> None:
    """Say what is wrong with the address before anything is trained."""
    if config.tracking is not None:
        with_password(tracking_uri(config, folder))


def tracker_of(config: StudyConfig, folder: Folder) -> MlflowTracker | None:
    if config.tracking is None:
        return None
    from lossearch.tracking.mlflow import MlflowTracker

    uri = with_password(tracking_uri(config, folder))
    return MlflowTracker(uri, config.tracking.experiment, folder.path)


def tracking_uri(config: StudyConfig, folder: Folder) -> str:
    """The study's tracking URI: studies of one parent folder share a SQLite store.

    Raises:
        StudyError: the folder's path cannot stand in a URI.
    """
    given = config.tracking.uri if config.tracking is not None else None
    path = folder.path.parent / "mlflow.db"
    odd = [c for c in "?%#" if c in str(path)]
    if given is None and odd:
        raise StudyError(
            f"MLflow's database cannot lie in {path.parent}: '{odd[0]}' means something else in "
            "its address. Choose another --output, set tracking.uri, or leave MLflow out with "
            "tracking: null"
        )
    return given or f"sqlite:///{path}"


def with_password(uri: str) -> str:
    """A kept address with the password that is not kept with it.

    Raises:
        StudyError: it wants one, and the environment has none.
    """
    if HIDDEN not in uri:
        return uri
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if not password:
        raise StudyError(
            f"the password of tracking.uri ({uri}) is not kept with a study: set "
            "MLFLOW_TRACKING_PASSWORD, or write it into study.yaml's tracking.uri again"
        )
    return uri.replace(HIDDEN, quote(password, safe=""))


def finish(setup: Setup, folder: Folder, run: Run, tracker: MlflowTracker | None) -> list[str]:
    """The exported loss, the report and the last of the tracking; also after an interrupt.

    What goes wrong here is a problem to tell of; it takes no verdict away, and hides no error.
    """
    problems: list[str] = []
    try:
        if folder.best.exists():
            outputs.write(folder.objective, outputs.export(folder, "python"))
    except Exception as error:
        problems.append(f"objective.py could not be written: {type(error).__name__}: {error}")
    try:
        problems += _write_report(folder, run.state, setup.registry)[1]
    except Exception as error:
        problems.append(f"the report could not be written: {type(error).__name__}: {error}")
    if tracker is not None:
        tracker.log_files(folder.files())
        if (run.state.verdict or {}).get("recommend") == "winner":
            tracker.register(setup.config.name)
        tracker.close(timeout=30)
        problems += [tracker.problem] if tracker.problem else []
    return problems


def _write_report(
    folder: Folder, state: State, registry: Registry, unknown: Sequence[FilePlugin] = ()
) -> tuple[Path, list[str]]:
    """The page, and the pictures beside it; also what is missing, and why."""
    from lossearch.report import write_plots, write_report

    told: list[str] = []

    def part(what: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Exception as error:  # no part of a report is worth the whole
            told.append(f"the report has no {what}: {type(error).__name__}: {error}")
            return None

    verdict = state.verdict or {}
    chosen = {
        f"{who}: {verdict[who]['label']}": verdict[who]["objective"]
        for who in ("winner", "baseline")
        if verdict.get(who)
    }
    data = state.study["data"]
    facts = {k: data[k] for k in ("train_size", "num_classes", "class_counts")}
    shapes = part(
        "shapes of losses",
        lambda: outputs.shapes(chosen, registry, {**facts, "total_steps": 1}),
    )
    mattered = part(
        "importance of parameters",
        lambda: importance(state.trials.values(), maximize=state.study["maximize"]),
    )
    lacking = [
        label
        for label, objective in chosen.items()
        if unknown and any(name not in registry for name in outputs.names(objective))
    ]
    note = (
        f"The shape of {' and of '.join(lacking)} is left out: it takes code that came with the "
        f"study and that you have not run here ({', '.join(f.name for f in unknown)}); "
        "`lossearch report --trust` runs it."
        if lacking
        else ""
    )
    told += [note] if note else []
    written = write_report(folder.path, state, shapes=shapes, importance=mattered, note=note)
    return written, told + write_plots(folder.plots, state, shapes)[1]


def renew(path: str | Path, *, trust: bool = False) -> tuple[Path, list[str]]:
    """Write a study's report anew, and bring its MLflow runs up to date.

    Args:
        path: The study's folder.
        trust: Run the one-file plugins in it even if this user has not run them before; without
            them the report lacks the shapes of their losses.

    Returns:
        The report's path, and what is to be said: what it lacks, and what went wrong with the
        tracking server.
    """
    folder = Folder(path).existing()
    state = replay(read_ledger(folder.ledger))
    config = parse(StudyConfig, read_yaml(folder.study, StudyError), str(folder.study), StudyError)
    files = kept_files(state)
    if trust:
        remember(files)
    unknown = strange(files)
    plugins = load_plugins(tuple(file for file in files if file not in unknown))
    written, told = _write_report(folder, state, plugins.registry, unknown)
    try:
        with folder.held():
            tracker = tracker_of(config, folder)
            if tracker is not None:
                tracker.catch_up(read_ledger(folder.ledger))
                tracker.log_files(folder.files())
                tracker.close(timeout=60)
                told += [tracker.problem] if tracker.problem else []
    except BusyError:  # the process that runs the study writes them
        pass
    except StudyError as error:  # the report stands without it
        told.append(str(error))
    return written, told


def kept_files(state: State) -> tuple[FilePlugin, ...]:
    """The one-file plugins that a study keeps, as text."""
    return tuple(FilePlugin.kept(f) for f in state.study.get("files", ()))
