"""Preflight: bad objectives are refused for the right reason, and no good one is."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossearch
from lossearch.components import component_of
from lossearch.registry import Registry
from lossearch.space import Space
from lossearch.spec import ObjectiveSpec
from lossearch.trials.preflight import Refusal, preflight
from lossearch.trials.probe import Probe

TASKS = ("multiclass", "binary", "multilabel")
COUNTS = {
    "multiclass": (150, 90, 60, 40, 30, 20, 15, 10, 8, 5),
    "binary": (200, 20),
    "multilabel": (100, 60, 15, 5, 40),
}
FIELDS = {
    *("logits", "targets", "embeddings", "weight", "index", "class_counts", "epoch", "step"),
    *("total_steps", "inputs", "model"),
}


def _bad(task: Any = TASKS, **more: Any) -> Any:
    return lossearch.loss(task=task, **more)


def _entropy(z: Tensor, t: Tensor) -> Tensor:
    if t.is_floating_point():
        values = F.binary_cross_entropy_with_logits(z, t, reduction="none")
        return values.mean(1) if values.ndim > 1 else values
    return F.cross_entropy(z, t, reduction="none")


@_bad()
def bad_sign(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, upwards."""
    return -_entropy(logits, targets)


@_bad("multiclass")
def bad_class(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the next class."""
    return _entropy(logits, (targets + 1) % logits.shape[1])


@_bad("multiclass")
def bad_cosine(embeddings: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cosines pushed away from their class."""
    cos = F.normalize(embeddings) @ F.normalize(weight).T
    return -F.cross_entropy(10 * cos, targets, reduction="none")


@_bad()
def bad_constant(logits: Tensor, targets: Tensor) -> Tensor:
    """One, whatever the outputs."""
    return torch.ones(len(logits))


@_bad()
def bad_zero(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy times nothing."""
    return 0 * _entropy(logits, targets)


@_bad("multiclass")
def bad_root(logits: Tensor, targets: Tensor) -> Tensor:
    """Finite in its value, and not in its slope where p is 1."""
    return (1 - logits.softmax(1).gather(1, targets[:, None])[:, 0]).sqrt()


@_bad("multiclass")
def bad_log(logits: Tensor, targets: Tensor) -> Tensor:
    """The logarithm of a probability that becomes 0."""
    return -logits.softmax(1).gather(1, targets[:, None])[:, 0].log()


@_bad("multiclass")
def bad_half(logits: Tensor, targets: Tensor) -> Tensor:
    """Finite in float32, not in half precision."""
    overflow = float("inf") if logits.dtype == torch.bfloat16 else 0.0
    return _entropy(logits, targets) + overflow


@_bad()
def bad_idle(logits: Tensor, targets: Tensor) -> Tensor:
    """Small logits, whatever the targets."""
    return logits.square().reshape(len(logits), -1).mean(1)


@_bad("multiclass")
def bad_sure(logits: Tensor, targets: Tensor) -> Tensor:
    """Sure of anything."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


@_bad("multiclass")
def bad_shuffled(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of other samples' targets."""
    return _entropy(logits, targets[torch.randperm(len(targets))])


@_bad()
def bad_crash(logits: Tensor, targets: Tensor) -> Tensor:
    """Not written yet."""
    raise RuntimeError("several lines\nof which the last\nsays it")


@_bad("multiclass", name="bad_built")
class BadBuilt(nn.Module):
    """It cannot be made."""

    def __init__(self) -> None:
        super().__init__()
        raise ZeroDivisionError

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.sum(1) + targets


@_bad("multiclass")
def good_teacher(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Distillation, with the targets unseen."""
    return (teacher_logits.softmax(1) * -logits.log_softmax(1)).sum(1)


@_bad("multiclass")
def good_calls_again(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """It runs the network itself, a little aside."""
    return F.cross_entropy(model(inputs + 0.01)["logits"], targets, reduction="none")


@_bad("multiclass")
def good_bag(logits: Tensor, bag: Tensor) -> Tensor:
    """It reads what no probe can know."""
    return -logits[:, 0] * bag


@pytest.fixture(scope="module")
def salted(registry: Registry) -> Registry:
    made = Registry()
    for component in registry:
        made.add(component, registry.owner(component.name))
    for name, value in globals().items():
        if name.lower().startswith(("bad", "good_")):
            made.add(component_of(value), "test")
    return made


def _probe(task: str, classes: int = 0) -> Probe:
    counts = tuple(5 + 3 * i for i in range(classes)) or COUNTS[task]
    return Probe.make(task, num_classes=len(counts), class_counts=counts, train_size=sum(counts))


def _look(
    registry: Registry, task: str, *terms: Any, bf16: bool = False, metric: str = "accuracy"
) -> Refusal | None:
    spec = ObjectiveSpec.parse({"task": task, "terms": [{"loss": term} for term in terms]})
    return preflight(spec, registry, _probe(task), registry.get(metric), bf16=bf16)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "name, reason",
    [
        ("bad_sign", "wrong_sign"),
        ("bad_constant", "no_gradient"),
        ("bad_zero", "no_gradient"),
        ("bad_idle", "does_not_learn"),
        ("bad_crash", "raises"),
    ],
)
def test_refused_in_every_task(salted: Registry, task: str, name: str, reason: str) -> None:
    refusal = _look(salted, task, name)
    assert refusal is not None and refusal.reason == reason


@pytest.mark.parametrize(
    "name, reason, detail",
    [
        ("bad_class", "wrong_sign", "lowers the true logits"),
        ("bad_cosine", "wrong_sign", "lowers the true logits"),
        ("bad_root", "not_finite", "the gradient is not finite at logits of +80 and -80"),
        ("bad_log", "not_finite", "the value is inf at logits of +80 and -80"),
        ("bad_sure", "does_not_learn", "do not improve accuracy"),
        ("bad_shuffled", "does_not_learn", "40 steps"),
        ("bad_crash", "raises", "RuntimeError: says it"),
        ("bad_built", "raises", "ZeroDivisionError: "),
    ],
)
def test_refused_with_a_named_reason(
    salted: Registry, name: str, reason: str, detail: str
) -> None:
    refusal = _look(salted, "multiclass", name)
    assert refusal is not None
    assert refusal.reason == reason and detail in refusal.detail


def test_half_precision_is_looked_at_where_asked(salted: Registry) -> None:
    assert _look(salted, "multiclass", "bad_half") is None
    refusal = _look(salted, "multiclass", "bad_half", bf16=True)
    assert refusal is not None and refusal.reason == "not_finite"
    assert refusal.detail.endswith("in bfloat16")


def test_a_part_that_teaches_nothing_is_no_fault_of_the_whole(salted: Registry) -> None:
    assert _look(salted, "multiclass", "orthogonal_projection") is not None
    assert _look(salted, "multiclass", "cross_entropy", "orthogonal_projection") is None
    assert _look(salted, "multiclass", "cross_entropy", "bad_idle") is None


@pytest.mark.parametrize("name", ["good_teacher", "good_calls_again", "good_bag"])
def test_fields_of_providers(salted: Registry, name: str) -> None:
    assert _look(salted, "multiclass", name) is None


def _random_objectives(
    registry: Registry, task: str, count: int
) -> list[tuple[str, ObjectiveSpec]]:
    """Every reference of the bundled spaces, and random points of them."""
    made: list[tuple[str, ObjectiveSpec]] = []
    for name, text in sorted(registry.spaces.items()):
        try:
            space = Space.from_document(text, registry=registry, task=task, available=FIELDS)
        except lossearch.errors.SpecError:
            continue  # a space of another task
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
        made += [(name, spec) for spec, _ in space.references()]
        made += [(name, space.suggest(study.ask())) for _ in range(count)]
    return made


def _hopeless(spec: ObjectiveSpec, refusal: Refusal) -> bool:
    """What is in the ranges, and rightly refused.

    A loss truncated above 1/C has no gradient where it is largest, and ohem keeps just these
    samples: trained on digits it stays at chance. A soft_top_k whose sigmoids are all saturated
    has none either. And uncertainty refuses negative losses.
    """
    truncated = any(
        term.loss.name == "generalized_cross_entropy" and term.miner is not None
        and term.miner.name == "ohem" and term.loss.params.get("k", 0) > 1 / 10
        for term in spec.terms
    )  # fmt: skip
    saturated = any(
        term.loss.name == "soft_top_k"
        and term.loss.params.get("alpha", 2) / term.loss.params.get("temperature", 1) > 100
        for term in spec.terms
    )
    negative = refusal.reason == "raises" and "uncertainty: the loss" in refusal.detail
    return truncated or saturated or negative


@pytest.mark.parametrize("task, count", [("multiclass", 30), ("binary", 50), ("multilabel", 65)])
def test_no_bundled_objective_is_refused(registry: Registry, task: str, count: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    probe, metric = _probe(task), registry.get("accuracy")
    objectives = _random_objectives(registry, task, count)
    assert len(objectives) > 200
    refused = [
        (name, spec.label(), refusal)
        for name, spec in objectives
        if (refusal := preflight(spec, registry, probe, metric, bf16=True))
        and not _hopeless(spec, refusal)
    ]
    assert refused == []


def test_a_truncation_below_one_in_c_learns(registry: Registry) -> None:
    """It has no gradient at logits of standard deviation 1, but a new network's are smaller."""
    term = {
        "loss": {"name": "generalized_cross_entropy", "q": 0.689, "k": 0.0779},
        "miner": {"name": "ohem", "keep_ratio": 0.246},
    }
    spec = ObjectiveSpec.parse({"task": "multiclass", "terms": [term]})
    assert preflight(spec, registry, _probe("multiclass"), registry.get("accuracy")) is None


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_the_number_of_classes_does_not_matter(registry: Registry, classes: int) -> None:
    probe, metric = _probe("multiclass", classes), registry.get("accuracy")
    refused = [
        (loss.name, refusal)
        for loss in registry.list("loss", "multiclass")
        if not loss.auxiliary and loss.name != "loss_ensemble"
        and (refusal := preflight(
            ObjectiveSpec.parse({"task": "multiclass", "terms": [{"loss": loss.name}]}),
            registry, probe, metric,
        ))
    ]  # fmt: skip
    # two standardised logits are 1 and -1, whatever they were: z_loss is flat, and rightly refused
    assert [name for name, _ in refused] == (["z_loss"] if classes == 2 else [])


@pytest.mark.parametrize("metric", ["auroc", "nll", "macro_f1", "ece"])
def test_whatever_the_metric(salted: Registry, metric: str) -> None:
    assert _look(salted, "multiclass", "cross_entropy", metric=metric) is None
    assert _look(salted, "multiclass", "bad_sign", metric=metric) is not None


def test_the_random_state_and_the_registry_stay(salted: Registry) -> None:
    torch.manual_seed(5)
    before, python = torch.get_rng_state(), random.getstate()
    numpy = str(np.random.get_state())
    current = lossearch.registry.current()
    for name in ("ensloss", "bad_shuffled", "bad_crash"):
        _look(salted, "multiclass", name)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python and str(np.random.get_state()) == numpy
    assert lossearch.registry.current() is current


def test_the_answer_is_always_the_same(salted: Registry) -> None:
    first = _look(salted, "multiclass", "bad_shuffled")
    torch.rand(3)
    assert _look(salted, "multiclass", "bad_shuffled") == first


def test_a_probe_is_made_of_its_arguments_alone() -> None:
    one, same = _probe("multiclass"), _probe("multiclass")
    assert torch.equal(one.embeddings, same.embeddings) and torch.equal(one.targets, same.targets)
    other = Probe.make("binary", num_classes=2, class_counts=(3, 4), train_size=7, seed=1)
    assert set(other.targets.tolist()) == {0.0, 1.0}
    assert int(other.fields["index"].max()) < 7


@pytest.mark.parametrize("task", TASKS)
def test_the_outputs_know_nothing_of_the_targets(task: str) -> None:
    """What moves the outputs without looking at the targets raises nothing true on average."""
    probe = _probe(task)
    logits = probe.embeddings @ probe.weight.T
    logits = logits[:, 0] if task == "binary" else logits
    before, after = (probe.right(z)[0].mean() for z in (logits, 3 * logits.sin()))
    assert float(after) == pytest.approx(float(before), abs=1e-6)
    assert probe.towards_truth(logits, logits.cos()) == pytest.approx(0, abs=1e-4)


def test_it_takes_milliseconds(registry: Registry) -> None:
    _look(registry, "multiclass", "cross_entropy")
    times = []
    for _ in range(9):
        begin = time.thread_time()  # not slowed by what else the machine does
        _look(registry, "multiclass", "cross_entropy")
        times.append(time.thread_time() - begin)
    assert min(times) < 0.02
