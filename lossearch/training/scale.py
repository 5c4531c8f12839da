"""Scale is not skill: every objective begins with the baseline's gradient norm.

A loss that is merely larger acts as a larger learning rate, under SGD or wherever gradients are
clipped. So each objective gets the factor that brings its gradient, at the initial weights and on
the first training samples, to the norm of the baseline's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lossearch.components.inputs import fed, without_several
from lossearch.components.modes import torch_modes_kept
from lossearch.grouped import Grouped, by_signature
from lossearch.models import CosineHead
from lossearch.objective import Objective, cosine_scale
from lossearch.spec import ObjectiveSpec
from lossearch.training.plan import Plan

# A loss whose first gradient is smaller or larger by more than this does not become a better one.
LIMIT = 1e3
TOGETHER = 2**22  # numbers of one output in one call
SAME = 1e-5  # a norm in the common call against that of the objective alone


class Scale:
    """The factors of a study's objectives.

    The norm is taken where objectives meet the network: of the gradient at the classifier's
    parameters and at the embeddings that it reads (at the scores, where a model cannot be split).
    The rest of the network follows linearly from there, and its forward pass is done once.

    Args:
        plan: The study's, on the CPU.
        reference: The objective whose norm the others get.
        seed: Of the initial weights.
    """

    def __init__(self, plan: Plan, reference: ObjectiveSpec, seed: int) -> None:
        self.plan, self.seed = plan, seed
        with torch.random.fork_rng(), torch.no_grad():
            self.network = plan.network(seed).to(plan.device).train()
            order = torch.Generator().manual_seed(seed)
            self.batch = next(iter(plan.batches(order, 0)))
            split = self.network.head is not None
            inputs = self.batch["inputs"]
            outputs = fed(self.network.backbone, inputs) if split else self.network(inputs)
        self.batch = without_several(self.batch)
        self.embeddings: Tensor | None = outputs if split else None
        self.logits: Tensor | None = None if split else outputs["logits"]
        self.reference = self.norm(reference)

    def of(self, spec: ObjectiveSpec) -> float:
        """The factor of an objective; 1 where its gradient cannot be had, or the baseline's."""
        return self.of_all([spec])[0]

    def of_all(self, specs: Sequence[ObjectiveSpec]) -> list[float]:
        """:meth:`of` each of several objectives."""
        return [self._factor(norm) for norm in self.norms(specs)]

    def _factor(self, norm: float) -> float:
        if not (norm > 0 and self.reference > 0 and math.isfinite(self.reference / norm)):
            return 1.0
        return float(f"{min(max(self.reference / norm, 1 / LIMIT), LIMIT):.6g}")

    def norm(self, spec: ObjectiveSpec) -> float:
        """The gradient's norm at the start; NaN where the objective cannot be evaluated."""
        return self.norms([spec])[0]

    def norms(self, specs: Sequence[ObjectiveSpec]) -> list[float]:
        """:meth:`norm` of each of several objectives; those of one function in one call."""
        found = [math.nan] * len(specs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = [self._built(spec) for spec in specs]
            for places in by_signature(built):
                same = [o for i in places if (o := built[i]) is not None]
                for i, norm in zip(places, self._norms(same), strict=True):
                    found[i] = norm
        return found

    def _built(self, spec: ObjectiveSpec) -> Objective | None:
        with torch.random.fork_rng(), torch_modes_kept():
            try:
                return self.plan.objective(spec, self.seed)
            except Exception:  # whatever a plugin raises; training will say what it was
                return None

    def _norms(self, same: list[Objective]) -> list[float]:
        """The norms of objectives of one signature."""
        first = self._alone(same[0])
        if len(same) > 1 and math.isfinite(first) and cosine_scale(same[0]) is None:
            try:
                with torch_modes_kept():
                    found = self._together(same)
            except Exception:  # a loss that vmap cannot take
                found = [math.nan]
            if math.isclose(found[0], first, rel_tol=SAME):
                return found
        return [first, *(self._alone(objective) for objective in same[1:])]

    def _alone(self, objective: Objective) -> float:
        with torch.random.fork_rng(), torch_modes_kept():
            try:
                return self._norm(objective)
            except Exception:
                return math.nan

    def _together(self, same: list[Objective]) -> list[float]:
        """In one call down to the outputs, from where each goes on through the head."""
        leaves, fields = self._outputs(None)
        reads = same[0].reads | same[0].uses
        reads |= {"logits"} if "predictions" in reads else set()
        outputs = {n: fields[n] for n in ("logits", "embeddings", "weight") if n in fields}
        outputs = {n: o.detach() for n, o in outputs.items() if n in reads}
        most = max(1, TOGETHER // max(o.numel() for o in outputs.values()))
        found: list[float] = []
        for begin in range(0, len(same), most):
            some = Grouped(same[begin : begin + most], self.plan.device)
            own = {
                n: o.repeat(some.size, *([1] * o.ndim)).requires_grad_()
                for n, o in outputs.items()
            }
            some.move_to(self.batch)
            some.values(self.batch, own).sum().backward()
            for row in range(some.size):
                rows = {n: o.grad[row] for n, o in own.items() if o.grad is not None}
                found.append(_through(fields, leaves, rows))
        return found

    def _norm(self, objective: Objective) -> float:
        objective.train()
        objective.start_epoch(0)
        leaves, fields = self._outputs(cosine_scale(objective))
        objective.backward({**self.batch, **fields}, leaves)
        squares = [leaf.grad.square().sum() for leaf in leaves if leaf.grad is not None]
        return math.sqrt(float(torch.stack(squares).sum())) if squares else math.nan

    def _outputs(self, cosine: float | None) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What an objective's gradient is taken at, and the fields that it reads."""
        if self.embeddings is None:
            assert self.logits is not None
            logits = self.logits.clone().requires_grad_()
            return [logits], self._fields(logits)
        embeddings = self.embeddings.clone().requires_grad_()
        head = self.network.head
        assert head is not None
        head.zero_grad(set_to_none=True)
        if cosine is not None and isinstance(weight := self.network.weight, nn.Parameter):
            outputs, width = weight.shape
            head = CosineHead(width, outputs, cosine)
            head.weight = weight  # one seed starts both heads alike
        logits = self.network.shaped(head(embeddings))
        fields = {**self._fields(logits), "embeddings": embeddings}
        if not self.network.two and isinstance(weight := getattr(head, "weight", None), Tensor):
            fields["weight"] = weight
        return [*head.parameters(), embeddings], fields

    def _fields(self, logits: Tensor) -> dict[str, Tensor]:
        regression = self.plan.data.info.task == "regression"
        return {"logits": logits, **({"predictions": logits} if regression else {})}


def _through(fields: dict[str, Tensor], leaves: list[Tensor], rows: dict[str, Tensor]) -> float:
    """The norm at the leaves of a gradient that is known at the outputs."""
    gradients = torch.autograd.grad(
        [fields[n] for n in rows], leaves, list(rows.values()),
        retain_graph=True, allow_unused=True,
    )  # fmt: skip
    squares = [g.square().sum() for g in gradients if g is not None]
    return math.sqrt(float(torch.stack(squares).sum()))
