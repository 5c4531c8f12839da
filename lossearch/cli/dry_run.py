"""``lossearch run --dry-run``: the expanded space, what was left out and why, and the cost."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from lossearch.cli.text import plain
from lossearch.display import print_data
from lossearch.errors import LossearchError
from lossearch.space import Value
from lossearch.study.finish import check_tracking
from lossearch.study.folder import Folder
from lossearch.study.setup import Setup, set_up
from lossearch.training import Job, Workbench
from lossearch.trials.warm import read_earlier

if TYPE_CHECKING:
    from lossearch.study import StudyConfig

STACK = 16  # trials, of a study that is large enough
SAMPLES = 100  # objectives of the space that are looked at


def show_plan(config: StudyConfig) -> None:
    """Print what a study would do."""
    for folder in config.search.warm_start:
        read_earlier(folder)
    check_tracking(config, Folder(config.output or Path("runs") / config.name))
    setup = set_up(config)
    out = Console(highlight=False)
    out.print(config.name, style="bold", markup=False)
    print_data(out, dataclasses.asdict(setup.data.info))
    out.print(_space_table(setup))
    for left in setup.space.left_out:
        out.print(f"left out: {left.what}: {left.why}", markup=False)
    for line in provided_fields(setup):
        out.print(line, soft_wrap=True)
    with tempfile.TemporaryDirectory() as scratch:
        setup = setup.with_features(Path(scratch) / "study", lambda *_: None)
        show_stacks(setup, out, Path(scratch))
        show_cost(setup, out)


def provided_fields(setup: Setup) -> list[str]:
    """Which provider gives what here, at what cost, or why nothing."""
    lines: list[str] = []
    for name, fields in setup.provided.items():
        component = setup.registry.get(name, "provider")
        missing = sorted(set(component.fields) - setup.available)
        why = f": it reads '{missing[0]}', which nothing here provides" if missing else ""
        cost = f" ({component.cost})" if component.cost and fields else ""
        gives = ", ".join(fields) or "nothing"
        lines.append(f"[bold]fields[/]  {escape(name)} gives {gives}{cost}{why}")
    return lines


def show_stacks(setup: Setup, out: Console, scratch: Path) -> None:
    """What trains as one stack here, and what does not and why."""
    bench = Workbench(setup.recipe(scratch), setup.registry)
    size = bench.preferred_size(STACK)
    out.print()
    if size == 1:
        slower = "a stack of this model is slower here than one trial after the other"
        why = escape(bench.choice.problem or slower)
        out.print(f"[bold]stacks[/]  none: {why}", soft_wrap=True)
        return
    gain = bench.choice.gain(min(size, STACK))
    out.print(f"[bold]stacks[/]  {size} trials train together {gain:.1f} times as fast as alone")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for why, labels in _alone(setup, bench).items():
        out.print(f"alone: {', '.join(labels)}: {why}", soft_wrap=True, markup=False)


def _alone(setup: Setup, bench: Workbench) -> dict[str, list[str]]:
    """Why objectives of the space train alone, with some that do."""
    found: dict[str, list[str]] = {}
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = (setup.space.suggest(draws.ask()) for _ in range(SAMPLES))
    for spec in (*(spec for spec, _ in setup.space.references()), *drawn):
        try:
            why = bench.stack_problem(Job(0, spec.document(), {}, 0, 1))
        except LossearchError:  # an infeasible draw, which the search refuses
            continue
        label = " with ".join(each.name for _, each in spec.components() if each.name != "none")
        if why and label not in found.setdefault(why, []) and len(found[why]) < 3:
            found[why].append(label)
    return found


def _space_table(setup: Setup) -> Table:
    place = Column("place", overflow="fold")
    table = Table(place, "values", title="the space", title_justify="left")
    for path, domain in setup.space.describe():
        table.add_row(escape(path), escape(plain(domain)))
    for name, node in setup.config.training.tuning().items():
        table.add_row(f"training.{name}", node.describe())
    return table


def show_cost(setup: Setup, out: Console) -> None:
    """Time one epoch of the baseline here, and multiply it out."""
    seconds = time_epoch(setup)
    config, rungs = setup.config, setup.rungs
    trials = config.search.trials
    share = expected_share(rungs.levels, rungs.factor)
    search = trials * share * config.training.epochs
    confirm = (config.confirm.top + 1) * config.confirm.seeds * config.training.epochs
    total = (search + confirm) * seconds
    out.print(
        f"\n[bold]cost[/]  one epoch takes about {seconds:.3g} s here. {trials} trials with "
        f"rungs at {', '.join(map(str, rungs.levels))} epochs: about {search:.0f} epochs; "
        f"confirmation: at most {confirm} epochs. Together about {_time(total)} on one worker."
    )


def expected_share(levels: tuple[int, ...], factor: int) -> float:
    """The share of a full training that a trial takes on average under successive halving."""
    epochs, previous, alive = 0.0, 0, 1.0
    for level in levels:
        epochs += alive * (level - previous)
        previous, alive = level, alive / factor
    return epochs / levels[-1]


def time_epoch(setup: Setup) -> float:
    """Seconds of one epoch of the baseline, after one to warm up."""
    from lossearch.training.trainer import Trainer

    recipe = setup.recipe(checkpoints=Path())
    spec = next(iter(setup.baseline.references()))[0]
    metric = setup.metric.build(task=setup.data.info.task)
    values = {
        k: node.value if isinstance(node, Value) else node.default
        for k, node in setup.config.training.tuning().items()
    }
    trainer = Trainer(
        spec, setup.data, recipe.model, recipe.training, values, metric, setup.registry, 0,
        recipe.providers,
    )  # fmt: skip
    trainer.run_epoch()
    started = time.perf_counter()
    trainer.run_epoch()
    return time.perf_counter() - started


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
