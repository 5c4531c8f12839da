"""Scale is not skill: every objective begins with the baseline's gradient norm.

A loss that is merely larger acts as a larger learning rate, under SGD or wherever gradients are
clipped. So each objective gets the factor that brings its gradient, at the initial weights and on
the first training samples, to the norm of the baseline's.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from lossearch.models import CosineHead
from lossearch.objective import Objective, cosine_scale
from lossearch.spec import ObjectiveSpec
from lossearch.training.plan import Plan

# A loss whose first gradient is smaller or larger by more than this does not become a better one.
LIMIT = 1e3


class Scale:
    """The factors of a study's objectives.

    The norm is taken where objectives meet the network: of the gradient at the classifier's
    parameters and at the embeddings that it reads (at the scores, where a model cannot be split).
    The rest of the network follows linearly from there, and its forward pass is done once.

    Args:
        plan: The study's, on the CPU: this runs in the driver.
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
            whole = self.network.backbone if split else self.network
            outputs = whole(self.batch["inputs"])
        self.embeddings: Tensor | None = outputs if split else None
        self.logits: Tensor | None = None if split else outputs["logits"]
        self.reference = self.norm(reference)

    def applied(self, spec: ObjectiveSpec) -> ObjectiveSpec:
        """The objective with its factor, whatever factor it had."""
        bare = spec.model_copy(update={"scale": 1.0})
        return bare.model_copy(update={"scale": self.of(bare)})

    def of(self, spec: ObjectiveSpec) -> float:
        """The factor of an objective; 1 where its gradient cannot be had, or the baseline's."""
        norm = self.norm(spec)
        if not (norm > 0 and self.reference > 0 and math.isfinite(self.reference / norm)):
            return 1.0
        return float(f"{min(max(self.reference / norm, 1 / LIMIT), LIMIT):.6g}")

    def norm(self, spec: ObjectiveSpec) -> float:
        """The gradient's norm at the start; NaN where the objective cannot be evaluated."""
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self._norm(self.plan.objective(spec, self.seed))
            except Exception:  # whatever a plugin raises; training will say what it was
                return math.nan

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
        logits = head(embeddings)
        if self.network.squeeze and logits.ndim == 2 and logits.shape[1] == 1:
            logits = logits[:, 0]
        fields = {**self._fields(logits), "embeddings": embeddings}
        if isinstance(weight := getattr(head, "weight", None), Tensor):
            fields["weight"] = weight
        return [*head.parameters(), embeddings], fields

    def _fields(self, logits: Tensor) -> dict[str, Tensor]:
        regression = self.plan.data.info.task == "regression"
        return {"logits": logits, **({"predictions": logits} if regression else {})}

