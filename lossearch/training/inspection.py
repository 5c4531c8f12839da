"""Objectives looked at before they train: refusals, fingerprints, factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lossearch.components import Component
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec
from lossearch.training.plan import Plan
from lossearch.training.scale import Scale
from lossearch.trials.fingerprint import fingerprint_all
from lossearch.trials.looks import Looks
from lossearch.trials.preflight import Refusal, preflight_all
from lossearch.trials.probe import Probe

TOGETHER = 64  # objectives of one look: memory grows with them, and what a call costs is shared


@dataclass(frozen=True)
class Inspection:
    """With what a study's objectives are looked at.

    Attributes:
        probe: The batch.
        bf16: Whether they will train in bfloat16.
        reference: The objective whose initial gradient norm the others get, if they do.
        seed: Of the initial weights at which that norm is taken.
    """

    probe: Probe
    bf16: bool
    reference: ObjectiveSpec | None
    seed: int


@dataclass(frozen=True)
class Look:
    """What is known of an objective before it trains, whatever its training hyperparameters."""

    refused: Refusal | None = None
    fingerprint: np.ndarray | None = None
    factor: float | None = None

    def scaled(self, spec: ObjectiveSpec) -> ObjectiveSpec:
        """The objective that was looked at, with its factor where there is one."""
        return spec if self.factor is None else spec.model_copy(update={"scale": self.factor})


class Inspector:
    """Looks at the objectives of a study.

    Args:
        inspection: With what.
        plan: The study's, on the CPU.
        metric: The metric that decides.
        registry: Where components are looked up.
    """

    def __init__(
        self, inspection: Inspection, plan: Plan, metric: Component, registry: Registry
    ) -> None:
        self.probe, self.bf16 = inspection.probe, inspection.bf16
        self.metric, self.registry = metric, registry
        reference = inspection.reference
        self.scale = None if reference is None else Scale(plan, reference, inspection.seed)

    def look(self, specs: Sequence[ObjectiveSpec]) -> list[Look]:
        """What there is to know of each."""
        looks = Looks(specs, self.registry, self.probe)
        refused = preflight_all(looks, self.metric, bf16=self.bf16)
        found = fingerprint_all(looks)
        factors: Sequence[float | None] = [None] * len(specs)
        if self.scale is not None:
            factors = self.scale.of_all(specs)
        return [Look(*each) for each in zip(refused, found, factors, strict=True)]

    def fingerprints(self, specs: Sequence[ObjectiveSpec]) -> list[Look]:
        """The fingerprint alone."""
        found = fingerprint_all(Looks(specs, self.registry, self.probe))
        return [Look(fingerprint=each) for each in found]
