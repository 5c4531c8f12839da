"""Before a trial costs anything: can its objective teach a model at all?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lossearch.components import Component
from lossearch.errors import LossearchError, NotFiniteError
from lossearch.objective import Objective
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec
from lossearch.trials.looks import Function, Looks, State
from lossearch.trials.probe import EXTREME, Place, Probe, alone

Reason = Literal[
    "raises",
    "not_finite",
    "no_gradient",
    "wrong_sign",
    "does_not_learn",
    "worker_died",  # these two are found where its process ended
    "timed_out",
]

# Standard deviations of the logits: at the start of a training, and well into it.
ORDINARY = (0.2, 1.0, 2.0)
# Of the descent: first where most losses learn; then for those that leave out what is far from
# learned (as a new network is not), and those that teach only the confident.
STARTS = (1.5, 0.2, 6.0)
STEPS, LOOK_EVERY, SIZE = 40, 5, 0.15
RISE = 0.15  # of accuracy or probability
AGAINST = 1e-3  # of all movement; what does not look at the targets has 0, but for rounding


@dataclass(frozen=True)
class Refusal:
    """Why an objective is not worth a training step."""

    reason: Reason
    detail: str


def preflight(
    spec: ObjectiveSpec,
    registry: Registry,
    probe: Probe,
    metric: Component,
    *,
    bf16: bool = False,
) -> Refusal | None:
    """Look at an objective on the probe, in milliseconds.

    In this order, with these reasons:

    - ``raises``: it cannot be built, or raises on the probe;
    - ``not_finite``: the value or the gradient is not, at logits of standard deviation 0.2, 1 and
      2, of +80 and -80, in bfloat16 where asked for, or on the way down;
    - ``no_gradient``: the gradient is zero at every ordinary output;
    - ``wrong_sign``: a step against the gradient lowers the true logits against the others, in
      the sum over the samples;
    - ``does_not_learn``: following the gradient for 40 steps of equal size raises neither
      the accuracy, nor the probability of the truth, nor the study's metric.

    It judges the objective as a whole, freshly built, with what its components know at the start
    of training (at extreme outputs: at its end). The bar is low on purpose: an objective that
    fails it teaches nothing, one that passes may still be bad. What reads a field that the probe
    cannot make passes unseen; a loss that learns itself, calls the network or has a prediction
    rule of its own has only to be finite. The global random state stays as it was.

    Args:
        spec: The objective, feasible for the study.
        registry: Where its components are looked up.
        probe: The study's probe.
        metric: The study's metric.
        bf16: Whether it will be trained in bfloat16.

    Returns:
        The first refusal, or ``None`` where nothing speaks against it.
    """
    return preflight_all(Looks([spec], registry, probe), metric, bf16=bf16)[0]


def preflight_all(looks: Looks, metric: Component, *, bf16: bool = False) -> list[Refusal | None]:
    """:func:`preflight` of each of several objectives."""
    found: list[Refusal | None] = [None] * len(looks.specs)
    one_by_one = list(looks.alone)
    for places, function in looks.together:
        try:
            with alone():
                judged = _judge(function, lambda own=function: own, metric, bf16)
        except Exception:  # one by one it is known whose fault it is
            one_by_one += places
            continue
        for member, refusal in judged.items():
            found[places[member]] = refusal
    for i in one_by_one:
        with alone():
            try:
                found[i] = _alone(looks, i, metric, bf16)
            except NotFiniteError as error:
                found[i] = Refusal("not_finite", str(error))
            except Exception as error:  # whatever a plugin raises is a reason, never a crash
                lines = str(error).strip().splitlines() or [""]
                found[i] = Refusal("raises", f"{type(error).__name__}: {lines[-1]}")
    return found


def _alone(looks: Looks, i: int, metric: Component, bf16: bool) -> Refusal | None:
    function = looks.build(i)
    if looks.probe.lacks(function.objectives[0]):
        return None
    function.objectives[0].start_epoch(0)
    return _judge(function, lambda: looks.build(i), metric, bf16).get(0)


Refusals = dict[int, Refusal]  # by the member of a function


def _judge(
    function: Function, fresh: Callable[[], Function], metric: Component, bf16: bool
) -> Refusals:
    found = _first_look(function)
    judges = [
        lambda rest: _descent(function, rest, metric),
        lambda rest: _extremes(fresh, rest, bf16),
    ]
    if any(map(_shows_later, function.objectives)):
        found = {i: refusal for i, refusal in found.items() if refusal.reason == "not_finite"}
        judges = judges[1:]
    for judge in judges:
        rest = [i for i in range(len(function.objectives)) if i not in found]
        found |= judge(rest) if rest else {}
    return found


def _shows_later(objective: Objective) -> bool:
    """Whether where it leads shows only in training.

    A loss learns itself, predicts by a rule of its own, or calls the network, for which the probe
    has but a stand-in.
    """
    own = any(p.requires_grad for term in objective.terms for p in term.parameters())
    return own or objective.predicts or "model" in objective.reads | objective.uses


def _first_look(function: Function) -> Refusals:
    """Finite, not flat, and towards the truth at ordinary outputs."""
    members = range(len(function.objectives))
    found: Refusals = {}
    rows: list[Any] = []
    for scale in ORDINARY:
        values, gradients = function.look(Place(scale))
        where = f"at logits of standard deviation {scale:g}"
        found = {**_not_finite(values, gradients, members, where), **found}
        if len(found) == len(members):
            return found
        rows += gradients
    state = State(
        function, [*members] * len(ORDINARY), [Place(scale) for scale in ORDINARY for _ in members]
    )
    towards = function.probe.towards_truth(*state.change(rows)).tolist()
    ways: dict[int, list[float]] = {i: [] for i in members}
    for i, row, way in zip(state.members, rows, towards, strict=True):
        if row.any():
            ways[i].append(way)
    flat = [i for i in members if not ways[i] and i not in found]
    if flat:
        _, gradients = function.look(Place(STARTS[-1]), members=flat)
        for i, taught in zip(flat, gradients.any(1).tolist(), strict=True):
            if not taught:
                why = "the gradient is zero at every ordinary output"
                found[i] = Refusal("no_gradient", why)
    for i in members:
        if ways[i] and max(ways[i]) < -AGAINST and i not in found:
            why = "a step against the gradient lowers the true logits against the others"
            found[i] = Refusal("wrong_sign", why)
    return found


def _descent(function: Function, members: Sequence[int], metric: Component) -> Refusals:
    """Whether following the gradient teaches, from outputs that know nothing of the targets."""
    found: Refusals = {}
    best = dict.fromkeys(members, 0.0)
    rest = list(members)
    for scale in STARTS:
        passed = _descend(function, rest, Place(scale), metric, best, found)
        rest = [i for i in rest if i not in passed and i not in found]
        if not rest:
            break
    for i in rest:
        found[i] = Refusal(
            "does_not_learn",
            f"{STEPS} steps down its gradient raise neither the accuracy nor the probability of "
            f"the truth by {RISE:g} (by {best[i]:.2g} at the most), and do not improve "
            f"{metric.name}",
        )
    return found


def _descend(
    function: Function,
    members: list[int],
    place: Place,
    metric: Component,
    best: dict[int, float],
    found: Refusals,
) -> set[int]:
    """Which of some members learn from one start; what the others do goes to ``found``."""
    probe, passed = function.probe, set[int]()
    state = State(function, members, [place] * len(members))
    begin = state.logits()
    share, hits = probe.right(begin)
    for step in range(1, STEPS + 1):
        if step == 1:
            values, gradients = function.look(place, members=members)
        else:
            values, gradients = state.gradient()
        where = f"after {step - 1} steps down its gradient"
        wrong = _not_finite(values, gradients, state.members, where)
        found |= wrong
        state.move(gradients, SIZE)
        leave = {row for row, i in enumerate(state.members) if i in wrong}
        if step % LOOK_EVERY == 0:
            logits = state.logits()
            moved = (logits != begin).reshape(*share.shape, -1).any(2)
            # of what it does not touch, a loss need not raise anything
            now, hit = probe.right(logits)
            touched = moved.sum(1)
            shares = (((now - share) * moved).sum(1) / touched.clamp(min=1)).tolist()
            rises = (hit - hits).mean(1).tolist()
            for row, i in enumerate(state.members):
                best[i] = max(best[i], shares[row], rises[row])
                if i not in found and best[i] > RISE:
                    passed.add(i)
            stuck = set((touched == 0).nonzero().flatten().tolist())
            leave |= stuck | {row for row, i in enumerate(state.members) if i in passed}
        if step == STEPS or not leave:
            continue
        rows = [row for row in range(len(state.members)) if row not in leave]
        if not rows:
            return passed
        state.keep(rows)
        begin, share, hits = begin[rows], share[rows], hits[rows]
    for i, before, after in zip(state.members, begin, state.logits(), strict=True):
        if i not in found and i not in passed and _metric_rises(metric, probe, before, after):
            passed.add(i)
    return passed


def _metric_rises(metric: Component, probe: Probe, begin: Any, end: Any) -> bool:
    """Whether the study's metric is better by a tenth; it may have no value on the probe."""
    bound = metric.build(task=probe.task)
    try:
        before, after = (
            float(bound({"logits": z, "predictions": z, "targets": probe.targets}))
            for z in (begin.double(), end.double())
        )
    except LossearchError:
        return False
    gain = after - before if metric.maximize else before - after
    return math.isfinite(gain) and gain > RISE * abs(before)


def _extremes(fresh: Callable[[], Function], members: Sequence[int], bf16: bool) -> Refusals:
    """Finite where a network that has learned, or has run away, ends."""
    found: Refusals = {}
    looks = [(EXTREME, False, "at logits of +80 and -80")]
    if bf16:
        looks.append((1.0, True, "in bfloat16"))
        looks.append((EXTREME, True, "at logits of +80 and -80 in bfloat16"))
    for scale, half, where in looks:
        rest = [i for i in members if i not in found]
        if rest:
            values, gradients = fresh().look(Place(scale), at=1.0, half=half, members=rest)
            found |= _not_finite(values, gradients, rest, where)
    return found


def _not_finite(values: Any, gradients: Any, members: Sequence[int], where: str) -> Refusals:
    found: Refusals = {}
    if values.isfinite().all() and gradients.isfinite().all():
        return found
    for i, value, gradient in zip(members, values.tolist(), gradients, strict=True):
        if not math.isfinite(value):
            found[i] = Refusal("not_finite", f"the value is {value} {where}")
        elif not gradient.isfinite().all():
            found[i] = Refusal("not_finite", f"the gradient is not finite {where}")
    return found
