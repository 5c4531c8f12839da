"""The same from Python: ``lossearch.search``; and ``lossearch.compare``, without a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lossearch.data import Dataset, as_dataset
from lossearch.documents import parse
from lossearch.errors import StudyError
from lossearch.models import Factory
from lossearch.study import StudyConfig, StudyResult, read_study, resume, start
from lossearch.study.compare import Row, run_comparison
from lossearch.study.config import expand
from lossearch.study.folder import Folder

_OF_THE_DATA = ("split", "noise", "imbalance", "limit")


def search(
    data: Any,
    targets: Any = None,
    *,
    model: nn.Module | Callable[..., nn.Module] | str | dict[str, Any] | None = None,
    space: str | dict[str, Any] | None = None,
    metric: str | dict[str, Any] | None = None,
    task: str | None = None,
    validation: Any = None,
    test: Any = None,
    class_names: tuple[str, ...] = (),
    trials: int | None = None,
    epochs: int | None = None,
    executor: str | dict[str, Any] | None = None,
    output: str | Path | None = None,
    seed: int | None = None,
    plugins: tuple[str | Path, ...] = (),
    resume_existing: bool = False,
    trust: bool = False,
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
        data: Arrays or tensors with ``targets``, a dict or a tuple of several for a network of
            several inputs, an ``(inputs, targets)`` pair, a data frame, a map-style torch
            ``Dataset`` of ``(input, target)`` items or of dicts with a ``label``, a
            ``DataLoader`` of one; or a whole study: a :class:`~lossearch.study.StudyConfig`, the
            path of a study file, or its document.
        targets: The labels; for a data frame also the name of their column.
        model: The user's own module (copied, never changed), a class or function that makes it
            (called for each seed, without arguments or with the number of outputs), a model's
            name, or its document.
        space: A space by name, file or document; by default the task's own.
        metric: The metric to search by; accuracy by default.
        task: ``multiclass``, ``binary`` or ``multilabel``, where the labels do not say.
        validation: A fixed validation part, of the same form as ``data``, and
        test: a fixed test part.
        class_names: Names of the classes 0, 1, ....
        trials: How many trials in all.
        epochs: How many epochs a full training takes.
        executor: ``local`` or ``ray``, or its document.
        output: The study's folder; ``runs/study`` by default.
        seed: Of the search and of training.
        plugins: One-file plugins.
        resume_existing: Go on with the study that ``output`` holds, if it holds one.
        trust: With ``resume_existing``, run the one-file plugins that the folder holds even if
            this user has not run them before.
        progress: Show progress on stderr.
        on_event: Called with ``(state, row)`` for each row of the ledger.
        settings: Further sections of a study: ``training={"batch_size": 256}``, ``confirm=...``;
            and of its data: ``split``, ``noise``, ``imbalance``, ``limit``.

    Returns:
        The verdict, the trials, and the folder with the report. Where no training of the baseline
        finished there is nothing to recommend: ``recommend`` is ``None``, ``failure`` says why,
        and ``objective()`` raises.

    Raises:
        LossearchError: with what was given, what is allowed and what to do.
    """
    module = _own(model)
    given: dict[str, Any] = {
        "model": model if module is None else None,
        "space": space,
        "metric": metric,
        "search.trials": trials,
        "training.epochs": epochs,
        "executor": executor,
        "output": str(output) if output is not None else None,
        "seed": seed,
        "plugins": [str(p) for p in plugins] or None,
    }
    fixed = {"validation": validation, "test": test, "class_names": class_names}
    config, dataset = _study(data, targets, task, fixed, given, settings)
    display = None
    if progress or on_event is not None:
        from lossearch.display import begin_display

        display = begin_display(progress, on_event)
    if resume_existing and config.output and Folder(config.output).holds_study:
        return resume(
            config.output, dataset=dataset, module=module, display=display, trust=trust
        )
    return start(config, dataset=dataset, module=module, display=display)


def compare(
    data: Any,
    targets: Any = None,
    *,
    objectives: Sequence[Any] | Mapping[str, Any],
    seeds: int = 5,
    model: nn.Module | Callable[..., nn.Module] | str | dict[str, Any] | None = None,
    metric: str | dict[str, Any] | None = None,
    task: str | None = None,
    validation: Any = None,
    test: Any = None,
    class_names: tuple[str, ...] = (),
    epochs: int | None = None,
    executor: str | dict[str, Any] | None = None,
    seed: int | None = None,
    plugins: tuple[str | Path, ...] = (),
    progress: bool = True,
    **settings: Any,
) -> list[Row]:
    """Train given objectives on several seeds and measure them, without a search.

    As in a study's confirmation, all have the same initial weights and order of samples at each
    seed, train as a stack where that pays, and begin with the baseline's gradient norm.

    .. code-block:: python

        rows = lossearch.compare(
            (X, y),
            objectives={
                "plain": "cross_entropy",
                "focal": {"name": "focal", "gamma": 1.0},
                "balanced": {"loss": "cross_entropy", "reweighting": "class_balanced"},
                "found": result.verdict["winner"],  # of an earlier search
            },
            metric="macro_f1",
        )
        pandas.DataFrame(rows).groupby("objective")["validation"].mean()

    Args:
        data: As for :func:`search`.
        targets: The same.
        objectives: What to compare, in a list or by names of your own. Each is a loss's name, a
            loss, a term, a whole objective, or a mapping with ``objective`` and the ``training``
            values that are its own (a side of a verdict, the content of a ``best.yaml``).
        seeds: How many.
        model: As for :func:`search`.
        metric: The metric that ``validation`` is of; accuracy by default. ``metrics`` adds others.
        task: As for :func:`search`.
        validation: The same.
        test: The same.
        class_names: The same.
        epochs: How many epochs a training takes.
        executor: ``local`` or ``ray``, or its document.
        seed: The seeds that are trained with follow from it; a search trains with none of them.
        plugins: One-file plugins.
        progress: Show a bar on stderr.
        settings: Further sections of a study, as for :func:`search`. Where ``training.lr`` is a
            range, which it is by default, each objective without a rate of its own is tried at
            the range's ends and its middle on one more seed, and takes what is best on
            validation; a number is taken as it is.

    Returns:
        A row for each objective and seed.

    Raises:
        LossearchError: with what was given, what is allowed and what to do.
    """
    module = _own(model)
    given = {
        "model": model if module is None else None,
        "metric": metric,
        "training.epochs": epochs,
        "executor": executor,
        "seed": seed,
        "plugins": [str(p) for p in plugins] or None,
    }
    fixed = {"validation": validation, "test": test, "class_names": class_names}
    config, dataset = _study(data, targets, task, fixed, given, settings)
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("compare"), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bars:
        bar = bars.add_task("compare", total=None)
        return run_comparison(
            config,
            objectives,
            seeds,
            dataset=dataset,
            module=module,
            heard=lambda done, total: bars.update(bar, completed=done, total=total),
        )


def _study(
    data: Any,
    targets: Any,
    task: str | None,
    fixed: dict[str, Any],
    given: dict[str, Any],
    settings: dict[str, Any],
) -> tuple[StudyConfig, Dataset | None]:
    """The study's config, and the user's own data where they are none of a study's.

    Args:
        fixed: What else belongs to data at hand.
        given: Values by dotted key; those that are ``None`` were not given.
        settings: Sections, and keys of the data's.
    """
    own = {key: value for key, value in settings.items() if key in _OF_THE_DATA}
    overrides = {key: value for key, value in settings.items() if key not in _OF_THE_DATA}
    overrides |= {key: value for key, value in given.items() if value is not None}
    if isinstance(data, (StudyConfig, str, Path)) or (isinstance(data, dict) and targets is None):
        if task is not None:
            own["task"] = task
        overrides |= {f"data.{key}": value for key, value in own.items()}
        if isinstance(data, (str, Path)):
            return read_study(Path(data), overrides), None
        document = data.document() if isinstance(data, StudyConfig) else data
        if any(hasattr(value, "shape") for value in document.values()):
            raise StudyError(
                f"a dict with {', '.join(map(str, document))} is no study; if these are inputs, "
                "pass targets=... too"
            )
        return _parse(expand(document, overrides)), None
    dataset = as_dataset(data, targets, task, **fixed)
    return _parse(expand({"data": {"name": "user", **own}}, overrides)), dataset


def _own(model: Any) -> nn.Module | Factory | None:
    """The user's own module or what makes it; none where a model is named."""
    if isinstance(model, nn.Module):
        return model
    return Factory(model) if callable(model) else None


def _parse(document: dict[str, Any]) -> StudyConfig:
    return parse(StudyConfig, document, "study", StudyError)
