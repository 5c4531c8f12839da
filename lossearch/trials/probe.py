"""The probe of a study: a frozen batch on which objectives are looked at before they train.

Each row of outputs stands in the batch once with each of several targets (multilabel: with a set
of labels and its opposite), so what a loss does without looking at the targets raises and lowers
equally many of the true scores: following it improves nothing, exactly, and not only on average.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components.modes import process_state_kept
from lossearch.objective import Objective

SAMPLES, WIDTH, EXTREME = 192, 16, 80.0
MOST_TARGETS = 48  # of one row of outputs
# Beside one of these the logits are not free, but made of free embeddings and a free weight.
BY_HEAD = {"embeddings", "embeddings_b", "weight", "logits_b", "inputs", "model"}


class Place(NamedTuple):
    """Outputs of the probe.

    Args:
        scale: Standard deviation of the logits; ``EXTREME`` gives logits of up to +80 and -80:
            all right, all wrong, and another class ahead.
        learned: Whether the outputs know the targets, from not at all in the first sample to
            fully in the last.
    """

    scale: float
    learned: bool = False


@dataclass(frozen=True)
class Probe:
    """A frozen batch for a task, on the CPU.

    Attributes:
        task: ``multiclass``, ``binary``, ``multilabel`` or ``regression``.
        facts: What components are given of the study (``Given``).
        embeddings: ``[B, 16]``, which know nothing of the targets.
        truth: ``[B, 16]``, embeddings of the same lengths that point at the targets.
        weight: Of the head, ``[C, 16]``; logits of standard deviation 1 at scale 1.
        targets: The labels that outputs are judged by.
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
        soft: bool = False,
    ) -> Probe:
        """The probe of a study; the same arguments give the same probe.

        Args:
            task: The study's task.
            num_classes: Classes (binary: 2) or labels; 0 for regression.
            class_counts: Training samples of each class.
            train_size: Samples of the training split.
            total_steps: The optimizer steps of a full training.
            seed: Of its generator; the global random state stays as it is.
            soft: Whether losses read the targets as probabilities of the classes.
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
                "targets": _softened(task, targets, outputs, seed) if soft else targets,
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
        made = {*self.fields, *BY_HEAD, "logits", "predictions", "epoch", "step"}
        return objective.reads - made

    def right(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of each sample: the share of probability on the truth, and whether it is predicted.

        Binary and multilabel shares are taken about the mean score, since a loss may move the
        threshold. For a regression, :math:`e^{-|z - t|}`, and whether that is above one half.
        """
        if self.task == "multiclass":
            share = self._true(logits.softmax(-1))
            return share, (logits.argmax(-1) == self.targets).float()
        if self.task == "regression":
            share = (-(logits - self.targets).abs()).exp()
            return share, (share > 0.5).float()
        several = self.task == "multilabel"
        sign = 2 * self.targets - 1
        share = (sign * (logits - logits.mean(-2 if several else -1, keepdim=True))).sigmoid()
        hit = (sign * logits > 0).float()
        return (share.mean(-1), hit.mean(-1)) if several else (share, hit)

    def towards_truth(self, logits: Tensor, change: Tensor) -> Tensor:
        """How far a change of the logits moves the true ones up against the others.

        In sum over the samples, as a share of all movement: from -1 to 1.
        """
        if self.task == "multiclass":
            true = self._true(change) - change.mean(-1)
        elif self.task == "regression":
            true = (self.targets - logits).sign() * change
        else:
            true = (2 * self.targets - 1) * change
        samples = tuple(range(-self.targets.ndim, 0))
        moved = change.abs().sum((-1,) if self.squeeze else (-2, -1))
        return true.sum(samples) / moved.clamp(min=1e-30)

    def _true(self, values: Tensor) -> Tensor:
        """Of each sample, the value of its class."""
        index = self.targets[:, None].expand(*values.shape[:-1], 1)
        return values.gather(-1, index)[..., 0]

    def placed(self, place: Place) -> Tensor:
        """Embeddings between knowing nothing and the truth; at the extreme, its contrary too."""
        extreme = place.scale == EXTREME
        if not (extreme or place.learned):
            return self.embeddings
        share = torch.linspace(-1.0 if extreme else 0.0, 1.0, len(self.targets))[:, None]
        return (1 - share.abs()) * self.embeddings + share * self.truth

    def logits(self, place: Place) -> Tensor:
        """Free logits."""
        if place.scale == EXTREME:
            return _extreme(self)
        scores = self.placed(place) @ self.weight.T
        return place.scale * (scores[:, 0] if self.squeeze else scores)

    def head_input(self, place: Place) -> Tensor:
        """Free embeddings, of which the probe's weight makes logits of the place's size."""
        embeddings = self.placed(place)
        if place.scale == EXTREME:
            return float(EXTREME / (embeddings @ self.weight.T).abs().max()) * embeddings
        return place.scale * embeddings

    @property
    def squeeze(self) -> bool:
        """Whether logits are one number a sample."""
        return self.task in ("binary", "regression")


def _signs(task: str, targets: Tensor, outputs: int) -> Tensor:
    """Scores that know the truth: +1 and -1, or the targets of a regression."""
    if task == "multiclass":
        return 2.0 * F.one_hot(targets, outputs) - 1
    return targets if task == "regression" else 2 * targets - 1


def _softened(task: str, targets: Tensor, outputs: int, seed: int) -> Tensor:
    """Probabilities of the classes, of which each sample's own has four fifths and more."""
    if task not in ("multiclass", "binary"):
        return targets
    generator = torch.Generator().manual_seed(seed + 1)
    if task == "binary":
        return 0.8 * targets + 0.2 * torch.rand(targets.shape, generator=generator)
    rest = torch.randn(len(targets), outputs, generator=generator).softmax(1)
    return 0.8 * F.one_hot(targets, outputs) + 0.2 * rest


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
    """A random state of its own; one thread; no warnings. The process is left as it was."""
    with (
        process_state_kept(),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)  # for tensors this small, others only wait for each other
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs too
        random.seed(seed)
        np.random.seed(seed)
        yield
