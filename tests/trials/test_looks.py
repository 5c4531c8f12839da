"""Objectives looked at together: what each is alone, in fewer calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor

import lossearch
from lossearch.components import component_of
from lossearch.errors import SpecError
from lossearch.registry import Registry
from lossearch.space import Space
from lossearch.spec import ObjectiveSpec
from lossearch.trials import looks as module
from lossearch.trials.fingerprint import fingerprint, fingerprint_all
from lossearch.trials.looks import Function, Looks, State
from lossearch.trials.preflight import preflight, preflight_all
from lossearch.trials.probe import EXTREME, Place, Probe

COUNTS = {"multiclass": (150, 60, 15, 5), "binary": (200, 20), "multilabel": (100, 60, 15, 5, 40)}
FIELDS = {
    *("logits", "targets", "embeddings", "weight", "index", "class_counts", "epoch", "step"),
    *("total_steps", "inputs", "model"),
}


@lossearch.loss(task="multiclass")
def bad_power(logits: Tensor, targets: Tensor, *, power: float = 1.0) -> Tensor:
    """Upwards where the power is negative, flat where it is 0; infinite where it is large."""
    true = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return -true * power + torch.as_tensor(power).clamp(min=1e30).log() * logits.sum(1) * power


@lossearch.loss(task="multiclass")
def bad_noise(logits: Tensor, targets: Tensor, *, rate: float = 1.0) -> Tensor:
    """Cross-entropy and noise."""
    return -logits.log_softmax(1)[:, 0] * rate * torch.rand(len(logits))


@lossearch.loss(task="multiclass")
def bad_numpy(logits: Tensor, targets: Tensor, *, rate: float = 1.0) -> Tensor:
    """Noise that vmap does not see."""
    true = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    return -true * rate * float(np.random.rand())


@lossearch.loss(task="multiclass")
def bad_item(logits: Tensor, targets: Tensor, *, rate: float = 1.0) -> Tensor:
    """Python's own number: no vmap."""
    return logits[:, 0] * float(logits.sum().item()) * rate


@pytest.fixture(scope="module")
def salted(registry: Registry) -> Registry:
    made = Registry()
    for component in registry:
        made.add(component, registry.owner(component.name))
    for each in (bad_power, bad_noise, bad_numpy, bad_item):
        made.add(component_of(each), "test")
    return made


def _probe(task: str) -> Probe:
    counts = COUNTS[task]
    return Probe.make(task, num_classes=len(counts), class_counts=counts, train_size=sum(counts))


def _spec(name: str, **params: Any) -> ObjectiveSpec:
    terms = [{"loss": {"name": name, **params}}]
    return ObjectiveSpec.parse({"task": "multiclass", "terms": terms})


def _drawn(registry: Registry, task: str, count: int) -> Iterator[ObjectiveSpec]:
    """Points of every bundled space, so that many are one function with other numbers."""
    for _, text in sorted(registry.spaces.items()):
        try:
            space = Space.from_document(text, registry=registry, task=task, available=FIELDS)
        except SpecError:
            continue  # a space of another task
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
        for _ in range(count):
            yield space.suggest(study.ask())


@pytest.mark.parametrize("task", COUNTS)
def test_together_as_alone(registry: Registry, task: str) -> None:
    probe, metric = _probe(task), registry.get("accuracy")
    specs = list(_drawn(registry, task, 6))
    looks = Looks(specs, registry, probe)
    assert max(len(places) for places, _ in looks.together) > 1
    refused = preflight_all(looks, metric, bf16=True)
    found = fingerprint_all(looks)
    for spec, refusal, numbers in zip(specs, refused, found, strict=True):
        own = preflight(spec, registry, probe, metric, bf16=True)
        assert (own and own.reason) == (refusal and refusal.reason), spec.label()
        alone = fingerprint(spec, registry, probe)
        assert (alone is None) == (numbers is None), spec.label()
        if alone is not None and numbers is not None:
            np.testing.assert_allclose(numbers, alone, atol=1e-6)


def test_each_member_has_its_own_verdict(salted: Registry) -> None:
    specs = [_spec("bad_power", power=p) for p in (1.0, -1.0, 0.0, 2.0, 1e38)]
    looks = Looks(specs, salted, _probe("multiclass"))
    metric = salted.get("accuracy")
    found = [r and r.reason for r in preflight_all(looks, metric)]
    alone = [preflight(s, salted, looks.probe, metric) for s in specs]
    assert found == [r and r.reason for r in alone]
    assert len(set(found)) > 2


def test_what_no_common_call_can_take_goes_alone(salted: Registry) -> None:
    names = ("bad_noise", "bad_numpy", "bad_item", "ensloss", "focal")
    specs = [_spec(name) for name in names for _ in range(2)]
    looks = Looks(specs, salted, _probe("multiclass"))
    assert [places for places, _ in looks.together] == [[8, 9]]
    assert looks.alone == list(range(8))
    metric = salted.get("accuracy")
    alone = [preflight(s, salted, looks.probe, metric) for s in specs]
    assert preflight_all(looks, metric) == alone
    assert [f is None for f in fingerprint_all(looks)] == [
        *4 * [True], False, False, True, True, False, False,
    ]  # fmt: skip


def test_what_cannot_be_built_harms_no_other(registry: Registry) -> None:
    specs = [_spec("focal", gamma=1.0), _spec("focal", gamma=-1.0), _spec("focal", gamma=3.0)]
    looks = Looks(specs, registry, _probe("multiclass"))
    refused = preflight_all(looks, registry.get("accuracy"))
    assert [r and r.reason for r in refused] == [None, "raises", None]
    assert [f is None for f in fingerprint_all(looks)] == [False, True, False]


def test_one_call_serves_all_places(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    together = State._together

    def counted(self: State, rows: Tensor) -> Any:
        calls.append(len(rows))
        return together(self, rows)

    monkeypatch.setattr(State, "_together", counted)
    specs = [_spec("focal", gamma=0.5 * i) for i in range(4)]
    looks = Looks(specs, registry, _probe("multiclass"))
    assert calls == [4 * (len(module.PLACES) + 1)]
    fingerprint_all(looks)
    assert len(calls) == 1  # all of it was seen
    preflight_all(looks, registry.get("accuracy"))
    assert set(calls[1:]) <= {1, 2, 3, 4} and len(calls) < 12  # the way down


def test_few_rows_at_once_are_the_same(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [_spec("poly_loss", epsilon=float(i)) for i in range(3)]
    whole = Looks(specs, registry, _probe("multiclass")).together[0][1]
    monkeypatch.setattr(module, "ROW", 1)
    parts = Looks(specs, registry, _probe("multiclass")).together[0][1]
    for place in (*module.PLACES, Place(EXTREME)):
        for one, other in zip(whole.look(place), parts.look(place), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_state_keeps_rows(registry: Registry) -> None:
    looks = Looks([_spec("arcface"), _spec("arcface", scale=10.0)], registry,
                  _probe("multiclass"))  # fmt: skip
    function: Function = looks.together[0][1]
    state = State(function, [0, 1], [Place(1.0)] * 2)
    logits, gradients = state.logits(), state.gradient()[1]
    assert not torch.allclose(logits[0], logits[1])  # cosines, by other scales
    state.keep([1])
    torch.testing.assert_close(state.logits(), logits[1:])
    torch.testing.assert_close(state.gradient()[1], gradients[1:], rtol=1e-4, atol=1e-6)
