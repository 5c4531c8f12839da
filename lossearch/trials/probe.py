"""The probe of a study: a frozen batch on which objectives are looked at before they train.

The only module of the search that touches tensors. Each row of outputs stands in the batch once
with each of several targets (multilabel: with a set of labels and its opposite), so what a loss
does without looking at the targets raises and lowers equally many of the true scores: following
it improves nothing, exactly, and not only on average.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossearch.objective import Objective, cosine_scale

SAMPLES, WIDTH, EXTREME = 192, 16, 80.0
MOST_TARGETS = 48  # of one row of outputs
# Beside one of these the logits are not free, but made of free embeddings and a free weight.
_BY_HEAD = {"embeddings", "embeddings_b", "weight", "logits_b", "inputs", "model"}
_HALF = ("logits", "logits_b", "embeddings", "embeddings_b", "predictions")


@dataclass(frozen=True)
class Probe:
    """A frozen batch for a task, on the CPU.

    Attributes:
        task: ``multiclass``, ``binary``, ``multilabel`` or ``regression``.
        facts: What components are given of the study (``Given``).
        embeddings: ``[B, 16]``, which know nothing of the targets.
        truth: ``[B, 16]``, embeddings of the same lengths that point at the targets.
        weight: Of the head, ``[C, 16]``; logits of standard deviation 1 at scale 1.
        targets: As losses read them.
        fields: The fields that do not depend on the outputs.
    """

    task: str
    facts: Mapping[str, Any]
    embeddings: Tensor
    truth: Tensor
    weight: Tensor
    targets: Tensor
    fields: Mapping[str, Any]

    @classmethod
    def make(
        cls,
        task: str,
        *,
        num_classes: int,
        class_counts: Sequence[int],
        train_size: int,
        total_steps: int = 1000,
        seed: int = 0,
    ) -> Probe:
        """The probe of a study; the same arguments give the same probe.

        Args:
            task: The study's task.
            num_classes: Classes (binary: 2) or labels; 0 for regression.
            class_counts: Training samples of each class.
            train_size: Samples of the training split.
            total_steps: The optimizer steps of a full training.
            seed: Of its generator; the global random state stays as it is.
        """
        generator = torch.Generator().manual_seed(seed)
        outputs = num_classes if task in ("multiclass", "multilabel") else 1
        copies = min(num_classes, MOST_TARGETS) if task == "multiclass" else 2
        rows = max(SAMPLES // copies, 2)
        embeddings = torch.randn(rows, WIDTH, generator=generator)
        weight = torch.randn(outputs, WIDTH, generator=generator) / math.sqrt(WIDTH)
        if task == "multiclass":
            # the likeliest class, so that some sample is right, and then the others at random
            order = torch.rand(rows, outputs, generator=generator)
            order[torch.arange(rows), (embeddings @ weight.T).argmax(1)] = 2.0
            targets = order.argsort(1, descending=True)[:, :copies].flatten()
        elif task == "regression":
            targets = torch.randn(rows * copies, generator=generator)
        else:
            wide = (rows, outputs) if task == "multilabel" else (rows,)
            first = (torch.rand(wide, generator=generator) < 0.4).float()
            targets = torch.stack([first, 1 - first], 1).flatten(0, 1)
        shuffled = torch.randperm(rows * copies, generator=generator)
        embeddings = embeddings.repeat_interleave(copies, 0)[shuffled]
        targets = targets[shuffled]
        size = len(targets)
        signs = _signs(task, targets, outputs)
        truth = F.normalize(signs.view(size, -1) @ weight) * embeddings.norm(dim=1, keepdim=True)
        teacher = 3 * signs + torch.randn(signs.shape, generator=generator)
        return cls(
            task,
            {
                "num_classes": num_classes,
                "train_size": train_size,
                "class_counts": list(class_counts),
                "total_steps": total_steps,
            },
            embeddings,
            truth,
            weight,
            targets,
            {
                "targets": targets,
                "index": torch.randint(train_size, (size,), generator=generator),
                "class_counts": torch.tensor(list(class_counts)),
                "total_steps": total_steps,
                "features": torch.randn(size, WIDTH, generator=generator),
                "teacher_logits": teacher,
                "teacher_embeddings": torch.randn(size, WIDTH, generator=generator),
            },
        )

    def lacks(self, objective: Objective) -> frozenset[str]:
        """The fields that an objective reads and the probe cannot make."""
        made = {*self.fields, *_BY_HEAD, "logits", "predictions", "epoch", "step"}
        return objective.reads - made

    def right(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of each sample: the share of probability on the truth, and whether it is predicted.

        Binary and multilabel shares are taken about the mean score, since a loss may move the
        threshold. For a regression, :math:`e^{-|z - t|}`, and whether that is above one half.
        """
        if self.task == "multiclass":
            share = logits.softmax(1).gather(1, self.targets[:, None])[:, 0]
            return share, (logits.argmax(1) == self.targets).float()
        if self.task == "regression":
            share = (-(logits - self.targets).abs()).exp()
            return share, (share > 0.5).float()
        sign = 2 * self.targets - 1
        share = (sign * (logits - logits.mean(0))).sigmoid()
        hit = (sign * logits > 0).float()
        return (share.mean(1), hit.mean(1)) if share.ndim > 1 else (share, hit)

    def towards_truth(self, logits: Tensor, change: Tensor) -> float:
        """How far a change of the logits moves the true ones up against the others.

        In sum over the samples, as a share of all movement: from -1 to 1.
        """
        if self.task == "multiclass":
            true = change.gather(1, self.targets[:, None])[:, 0] - change.mean(1)
        elif self.task == "regression":
            true = (self.targets - logits).sign() * change
        else:
            true = (2 * self.targets - 1) * change
        return float(true.sum() / change.abs().sum().clamp(min=1e-30))


def _signs(task: str, targets: Tensor, outputs: int) -> Tensor:
    """Scores that know the truth: +1 and -1, or the targets of a regression."""
    if task == "multiclass":
        return 2.0 * F.one_hot(targets, outputs) - 1
    return targets if task == "regression" else 2 * targets - 1


class _Head(nn.Module):
    """The network of the probe: its inputs are the embeddings."""

    def __init__(self, weight: Tensor, cosine: float | None, squeeze: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.cosine, self.squeeze = cosine, squeeze

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        if self.cosine is None:
            logits = F.linear(inputs, self.weight)
        else:
            logits = self.cosine * F.linear(F.normalize(inputs), F.normalize(self.weight))
        return {"logits": logits[:, 0] if self.squeeze else logits, "embeddings": inputs}


class State:
    """Outputs of the probe that an objective can be evaluated at, and that can be moved.

    Free are the logits; or, where the objective reads more of the network than these, the
    embeddings and the head's weight, of which the logits are made.

    Args:
        probe: The probe.
        objective: Built from the probe's facts; its own state goes on from state to state.
        scale: Standard deviation of the logits; ``EXTREME`` gives logits of up to +80 and -80:
            all right, all wrong, and another class ahead.
        learned: Whether the outputs know the targets, from not at all in the first sample to
            fully in the last.
        at: How far the training is, from 0 to 1.
        half: Evaluate as mixed precision would: outputs in bfloat16, under autocast.
    """

    def __init__(
        self,
        probe: Probe,
        objective: Objective,
        scale: float,
        *,
        learned: bool = False,
        at: float = 0.0,
        half: bool = False,
    ) -> None:
        self.probe, self.objective, self.half = probe, objective, half
        total: int = probe.facts["total_steps"]
        # a late epoch lies behind every warm-up that is counted in epochs
        self.clock = {"epoch": round(100 * at), "step": min(round(total * at), total - 1)}
        wants = objective.reads | objective.uses
        squeeze = probe.task in ("binary", "regression")
        self.head = _Head(probe.weight, cosine_scale(objective), squeeze)
        self.logits: Tensor | None = None
        self.leaves: list[Tensor]
        with torch.no_grad():
            embeddings = _placed(probe, extreme=scale == EXTREME, learned=learned)
            logits = F.linear(embeddings, probe.weight)
            logits = logits[:, 0] if squeeze else logits
            factor = float(EXTREME / logits.abs().max()) if scale == EXTREME else scale
            if wants & _BY_HEAD:
                self.embeddings = (factor * embeddings).requires_grad_()
                self.leaves = [self.embeddings, self.head.weight]
            else:
                logits = _extreme(probe) if scale == EXTREME else factor * logits
                self.logits = logits.requires_grad_()
                self.leaves = [self.logits]
        self._sizes = [leaf.detach().square().mean().sqrt() for leaf in self.leaves]

    def outputs(self) -> dict[str, Tensor]:
        """The logits, and the embeddings where they are free."""
        if self.logits is not None:
            return {"logits": self.logits}
        second = self.embeddings + 0.1 * self.probe.fields["features"]
        return {
            **self.head(self.embeddings),
            "embeddings_b": second,
            "logits_b": self.head(second)["logits"],
            "weight": self.head.weight,
            "inputs": self.embeddings,
        }

    def gradient(self) -> tuple[float, Tensor]:
        """The objective's value, and its gradient at the free outputs in one row."""
        for leaf in self.leaves:
            leaf.grad = None
        with torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext():
            made = self.outputs()
            if self.half:
                made = {k: v.bfloat16() if k in _HALF else v for k, v in made.items()}
            fields = {**self.probe.fields, **self.clock, **made, "model": self.head}
            if self.probe.task == "regression":
                fields["predictions"] = fields["logits"]
            if self.objective.at == "parameters":
                value = self.objective.backward(fields, self.leaves)
            else:
                value = self.objective(fields)
                if value.requires_grad:  # it is not where it depends on nothing that is free
                    value.backward()
        rows = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.leaves]
        return float(value.detach()), torch.cat([row.flatten() for row in rows])

    def move(self, gradient: Tensor, size: float) -> None:
        """Step against the sign of a gradient, by ``size`` of what the outputs are large."""
        with torch.no_grad():
            parts = gradient.split([leaf.numel() for leaf in self.leaves])
            for leaf, part, unit in zip(self.leaves, parts, self._sizes, strict=True):
                leaf -= size * unit * part.view_as(leaf).sign()

    def change(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and how they move on a short step of their samples against a gradient."""
        with torch.no_grad():
            before = self.outputs()["logits"].clone()
            if self.logits is not None:
                return before, -gradient.view_as(before)
            # the weight stays: what it gains for one sample, it may lose for the others
            part = gradient[: self.embeddings.numel()].view_as(self.embeddings)
            step = 1e-2 * self._sizes[0] / part.abs().max().clamp(min=1e-30)
            return before, self.head(self.embeddings - step * part)["logits"] - before


def _placed(probe: Probe, *, extreme: bool, learned: bool) -> Tensor:
    """Embeddings between knowing nothing and the truth; at the extreme, its contrary too."""
    if not (extreme or learned):
        return probe.embeddings
    share = torch.linspace(-1.0 if extreme else 0.0, 1.0, len(probe.targets))[:, None]
    return (1 - share.abs()) * probe.embeddings + share * probe.truth


def _extreme(probe: Probe) -> Tensor:
    """Logits of +80 and -80: right, wrong, the next class or sample right, and without order."""
    signs = _signs(probe.task, probe.targets, len(probe.weight)).sign()
    if probe.task == "binary" or probe.task == "regression":
        free = (probe.embeddings @ probe.weight[0]).sign()
    else:
        free = (probe.embeddings @ probe.weight.T).sign()
    kinds = torch.stack([signs, -signs, signs.roll(1, -1), free])
    return EXTREME * kinds[torch.arange(len(signs)) % 4, torch.arange(len(signs))]


@contextmanager
def alone(seed: int = 0) -> Iterator[None]:
    """A random state of its own, which leaves the caller's as it was; one thread; no warnings."""
    python, numpy = random.getstate(), np.random.get_state()
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)  # for tensors this small, others only wait for each other
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs too
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)
