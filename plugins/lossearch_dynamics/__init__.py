"""What acts on losses rather than makes them: reweightings, miners, balancers; metrics, fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lossearch
from lossearch_dynamics import (
    attack,
    balancers,
    calibration,
    class_weights,
    gradient_rules,
    metrics,
    miners,
    providers,
    reweighting,
    teacher,
)

Components = Iterable[Callable[..., Any]]


@lossearch.hookimpl
def register_reweightings() -> Components:
    return [
        reweighting.none,
        class_weights.inverse_frequency,
        class_weights.class_balanced,
        reweighting.focal_weight,
        reweighting.dynamic_loss,
    ]


@lossearch.hookimpl
def register_miners() -> Components:
    return [miners.ohem, miners.small_loss]


@lossearch.hookimpl
def register_balancers() -> Components:
    return [
        balancers.fixed_weights,
        balancers.Uncertainty,
        balancers.DynamicWeightAverage,
        gradient_rules.EncodecBalancer,
        gradient_rules.PCGrad,
    ]


@lossearch.hookimpl
def register_metrics() -> Components:
    return [
        metrics.accuracy,
        metrics.balanced_accuracy,
        metrics.macro_f1,
        metrics.auroc,
        metrics.average_precision,
        metrics.nll,
        calibration.ece,
        calibration.smooth_ece,
    ]


@lossearch.hookimpl
def register_providers() -> Components:
    return [providers.SecondView, providers.half_images, teacher.Teacher, attack.Attack]
