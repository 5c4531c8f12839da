"""What a proposal has to pass before it costs anything, and the factor that makes it fair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lossearch.executors.bench import Bench
from lossearch.feasibility import objective_problems
from lossearch.spec import ObjectiveSpec
from lossearch.study.setup import Setup
from lossearch.training.inspection import TOGETHER, Look
from lossearch.training.unit import Death
from lossearch.trials.ledger import Trial
from lossearch.trials.preflight import Refusal
from lossearch.trials.proposer import Proposal

FATAL = ("worker_died", "timed_out")


@dataclass(frozen=True)
class _Known(Look):
    """A look, or why the objective cannot be trained here at all."""

    problems: Sequence[str] = ()


class Gate:
    """Describes proposals for the ledger: as trials to train, or as rejected, with the reason.

    Args:
        setup: The study.
        trials: Those that it knows already.
        bench: Where objectives are looked at.
    """

    def __init__(self, setup: Setup, trials: Iterable[Trial], bench: Bench) -> None:
        self.setup, self.registry, self.bench = setup, setup.registry, bench
        self.known = setup.fingerprints()  # every trial that was let through
        self.baselines = setup.fingerprints()
        self._looks: dict[str, _Known] = {}
        self._fatal: dict[str, Refusal] = {}  # what took its process down is not tried again
        passed: list[tuple[Trial, ObjectiveSpec]] = []
        for trial in trials:
            spec = self.setup.bare(ObjectiveSpec.parse(trial.objective))
            if trial.reason in FATAL:
                self._fatal[spec.key] = Refusal(cast(Death, trial.reason), trial.detail)
            elif trial.status != "rejected":
                passed.append((trial, spec))
        for begin in range(0, len(passed), TOGETHER):
            some = passed[begin : begin + TOGETHER]
            found = bench.fingerprints([spec for _, spec in some])
            for (trial, spec), each in zip(some, found, strict=True):
                self.known.add(trial.number, spec, each.fingerprint, trial.training)
                if trial.role == "baseline":
                    self.baselines.add(trial.number, spec, each.fingerprint, {})

    def look(self, proposals: Sequence[Proposal]) -> None:
        """Look at proposals together, for :meth:`describe` to tell of each."""
        specs = {s.key: s for s in (self.setup.bare(p.objective) for p in proposals)}
        self._looks = {k: look for k, look in self._looks.items() if k in specs}
        wanted: list[ObjectiveSpec] = []
        for key, spec in specs.items():
            if key in self._looks:
                continue
            problems = objective_problems(
                spec, self.registry, self.setup.available, self.setup.facts
            )
            if problems:
                self._looks[key] = _Known(problems=problems)
            elif key in self._fatal:
                self._looks[key] = _Known(self._fatal[key])
            else:
                wanted.append(spec)
        for begin in range(0, len(wanted), TOGETHER):
            self._look(wanted[begin : begin + TOGETHER])

    def _look(self, specs: list[ObjectiveSpec]) -> None:
        for spec, look in zip(specs, self.bench.look(specs), strict=True):
            self._looks[spec.key] = _Known(look.refused, look.fingerprint, look.factor)
            if look.refused is not None and look.refused.reason in FATAL:
                self._fatal[spec.key] = look.refused

    def describe(self, number: int, proposal: Proposal) -> tuple[str, dict[str, Any]]:
        """The ledger's event for a proposal, and its row."""
        spec = proposal.objective
        row = {
            "trial": number,
            "role": proposal.role,
            "objective": spec.document(),
            "label": spec.label(),
            "training": proposal.training,
            "params": proposal.params,
            "distributions": proposal.distributions,
            "sampler": proposal.sampler,
        }
        spec = self.setup.bare(spec)
        if spec.key not in self._looks:
            self.look([proposal])
        look = self._looks[spec.key]
        if look.problems:
            return "rejected", {**row, "reason": "infeasible", "detail": "; ".join(look.problems)}
        if proposal.role == "baseline":  # what everything is measured against is always trained
            self.baselines.add(number, spec, look.fingerprint, {})
        else:
            if refused := look.refused:
                return "rejected", {**row, "reason": refused.reason, "detail": refused.detail}
            twin = self.known.equal(spec, look.fingerprint, proposal.training)
            if twin:
                detail = f"equals {twin.label} (trial {twin.trial})"
                why = {"reason": "equal", "detail": detail, "equals": twin.trial}
                return "rejected", {**row, **why}
            row["plays_baseline"] = self.baselines.equal(spec, look.fingerprint, {}) is not None
        self.known.add(number, spec, look.fingerprint, proposal.training)
        if look.factor is not None:
            row["objective"] = look.scaled(spec).document()
        return "proposed", row
