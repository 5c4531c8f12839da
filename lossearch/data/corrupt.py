"""Making data worse on purpose: wrong labels, a long tail, labels of whole bags alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.data.config import BagsConfig, ImbalanceConfig, NoiseConfig
from lossearch.data.labels import Labels
from lossearch.errors import DataError, unknown


def add_noise(
    targets: Tensor, labels: Labels, noise: NoiseConfig, seeds: Sequence[int]
) -> tuple[Tensor, float]:
    """Targets of which each is wrong with probability ``noise.rate``, and the share that is.

    Multilabel targets have each known label switched with that probability.

    Args:
        targets: As :meth:`Labels.encode` gives them.
        labels: The classes.
        noise: What noise.
        seeds: The seed, and a number for the split, so that splits differ.

    Raises:
        DataError: the noise does not fit the task, or its map names no class.
    """
    random = np.random.default_rng(np.random.SeedSequence(seeds))
    if labels.task == "regression":
        raise DataError("label noise is for classes; task regression has none. Leave out 'noise'")
    if labels.soft:
        raise DataError(
            "label noise is for labels that name one class, and the targets are probabilities. "
            "Leave out 'noise'"
        )
    if labels.task == "multilabel":
        if noise.kind == "asymmetric":
            raise DataError("multilabel targets can only have noise of kind: symmetric")
        wrong = torch.from_numpy(random.random(tuple(targets.shape)) < noise.rate) & (targets >= 0)
        return torch.where(wrong, 1 - targets, targets), float(wrong.float().mean())
    classes = labels.classes(targets)
    count = len(labels.class_names)
    wrong = random.random(len(classes)) < noise.rate
    if noise.kind == "symmetric":
        other = (classes + random.integers(1, count, len(classes))) % count
    else:
        other = _destinations(labels.class_names, noise.map)[classes]
    changed = torch.from_numpy(np.where(wrong, other, classes)).to(targets.dtype)
    return changed, float((changed != targets).float().mean())


def _destinations(names: tuple[str, ...], given: dict[int | str, int | str] | None) -> np.ndarray:
    """Where asymmetric noise takes each class."""
    count = len(names)
    if given is None:
        return (np.arange(count) + 1) % count
    to = np.arange(count)
    for start, end in given.items():
        to[_class(start, names)] = _class(end, names)
    return to


def _class(given: int | str, names: tuple[str, ...]) -> int:
    """A class by its name or, where no class has such a name, by its number."""
    if str(given) in names:
        return names.index(str(given))
    if isinstance(given, int) and 0 <= given < len(names):
        return given
    raise DataError("noise map: " + unknown("class", str(given), names))


def long_tail(classes: np.ndarray, config: ImbalanceConfig, seed: int) -> np.ndarray:
    """Which samples stay, in order: class c keeps as many as :class:`ImbalanceConfig` says.

    A class that is smaller already stays whole; none becomes empty.

    Args:
        classes: The class of each sample.
        config: How long the tail is.
        seed: What decides which samples stay.
    """
    random = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    counts = np.bincount(classes)
    last = max(len(counts) - 1, 1)
    position = np.arange(len(counts)) / last
    if config.kind == "step":
        position = (np.arange(len(counts)) >= (len(counts) + 1) // 2).astype(float)
    # the small addend keeps 100 * 0.01 from being 0.9999
    wanted = np.floor(counts.max() * config.factor**-position + 1e-9).astype(int).clip(1)
    kept = [
        random.permutation(np.flatnonzero(classes == c))[: wanted[c]] for c in range(len(counts))
    ]
    return np.sort(np.concatenate(kept))


def into_bags(
    targets: Tensor, labels: Labels, bags: BagsConfig, seed: int
) -> tuple[Tensor, Tensor]:
    """Deal samples into bags at random, and give each the response of its bag.

    Args:
        targets: As :meth:`Labels.encode` gives them.
        labels: The classes.
        bags: How large, and which response.
        seed: What decides who shares a bag.

    Returns:
        The targets, equal within a bag, and the bag of each sample, int64 ``(N,)`` from 0.

    Raises:
        DataError: the task has no classes of which one could be the majority.
    """
    random = np.random.default_rng(np.random.SeedSequence([seed, 4]))
    dealt = torch.from_numpy(random.permutation(len(targets)))
    bag = torch.empty_like(dealt)
    bag[dealt] = torch.arange(len(targets)) // bags.size
    values = targets
    if labels.task == "multiclass" and not labels.soft:
        values = F.one_hot(targets, len(labels.class_names))
    values = values.to(torch.float64).view(len(targets), -1)
    known = (values >= 0) | (labels.task == "regression")
    total, count = (
        torch.zeros(int(bag.max()) + 1, values.shape[1], dtype=torch.float64).index_add_(0, bag, v)
        for v in (values.where(known, 0.0), known.double())
    )
    mean = torch.where(count > 0, total / count, -1.0)
    if bags.label == "majority":
        if labels.task == "regression":
            raise DataError("bags: task regression has no majority; take label: proportion")
        if labels.task == "multiclass":
            return total.argmax(1)[bag], bag
        mean = torch.where(mean > 0.5, 1.0, mean.clamp(max=0).ceil())  # an unknown one stays -1
    shape = (-1,) if targets.ndim == 1 and labels.task != "multiclass" else mean.shape
    return mean.float().view(shape)[bag], bag
