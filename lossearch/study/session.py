"""Starting, resuming and finishing a study; the command line and ``lossearch.search`` call it."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from lossearch.data import Dataset
from lossearch.documents import dump_yaml, read_yaml
from lossearch.errors import StudyError
from lossearch.executors import Executor, make_executor
from lossearch.objective import Objective, load_objective
from lossearch.plugins import FilePlugin, PluginInfo, load_plugins
from lossearch.registry import Registry
from lossearch.study import outputs
from lossearch.study.config import StudyConfig, parse
from lossearch.study.folder import Folder, fresh_folder
from lossearch.study.journal import Listener
from lossearch.study.run import Run
from lossearch.study.setup import Setup, set_up, versions
from lossearch.trials.ledger import Ledger, State, Trial, in_use, read_ledger, replay
from lossearch.trials.proposer import importance
from lossearch.trials.warm import WarmStart

if TYPE_CHECKING:
    from lossearch.tracking.mlflow import MlflowTracker

T = TypeVar("T")

# What a display is given once, before the first row.
Begin = Callable[[Run, Executor], Listener]


@dataclass
class StudyResult:
    """A finished (or interrupted) study.

    Attributes:
        folder: Where everything lies: ``report.html``, ``verdict.json``, ``best.yaml``.
        verdict: The content of ``verdict.json``; ``None`` where the study was interrupted.
        trials: Every trial, with its status and score.
        problems: What went wrong beside the search (a tracking server that did not answer).
    """

    folder: Path
    verdict: dict[str, Any] | None
    trials: list[Trial]
    problems: list[str]

    @property
    def recommend(self) -> str | None:
        """``winner`` or ``baseline``."""
        return self.verdict["recommend"] if self.verdict else None

    def objective(self) -> Objective:
        """The recommended objective, as an ``nn.Module``."""
        return load_objective(self.folder)


def start(
    config: StudyConfig,
    *,
    dataset: Dataset | None = None,
    module: nn.Module | None = None,
    display: Begin | None = None,
) -> StudyResult:
    """Run a new study.

    Raises:
        LossearchError: the study cannot start; nothing has been trained then.
        KeyboardInterrupt: it was stopped; all that finished is in the ledger.
    """
    folder = Folder(config.output) if config.output else fresh_folder(config.name)
    if folder.holds_study:
        folder.create()  # says what to do
    if isinstance(config.space, str) and config.space.endswith((".yaml", ".yml")):
        # kept with the study, which then does not depend on the file
        config = config.model_copy(update={"space": read_yaml(Path(config.space))})
    setup = set_up(config, dataset=dataset, module=module)
    resolved = config.model_copy(update={"output": str(folder.path)})
    document = resolved.document()
    row = _study_row(setup, document)
    if config.search.warm_start:
        setup = setup.warmed(row)
        row["warm"] = setup.warm.document()
    executor = make_executor(config.executor)
    folder.create()
    outputs.write(folder.study, dump_yaml(document))
    return _go(setup, folder, executor, State(), display, row)


def resume(
    path: str | Path,
    *,
    dataset: Dataset | None = None,
    module: nn.Module | None = None,
    display: Begin | None = None,
) -> StudyResult:
    """Go on with a study that was interrupted or killed.

    Raises:
        StudyError: the folder holds no study, or its code or data are not what they were.
    """
    folder = Folder(path).existing()
    state = replay(read_ledger(folder.ledger))
    if not state.study:
        raise StudyError(f"{folder.path} was stopped before it began; run it anew")
    config = parse(StudyConfig, read_yaml(folder.study, StudyError), str(folder.study), StudyError)
    for what, lacks in (
        ("data", config.data.name == "user" and dataset is None),
        ("a model", isinstance(state.study["model"], str) and module is None),
    ):
        if lacks:
            raise StudyError(
                f"this study searched on {what} given from Python; resume it from there, with "
                "lossearch.search(..., resume_existing=True)"
            )
    _refuse_changes(config, folder, state.study["config"])
    if module is not None and repr(module) != state.study["model"]:
        raise StudyError("the model is not the one that this study began with; pass that one")
    files = tuple(FilePlugin(**f) for f in state.study.get("files", ()))
    setup = set_up(config, files=files, dataset=dataset, module=module)
    was = state.study["data"]["fingerprint"]
    if setup.data.info.fingerprint != was:
        raise StudyError(
            "the data are not those that this study began with (fingerprint "
            f"{setup.data.info.fingerprint[:12]} now, {was[:12]} then); its trials cannot be "
            "compared with new ones. Put the data back, or start a new study"
        )
    there = {PluginInfo(**p) for p in state.study["plugins"]} ^ set(setup.plugins.loaded)
    if there:
        names = ", ".join(sorted({plugin.name for plugin in there}))
        raise StudyError(
            f"the plugins are not those that this study began with: {names}. Install what it had, "
            "or start a new study"
        )
    if "warm" in state.study:
        setup.warm = WarmStart.from_document(state.study["warm"])
    return _go(setup, folder, make_executor(config.executor), state, display, None)


# What a resumed study may not change, and the keys of it that it may.
_FIXED = (
    "seed", "model", "space", "metric", "baseline", "search", "training", "fairness", "features",
    "finetune", "providers",
)  # fmt: skip
_FREE = {
    "search": ("trials", "epochs", "hours", "gpu_hours", "patience"),
    "training": ("device", "threads"),
}


def _refuse_changes(config: StudyConfig, folder: Folder, began: dict[str, Any]) -> None:
    """Trials of one study are compared with each other, so all must mean the same."""
    document = config.document()
    for key in _FIXED:
        now, then = (
            {k: v for k, v in d[key].items() if k not in _FREE.get(key, ())}
            if isinstance(d[key], dict)
            else d[key]
            for d in (document, began)
        )
        if now != then:
            raise StudyError(
                f"'{key}' in {folder.study} is not what this study began with; its trials cannot "
                f"be compared with new ones. Put it back ({then}), or start a new study"
            )


def _study_row(setup: Setup, document: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": setup.config.name,
        "config": document,
        "metric": setup.metric.name,
        "maximize": setup.metric.maximize,
        "deciding": {m.name: m.maximize for m in setup.deciding},
        "data": {"name": setup.config.data.name, **dataclasses.asdict(setup.data.info)},
        "model": repr(setup.model) if isinstance(setup.model, nn.Module) else document["model"],
        "versions": {**versions(), "python": platform.python_version()},
        "plugins": [dataclasses.asdict(p) for p in setup.plugins.loaded],
        "files": [dataclasses.asdict(f) for f in setup.files],
        "left_out": [dataclasses.asdict(x) for x in setup.space.left_out],
    }


def _go(
    setup: Setup,
    folder: Folder,
    executor: Executor,
    state: State,
    display: Begin | None,
    study_row: dict[str, Any] | None,
) -> StudyResult:
    with _progress(display is not None) as progress:
        setup = setup.with_features(folder.path, progress)
    ledger = Ledger(folder.ledger)
    tracker = _tracker(setup.config, folder)
    run = Run(setup, folder, ledger, state, executor.workers, executor.devices)
    run.listeners.append(_Keeper(setup, folder, state, run.best()))
    if tracker is not None:
        if study_row is None:
            tracker.catch_up(read_ledger(folder.ledger))
        run.listeners.append(lambda _state, row: tracker.write(row))
    shown: Listener | None = None
    try:
        run.record("study", **study_row) if study_row is not None else run.record("resumed")
        if display is not None:
            shown = display(run, executor)
            run.listeners.append(shown)
        if not run.over:
            executor.run(setup.recipe(folder.checkpoints), run)
        run.record("ended", status="complete")
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if not isinstance(error, StudyError):
            run.record("ended", status=status)
        elif shown is not None:  # a full disk takes no more rows, and the display must close
            shown(state, {"event": "ended", "status": status})
        raise
    finally:
        problems = _finish(setup, folder, run, tracker)
        ledger.close()
    return StudyResult(folder.path, state.verdict, list(state.trials.values()), problems)


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar for the embeddings, which appears with the first of them."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not shown) as bars:
        bar = bars.add_task("embeddings", visible=False)
        yield lambda done, total: bars.update(bar, completed=done, total=total, visible=True)


class _Keeper:
    """Keeps ``best.yaml`` and ``verdict.json`` in step with the ledger.

    At first it writes what a kill, after the ledger's last row, may have left undone.
    """

    def __init__(self, setup: Setup, folder: Folder, state: State, best: Trial | None) -> None:
        self.setup, self.folder = setup, folder
        self.best = best.score if best is not None else None
        if best is not None:
            outputs.write_best(folder, setup, state, best.number)
        if state.verdict is not None:
            self._judged(state, state.verdict)

    def __call__(self, state: State, row: dict[str, Any]) -> None:
        if row["event"] == "finished" and row["score"] is not None:
            sign = 1 if self.setup.metric.maximize else -1
            if self.best is None or sign * row["score"] > sign * self.best:
                self.best = row["score"]
                outputs.write_best(self.folder, self.setup, state, row["trial"])
        elif row["event"] == "verdict" and state.verdict is not None:
            self._judged(state, state.verdict)

    def _judged(self, state: State, verdict: dict[str, Any]) -> None:
        outputs.write_verdict(self.folder, verdict)
        chosen = verdict[verdict["recommend"]]
        if chosen is not None:
            outputs.write_best(self.folder, self.setup, state, chosen["trial"], chosen)


def _tracker(config: StudyConfig, folder: Folder) -> MlflowTracker | None:
    if config.tracking is None:
        return None
    from lossearch.tracking.mlflow import MlflowTracker

    return MlflowTracker(tracking_uri(config, folder), config.tracking.experiment, folder.path)


def tracking_uri(config: StudyConfig, folder: Folder) -> str:
    """The study's tracking URI: studies of one parent folder share a SQLite store."""
    given = config.tracking.uri if config.tracking is not None else None
    return given or f"sqlite:///{folder.path.parent / 'mlflow.db'}"


def _finish(setup: Setup, folder: Folder, run: Run, tracker: MlflowTracker | None) -> list[str]:
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


def _write_report(folder: Folder, state: State, registry: Registry) -> tuple[Path, list[str]]:
    """The page, and the pictures beside it; also what is missing, and why."""
    from lossearch.report import write_plots, write_report

    problems: list[str] = []

    def part(what: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Exception as error:  # no part of a report is worth the whole
            problems.append(f"the report has no {what}: {type(error).__name__}: {error}")
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
    written = write_report(folder.path, state, shapes=shapes, importance=mattered)
    return written, problems + write_plots(folder.plots, state, shapes)[1]


def renew(path: str | Path) -> tuple[Path, list[str]]:
    """Write a study's report anew, and bring its MLflow runs up to date.

    Returns:
        The report's path, and what went wrong with a part of it or with the tracking server.
    """
    folder = Folder(path).existing()
    rows = read_ledger(folder.ledger)
    state = replay(rows)
    config = parse(StudyConfig, read_yaml(folder.study, StudyError), str(folder.study), StudyError)
    plugins = load_plugins(tuple(FilePlugin(**f) for f in state.study.get("files", ())))
    written, problems = _write_report(folder, state, plugins.registry)
    tracker = None if in_use(folder.ledger) else _tracker(config, folder)
    if tracker is None:  # not wanted, or the process that runs the study writes it
        return written, problems
    tracker.catch_up(rows)
    tracker.log_files(folder.files())
    tracker.close(timeout=60)
    return written, problems + ([tracker.problem] if tracker.problem else [])
