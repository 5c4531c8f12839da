"""What each part of the winner brings: it is trained without, on the confirmation's seeds.

A part brings something where the winner is significantly better with it than without, by the
paired *validation* values over the seeds. Parts that do not are left out of what is recommended,
together if that is no worse than the winner. The test split chooses nothing here: what is left
must pass the winner's own test against the baseline once, or the winner stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lossearch.executors.bench import Bench
from lossearch.report.text import verdict_text
from lossearch.spec import ObjectiveSpec
from lossearch.study.confirm import finalists, verdict
from lossearch.study.journal import Journal
from lossearch.study.parts import Part, joined, parts
from lossearch.study.phase import final_row, of_one_seed
from lossearch.study.setup import Setup
from lossearch.training import Job, JobResult
from lossearch.trials.comparison import ALPHA, Finalist, Paired, compare


@dataclass(frozen=True)
class Without:
    """The winner without a part.

    Attributes:
        part: What is left out.
        found: What is left, and its values over the fresh seeds.
        is_baseline: Whether what is left is the baseline, which is no finding.
    """

    part: Part
    found: Finalist
    is_baseline: bool = False


def gain(winner: Finalist, less: Finalist, seeds: Sequence[int]) -> Paired | None:
    """What a part adds to the validation values; ``None`` where training failed without it."""
    if not all(s in less.validation and s in less.test for s in seeds):
        return None
    return compare([winner.validation[s] for s in seeds], [less.validation[s] for s in seeds])


def brings(gained: Paired | None, maximize: bool) -> bool:
    """Whether a part is worth having: what cannot be trained without it is."""
    if gained is None:
        return True
    better = gained.difference > 0 if maximize else gained.difference < 0
    return better and gained.p_value < ALPHA


def idle_first(
    winner: Finalist, singles: Sequence[Without], seeds: Sequence[int], maximize: bool
) -> list[Without]:
    """The parts that bring nothing, the one whose removal does best first."""
    sign = -1 if maximize else 1
    idle = [w for w in singles if not brings(gain(winner, w.found, seeds), maximize)]
    return sorted(idle, key=lambda w: sign * _mean(w.found.validation, seeds))


def simpler(
    winner: Finalist,
    singles: Sequence[Without],
    together: Without | None,
    seeds: Sequence[int],
    maximize: bool,
) -> Without | None:
    """What to recommend in the winner's place, by validation alone; ``None`` for the winner.

    Args:
        winner: The winner, whole.
        singles: The winner without each part.
        together: Without all parts that bring nothing.
        seeds: The fresh seeds.
        maximize: Whether more of the metric is better.
    """
    order = [*([together] if together else []), *idle_first(winner, singles, seeds, maximize)]
    for less in order:
        if not less.is_baseline and not brings(gain(winner, less.found, seeds), maximize):
            return less
    return None


class Attribution:
    """The last phase: where the winner would be recommended, what its parts bring; the verdict."""

    def __init__(self, setup: Setup, journal: Journal, bench: Bench) -> None:
        self.setup, self.journal, self.bench = setup, journal, bench
        state, config = journal.state, setup.config
        baseline, candidates = finalists(state, setup.deciding, config.confirm.top)
        self.found = verdict(state, baseline, candidates, setup.deciding)
        self.seeds: list[int] = self.found["seeds"]
        self._waiting: list[Job] = []
        self._flying = 0
        self._tried: list[Part] = []  # those of one part each, then the one of several
        self._objectives: dict[str, dict[str, Any]] = {}  # what is left, each with its factor
        self._twins: dict[str, int] = {}  # the confirmed trial of the same objective
        self._decided = True
        if self.found["recommend"] != "winner":
            return
        self.trial = state.trials[self.found["winner"]["trial"]]
        self.spec = ObjectiveSpec.parse(self.trial.objective)
        self.singles = parts(self.spec, setup.registry, setup.facts)
        self._decided = not self.singles
        if self.singles:
            self._known = setup.fingerprints()
            sides = [self.found["baseline"], self.found["winner"]]
            specs = [setup.bare(ObjectiveSpec.parse(side["objective"])) for side in sides]
            for side, spec, look in zip(sides, specs, bench.fingerprints(specs), strict=True):
                self._known.add(side["trial"], spec, look.fingerprint, {})
            for part in self.singles:
                self._try(part)

    @property
    def left(self) -> int:
        return len(self._waiting) + self._flying

    def jobs(self, most: int) -> list[Job]:
        if not self._waiting and not self._flying and not self._decided:
            self._decided = True
            together = self._together()
            if together is not None and together.name not in {p.name for p in self._tried}:
                self._try(together)
        found = of_one_seed(self._waiting, most)
        self._flying += len(found)
        return found

    def report(self, result: JobResult) -> None:
        self._flying -= 1
        part = self._tried[result.variant or 0]
        what = {"part": part.name, "objective": self._objectives[part.name]}
        self.journal.record("ablated", **what, **final_row(result))

    def end(self) -> None:
        """The verdict."""
        found = {**self.found, **self._attributed()} if self._tried else self.found
        self.journal.record("verdict", **found, text=verdict_text(found))

    # --- what is trained -------------------------------------------------------------------

    def _try(self, part: Part) -> None:
        """Have the winner trained without a part, where its values are not there already."""
        number = len(self._tried)
        self._tried.append(part)
        bare = self.setup.bare(part.objective)
        look = self.bench.look([bare])[0]
        objective = look.scaled(bare).document()
        self._objectives[part.name] = objective
        twin = self._known.equal(bare, look.fingerprint, {})
        if twin is not None:
            self._twins[part.name] = twin.trial
            return
        have = {a.seed for a in self.journal.state.ablations if a.part == part.name}
        trial, final = self.trial, self.setup.final_job
        self._waiting += [
            replace(final(trial.number, objective, trial.final, seed), variant=number)
            for seed in self.seeds
            if seed not in have
        ]
        self._waiting.sort(key=lambda job: job.seed)

    # --- what came of it -------------------------------------------------------------------

    def _together(self) -> Part | None:
        """All parts that bring nothing, as one: the very part where what is left is the same."""
        singles = [self._without(p) for p in self.singles]
        idle = idle_first(self._whole(), singles, self.seeds, self.setup.metric.maximize)
        if not idle:
            return None
        joint = joined(self.spec, [w.part for w in idle])
        return next((p for p in self.singles if p.objective == joint.objective), joint)

    def _whole(self) -> Finalist:
        return self._confirmed(self.trial.number, self.trial.label, self.trial.objective)

    def _without(self, part: Part) -> Without:
        label, twin = part.objective.label(), self._twins.get(part.name)
        if twin is not None:
            found = self._confirmed(twin, label, self._objectives[part.name])
            return Without(part, found, twin == self.found["baseline"]["trial"])
        rows = [a for a in self.journal.state.ablations if a.part == part.name and not a.reason]
        return Without(part, self._finalist(label, self._objectives[part.name], rows))

    def _confirmed(self, trial: int, label: str, objective: dict[str, Any]) -> Finalist:
        rows = [c for c in self.journal.state.confirmations if c.trial == trial]
        return self._finalist(label, objective, rows)

    def _finalist(self, label: str, objective: dict[str, Any], rows: Sequence[Any]) -> Finalist:
        metric = self.setup.metric.name
        rows = [r for r in rows if r.validation is not None and r.test.get(metric) is not None]
        return Finalist(
            self.trial.number,
            label,
            objective,
            self.trial.final,
            {r.seed: r.validation for r in rows},
            {r.seed: r.test[metric] for r in rows},
        )

    def _attributed(self) -> dict[str, Any]:
        """What attribution adds to the verdict, and changes in it."""
        whole, maximize, seeds = self._whole(), self.setup.metric.maximize, self.seeds
        tried = [self._without(part) for part in self._tried]
        singles = tried[: len(self.singles)]
        joint = self._together()
        together = next((w for w in tried if joint and w.part.name == joint.name), None)
        chosen = simpler(whole, singles, together, seeds, maximize)
        changes = self._tested(chosen.found) if chosen is not None else {}
        gone = chosen.part if chosen is not None and changes else None
        rows = [_row(whole, less, seeds, maximize) for less in tried]
        for i, (less, row) in enumerate(zip(tried, rows, strict=True)):
            row["kept"] = gone is None or not _within(less.part, gone)
            row["together"] = i >= len(singles)
        return {**changes, "attribution": rows}

    def _tested(self, less: Finalist) -> dict[str, Any]:
        """The verdict with the simpler objective as the winner; nothing where it is not proven."""
        winner, base, seeds = self.found["winner"], self.found["baseline"], self.seeds
        paired = compare([less.test[s] for s in seeds], base["values"])
        p_value = min(1.0, paired.p_value * len(self.found["candidates"]))
        ahead = paired.difference > 0 if self.setup.metric.maximize else paired.difference < 0
        if not ahead or p_value >= ALPHA:
            return {}
        side = {
            **less.summary(seeds),
            "validation": _mean(less.validation, seeds),
            "simplified_from": winner["label"],
        }
        return {
            "winner": side,
            "difference": paired.difference,
            "interval": [paired.low, paired.high],
            "p_value": p_value,
        }


def _row(whole: Finalist, less: Without, seeds: Sequence[int], maximize: bool) -> dict[str, Any]:
    gained = gain(whole, less.found, seeds)
    return {
        "part": less.part.name,
        "label": less.found.label,
        "difference": gained.difference if gained else None,
        "interval": [gained.low, gained.high] if gained else None,
        "test": _mean(less.found.test, seeds) if gained else None,
        "brings": brings(gained, maximize),
    }


def _within(part: Part, gone: Part) -> bool:
    """Whether a part is gone with another: with its term, or a balancer of a single term."""
    left_alone = len(gone.objective.terms) == 1 and part.paths == ("balancer",)
    return left_alone or all(
        any(path == g or path.startswith(f"{g}.") for g in gone.paths) for path in part.paths
    )


def _mean(values: Mapping[int, float], seeds: Sequence[int]) -> float:
    return float(np.mean([values[s] for s in seeds]))
