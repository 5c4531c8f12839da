"""From a dataset to training, validation and test: dealing out, encoding, noise, fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor

from lossearch.components.params import validate
from lossearch.data.batches import Data, DataInfo, Split
from lossearch.data.config import DataConfig
from lossearch.data.corrupt import add_noise, into_bags, long_tail
from lossearch.data.dataset import Dataset, as_dataset
from lossearch.data.labels import IGNORE, Labels, marked, read_labels, tidy
from lossearch.data.parts import load_parts
from lossearch.errors import DataError, ParameterError, did_you_mean
from lossearch.registry import Registry

__all__ = ["Data", "DataInfo", "Split", "as_dataset", "prepare", "prepare_dataset"]

logger = logging.getLogger(__name__)
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


def prepare(config: DataConfig, registry: Registry, *, seed: int = 0) -> Data:
    """The data of a study: the dataset that ``config`` names, dealt out and ready.

    Args:
        config: The ``data:`` block of a study.
        registry: Where the dataset component is looked up.
        seed: Seed of the label noise and of the bags, where they have none of their own.

    Raises:
        UnknownNameError: no dataset has this name.
        ParameterError: the dataset has no such parameter, or not with this value.
        DataError: the data cannot be read, or cannot be used as it is.
    """
    component = registry.get(config.name, "dataset")
    _refuse_unknown(config, component.Params.model_fields, f"dataset '{config.name}'")
    dataset = component.build(**config.params)({})
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"dataset '{config.name}' returned a {type(dataset).__name__}; it must return a "
            "lossearch.data.Dataset"
        )
    return prepare_dataset(dataset, config, seed=seed)


def prepare_dataset(
    dataset: Dataset, config: DataConfig | Mapping[str, Any] | None = None, *, seed: int = 0
) -> Data:
    """The same for a dataset that is at hand.

    Args:
        dataset: All samples, not yet split; see :func:`as_dataset`.
        config: How to deal them out and what to make worse; a mapping needs no ``name``.
        seed: Seed of the label noise and of the bags, where they have none of their own.

    Raises:
        ParameterError: ``config`` is a mapping with an unknown key or an illegal value.
        DataError: the data cannot be used as it is.
    """
    if not isinstance(config, DataConfig):
        given = {"name": "data", **(config or {})}
        config = cast(DataConfig, validate("data", DataConfig, given))
        _refuse_unknown(config, (), "a dataset at hand")
    raw = _targets(dataset.inputs, dataset.targets, "")
    task = config.task or dataset.task
    raw, kept, notes = _leave_out(raw, task, "")
    labels = read_labels(raw, task, dataset.class_names)
    whole = labels.encode(raw)
    fixed, fixed_kept = None, kept
    if dataset.test is not None:
        raw = _targets(*dataset.test, "test ")
        raw, fixed_kept, more = _leave_out(raw, labels.task, "test ")
        notes += more
        fixed = labels.encode(raw)
    rows = deal_out(labels.classes(whole), labels, config, fixed)
    if config.imbalance is not None:
        if not labels.values:
            raise DataError(f"'imbalance' needs classes, and task {labels.task} has none")
        train = rows["train"]
        classes = labels.classes(whole[train])
        rows["train"] = train[long_tail(classes, config.imbalance, config.split.seed)]
    targets: dict[Part, Tensor] = {
        part: (fixed if part == "test" and fixed is not None else whole)[rows[part]]
        for part in PARTS
    }
    targets |= {part: labels.hard(targets[part]) for part in PARTS[1:]}  # what metrics judge by
    noise_rate = 0.0
    if config.noise is not None:
        own_seed = seed if config.noise.seed is None else config.noise.seed
        for number, part in enumerate(PARTS[:2]):
            seeds = (own_seed, number)
            targets[part], rate = add_noise(targets[part], labels, config.noise, seeds)
            noise_rate = noise_rate if number else rate
            logger.info("%s labels changed by noise: %.2f%%", part, 100 * rate)
    counts, bag = labels.counts(targets["train"]), None
    if config.bags is not None:
        own_seed = seed if config.bags.seed is None else config.bags.seed
        targets["train"], bag = into_bags(targets["train"], labels, config.bags, own_seed)
        if config.bags.label == "majority":
            counts = labels.counts(targets["train"])
    soft = labels.soft if bag is None else _between(labels, targets["train"])
    for part in PARTS:
        rows[part] = (fixed_kept if part == "test" and fixed is not None else kept)[rows[part]]
    test_inputs = dataset.inputs if dataset.test is None else dataset.test[0]
    loaded = load_parts(
        dataset,
        [
            (dataset.inputs, rows["train"]),
            (dataset.inputs, rows["validation"]),
            (test_inputs, rows["test"]),
        ],
    )
    splits = [
        Split(source, targets[part], bag=bag if part == "train" else None)
        for source, part in zip(loaded.sources, PARTS, strict=True)
    ]
    info = DataInfo(
        task=labels.task,
        num_classes=len(labels.class_names),
        num_outputs=_outputs(labels),
        class_names=labels.class_names,
        class_counts=counts,
        train_size=len(splits[0]),
        validation_size=len(splits[1]),
        test_size=len(splits[2]),
        input_shape=loaded.shape,
        kind=loaded.kind,
        fingerprint=_fingerprint(labels, loaded.digest, rows, targets, bag),
        noise_rate=noise_rate,
        notes=(*dataset.notes, *notes, *labels.notes),
        soft_targets=soft,
    )
    return Data(*splits, info=info, table=loaded.table)


def _refuse_unknown(config: DataConfig, own: Iterable[str], what: str) -> None:
    known = [*own, *(key for key in DataConfig.model_fields if key != "name")]
    for key in config.params:
        if key not in known:
            raise ParameterError(
                f"data: {what} has no key '{key}'{did_you_mean(key, known) or '.'} "
                f"It has: {', '.join(known)}"
            )


def deal_out(
    classes: np.ndarray, labels: Labels, config: DataConfig, fixed: Tensor | None
) -> dict[Part, np.ndarray]:
    """Rows of each part, in order; each class is in every part, in its share.

    scikit-learn's stratified splits give a rare class no sample in some part, where a metric then
    has nothing to measure; here each part gets at least one.

    Args:
        classes: The class of each sample.
        labels: Their names.
        config: Shares, seed and limit.
        fixed: The encoded labels of the test part, where the dataset brings one.

    Raises:
        DataError: a class has too few samples.
    """
    split = config.split
    random = np.random.default_rng(split.seed)
    needed = 3 if fixed is None else 2
    _refuse_rare(classes, labels, needed)
    rows = np.arange(len(classes))
    limit = config.limit
    if limit is not None:
        kept = limit if fixed is None else round(limit * (1 - split.test))
        if kept < needed * max(len(labels.values), 1):
            raise DataError(
                f"limit = {limit} is too small: each of the {max(len(labels.values), 1)} classes "
                f"needs {needed} samples to be split"
            )
        rows = _draw(classes, rows, min(kept, len(rows)), random, at_least=needed, leave=0)
    if fixed is None:
        test = _draw(classes, rows, round(split.test * len(rows)), random, leave=2)
        validation_size = round(split.validation * len(rows))
        rows = np.setdiff1d(rows, test)
    else:
        test = np.arange(len(fixed))
        if limit is not None:
            share = min(max(limit - len(rows), 1), len(test))
            test = _draw(labels.classes(fixed), test, share, random, at_least=0, leave=0)
        validation_size = round(split.validation * len(rows))
    validation = _draw(classes, rows, validation_size, random, leave=1)
    return {"train": np.setdiff1d(rows, validation), "validation": validation, "test": test}


def _draw(
    classes: np.ndarray,
    rows: np.ndarray,
    total: int,
    random: np.random.Generator,
    *,
    at_least: int = 1,
    leave: int,
) -> np.ndarray:
    """``total`` of these rows, each class in its share, at least so many and never all of it."""
    counts = np.bincount(classes[rows])
    low = np.minimum(at_least, counts)
    high = np.maximum(counts - leave, low)
    total = max(total, int(low.sum()))
    share = total * counts / counts.sum()
    sizes = np.clip(np.floor(share).astype(int), low, high)
    while sizes.sum() != total:  # the largest remainder gets what is over, or gives what lacks
        step = 1 if sizes.sum() < total else -1
        free = sizes < high if step > 0 else sizes > low
        if not free.any():
            break
        sizes[np.argmax(np.where(free, step * (share - sizes), -np.inf))] += step
    drawn = [random.permutation(rows[classes[rows] == c])[:size] for c, size in enumerate(sizes)]
    return np.sort(np.concatenate(drawn))


def _refuse_rare(classes: np.ndarray, labels: Labels, needed: int) -> None:
    counts = np.bincount(classes, minlength=max(len(labels.values), 1))
    rare = np.flatnonzero(counts < needed)
    if not len(rare):
        return
    if not labels.values:
        raise DataError(f"there are {len(classes)} samples; {needed} are the least")
    first = rare[0]
    have = {0: "no sample", 1: "one sample"}.get(int(counts[first]), f"{counts[first]} samples")
    more = f" (and {len(rare) - 1} more classes have too few)" if len(rare) > 1 else ""
    hint = ""
    if all(name.lstrip("-").isdigit() for name in labels.class_names):
        hint = ". Where the label is a quantity, say task: regression"
    raise DataError(
        f"class '{labels.class_names[first]}' has {have}{more}; training, validation and test "
        f"need one each, so {needed} are the least. Add samples, merge the class or drop it{hint}"
    )


def _targets(inputs: Any, targets: Any, which: str) -> np.ndarray:
    raw = tidy(targets)
    if not hasattr(inputs, "__len__"):
        raise DataError(f"the {which}inputs have no length; a map-style dataset is wanted")
    if len(inputs) != len(raw):
        raise DataError(f"there are {len(inputs)} {which}inputs and {len(raw)} {which}targets")
    if len(raw) == 0:
        raise DataError(f"the {which}dataset has no samples")
    return raw


def _leave_out(
    raw: np.ndarray, task: str | None, which: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Labels without those marked to be ignored, where they stand, and what is said of it."""
    ignored = marked(raw, task)
    rows = np.flatnonzero(~ignored)
    count = int(ignored.sum())
    if not count:
        return raw, rows, ()
    if not len(rows):
        raise DataError(f"all {count} {which}labels are {IGNORE}, the mark for 'ignore'")
    have = "1 sample is" if count == 1 else f"{count} samples are"
    note = f"{have} left out of the {which}data: the label is {IGNORE}, the mark for 'ignore'"
    return raw[rows], rows, (note,)


def _between(labels: Labels, targets: Tensor) -> bool:
    """Whether the responses of bags are shares of classes, not classes."""
    if labels.task == "multiclass":
        return targets.is_floating_point()
    known = targets[targets >= 0]
    return labels.task == "binary" and bool((known != known.round()).any())


def _outputs(labels: Labels) -> int:
    if labels.task == "binary":
        return 1
    return labels.width if labels.task == "regression" else len(labels.class_names)


def _fingerprint(
    labels: Labels,
    digest: str,
    rows: Mapping[Part, np.ndarray],
    targets: Mapping[Part, Tensor],
    bag: Tensor | None,
) -> str:
    sha = hashlib.sha256(json.dumps([labels.task, labels.class_names, digest]).encode())
    for part in PARTS:
        sha.update(np.ascontiguousarray(rows[part], dtype=np.int64).tobytes())
        sha.update(targets[part].contiguous().numpy().tobytes())
    if bag is not None:
        sha.update(bag.numpy().tobytes())
    return sha.hexdigest()
