"""Which objectives are the same function in another guise: their gradients on the probe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lossearch.components import Bound
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec
from lossearch.trials.looks import Function, Looks
from lossearch.trials.probe import Place, Probe, alone

# Standard deviation of the logits, and whether they know of the targets: what a margin or a
# truncation does shows only in samples that are learned.
STATES = (Place(1.0), Place(2.0, True), Place(5.0, True))
POINTS = (0.5, 0.999)  # of a training, beside its start
BUCKETS = 64  # of the sketch of a gradient
SIZE = len(STATES) * (BUCKETS + 1)
# The same function in another formula differs by up to 1e-6 in float32; focal(gamma=2) and
# focal(gamma=2.01) by 3e-4 and more.
TOLERANCE = 2e-5
SAME_TRAINING = 0.01


def fingerprint(spec: ObjectiveSpec, registry: Registry, probe: Probe) -> np.ndarray | None:
    """What an objective does to the outputs, up to a positive factor, in 195 numbers.

    Its gradient on the probe at three states of the outputs, each made a unit vector and sketched
    to 64 numbers (a count sketch, arXiv:1412.7449, which keeps distances but for some 10 %); how
    the three norms compare; and, last, the logarithm of the first norm, which alone depends on
    the factor.

    ``None`` where the gradient is not a function of the batch: a component has state or learns, a
    second look with other random numbers differs, the gradient changes in the course of training,
    or the objective cannot be evaluated. Then the objective is equal only to itself.
    """
    return fingerprint_all(Looks([spec], registry, probe))[0]


def fingerprint_all(looks: Looks) -> list[np.ndarray | None]:
    """:func:`fingerprint` of each of several objectives."""
    found: list[np.ndarray | None] = [None] * len(looks.specs)
    one_by_one = list(looks.alone)
    for places, function in looks.together:  # none with state, or with random numbers
        try:
            with alone(1):
                made = _of(function, function)
        except Exception:
            one_by_one += places
            continue
        for i, each in zip(places, made, strict=True):
            found[i] = each
    for i in one_by_one:
        try:
            with alone(1):
                found[i] = _alone(looks, i)
        except Exception:  # whatever a plugin raises; preflight says what it was
            continue
    return found


def _alone(looks: Looks, i: int) -> np.ndarray | None:
    function = looks.build(i)
    objective = function.objectives[0]
    stateful = any(isinstance(m, Bound) and m.component.stateful for m in objective.modules())
    if stateful or looks.probe.lacks(objective):
        return None
    return _of(function, looks.build(i, seed=1))[0]


def _of(function: Function, other: Function) -> list[np.ndarray | None]:
    """Those of a function's members; ``other`` is built from another seed."""
    gradients = [function.look(place)[1].double().numpy() for place in STATES]
    again = [] if other is function else [other.look(STATES[0])[1].double().numpy()]
    if function.clocked:
        again += [function.look(STATES[0], at=at)[1].double().numpy() for at in POINTS]
    return [
        _numbers([g[i] for g in gradients], [g[i] for g in again])
        for i in range(len(function.objectives))
    ]


def _numbers(gradients: list[np.ndarray], again: list[np.ndarray]) -> np.ndarray | None:
    norms = np.array([np.linalg.norm(g) for g in gradients])
    if not np.isfinite(norms).all() or not norms[0] > 0:
        return None
    if any(np.linalg.norm(g - gradients[0]) > 1e-6 * norms[0] for g in again):
        return None
    sketches = [_sketch(g / max(n, 1e-30)) for g, n in zip(gradients, norms, strict=True)]
    ratios = np.log(np.maximum(norms[1:], 1e-30) / norms[0])
    return np.round(np.concatenate([*sketches, ratios, [np.log(norms[0])]]), 7)


def _sketch(vector: np.ndarray) -> np.ndarray:
    buckets, signs = _places(len(vector))
    return np.bincount(buckets, signs * vector, BUCKETS)


@lru_cache(maxsize=8)
def _places(length: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket and the sign of each place of a vector: the same in every process."""
    generator = np.random.default_rng(length)
    return generator.integers(0, BUCKETS, length), generator.choice((-1.0, 1.0), length)


@dataclass(frozen=True)
class Match:
    """A trial that an objective equals, and its label: ``equals focal(gamma=2)``."""

    trial: int
    label: str


class Fingerprints:
    """The trials of a study, to be found again by what their objectives do.

    Two objectives of equal gradient up to a positive factor train alike under Adam and AdamW,
    which divide the factor out (but for their epsilon), where no gradient norm is clipped. Under
    SGD, or with clipping, the factor acts as a learning rate: there they are the same only where
    it is 1, or where the study brings all objectives to one gradient norm.

    Args:
        scale_free: Whether the factor makes no difference to the study's training.
    """

    def __init__(self, *, scale_free: bool = True) -> None:
        self.scale_free = scale_free
        self._by_key: dict[str, list[tuple[Match, Mapping[str, float]]]] = {}
        self._known: list[tuple[Match, Mapping[str, float]]] = []
        self._table = np.empty((64, SIZE))  # a row for each of the known, and room to grow

    def add(
        self,
        trial: int,
        spec: ObjectiveSpec,
        found: np.ndarray | None,
        training: Mapping[str, float],
    ) -> None:
        """Remember a trial.

        Args:
            trial: Its number.
            spec: Its objective.
            found: The objective's fingerprint.
            training: Its training hyperparameters, such as ``lr``.
        """
        entry = (Match(trial, spec.label()), dict(training))
        self._by_key.setdefault(spec.key, []).append(entry)
        if found is None:
            return
        if len(self._known) == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        self._table[len(self._known)] = found
        self._known.append(entry)

    def equal(
        self, spec: ObjectiveSpec, found: np.ndarray | None, training: Mapping[str, float]
    ) -> Match | None:
        """The first trial that this one would repeat, if there is one.

        Its objective is the same document or has the same fingerprint, and its training
        hyperparameters are the same within 1 %: less than the score of a trial can tell apart.
        """
        entries = list(self._by_key.get(spec.key, ()))
        if found is not None and self._known:
            shown = SIZE - 1 if self.scale_free else SIZE
            table = self._table[: len(self._known), :shown]
            near = np.flatnonzero(np.abs(table[:, 0] - found[0]) < TOLERANCE)  # mostly none
            gaps = np.abs(table[near] - found[:shown]).max(1, initial=0)
            entries += [self._known[i] for i in near[gaps < TOLERANCE]]
        same = (match for match, its in entries if _same_training(its, training))
        return min(same, key=lambda match: match.trial, default=None)


def _same_training(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one.keys() == other.keys() and all(
        math.isclose(one[name], other[name], rel_tol=SAME_TRAINING) for name in one
    )
