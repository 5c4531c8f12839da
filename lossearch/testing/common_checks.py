"""Checks that every kind of component has to pass."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossearch.components.params import Range, is_integer
from lossearch.testing import batches
from lossearch.testing.subject import Subject

Rule = Callable[[Subject], None]
STACK = 3  # models in a stack, for vmap


def close(subject: Subject, found: Tensor, expected: Tensor, problem: str, hint: str = "") -> None:
    """Fail with ``problem`` and the largest difference unless the two are equal up to rounding."""
    if found.shape != expected.shape:
        shapes = f"{list(found.shape)} instead of {list(expected.shape)}"
        subject.expect(False, f"{problem}: {shapes}", hint)
    found, expected = found.double(), expected.double()
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        gap = (found - expected).abs().max().item()
        subject.expect(False, f"{problem}: they differ by up to {gap:.3g}", hint)


def draws_by_itself(subject: Subject) -> bool:
    """Whether it has a generator of its own, so that a sample's value depends on its place."""
    facts = subject.component.signature.facts.values()
    return "seed" in facts and "draws" not in subject.batch()


def shared_rules(subject: Subject) -> Iterator[tuple[str, Rule]]:
    """The checks of every kind."""
    component = subject.component
    yield "inputs untouched", inputs_untouched
    yield "global state untouched", global_state_untouched
    yield "parameters round trip", parameters_round_trip
    if component.stateful:
        yield "state round trip", state_round_trip
        yield "evaluation keeps state", evaluation_keeps_state


def parameters_round_trip(subject: Subject) -> None:
    """Hyperparameters survive JSON: that is how they are recorded and sent to workers."""
    params = subject.params
    with subject.reporting("has hyperparameters that JSON cannot hold"):
        again = type(params).model_validate_json(params.model_dump_json())
    subject.expect(
        again == params,
        f"has hyperparameters that change on their way through JSON: {params!r} to {again!r}",
        "Use numbers, strings, bools, None, and lists of them.",
    )


def inputs_untouched(subject: Subject) -> None:
    """No field is changed in place: other terms read the same batch."""
    batch = subject.batch()
    kept = {k: _copied(v) for k, v in batch.items()}
    subject(batch)
    for name, value in batch.items():
        before = kept[name]
        pairs = zip(value, before, strict=True) if isinstance(value, tuple) else [(value, before)]
        same = all(
            torch.equal(new, old)
            for new, old in pairs
            if isinstance(new, Tensor) and isinstance(old, Tensor)
        )
        subject.expect(
            same,
            f"changes the field '{name}' that it is given",
            "Other terms read the same batch: take the out-of-place form (x.add(1), not "
            "x.add_(1); torch.where or x.clone() in place of x[mask] = ...).",
        )


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_copied(each) for each in value)
    return value.clone() if isinstance(value, Tensor) else value


def global_state_untouched(subject: Subject) -> None:
    """No random generator, thread count, default dtype or gradient mode is changed."""
    subject.bound  # noqa: B018 - building may draw initial weights
    before = _global_state()
    subject(subject.batch())
    changed = [what for what, value in _global_state().items() if value != before[what]]
    subject.expect(
        not changed,
        f"changes {' and '.join(changed)}",
        "Draw from a torch.Generator of its own, seeded by a hyperparameter "
        'seed: Annotated[int, Given("seed")] = 0, or read the field draws.',
    )


def _global_state() -> dict[str, Any]:
    return {
        "torch's global random state": torch.get_rng_state().numpy().tobytes(),
        "NumPy's global random state": repr(np.random.get_state()),
        "Python's global random state": random.getstate(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
    }


def state_round_trip(subject: Subject) -> None:
    """A resumed run gives the same numbers as an uninterrupted one."""
    going_on = subject.fresh()
    for seed in (0, 1):
        going_on.start_epoch(seed)
        subject.run(going_on, subject.batch(seed=seed), "an ordinary batch")
        going_on.end_epoch(seed)
    file = io.BytesIO()
    with subject.reporting("has state that a checkpoint cannot hold"):
        torch.save(going_on.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        resumed = subject.component.build(
            **{k: getattr(subject.params, k) for k in type(subject.params).model_fields}
        ).train()
        resumed.load_state_dict(state)
    batch = subject.batch(seed=2)
    going_on.start_epoch(2)
    resumed.start_epoch(2)
    expected = subject.run(going_on, batch, "an ordinary batch")
    found = subject.run(resumed, batch, "a batch after its state was restored")
    for new, old in zip(_tensors(found), _tensors(expected), strict=True):
        close(
            subject,
            new,
            old,
            "goes on differently after its state was saved and restored",
            "Keep state in buffers or parameters, and a generator's in get_extra_state() and "
            "set_extra_state().",
        )


def evaluation_keeps_state(subject: Subject) -> None:
    """In evaluation mode nothing is learned: validation must not leak into training."""
    bound = subject.fresh().eval()
    before = [t.clone() for t in _tensors(bound.state_dict())]
    subject.run(bound, subject.batch(), "an ordinary batch in evaluation mode")
    same = all(
        torch.equal(a, b) for a, b in zip(_tensors(bound.state_dict()), before, strict=True)
    )
    subject.expect(
        same, "changes its state in evaluation mode", "Update state only `if self.training:`."
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach()]
    if isinstance(value, Mapping):
        return [t for each in value.values() for t in _tensors(each)]
    if isinstance(value, (tuple, list)):
        return [t for each in value for t in _tensors(each)]
    return []


def at_range_ends(rule: Callable[[Subject], None]) -> Rule:
    """The same rule with each hyperparameter in turn at each end of its search range."""

    def rule_at_ends(subject: Subject) -> None:
        for name, domain in subject.component.signature.domains.items():
            for end in domain.ends:
                rule(Subject(subject.component, subject.task, {name: end}, subject.terms))

    return rule_at_ends


# vmap -----------------------------------------------------------------------------------------

_VMAP = (
    "Cohorts run it under torch.func.vmap: no .item(), float(), bool() or `if` on a tensor or on "
    "a float hyperparameter; use torch.where. Or declare it with vmap=False."
)


def vmap_over_models(subject: Subject) -> None:
    """Over a stack of models' outputs it gives, and learns, what it does one by one."""
    batch = subject.batch()
    several = [subject.batch(seed=seed) for seed in range(STACK)]
    stacked = {
        k: torch.stack([each[k] for each in several])
        for k in batch
        if k in batches.OUTPUTS or k == "losses"
    }
    if stacked:
        _compare(subject, batch, stacked, {}, "over a stack of models")


def vmap_over_hyperparameters(subject: Subject) -> None:
    """Over a tensor of each float hyperparameter it gives what it does for each number."""
    batch = subject.batch()
    batch = batches.cast(batch, torch.float64, tuple(batch))
    stacked = {
        k: torch.stack([v, 0.5 * v, -v])
        for k, v in batch.items()
        if k in batches.OUTPUTS or k == "losses"
    }
    if "losses" in stacked:
        stacked["losses"] = stacked["losses"].abs()
    for name, values in float_hyperparameters(subject):
        _compare(subject, batch, stacked, {name: values}, f"over '{name}'")


def float_hyperparameters(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Each hyperparameter that is searched over a range of numbers, with some of them."""
    signature = subject.component.signature
    for name, domain in signature.domains.items():
        if isinstance(domain, Range) and not is_integer(signature, name):
            low, high = domain.low, domain.high
            middle = (low * high) ** 0.5 if domain.log else (low + high) / 2
            yield name, torch.tensor([low, middle, high], dtype=torch.float64)


def _compare(
    subject: Subject,
    batch: dict[str, Any],
    stacked: dict[str, Tensor],
    hyper: dict[str, Tensor],
    over: str,
) -> None:
    leaves = {k: v.clone().requires_grad_(k in batches.OUTPUTS) for k, v in stacked.items()}

    def one(fields: dict[str, Tensor], values: dict[str, Any]) -> Tensor:
        bound = subject.fresh()
        bound._values = {**bound._values, **values}
        return bound({**batch, **fields})

    with subject.reporting(f"does not run under vmap {over}"):
        found = torch.func.vmap(one)(leaves, hyper)
    alone = {k: v.detach().clone().requires_grad_(v.requires_grad) for k, v in leaves.items()}
    rows = []
    for i in range(STACK):
        fields = {k: v[i] for k, v in alone.items()}
        with subject.reporting(f"raises with a hyperparameter {over}"):
            rows.append(one(fields, {k: v[i].item() for k, v in hyper.items()}))
    expected = torch.stack(rows)
    close(subject, found, expected, f"gives other values under vmap {over}", _VMAP)
    if not expected.requires_grad:
        return
    with subject.reporting(f"has no backward pass under vmap {over}"):
        found.sum().backward()
    expected.sum().backward()
    for name, leaf in leaves.items():
        slope, wanted = leaf.grad, alone[name].grad
        if slope is not None and wanted is not None:
            problem = f"gives another slope at {name} under vmap {over}"
            close(subject, slope, wanted, problem, _VMAP)
