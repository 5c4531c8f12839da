"""Before a trial costs anything: can its objective teach a model at all?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from lossearch.components import Component
from lossearch.errors import LossearchError
from lossearch.objective import Objective
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec
from lossearch.trials.probe import EXTREME, Probe, State, alone

Reason = Literal["raises", "not_finite", "no_gradient", "wrong_sign", "does_not_learn"]

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
    cannot make passes unseen. The global random state stays as it was.

    Args:
        spec: The objective, feasible for the study.
        registry: Where its components are looked up.
        probe: The study's probe.
        metric: The study's metric.
        bf16: Whether it will be trained in bfloat16.

    Returns:
        The first refusal, or ``None`` where nothing speaks against it.
    """
    with alone():
        try:
            objective = Objective(spec, registry, {**probe.facts, "seed": 0})
            if probe.lacks(objective):
                return None
            objective.start_epoch(0)
            return (
                _first_look(objective, probe)
                or _descent(objective, probe, metric)
                or _extremes(spec, registry, probe, bf16)
            )
        except Exception as error:  # whatever a plugin raises is a reason, never a crash
            lines = str(error).strip().splitlines() or [""]
            return Refusal("raises", f"{type(error).__name__}: {lines[-1]}")


def _first_look(objective: Objective, probe: Probe) -> Refusal | None:
    """Finite, not flat, and towards the truth at ordinary outputs."""
    flat, ways = True, []
    for scale in ORDINARY:
        state = State(probe, objective, scale)
        value, gradient = state.gradient()
        refusal = _not_finite(value, gradient, f"at logits of standard deviation {scale:g}")
        if refusal:
            return refusal
        if gradient.any():
            flat = False
            ways.append(probe.towards_truth(*state.change(gradient)))
    if flat:
        _, gradient = State(probe, objective, STARTS[-1]).gradient()
        if not gradient.any():
            return Refusal("no_gradient", "the gradient is zero at every ordinary output")
    if ways and max(ways) < -AGAINST:
        return Refusal(
            "wrong_sign", "a step against the gradient lowers the true logits against the others"
        )
    return None


def _descent(objective: Objective, probe: Probe, metric: Component) -> Refusal | None:
    """Whether following the gradient teaches, from outputs that know nothing of the targets."""
    best = 0.0
    for scale in STARTS:
        state = State(probe, objective, scale)
        begin = state.outputs()["logits"].detach().clone()
        share, hits = probe.right(begin)
        for step in range(1, STEPS + 1):
            value, gradient = state.gradient()
            refusal = _not_finite(value, gradient, f"after {step - 1} steps down its gradient")
            if refusal:
                return refusal
            state.move(gradient, SIZE)
            if step % LOOK_EVERY:
                continue
            logits = state.outputs()["logits"].detach()
            moved = (logits != begin).flatten(1).any(1) if logits.ndim > 1 else logits != begin
            if not moved.any():
                break
            # of what it does not touch, a loss need not raise anything
            now, hit = probe.right(logits)
            best = max(best, float((now - share)[moved].mean()), float((hit - hits).mean()))
            if best > RISE:
                return None
        if _metric_rises(metric, probe, begin, state.outputs()["logits"].detach()):
            return None
    return Refusal(
        "does_not_learn",
        f"{STEPS} steps down its gradient raise neither the accuracy nor the probability of the "
        f"truth by {RISE:g} (by {best:.2g} at the most), and do not improve {metric.name}",
    )


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


def _extremes(
    spec: ObjectiveSpec, registry: Registry, probe: Probe, bf16: bool
) -> Refusal | None:
    """Finite where a network that has learned, or has run away, ends."""
    looks = [(EXTREME, False, "at logits of +80 and -80")]
    if bf16:
        looks.append((1.0, True, "in bfloat16"))
        looks.append((EXTREME, True, "at logits of +80 and -80 in bfloat16"))
    for scale, half, where in looks:
        objective = Objective(spec, registry, {**probe.facts, "seed": 0})
        value, gradient = State(probe, objective, scale, at=1.0, half=half).gradient()
        refusal = _not_finite(value, gradient, where)
        if refusal:
            return refusal
    return None


def _not_finite(value: float, gradient: Any, where: str) -> Refusal | None:
    if not math.isfinite(value):
        return Refusal("not_finite", f"the value is {value} {where}")
    if not gradient.isfinite().all():
        return Refusal("not_finite", f"the gradient is not finite {where}")
    return None
