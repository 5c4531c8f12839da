"""What a proposal has to pass before it costs anything, and the factor that makes it fair."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lossearch.feasibility import objective_problems
from lossearch.spec import ObjectiveSpec
from lossearch.study.setup import Setup
from lossearch.trials.fingerprint import fingerprint
from lossearch.trials.ledger import Trial
from lossearch.trials.preflight import preflight
from lossearch.trials.proposer import Proposal


class Gate:
    """Describes proposals for the ledger: as trials to train, or as rejected, with the reason."""

    def __init__(self, setup: Setup, trials: Iterable[Trial]) -> None:
        self.setup, self.registry = setup, setup.registry
        self.probe, self.bf16, self.scale = setup.probe(), setup.bf16, setup.scale()
        self.known = setup.fingerprints()  # every trial that was let through
        self.baselines = setup.fingerprints()
        for trial in trials:
            if trial.status != "rejected":
                spec = self.setup.bare(ObjectiveSpec.parse(trial.objective))
                found = fingerprint(spec, self.registry, self.probe)
                self.known.add(trial.number, spec, found, trial.training)
                if trial.role == "baseline":
                    self.baselines.add(trial.number, spec, found, {})

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
        problems = objective_problems(spec, self.registry, self.setup.available, self.setup.facts)
        if problems:
            return "rejected", {**row, "reason": "infeasible", "detail": "; ".join(problems)}
        spec = self.setup.bare(spec)
        found = fingerprint(spec, self.registry, self.probe)
        if proposal.role == "baseline":  # what everything is measured against is always trained
            self.baselines.add(number, spec, found, {})
        else:
            refused = preflight(spec, self.registry, self.probe, self.setup.metric, bf16=self.bf16)
            if refused:
                return "rejected", {**row, "reason": refused.reason, "detail": refused.detail}
            twin = self.known.equal(spec, found, proposal.training)
            if twin:
                detail = f"equals {twin.label} (trial {twin.trial})"
                why = {"reason": "equal", "detail": detail, "equals": twin.trial}
                return "rejected", {**row, **why}
            row["plays_baseline"] = self.baselines.equal(spec, found, {}) is not None
        self.known.add(number, spec, found, proposal.training)
        if self.scale is not None:
            row["objective"] = self.scale.applied(spec).document()
        return "proposed", row
