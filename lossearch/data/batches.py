"""What training reads: splits that give batches, and the facts about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from lossearch.components.inputs import Inputs
from lossearch.data.inputs import Device, Source, Tensors
from lossearch.data.reading import Reading
from lossearch.data.several import telling
from lossearch.data.tables import TableEncoder
from lossearch.errors import DataError


@dataclass(frozen=True)
class DataInfo:
    """The facts about the data that models, losses and reports need.

    Attributes:
        task: ``multiclass``, ``binary``, ``multilabel`` or ``regression``.
        num_classes: Classes (binary: 2), labels of a multilabel task, 0 for regression.
        num_outputs: Outputs that a model needs: 1 for binary, else classes, labels or targets.
        class_names: Their names. For binary ones the second is the positive class.
        class_counts: Training samples of each class, with noise and imbalance; for multilabel
            ones the positives of each label; empty for regression. Proportions of bags leave
            them as they are.
        train_size, validation_size, test_size: Samples.
        input_shape: Shape of one sample's input; empty where there are several.
        kind: What a sample is: ``tokens`` are whole numbers, for a model's embedding; ``several``
            inputs are given to a model as keywords, or in order.
        fingerprint: A sha256 over inputs, labels, splits and noise, the same in every process.
        noise_rate: The share of training labels that the noise did change.
        notes: What a person should know of the reading, a sentence each.
        reading: What was read of a table, column by column.
        soft_targets: Whether training targets are probabilities of the classes (soft labels, or
            proportions of bags): float, multiclass ``[B, C]``, binary ``[B]`` in [0, 1].
        shapes: Of several inputs, the shape of each by name, or by number in order.
    """

    task: str
    num_classes: int
    num_outputs: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    train_size: int
    validation_size: int
    test_size: int
    input_shape: tuple[int, ...]
    kind: Literal["table", "image", "other", "tokens", "several"]
    fingerprint: str
    noise_rate: float = 0.0
    notes: tuple[str, ...] = ()
    reading: Reading | None = None
    soft_targets: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Split:
    """One part of the data.

    Args:
        source: Its inputs; a tensor is taken as it is.
        targets: Its labels, as losses read them.
        bag: The bag of each sample, int64 from 0, where shuffled batches are to hold whole bags.
        workers: Processes that load images or items that are not kept in memory.
    """

    def __init__(
        self,
        source: Source | Tensor,
        targets: Tensor,
        *,
        bag: Tensor | None = None,
        workers: int = 0,
    ) -> None:
        self.source: Source = Tensors(source) if isinstance(source, Tensor) else source
        self.workers = workers
        self._targets = Tensors(targets)
        self._bag = None if bag is None else Tensors(bag)
        if len(self.source) != len(targets):
            raise DataError(f"there are {len(self.source)} inputs and {len(targets)} targets")

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def targets(self) -> Tensor:
        """The labels, on the CPU."""
        return self._targets.values

    @property
    def bag(self) -> Tensor | None:
        """The bag of each sample, on the CPU, where there are bags."""
        return None if self._bag is None else self._bag.values

    @property
    def gives(self) -> tuple[str, ...]:
        """The fields of a batch."""
        bag = () if self._bag is None else ("bag",)
        return ("inputs", "targets", "index", *bag)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = "cpu",
        drop_last: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """One pass over the split.

        Args:
            batch_size: Samples a batch.
            generator: Shuffles, and augments images; both depend on nothing else. Without one
                the samples come in order and as they are, bags apart.
            device: Where the batches are wanted.
            drop_last: Leave out a last batch that is not full.

        Returns:
            Batches with ``inputs`` (a tensor, or a mapping or tuple of several), ``targets``,
            ``index`` (the position in this split) and, where there are bags, ``bag``.

        Raises:
            DataError: the batch size is below 1, or whole bags do not make it up.
        """
        if batch_size < 1:
            raise DataError(f"batch_size = {batch_size} is not allowed; it is at least 1")
        seed = None
        if generator is None:
            order, ends = torch.arange(len(self)), None
        else:
            order, ends = self._shuffled(batch_size, generator)
            if self.source.random:
                draw = torch.randint(2**62, (), generator=generator, device=generator.device)
                seed = int(draw)
        chunks: Sequence[Tensor] = ()
        if len(order):
            order = order.to(device)
            chunks = order.split(batch_size) if ends is None else order.tensor_split(ends[:-1])
        if drop_last and chunks and len(chunks[-1]) < batch_size:
            chunks = chunks[:-1]
        if len(chunks) > self.steps(batch_size) and generator is not None and not drop_last:
            chunks = [*chunks[:-2], torch.cat([*chunks[-2:]])]
        return self._stream(chunks, seed, device)

    def steps(self, batch_size: int) -> int:
        """How many batches a pass in training makes.

        A last one of a single sample joins the one before: batch norm has no variance of it.
        """
        alone = self.bag is None and len(self) % batch_size == 1 and 1 < batch_size < len(self)
        return math.ceil(len(self) / batch_size) - alone

    def lone(self, batch_size: int) -> bool:
        """Whether a batch of a pass in training may hold one sample alone."""
        if self.bag is None:
            return batch_size == 1 or len(self) == 1
        sizes = self.bag.bincount()
        together = max(batch_size // int(sizes.max()), 1)  # bags of a batch
        return int(sizes.min()) == 1 and (together == 1 or len(sizes) % together == 1)

    def _shuffled(
        self, batch_size: int, generator: torch.Generator
    ) -> tuple[Tensor, list[int] | None]:
        """Positions in a new order; where there are bags these stay whole, and batches end."""
        number = len(self) if self.bag is None else int(self.bag.max()) + 1
        order = torch.randperm(number, generator=generator, device=generator.device)
        if self.bag is None:
            return order, None
        sizes = self.bag.bincount()
        largest = int(sizes.max())
        if batch_size % largest:
            raise DataError(
                f"batch_size = {batch_size} cannot hold whole bags of {largest}; make it a "
                "multiple of the bags' size"
            )
        order = order.cpu()
        held = [int(some.sum()) for some in sizes[order].split(batch_size // largest)]
        return order.argsort()[self.bag].argsort(stable=True), list(accumulate(held))

    def _stream(
        self, chunks: Sequence[Tensor], seed: int | None, device: Device
    ) -> Iterator[dict[str, Any]]:
        targets = self._targets.on(device)
        inputs = self.source.stream(chunks, seed, device, self.workers)
        bag = None if self._bag is None else self._bag.on(device)
        for chunk, part in zip(chunks, inputs, strict=True):
            batch = {"inputs": part, "targets": targets.index_select(0, chunk), "index": chunk}
            if bag is not None:
                batch["bag"] = bag.index_select(0, chunk)
            yield batch


@dataclass
class Data:
    """A dataset, ready to train on. It pickles, and so travels to workers.

    Attributes:
        table: For tables, the fitted preprocessing, which a model needs when it is used.
    """

    train: Split
    validation: Split
    test: Split
    info: DataInfo
    table: TableEncoder | None = None

    def as_integers(self) -> Data | None:
        """The same with int64 inputs, for a model's embedding; None where they are not whole."""
        parts: list[Split] = []
        for split in (self.train, self.validation, self.test):
            change = getattr(split.source, "as_integers", None)
            source = change() if change is not None and self.table is None else None
            if source is None:
                return None
            parts.append(Split(source, split.targets, bag=split.bag, workers=split.workers))
        note = "the model holds an embedding, and gets the inputs as whole numbers (int64)"
        info = replace(self.info, kind="tokens", notes=(*self.info.notes, note))
        return Data(*parts, info=info)

    def samples(self) -> Inputs | None:
        """Inputs of a few samples, where noise would be none: of tokens, and of several inputs."""
        if self.info.kind not in ("tokens", "several"):
            return None
        rows = torch.tensor(telling(self.train.source))
        return next(iter(self.train.source.stream([rows], None, "cpu", 0)))
