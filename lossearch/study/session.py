"""Starting, resuming and finishing a study; the command line and ``lossearch.search`` call it."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lossearch.data import Dataset
from lossearch.documents import dump_yaml, read_yaml
from lossearch.errors import StudyError
from lossearch.executors import Executor, make_executor
from lossearch.executors.bench import open_bench
from lossearch.models import Factory
from lossearch.objective import Objective, load_objective
from lossearch.plugins import PluginInfo
from lossearch.study import outputs
from lossearch.study.config import StudyConfig, parse
from lossearch.study.finish import check_tracking, finish, kept_files, tracker_of
from lossearch.study.fitting import in_words
from lossearch.study.folder import Folder, claimed
from lossearch.study.journal import Listener
from lossearch.study.run import Run
from lossearch.study.setup import Setup, set_up, versions
from lossearch.trials.ledger import Ledger, State, Trial, read_ledger, replay
from lossearch.trials.warm import WarmStart
from lossearch.trust import remember, require

# What a display is given once, before the first row.
Begin = Callable[[Run, Executor], Listener]


@dataclass
class StudyResult:
    """A finished (or interrupted) study.

    Attributes:
        folder: Where everything lies: ``report.html``, ``verdict.json``, ``best.yaml``.
        verdict: The content of ``verdict.json``; ``None`` where the study was interrupted. Its
            ``recommend`` is ``None`` where the study failed, and ``reason`` says why.
        trials: Every trial, with its status and score.
        problems: What went wrong beside the search (a tracking server that did not answer).
    """

    folder: Path
    verdict: dict[str, Any] | None
    trials: list[Trial]
    problems: list[str]

    @property
    def recommend(self) -> str | None:
        """``winner`` or ``baseline``; ``None`` where the study failed or was interrupted."""
        return self.verdict["recommend"] if self.verdict else None

    @property
    def failure(self) -> str | None:
        """Why the study ended with nothing to recommend; ``None`` where it did not."""
        failed = self.verdict is not None and self.recommend is None
        return self.verdict["reason"] if self.verdict and failed else None

    def objective(self) -> Objective:
        """The recommended objective as an ``nn.Module``, or the best so far before the verdict.

        Raises:
            StudyError: the study failed: there is nothing to recommend.
        """
        if self.failure is not None:
            raise StudyError(f"the study failed, so it recommends nothing: {self.failure}")
        return load_objective(self.folder)


def start(
    config: StudyConfig,
    *,
    dataset: Dataset | None = None,
    module: nn.Module | Factory | None = None,
    display: Begin | None = None,
) -> StudyResult:
    """Run a new study.

    Raises:
        LossearchError: the study cannot start; nothing has been trained then.
        KeyboardInterrupt: it was stopped; all that finished is in the ledger.
    """
    with claimed(config.output, config.name) as (folder, ledger):
        return _start(config, folder, ledger, dataset, module, display)


def _start(
    config: StudyConfig,
    folder: Folder,
    ledger: Ledger,
    dataset: Dataset | None,
    module: nn.Module | Factory | None,
    display: Begin | None,
) -> StudyResult:
    if isinstance(config.space, str) and config.space.endswith((".yaml", ".yml")):
        # kept with the study, which then does not depend on the file
        config = config.model_copy(update={"space": read_yaml(Path(config.space))})
    setup = set_up(config, dataset=dataset, module=module)
    remember(setup.files)
    resolved = config.model_copy(update={"output": str(folder.path)})
    document = resolved.stored()
    row = _study_row(setup, document)
    if config.search.warm_start:
        setup = setup.warmed(row)
        row["warm"] = setup.warm.document()
    check_tracking(config, folder)
    executor = make_executor(config.executor)
    outputs.write(folder.study, dump_yaml(document))
    return _go(setup, folder, ledger, executor, State(), display, row)


def resume(
    path: str | Path,
    *,
    dataset: Dataset | None = None,
    module: nn.Module | Factory | None = None,
    display: Begin | None = None,
    trust: bool = False,
) -> StudyResult:
    """Go on with a study that was interrupted or killed.

    Args:
        path: The study's folder.
        dataset: The data, where they were given from Python.
        module: The model, where it was given from Python.
        display: What shows how it goes.
        trust: Run the one-file plugins that lie in the folder even if this user has not run them
            before: it may come from somebody else.

    Raises:
        StudyError: the folder holds no study, or its code or data are not what they were.
        BusyError: another process runs it.
        TrustError: it brings code that is not trusted.
    """
    folder = Folder(path)
    with folder.held() as ledger:
        return _resume(folder, ledger, dataset, module, display, trust)


def _resume(
    folder: Folder,
    ledger: Ledger,
    dataset: Dataset | None,
    module: nn.Module | Factory | None,
    display: Begin | None,
    trust: bool,
) -> StudyResult:
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
    files = kept_files(state)
    require(
        files,
        trust,
        f"the study in {folder.path}",
        f"`lossearch resume {folder.path} --trust`, or trust=True from Python, runs it",
    )
    setup = set_up(config, files=files, dataset=dataset, module=module)
    if in_words(setup.model, setup.network, None) not in (None, state.study["model"]):
        raise StudyError("the model is not the one that this study began with; pass that one")
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
    check_tracking(config, folder)
    return _go(setup, folder, ledger, make_executor(config.executor), state, display, None)


# What a resumed study may not change, and the keys of it that it may.
_FIXED = (
    "seed", "model", "space", "metric", "baseline", "search", "training", "fairness", "features",
    "finetune", "providers", "plugins",
)  # fmt: skip
_FREE = {
    "search": ("trials", "epochs", "hours", "gpu_hours", "patience"),
    "training": ("device", "threads", "timeout"),
}


def _refuse_changes(config: StudyConfig, folder: Folder, began: dict[str, Any]) -> None:
    """Trials of one study are compared with each other, so all must mean the same."""
    document = config.stored()
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
        "model": in_words(setup.model, setup.network, document["model"]),
        "versions": {**versions(), "python": platform.python_version()},
        "plugins": [dataclasses.asdict(p) for p in setup.plugins.loaded],
        "files": [dataclasses.asdict(f) for f in setup.files],
        "left_out": [dataclasses.asdict(x) for x in setup.space.left_out],
    }


def _go(
    setup: Setup,
    folder: Folder,
    ledger: Ledger,
    executor: Executor,
    state: State,
    display: Begin | None,
    study_row: dict[str, Any] | None,
) -> StudyResult:
    with _progress(display is not None) as progress:
        setup = setup.with_features(folder.path, progress)
    tracker = tracker_of(setup.config, folder)
    bench = open_bench(setup.recipe(folder.checkpoints))
    run = Run(setup, folder, ledger, state, bench, executor.workers, executor.devices)
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
            executor.run(bench, run)
        failed = state.verdict is not None and state.verdict["recommend"] is None
        run.record("ended", status="failed" if failed else "complete")
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if not isinstance(error, StudyError):
            run.record("ended", status=status)
        elif shown is not None:  # a full disk takes no more rows, and the display must close
            shown(state, {"event": "ended", "status": status})
        raise
    finally:
        bench.close()
        problems = finish(setup, folder, run, tracker)
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
        chosen = verdict.get(verdict["recommend"])
        if chosen is not None:
            outputs.write_best(self.folder, self.setup, state, chosen["trial"], chosen)
