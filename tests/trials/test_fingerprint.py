"""Fingerprints: the same function in another guise, and what only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec
from lossearch.trials.fingerprint import SIZE, TOLERANCE, Fingerprints, Match, fingerprint
from lossearch.trials.probe import Probe

LR = {"lr": 1e-3}


def _probe(task: str) -> Probe:
    counts = {
        "multiclass": (150, 60, 15, 5),
        "binary": (200, 20),
        "multilabel": (100, 60, 15, 5, 40),
    }[task]
    return Probe.make(task, num_classes=len(counts), class_counts=counts, train_size=sum(counts))


def _spec(task: str, *losses: Any, **more: Any) -> ObjectiveSpec:
    terms = [loss if "loss" in loss else {"loss": loss} for loss in losses]
    return ObjectiveSpec.parse({"task": task, "terms": terms, **more})


def _loss(name: str, **params: Any) -> dict[str, Any]:
    return {"name": name, **params}


def _gap(registry: Registry, task: str, one: Any, other: Any) -> float:
    """The distance of two fingerprints, their factor apart."""
    probe = _probe(task)
    a, b = (fingerprint(_spec(task, each), registry, probe) for each in (one, other))
    assert a is not None and b is not None
    return float(np.abs(a - b)[:-1].max())


CE, BCE = _loss("cross_entropy"), _loss("binary_cross_entropy")


@pytest.mark.parametrize(
    "task, one, other",
    [
        ("multiclass", CE, _loss("poly_loss", epsilon=0.0, base="cross_entropy")),
        ("multiclass", CE, _loss("focal", gamma=0.0)),
        ("multiclass", CE, _loss("symmetric_cross_entropy", alpha=0.3, beta=0.0)),
        ("multiclass", CE, _loss("generalized_cross_entropy", q=0.0)),
        ("multiclass", CE, {"loss": CE, "weight": 3.7}),
        ("multiclass", CE, {"loss": CE, "miner": _loss("ohem", keep_ratio=1.0)}),
        ("multiclass", CE, {"loss": CE, "reweighting": _loss("none")}),
        ("binary", BCE, _loss("focal", gamma=0.0)),
        *(
            (
                task,
                _loss("focal", gamma=2.0, mode="sigmoid"),
                _loss("asymmetric", gamma_neg=2, gamma_pos=2, clip=0, detach_weight=False),
            )
            for task in ("binary", "multilabel")
        ),
    ],
)
def test_the_same_function_in_another_guise(
    registry: Registry, task: str, one: Any, other: Any
) -> None:
    assert _gap(registry, task, one, other) < TOLERANCE / 10


@pytest.mark.parametrize(
    "task, one, other",
    [
        ("multiclass", _loss("focal", gamma=2.0), _loss("focal", gamma=2.05)),
        ("multiclass", CE, _loss("cross_entropy", label_smoothing=0.001)),
        ("multiclass", CE, _loss("logit_adjusted", tau=0.01)),
        # both saturate alike on samples that are not learned
        (
            "multiclass",
            _loss("arcface", scale=117.0, margin=0.62, gradient="straight_through"),
            _loss("cosface", scale=117.0, margin=0.55),
        ),
        ("multilabel", _loss("asymmetric", clip=0.05), _loss("asymmetric", clip=0.0)),
        ("multiclass", CE, {"loss": CE, "miner": _loss("ohem", keep_ratio=0.9)}),
    ],
)
def test_what_differs_is_told_apart(registry: Registry, task: str, one: Any, other: Any) -> None:
    assert _gap(registry, task, one, other) > 5 * TOLERANCE


@pytest.mark.parametrize(
    "term",
    [
        _loss("ensloss"),  # draws
        _loss("aldr_kl"),  # remembers each sample
        {"loss": CE, "miner": _loss("small_loss", forget_rate=0.2)},  # changes with the epoch
        _loss("ldam", drw_start=0.8),  # changes with the step
    ],
)
def test_what_is_no_function_of_the_batch_has_none(registry: Registry, term: Any) -> None:
    assert fingerprint(_spec("multiclass", term), registry, _probe("multiclass")) is None


def test_a_schedule_that_changes_nothing_does_not_count(registry: Registry) -> None:
    idle = {"loss": CE, "miner": _loss("small_loss", forget_rate=0.0)}
    assert _gap(registry, "multiclass", CE, idle) < TOLERANCE


@pytest.mark.parametrize("balancer", ["uncertainty", "dwa"])
def test_balancers_with_state_have_none(registry: Registry, balancer: str) -> None:
    spec = _spec("multiclass", CE, _loss("focal"), balancer=_loss(balancer))
    assert fingerprint(spec, registry, _probe("multiclass")) is None


def test_the_factor_is_the_last_number(registry: Registry) -> None:
    probe = _probe("multiclass")
    one = fingerprint(_spec("multiclass", CE), registry, probe)
    ten = fingerprint(_spec("multiclass", {"loss": CE, "weight": 10.0}), registry, probe)
    assert one is not None and ten is not None and len(one) == SIZE
    np.testing.assert_allclose(ten[:-1], one[:-1], atol=1e-6)
    assert ten[-1] - one[-1] == pytest.approx(np.log(10), abs=1e-5)


def test_the_random_state_stays(registry: Registry) -> None:
    before, numpy = torch.get_rng_state(), str(np.random.get_state())
    fingerprint(_spec("multiclass", _loss("ensloss")), registry, _probe("multiclass"))
    fingerprint(_spec("multiclass", CE), registry, _probe("multiclass"))
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == numpy


def test_the_first_equal_trial_is_found(registry: Registry) -> None:
    probe, known = _probe("multiclass"), Fingerprints()
    plain, disguised = _spec("multiclass", CE), _spec("multiclass", _loss("focal", gamma=0.0))
    found = fingerprint(plain, registry, probe)
    again = fingerprint(disguised, registry, probe)
    assert known.equal(plain, found, LR) is None
    known.add(3, plain, found, LR)
    known.add(8, plain, found, LR)
    assert known.equal(disguised, again, LR) == Match(3, "cross_entropy")
    assert known.equal(disguised, again, {"lr": 1.005e-3}) == Match(3, "cross_entropy")
    assert known.equal(disguised, again, {"lr": 1.1e-3}) is None
    assert known.equal(disguised, again, {"lr": 1e-3, "weight_decay": 0.0}) is None


def test_under_sgd_the_factor_counts(registry: Registry) -> None:
    probe, known = _probe("multiclass"), Fingerprints(scale_free=False)
    plain, double = _spec("multiclass", CE), _spec("multiclass", {"loss": CE, "weight": 2.0})
    known.add(0, plain, fingerprint(plain, registry, probe), LR)
    assert known.equal(double, fingerprint(double, registry, probe), LR) is None
    same = _spec("multiclass", _loss("focal", gamma=0.0))
    assert known.equal(same, fingerprint(same, registry, probe), LR) == Match(0, "cross_entropy")


def test_without_a_fingerprint_only_the_same_document_is_equal() -> None:
    known = Fingerprints()
    random = _spec("multiclass", _loss("ensloss", lam_init=0.5))
    known.add(1, random, None, LR)
    assert known.equal(random, None, LR) == Match(1, "ensloss(lam_init=0.5)")
    assert known.equal(_spec("multiclass", _loss("ensloss")), None, LR) is None


def test_many_trials_are_kept_apart() -> None:
    known, spec = Fingerprints(), _spec("multiclass", CE)
    table = np.random.default_rng(0).normal(size=(200, SIZE))
    for number, row in enumerate(table):
        known.add(number, _spec("multiclass", _loss("focal", gamma=number)), row, LR)
    for number in (0, 63, 64, 199):
        match = known.equal(spec, table[number] + TOLERANCE / 2, LR)
        assert match is not None and match.trial == number
