"""An objective as an ``nn.Module``, usable from any training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossearch.components import Bound
from lossearch.components.schedule import CLOCK, Schedule, plain
from lossearch.documents import read_yaml
from lossearch.errors import SpecError
from lossearch.feasibility import INTERNAL
from lossearch.plugins import load_plugins
from lossearch.registry import Registry, current, using
from lossearch.spec import ObjectiveSpec
from lossearch.terms import Batch, Term, weight_now
from lossearch.trust import inside, plugins_beside, require


class Objective(nn.Module):
    """A training objective: call it with batch fields, minimise what it returns.

    .. code-block:: python

        objective = lossearch.load_objective("runs/digits/best.yaml")
        loss = objective(logits=model(x), targets=y)
        loss.backward()

    State and learned parameters (a balancer's, a loss's) are in ``state_dict()`` and
    ``parameters()``: give the latter to the optimizer beside the model's. Stateful components
    hear of epochs through :meth:`start_epoch` and :meth:`end_epoch`.

    Attributes:
        spec: The document that it was built from.
        reads: The fields that a batch must hold.
        uses: The fields that it uses where they are there.
    """

    def __init__(
        self, spec: ObjectiveSpec, registry: Registry, facts: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.constants = dict(facts or {})
        facts = {
            **self.constants,
            "num_terms": len(spec.terms),
            "term_weights": [plain(term.weight) for term in spec.terms],
        }
        with using(registry):  # a composer looks its members up
            self._build(spec, registry, facts)
        # A balancer that takes the terms' weights as its own gets the terms unweighted.
        self._weights_inside = (
            self.balancer is not None
            and "term_weights" in self.balancer.component.signature.facts.values()
        )
        if self._weights_inside and any(isinstance(t.weight, Schedule) for t in spec.terms):
            assert self.balancer is not None
            raise SpecError(
                f"{self.balancer.component.name} takes the terms' weights as its own, so they "
                "cannot follow a schedule"
            )

    def _build(self, spec: ObjectiveSpec, registry: Registry, facts: Mapping[str, Any]) -> None:
        self.terms = nn.ModuleList(Term(t, spec.task, registry, facts) for t in spec.terms)
        self.balancer: Bound | None = None
        if spec.balancer is not None:
            self.balancer = registry.build(
                spec.balancer.name,
                spec.balancer.params,
                kind="balancer",
                task=spec.task,
                facts=facts,
            )
        bound = [m for m in self.modules() if isinstance(m, Bound)]
        fixed = {k for k in ("class_counts", "total_steps") if k in self.constants}
        given = INTERNAL | fixed
        # those inside a composer are told by it
        inside = {id(m) for b in bound for m in b.modules() if m is not b}
        self._bound = [b for b in bound if id(b) not in inside]
        self.reads = frozenset().union(*(b.reads for b in bound)) - given
        if any(isinstance(t.weight, Schedule) for t in spec.terms):
            self.reads |= CLOCK - given
        self.uses = (
            frozenset().union(*(b.component.optional_fields for b in bound)) - given - self.reads
        )

    @classmethod
    def from_spec(
        cls,
        spec: ObjectiveSpec | Mapping[str, Any],
        *,
        registry: Registry | None = None,
        **facts: Any,
    ) -> Objective:
        """Build an objective.

        Args:
            spec: The spec, or its document.
            registry: Where component names are looked up; the installed plugins by default.
            facts: What components may need to know: ``num_classes``, ``train_size``, ``seed``;
                and ``class_counts`` and ``total_steps``, which then need not be in every batch.

        Raises:
            SpecError: the document is not an objective.
            UnknownNameError: it names a component that nothing answers to.
            ParameterError: an unknown parameter or an illegal value.
        """
        if not isinstance(spec, ObjectiveSpec):
            spec = ObjectiveSpec.parse(spec)
        return cls(spec, registry or current(), facts)

    @property
    def at(self) -> str:
        """Where the balancer acts: on ``values``, at the ``output``, on the ``parameters``."""
        if self.balancer is None or "gradients" not in self.balancer.component.fields:
            return "values"
        return getattr(self.balancer.params, "at", "parameters")

    def values(self, batch: Batch) -> Tensor:
        """The terms' values, ``[K]``, before the balancer and unweighted."""
        batch = self._complete(batch)
        return torch.stack([term(batch) for term in self.terms])

    def forward(self, batch: Batch | None = None, /, **fields: Any) -> Tensor:
        """The scalar to minimise.

        With a balancer at the output the value is the plain sum, and its gradient the balanced
        one.

        Raises:
            FieldError: a field that a component reads is missing.
            SpecError: the balancer combines parameter gradients; use :meth:`backward`.
        """
        if self.at == "parameters":
            assert self.balancer is not None
            raise SpecError(
                f"{self.balancer.component.name} combines the gradients of the parameters: call "
                "objective.backward(batch, model.parameters()) in place of objective(batch)"
                ".backward()"
            )
        batch = self._complete({**(batch or {}), **fields})
        values = [term(batch) for term in self.terms]
        weighted = self._weighted(values, batch)
        if self.balancer is None:
            value = torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]
        elif self.at == "values":
            value = self.balancer({**batch, "losses": torch.stack(weighted)})
        else:
            value = self._at_output(batch, weighted)
        return value if self.spec.scale == 1 else self.spec.scale * value

    def backward(self, batch: Batch, parameters: Iterable[Tensor]) -> Tensor:
        """Add the objective's gradient to ``.grad`` of the model's and its own parameters.

        Works for every objective; only balancers of parameter gradients need it.

        Args:
            batch: The batch fields.
            parameters: The model's parameters.

        Returns:
            The value, detached.
        """
        if self.at != "parameters":
            value = self(batch)
            value.backward()
            return value.detach()
        assert self.balancer is not None
        batch = self._complete(batch)
        terms = self._weighted([term(batch) for term in self.terms], batch)
        values = torch.stack(terms).detach()
        model = [p for p in parameters if p.requires_grad]
        own = [p for p in self.parameters() if p.requires_grad]
        rows = [_gradients(term, model + own) for term in terms]
        # Shared parameters get the combined gradient, the others their own loss's plain one.
        counts = [sum(row[i] is not None for row in rows) for i in range(len(model))]
        shared = [i for i, count in enumerate(counts) if count > 1]
        combined: dict[int, Tensor] = {}
        if shared:
            gradients = torch.stack(
                [torch.cat([_or_zero(row[i], model[i]).flatten() for i in shared]) for row in rows]
            )
            fields = {**batch, "losses": values, "gradients": gradients}
            parts = self.balancer(fields).split([model[i].numel() for i in shared])
            for i, part in zip(shared, parts, strict=True):
                combined[i] = part.view_as(model[i])
        for i, parameter in enumerate(model + own):
            plain = [gradient for row in rows if (gradient := row[i]) is not None]
            gradient = combined.get(i, sum(plain) if plain else None)
            if isinstance(gradient, Tensor):
                gradient = gradient if self.spec.scale == 1 else self.spec.scale * gradient
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return self.spec.scale * values.sum()

    def start_epoch(self, epoch: int) -> None:
        """Tell every component that an epoch begins."""
        for bound in self._bound:
            bound.start_epoch(epoch)

    def end_epoch(self, epoch: int) -> None:
        """Tell every component that an epoch has ended."""
        for bound in self._bound:
            bound.end_epoch(epoch)

    def after_step(self) -> None:
        """Tell the components that listen that the optimizer has moved the parameters."""
        for bound in self._bound:
            bound.after_step()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What its components learn, as optimizer groups with ``weight_decay``, ``lr_factor``.

        A component may say them of its own parameters by a method of this name; others do not
        decay, and learn at the model's rate.
        """
        groups: list[dict[str, Any]] = []
        for module in self.modules():
            if hasattr(module, "parameter_groups") and module is not self:
                groups += module.parameter_groups()  # type: ignore[operator]
        known = {id(p) for group in groups for p in group["params"]}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": rest}, *groups] if rest else groups
        return [{"weight_decay": 0.0, "lr_factor": 1.0, **group} for group in groups]

    @property
    def _first(self) -> nn.Module | None:
        term = self.terms[0]
        assert isinstance(term, Term)
        return term.loss.module

    @property
    def predicts(self) -> bool:
        """Whether its first loss has a prediction rule of its own, ``predictions(fields)``."""
        return hasattr(self._first, "predictions")

    def predictions(self, fields: Mapping[str, Any]) -> Tensor:
        """The logits by which the network is judged: its own, but for a rule of the first loss.

        Args:
            fields: The network's ``logits`` and, where it has them, ``embeddings``, ``weight``.
        """
        if not self.predicts:
            return fields["logits"]
        rule: Any = self._first
        was_training = rule.training
        rule.eval()
        try:
            return rule.predictions(fields)
        finally:
            rule.train(was_training)

    def _complete(self, batch: Batch) -> Batch:
        missing = {
            key: self.constants[key]
            for key in ("class_counts", "total_steps")
            if key in self.constants and batch.get(key) is None
        }
        if not missing:
            return batch
        anywhere = next((v for v in batch.values() if isinstance(v, Tensor)), None)
        if "class_counts" in missing and anywhere is not None:
            missing["class_counts"] = torch.as_tensor(
                missing["class_counts"], device=anywhere.device
            )
        return {**batch, **missing}

    def _weighted(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        # a list: in the graph of a stacked tensor each term would depend on all parameters
        if self._weights_inside:
            return values
        weights = [weight_now(term.weight, batch) for term in self.spec.terms]
        return [v if w == 1 else w * v for v, w in zip(values, weights, strict=True)]

    def _at_output(self, batch: Batch, terms: list[Tensor]) -> Tensor:
        """The plain sum, with the gradient at the model's output replaced by the balanced one."""
        assert self.balancer is not None
        values = torch.stack(terms)
        output, rows = self._output_gradients(batch, terms)
        if output is None:
            return values.sum()
        balanced = self.balancer(
            {**batch, "losses": values.detach(), "gradients": torch.stack(rows)}
        )
        correction = (output * (balanced - sum(rows)).detach()).sum()
        return values.sum() + correction - correction.detach()

    def _output_gradients(
        self, batch: Batch, terms: list[Tensor]
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The output that most terms depend on, the last one first, and their gradients at it."""
        best: tuple[Tensor | None, list[Tensor]] = (None, [])
        most = 0
        for field in ("logits", "predictions", "embeddings"):
            output = batch.get(field)
            if not isinstance(output, Tensor) or not output.requires_grad:
                continue
            rows = [_gradients(term, [output])[0] for term in terms]
            reached = sum(row is not None for row in rows)
            if reached > most:  # a term that does not reach it has gradient 0, and stays plain
                most, best = reached, (output, [_or_zero(row, output) for row in rows])
        return best


def _gradients(term: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not term.requires_grad:  # it depends on nothing that is trained here
        return (None,) * len(inputs)
    return torch.autograd.grad(term, inputs, retain_graph=True, allow_unused=True)


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def cosine_scale(objective: Objective) -> float | None:
    """The scale, as it is now, of the first margin loss (one that reads the weight), if any."""
    for module in objective.modules():
        if isinstance(module, Bound) and "weight" in module.component.reads(module.params):
            learned = getattr(module.module, "current_scale", None)
            return float(module.value("scale", 1.0) if learned is None else learned)
    return None


def load_objective(
    path: str | Path, *, registry: Registry | None = None, trust: bool = False
) -> Objective:
    """An objective from a study's folder, its ``best.yaml``, or an exported ``objective.yaml``.

    One-file plugins that it needs are read from beside the file, and run.

    Args:
        path: The folder or the file.
        registry: Where component names are looked up; no plugin beside the file is read then.
        trust: Run the plugins even if this user has not run them before: the files may have come
            from somebody else.

    Raises:
        SpecError: the file is missing or holds no objective.
        TrustError: it needs code that is not trusted; what it is, and where it lies.
        PluginError: the code does not load, or does not lie beside the file.
    """
    path = Path(path)
    if path.is_dir():
        path = inside(path, "best.yaml", path)
    document = read_yaml(path)
    if registry is None:
        registry = current()
        if document.get("plugins"):
            files = plugins_beside(path, document)
            require(files, trust, str(path), "pass trust=True to load_objective")
            registry = load_plugins(files, strict_files=True).registry
    spec = ObjectiveSpec.parse(document.get("objective", document), str(path))
    return Objective(spec, registry, document.get("facts"))
