"""How much of a search's budget is spent, and whether it may go on."""

from __future__ import annotations

from dataclasses import dataclass

from lossearch.trials.ledger import State
from lossearch.trials.pareto import front
from lossearch.trials.proposer import SearchConfig


@dataclass(frozen=True)
class Spent:
    """What a search has used up.

    Attributes:
        trials: Proposed, rejected ones included.
        epochs: Trained in the search; the confirmation does not count.
        hours: By the clock, while the study ran.
        gpu_hours: Of training in the search, times the devices of a worker.
        idle: Trials of the search since the one that last was better than all before it (with
            several metrics: that no other one beats), as far as they have been scored or ended.
    """

    trials: int
    epochs: int
    hours: float
    gpu_hours: float
    idle: int


@dataclass(frozen=True)
class Stop:
    """Why a search proposes nothing more.

    Attributes:
        reason: In words, for the report.
        at_once: Whether what waits at a rung may not go on either, for training itself has used
            the budget up.
    """

    reason: str
    at_once: bool


def spent(
    state: State, maximize: tuple[bool, ...], *, now: float | None = None, devices: float = 1.0
) -> Spent:
    """Add up what a ledger tells of.

    Args:
        state: The ledger's.
        maximize: For each metric that decides, whether more is better.
        now: The time, seconds since 1970; by default that of the ledger's last row.
        devices: GPUs of one worker, a fraction where several share one.
    """
    trials = state.trials.values()
    since = max(now - state.last, 0.0) if now is not None else 0.0
    return Spent(
        trials=len(trials),
        epochs=sum(t.epoch for t in trials),
        hours=(state.seconds + since) / 3600,
        gpu_hours=sum(t.seconds for t in trials) * devices / 3600,
        idle=_idle(state, maximize),
    )


def _idle(state: State, maximize: tuple[bool, ...]) -> int:
    searched = [t for t in state.trials.values() if t.role != "baseline"]
    newest: dict[tuple[float, ...], int] = {}
    for trial in front(searched, maximize):
        newest.setdefault(trial.values(), trial.number)  # a tie is no new best
    if not newest:
        return 0
    last = max(newest.values())
    return sum(t.number > last and (t.status != "running" or bool(t.rungs)) for t in searched)


def stop(config: SearchConfig, used: Spent) -> Stop | None:
    """Why no more may be proposed, or ``None`` where the budget still has room.

    Of several reasons, one that stops the training itself comes first.
    """
    if config.epochs is not None and used.epochs >= config.epochs:
        return Stop(f"the budget of {config.epochs:,} epochs is spent", True)
    if config.hours is not None and used.hours >= config.hours:
        return Stop(f"the budget of {config.hours:g} hours is spent", True)
    if config.gpu_hours is not None and used.gpu_hours >= config.gpu_hours:
        return Stop(f"the budget of {config.gpu_hours:g} GPU hours is spent", True)
    if used.trials >= config.trials:
        return Stop(f"the budget of {config.trials:,} trials is spent", False)
    if config.patience is not None and used.idle >= config.patience:
        return Stop(f"{used.idle:,} trials brought no new best", False)
    return None
