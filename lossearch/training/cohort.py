"""A cohort: several objectives trained on one stack of networks and one stream of batches.

A member ends as it would have ended alone, whatever its companions do: the objectives see outputs
that are cut from the network's graph, so what fails in one leaves the gradients of the others
whole, and a member that fails, diverges or stops early leaves the stack.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lossearch.components import Bound
from lossearch.components.inputs import without_several
from lossearch.objective import cosine_scale
from lossearch.training import checkpoint
from lossearch.training.groups import OUTPUTS, Group, Part, Slice, signature
from lossearch.training.member import Member
from lossearch.training.plan import Plan
from lossearch.training.stacked import Outputs, Stack, sample_of


class Cohort:
    """Members of one :attr:`Member.stream`, trained together.

    Args:
        plan: What they share.
        members: At least one.
        metrics: Those that are measured at the end.

    Raises:
        ModelError: the model cannot be stacked.
    """

    def __init__(self, plan: Plan, members: Sequence[Member], metrics: Mapping[str, Bound]):
        self.plan, self.metrics = plan, metrics
        order = {m: _order(m) for m in members}
        self.members = sorted(members, key=order.__getitem__)
        first = self.members[0]
        self.epoch = first.epoch
        self.order = torch.Generator().manual_seed(first.seed)
        network = plan.network(first.seed, first.scale).to(plan.device)
        self.stack = Stack(network, len(members), plan.training, sample_of(plan), plan)
        if first.state is not None:
            checkpoint.set_random_state(first.state, plan.device, self.order)
        lost = [m for i, m in enumerate(self.members) if not self._loaded(i, m)]
        self._sliced: set[Member] = set()  # those that a vmapped call failed on
        self._predicted: dict[str, Tensor] | None = None
        self._regroup()
        self._drop(lost)  # they are not over: alone they begin anew
        self._scale(self.members)

    def run(self, until: int) -> None:
        """Train up to an epoch; every member then has its metrics or its error."""
        while self.members and self.epoch < until:
            started = time.perf_counter()
            training = list(self.members)
            self._run_epoch()
            for member in training:
                member.seconds += (time.perf_counter() - started) / len(training)
            self._finish([m for m in self.members if m.error is None and m.stopped])
            self._drop()
        self._finish(self.members)
        self.members = []

    # --- one epoch -------------------------------------------------------------------------

    def _run_epoch(self) -> None:
        plan, stack = self.plan, self.stack
        stack.train()
        for member in self.members:
            member.tries(member.start_epoch)
        self._drop()
        totals = torch.zeros(len(self.members), device=plan.device)
        step = self.epoch * plan.steps_per_epoch
        for batch in plan.batches(self.order, self.epoch):
            if not self.members:
                return
            for member in self.members:
                if member.optimizer is not None:
                    member.optimizer.zero_grad(set_to_none=True)
            with plan.autocast():
                outputs = stack(batch["inputs"], only_logits=self._only_logits)
                totals += self._learn(without_several(batch), outputs)
            self._step(plan.factor(step))
            step += 1
            if any(m.error is not None for m in self.members):
                stays = [i for i, m in enumerate(self.members) if m.error is None]
                totals = totals[stays]
                self._drop()
        means = (totals / plan.steps_per_epoch).tolist()
        mean_of = dict(zip(self.members, means, strict=True))
        self.epoch += 1
        for member, mean in mean_of.items():
            member.tries(member.end_epoch, mean)
        self._drop()
        if self.members:
            self._measure(mean_of)

    def _learn(self, batch: dict[str, Any], outputs: Outputs) -> Tensor:
        """Every objective's value, and the gradient of their sum in the stack."""
        stack = self.stack
        if stack.weight is not None:
            outputs = {**outputs, "weight": stack.parameters[stack.weight]}
        values: list[Tensor] = []
        gradients: dict[str, Tensor] = {}
        reached: list[frozenset[str]] = []
        row = 0
        for part in list(self._parts):
            rows = slice(row, row + part.size)
            own = {n: outputs[n][rows] for n in OUTPUTS if n in outputs}
            for given in self._try(part, self.members[rows], batch, own):
                one = slice(row, row + len(given.values))
                values.append(given.values.float())
                reached += [frozenset(given.gradients)] * len(given.values)
                for name, gradient in given.gradients.items():
                    if len(gradient) == stack.size:
                        gradients[name] = gradient
                        continue
                    if name not in gradients:
                        gradients[name] = torch.zeros_like(outputs[name])
                    gradients[name][one] = gradient
                row = one.stop
        stack.backward(outputs, gradients, reached)
        return torch.cat(values)

    def _try(
        self,
        part: Group | Slice,
        members: Sequence[Member],
        batch: dict[str, Any],
        outputs: Outputs,
    ) -> list[Part]:
        """A part's values and gradients; what fails together is done one by one."""
        if isinstance(part, Group):
            try:
                return [part(batch, outputs)]
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception:
                self._sliced.update(members)
        found: list[Part] = []
        slices = (
            [part] if isinstance(part, Slice) else [Slice(m.objective) for m in members]
        )
        for i, (each, member) in enumerate(zip(slices, members, strict=True)):
            own = {n: o[i : i + 1] for n, o in outputs.items()}
            given = member.tries(each, batch, own)
            found.append(given or Part(torch.zeros(1, device=self.plan.device), {}))
        if isinstance(part, Group):
            self._regroup()
        return found

    def _step(self, factor: float) -> None:
        for member in self.members:
            if member.optimizer is not None:
                for group in member.optimizer.param_groups:
                    group["lr"] = member.values["lr"] * group["lr_factor"] * factor
                member.optimizer.step()
            member.tries(member.objective.after_step)
        self.stack.step(
            [m.values["lr"] * factor for m in self.members],
            [m.values["weight_decay"] for m in self.members],
        )

    def _regroup(self) -> None:
        """Neighbours of one signature become a group, the others slices."""
        before = {tuple(p.objectives): p for p in getattr(self, "_parts", ())}
        self._parts: list[Group | Slice] = []
        start = 0
        keys = [
            None if m in self._sliced else signature(m.objective) for m in self.members
        ]
        while start < len(self.members):
            end = start + 1
            while end < len(keys) and keys[start] is not None and keys[end] == keys[start]:
                end += 1
            objectives = [m.objective for m in self.members[start:end]]
            part = before.get(tuple(objectives))
            if part is None and len(objectives) > 1:
                part = Group(objectives, self.plan.device, self.plan)
            self._parts.append(part or Slice(objectives[0]))
            start = end
        read = frozenset[str]().union(*(p.reads for p in self._parts))
        self._only_logits = not {"embeddings", "weight"} & read

    def _drop(self, leaving: Iterable[Member] = ()) -> None:
        """Shrink the stack by the members that failed, and by those that leave."""
        leaving = set(leaving)
        stays = [
            i
            for i, m in enumerate(self.members)
            if m.error is None and m not in leaving
        ]
        if len(stays) == len(self.members):
            return
        self.members = [self.members[i] for i in stays]
        self._predicted = None
        if self.members:
            self.stack.keep(stays)
            self._regroup()

    # --- measuring -------------------------------------------------------------------------

    def _measure(self, means: dict[Member, float]) -> None:
        """The metric that decides, for each member, and its row of the curve."""
        name = self.plan.metric.component.name
        self._scale(self.members)
        predicted = self._predicted = self._predict(self.stack, "validation")
        for row, member in enumerate(self.members):
            measured = member.tries(
                member.scored, "validation", predicted, row, {name: self.plan.metric}
            )
            if measured is not None and member.add(means[member], measured[name]):
                member.best_weights = self.stack.state(row)

    def _finish(self, members: Sequence[Member]) -> None:
        """Keep or end these members, with their metrics; they leave the stack."""
        if not members:
            return
        members = list(members)
        rows = [self.members.index(m) for m in members]
        for row, member in zip(rows, members, strict=True):
            member.done = member.stopped
            if not member.done and member.epoch:
                member.tries(self._save, row, member)
        changed = False
        for row, member in zip(rows, members, strict=True):
            if member.done and member.best_weights is not None:
                changed = True
                self.stack.load(row, member.best_weights)
        splits = ["validation"] + ["test"] * any(m.test for m in members)
        everyone = len(members) == len(self.members)
        stack = self.stack if everyone else self.stack.take(rows)
        for split in splits:
            if split == "validation" and everyone and not changed and self._predicted:
                predicted = self._predicted
            else:
                predicted = self._predict(stack, split)
            for i, member in enumerate(members):
                if member.error is None and (split == "validation" or member.test):
                    found = member.tries(member.scored, split, predicted, i, self.metrics)
                    where = member.metrics if split == "validation" else member.tested
                    where.update(found or {})
        for member in members:
            member.measured = True
            if member.done or member.error is not None:
                member.path.unlink(missing_ok=True)
        self._drop(members)

    def _scale(self, members: Sequence[Member]) -> None:
        """Give the heads the scales of the losses, which may be learned, or on a schedule."""
        for member in members:
            scale = cosine_scale(member.objective)
            if scale is not None:
                self.stack.buffers["head.scale"][self.members.index(member)] = scale

    def _predict(self, stack: Stack, split: str) -> dict[str, Tensor]:
        """Every row's logits on a split, ``[rows, N, ...]``, as for one network."""
        # no more at once than training holds
        size = max(self.plan.training.batch_size, 1024 // stack.size)
        logits: list[Tensor] = []
        targets: list[Tensor] = []
        for batch in getattr(self.plan.data, split).batches(size, device=self.plan.device):
            logits.append(stack.evaluate(batch["inputs"]).to("cpu", torch.float64))
            targets.append(batch["targets"].cpu())
        whole = torch.cat(logits, dim=1)
        finite = whole.flatten(1).isfinite().all(dim=1)
        return {"logits": whole, "targets": torch.cat(targets), "finite": finite}

    # --- checkpoints, the same as a training's alone -----------------------------------------

    def _optimizer(self, row: int, member: Member) -> torch.optim.Optimizer:
        """The optimizer that the member would have alone."""
        weights = [p.detach()[row].requires_grad_() for p in self.stack.parameters.values()]
        own = member.objective.parameter_groups()
        optimizer = self.plan.optimizer(weights, own, member.values)
        for weight, state in zip(weights, self.stack.optimizer_state(row), strict=True):
            if state:
                optimizer.state[weight] = state
        if member.optimizer is not None:
            optimizer.state.update(member.optimizer.state)
        for group in optimizer.param_groups:
            rate = member.values["lr"] * group["lr_factor"]
            group["initial_lr"] = rate
            group["lr"] = rate * self.plan.factor(self.epoch * self.plan.steps_per_epoch)
        return optimizer

    def _save(self, row: int, member: Member) -> None:
        last = self.epoch * self.plan.steps_per_epoch
        state = {
            "fields": {f"network.{k}": v for k, v in self.stack.state(row).items()},
            "objective": member.objective.state_dict(),
            "optimizer": self._optimizer(row, member).state_dict(),
            "scheduler": {"last_epoch": last},
            **checkpoint.random_state(self.plan.device, self.order),
            **member.progress(),
        }
        checkpoint.write(member.path, state)

    def _loaded(self, row: int, member: Member) -> bool:
        """Put a member's checkpoint into its row; whether it fits."""
        state, member.state = member.state, None  # a file's worth of memory
        if state is None:
            return True
        try:
            self._load(row, member, state)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            checkpoint.put_aside(member.path, error)
            return False
        return True

    def _load(self, row: int, member: Member, state: dict[str, Any]) -> None:
        prefix = "network."
        fields = {k.removeprefix(prefix): v for k, v in state["fields"].items()}
        self.stack.load(row, fields)
        states = state["optimizer"]["state"]
        self.stack.load_optimizer(row, states)
        if member.optimizer is not None:
            count = len(self.stack.parameters)
            own = member.optimizer.state_dict()
            own["state"] = {i - count: s for i, s in states.items() if i >= count}
            member.optimizer.load_state_dict(own)


def _order(member: Member) -> str:
    """Members of one signature stand side by side."""
    return repr(signature(member.objective))
