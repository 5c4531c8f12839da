"""What a proposal has to pass before it costs anything, and the factor that makes it fair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossearch.feasibility import objective_problems
from lossearch.spec import ObjectiveSpec
from lossearch.study.setup import Setup
from lossearch.trials.fingerprint import fingerprint_all
from lossearch.trials.ledger import Trial
from lossearch.trials.looks import Looks
from lossearch.trials.preflight import Refusal, preflight_all
from lossearch.trials.proposer import Proposal

TOGETHER = 64  # objectives of one look: memory grows with them, and what a call costs is shared


@dataclass(frozen=True)
class _Look:
    """What is known of an objective, whatever its training hyperparameters."""

    problems: Sequence[str] = ()
    refused: Refusal | None = None
    fingerprint: np.ndarray | None = None
    factor: float | None = None


class Gate:
    """Describes proposals for the ledger: as trials to train, or as rejected, with the reason."""

    def __init__(self, setup: Setup, trials: Iterable[Trial]) -> None:
        self.setup, self.registry = setup, setup.registry
        self.probe, self.bf16, self.scale = setup.probe(), setup.bf16, setup.scale()
        self.known = setup.fingerprints()  # every trial that was let through
        self.baselines = setup.fingerprints()
        self._looks: dict[str, _Look] = {}
        passed = [t for t in trials if t.status != "rejected"]
        for begin in range(0, len(passed), TOGETHER):
            some = passed[begin : begin + TOGETHER]
            specs = [self.setup.bare(ObjectiveSpec.parse(t.objective)) for t in some]
            found = fingerprint_all(Looks(specs, self.registry, self.probe))
            for trial, spec, each in zip(some, specs, found, strict=True):
                self.known.add(trial.number, spec, each, trial.training)
                if trial.role == "baseline":
                    self.baselines.add(trial.number, spec, each, {})

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
                self._looks[key] = _Look(problems)
            else:
                wanted.append(spec)
        for begin in range(0, len(wanted), TOGETHER):
            self._look(wanted[begin : begin + TOGETHER])

    def _look(self, specs: list[ObjectiveSpec]) -> None:
        looks = Looks(specs, self.registry, self.probe)
        refused = preflight_all(looks, self.setup.metric, bf16=self.bf16)
        found = fingerprint_all(looks)
        factors: list[float | None] = [None] * len(specs)
        if self.scale is not None:
            factors = [*self.scale.of_all(specs)]
        for spec, why, each, factor in zip(specs, refused, found, factors, strict=True):
            self._looks[spec.key] = _Look((), why, each, factor)

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
            row["objective"] = spec.model_copy(update={"scale": look.factor}).document()
        return "proposed", row
