"""Objectives on the probe: built once, those of one function in one call, each place once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossearch.components.modes import torch_modes_kept
from lossearch.grouped import Grouped, by_signature, signature
from lossearch.objective import Objective, cosine_scale
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec
from lossearch.trials.probe import BY_HEAD, EXTREME, Place, Probe, alone

# What each objective is looked at anyway, and is looked at in one call.
PLACES = (
    *(Place(scale) for scale in (0.2, 1.0, 2.0, 1.5)),
    *(Place(scale, True) for scale in (2.0, 5.0)),
)
SAME = 1e-6  # of its norm: a gradient in the common call against that of the objective alone
ROW = 2**16  # numbers of one leaf in one call: beyond, calls cost nothing and caches do
_HALF = ("logits", "logits_b", "embeddings", "embeddings_b", "predictions")
_CPU = torch.device("cpu")


class Function:
    """Objectives that are looked at together: one function with several numbers, or one alone.

    Args:
        probe: The probe.
        objectives: Built from the probe's facts; of one signature, where there are several.
        alone: Evaluate the one objective by itself each time: it may have state, which goes on
            from look to look.
    """

    def __init__(self, probe: Probe, objectives: Sequence[Objective], *, alone: bool) -> None:
        self.probe, self.objectives = probe, list(objectives)
        first = self.objectives[0]
        # a schedule, which only some members may have, reads the clock
        wants = frozenset().union(*(o.reads | o.uses for o in self.objectives))
        self.by_head = bool(wants & BY_HEAD)
        self.clocked = bool(wants & {"epoch", "step"})
        self.same = None if alone else Grouped(self.objectives, _CPU)
        self.margin = cosine_scale(first) is not None
        self._known: dict[tuple[Place, float, bool], tuple[Tensor, Tensor]] = {}

    def look(
        self,
        place: Place,
        *,
        at: float = 0.0,
        half: bool = False,
        members: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Values ``[members]`` and gradients ``[members, P]`` at a place; see :class:`State`."""
        chosen = range(len(self.objectives)) if members is None else members
        known = self._known.get((place, at if self.clocked else 0.0, half))
        if known is None:
            return State(self, chosen, [place] * len(chosen), at=at, half=half).gradient()
        return known if members is None else (known[0][list(chosen)], known[1][list(chosen)])

    def look_ahead(self, places: Iterable[Place], *, at: float = 0.0, half: bool = False) -> None:
        """Look at several places in one call, for :meth:`look` to tell."""
        places, size = list(places), len(self.objectives)
        rows = State(
            self,
            [i for _ in places for i in range(size)],
            [place for place in places for _ in range(size)],
            at=at,
            half=half,
        )
        values, gradients = rows.gradient()
        key = at if self.clocked else 0.0
        for place, *found in zip(places, values.split(size), gradients.split(size), strict=True):
            self._known[place, key, half] = (found[0], found[1])


class State:
    """Outputs of the probe that objectives can be evaluated at, and that can be moved.

    Free are the logits; or, where the objective reads more of the network than these, the
    embeddings and the head's weight, of which the logits are made.

    Args:
        function: The objectives.
        members: Of each row, which objective it belongs to.
        places: Of each row, where it begins.
        at: How far the training is, from 0 to 1.
        half: Evaluate as mixed precision would: outputs in bfloat16, under autocast.
    """

    def __init__(
        self,
        function: Function,
        members: Iterable[int],
        places: Sequence[Place],
        *,
        at: float = 0.0,
        half: bool = False,
    ) -> None:
        self.function, self.probe, self.half = function, function.probe, half
        self.members = list(members)
        total: int = self.probe.facts["total_steps"]
        # a late epoch lies behind every warm-up that is counted in epochs
        self.clock = {"epoch": round(100 * at), "step": min(round(total * at), total - 1)}
        made = {
            place: self.probe.head_input(place) if function.by_head else self.probe.logits(place)
            for place in set(places)
        }
        self.free = [torch.stack([made[place] for place in places])]
        if function.by_head:
            self.free.append(self.probe.weight.repeat(len(places), 1, 1))
        rows = [function.objectives[i] for i in self.members] if function.margin else []
        self.cosines = torch.tensor([c for o in rows if (c := cosine_scale(o)) is not None])
        self._sizes = [
            f.square().mean(tuple(range(1, f.ndim)), keepdim=True).sqrt() for f in self.free
        ]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        chosen = list(rows)
        self.members = [self.members[i] for i in chosen]
        self.free = [f[chosen] for f in self.free]
        self._sizes = [s[chosen] for s in self._sizes]
        self.cosines = self.cosines[chosen] if len(self.cosines) else self.cosines

    def logits(self) -> Tensor:
        """The logits of each row."""
        if not self.function.by_head:
            return self.free[0].clone()
        return self._scores(self.free[0])

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Each row's value, and its gradient at the free outputs in one row."""
        if len(self.members) == 1:
            return self._alone()
        most = max(1, ROW // self.probe.targets.numel() // max(len(self.probe.weight), 1))
        parts = [self._together(rows) for rows in torch.arange(len(self.members)).split(most)]
        return torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts])

    def move(self, gradients: Tensor, size: float) -> None:
        """Step against the sign of a gradient, by ``size`` of what the outputs are large."""
        parts = gradients.split([f[0].numel() for f in self.free], dim=1)
        for free, part, unit in zip(self.free, parts, self._sizes, strict=True):
            free -= size * unit * part.view_as(free).sign()

    def change(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The logits, and how they move on a short step of their samples against a gradient."""
        before, gradients = self.logits(), torch.stack(list(rows))
        if not self.function.by_head:
            return before, -gradients.view_as(before)
        # the weight stays: what it gains for one sample, it may lose for the others
        embeddings = self.free[0]
        part = gradients[:, : embeddings[0].numel()].view_as(embeddings)
        most = part.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)
        return before, self._scores(embeddings - 1e-2 * self._sizes[0] / most * part) - before

    def _scores(self, embeddings: Tensor) -> Tensor:
        cosine = self.cosines[:, None, None] if len(self.cosines) else None
        return _scores(embeddings, self.free[1], cosine, self.probe.squeeze)

    def _alone(self) -> tuple[Tensor, Tensor]:
        """One row, by its own objective."""
        objective = self.function.objectives[self.members[0]]
        leaves = [f[0].detach().requires_grad_() for f in self.free]
        more: dict[str, Any] = {}
        own = {"logits": leaves[0]}
        cosine = float(self.cosines[0]) if len(self.cosines) else None
        if self.function.by_head:
            more["model"] = head = _Head(leaves[1], cosine, self.probe.squeeze)
            leaves[1] = head.weight
            own = {"embeddings": leaves[0], "weight": head.weight}
        with torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext():
            fields = {**self.probe.fields, **self.clock, **self._fields(own, cosine), **more}
            if self.probe.task == "regression":
                fields["predictions"] = fields["logits"]
            if objective.at == "parameters":
                value = objective.backward(fields, leaves)
            else:
                value = objective(fields)
                if value.requires_grad:  # it is not where it depends on nothing that is free
                    value.backward()
        return value.detach()[None], _in_rows([x.grad for x in leaves], leaves, 0)

    def _together(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Some rows in one call."""
        same = self.function.same
        assert same is not None
        leaves = [f[rows].requires_grad_() for f in self.free]
        names = ("embeddings", "weight") if self.function.by_head else ("logits",)
        own: dict[str, Tensor] = dict(zip(names, leaves, strict=True))
        if len(self.cosines):
            own["cosine"] = self.cosines[rows]
        members = torch.tensor(self.members)[rows]
        batch = {**self.probe.fields, **self.clock}
        same.move_to(batch)
        with torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext():
            values = same.values(batch, own, fields=self._fields, rows=members)
            if values.requires_grad:
                values.sum().backward()
        return values.detach(), _in_rows([x.grad for x in leaves], leaves, 1)

    def _fields(self, own: Mapping[str, Tensor], cosine: Any = None) -> dict[str, Tensor]:
        """The fields that depend on the outputs, of one row."""
        made = dict(own)
        cosine = made.pop("cosine", cosine)
        if self.function.by_head:
            embeddings, weight = made["embeddings"], made["weight"]
            second = embeddings + 0.1 * self.probe.fields["features"]
            made["embeddings_b"], made["inputs"] = second, embeddings
            made["logits"] = _scores(embeddings, weight, cosine, self.probe.squeeze)
            made["logits_b"] = _scores(second, weight, cosine, self.probe.squeeze)
        if not self.half:
            return made
        return {k: v.bfloat16() if k in _HALF else v for k, v in made.items()}


class Looks:
    """What objectives do on a probe, for preflight and fingerprints.

    An objective goes together with others only where its gradient is then, but for rounding, what
    it is alone.

    Args:
        specs: The objectives.
        registry: Where their components are looked up.
        probe: The study's probe.
    """

    def __init__(self, specs: Sequence[ObjectiveSpec], registry: Registry, probe: Probe) -> None:
        self.specs, self.registry, self.probe = list(specs), registry, probe
        self.together: list[tuple[list[int], Function]] = []
        with alone():
            built = [self._built(spec) for spec in self.specs]
            for places in by_signature(built):
                with torch_modes_kept():
                    function = self._together([o for i in places if (o := built[i]) is not None])
                if function is not None:
                    self.together.append((places, function))
        joined = {i for places, _ in self.together for i in places}
        self.alone = [i for i in range(len(self.specs)) if i not in joined]

    def build(self, i: int, seed: int = 0) -> Function:
        """An objective by itself, as it is before training."""
        facts = {**self.probe.facts, "seed": seed}
        return Function(self.probe, [Objective(self.specs[i], self.registry, facts)], alone=True)

    def _built(self, spec: ObjectiveSpec) -> Objective | None:
        try:
            with torch_modes_kept():
                objective = Objective(spec, self.registry, {**self.probe.facts, "seed": 0})
        except Exception:  # it will be built again, and raise, where reasons are given
            return None
        free = "model" not in objective.reads | objective.uses
        return objective if free and not self.probe.lacks(objective) else None

    def _together(self, objectives: list[Objective]) -> Function | None:
        if signature(objectives[0]) is None:
            return None
        function = Function(self.probe, objectives, alone=False)
        try:
            function.look_ahead(PLACES if function.clocked else (*PLACES, Place(EXTREME)))
            values, gradients = function.look(Place(1.0))
            for i in range(len(objectives)):
                value, gradient = State(function, [i], [Place(1.0)]).gradient()
                if value.isfinite() != values[i].isfinite():
                    return None
                if not _close(gradients[i], gradient[0]):
                    return None
        except Exception:  # a loss that vmap cannot take, or that raises alone as well
            return None
        return function


class _Head(nn.Module):
    """The network of the probe: its inputs are the embeddings."""

    def __init__(self, weight: Tensor, cosine: float | None, squeeze: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.cosine, self.squeeze = cosine, squeeze

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(inputs), "embeddings": inputs}

    def head(self, embeddings: Tensor) -> Tensor:
        """Its scores, for a loss that drops out embeddings."""
        return _scores(embeddings, self.weight, self.cosine, self.squeeze)


def _scores(embeddings: Tensor, weight: Tensor, cosine: Any, squeeze: bool) -> Tensor:
    if cosine is not None:
        embeddings, weight = F.normalize(embeddings, dim=-1), F.normalize(weight, dim=-1)
    logits = embeddings @ weight.transpose(-1, -2)
    logits = logits if cosine is None else cosine * logits
    return logits[..., 0] if squeeze else logits


def _in_rows(gradients: list[Tensor | None], leaves: list[Tensor], lead: int) -> Tensor:
    found = [
        (torch.zeros_like(leaf) if gradient is None else gradient).flatten(lead)
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]
    return torch.cat(found, lead)[None] if lead == 0 else torch.cat(found, lead)


def _close(one: Tensor, other: Tensor) -> bool:
    if not other.isfinite().all():
        return not bool(one.isfinite().all())
    return float((one - other).norm()) <= SAME * float(other.norm())
