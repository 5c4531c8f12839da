"""The same from Python: ``lossearch.search``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lossearch.data import as_dataset
from lossearch.documents import parse
from lossearch.errors import StudyError
from lossearch.study import StudyConfig, StudyResult, read_study, resume, start
from lossearch.study.config import expand
from lossearch.study.folder import Folder

_OF_THE_DATA = ("split", "noise", "imbalance", "limit")


def search(
    data: Any,
    targets: Any = None,
    *,
    model: nn.Module | str | dict[str, Any] | None = None,
    space: str | dict[str, Any] | None = None,
    metric: str | dict[str, Any] | None = None,
    task: str | None = None,
    test: Any = None,
    class_names: tuple[str, ...] = (),
    trials: int | None = None,
    epochs: int | None = None,
    executor: str | dict[str, Any] | None = None,
    output: str | Path | None = None,
    seed: int | None = None,
    plugins: tuple[str | Path, ...] = (),
    resume_existing: bool = False,
    progress: bool = True,
    on_event: Callable[..., None] | None = None,
    **settings: Any,
) -> StudyResult:
    """Search for the objective that serves a metric on these data, and judge it.

    .. code-block:: python

        result = lossearch.search((X, y), model=my_module, metric="accuracy", trials=40)
        print(result.recommend, result.folder / "report.html")
        objective = result.objective()          # an nn.Module for any training loop

    Args:
        data: Arrays or tensors with ``targets``, an ``(inputs, targets)`` pair, a data frame, a
            map-style torch ``Dataset`` of ``(input, target)`` items; or a whole study: a
            :class:`~lossearch.study.StudyConfig`, the path of a study file, or its document.
        targets: The labels; for a data frame also the name of their column.
        model: The user's own module (copied, never changed), a model's name, or its document.
        space: A space by name, file or document; by default the task's own.
        metric: The metric to search by; accuracy by default.
        task: ``multiclass``, ``binary`` or ``multilabel``, where the labels do not say.
        test: A fixed test part, of the same form as ``data``.
        class_names: Names of the classes 0, 1, ....
        trials: How many trials in all.
        epochs: How many epochs a full training takes.
        executor: ``local`` or ``ray``, or its document.
        output: The study's folder; ``runs/study`` by default.
        seed: Of the search and of training.
        plugins: One-file plugins.
        resume_existing: Go on with the study that ``output`` holds, if it holds one.
        progress: Show progress on stderr.
        on_event: Called with ``(state, row)`` for each row of the ledger.
        settings: Further sections of a study: ``training={"batch_size": 256}``, ``confirm=...``;
            and of its data: ``split``, ``noise``, ``imbalance``, ``limit``.

    Returns:
        The verdict, the trials, and the folder with the report.

    Raises:
        LossearchError: with what was given, what is allowed and what to do.
    """
    given: dict[str, Any] = {
        "model": None if isinstance(model, nn.Module) else model,
        "space": space,
        "metric": metric,
        "search.trials": trials,
        "training.epochs": epochs,
        "executor": executor,
        "output": str(output) if output is not None else None,
        "seed": seed,
        "plugins": [str(p) for p in plugins] or None,
    }
    own = {key: settings.pop(key) for key in _OF_THE_DATA if key in settings}
    overrides = {**settings, **{k: v for k, v in given.items() if v is not None}}
    dataset = None
    if isinstance(data, (StudyConfig, str, Path, dict)):
        if task is not None:
            own["task"] = task
        overrides |= {f"data.{key}": value for key, value in own.items()}
    if isinstance(data, StudyConfig):
        config = _parse(expand(data.document(), overrides))
    elif isinstance(data, (str, Path)):
        config = read_study(Path(data), overrides)
    elif isinstance(data, dict):
        config = _parse(expand(data, overrides))
    else:
        dataset = as_dataset(data, targets, task, class_names=class_names, test=test)
        config = _parse(expand({"data": {"name": "user", **own}}, overrides))
    module = model if isinstance(model, nn.Module) else None
    display = None
    if progress or on_event is not None:
        from lossearch.display import begin_display

        display = begin_display(progress, on_event)
    if resume_existing and config.output and Folder(config.output).holds_study:
        return resume(config.output, dataset=dataset, module=module, display=display)
    return start(config, dataset=dataset, module=module, display=display)


def _parse(document: dict[str, Any]) -> StudyConfig:
    return parse(StudyConfig, document, "study", StudyError)
