"""What training reads: splits that give batches, and the facts about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lossearch.data.inputs import Device, Source, Tensors
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
            ones the positives of each label; empty for regression.
        train_size, validation_size, test_size: Samples.
        input_shape: Shape of one sample's input.
        kind: What a sample is.
        fingerprint: A sha256 over inputs, labels, splits and noise, the same in every process.
        noise_rate: The share of training labels that the noise did change.
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
    kind: Literal["table", "image", "other"]
    fingerprint: str
    noise_rate: float = 0.0


class Split:
    """One part of the data.

    Args:
        source: Its inputs; a tensor is taken as it is.
        targets: Its labels, as losses read them.
        workers: Processes that load images or items that are not kept in memory.
    """

    def __init__(self, source: Source | Tensor, targets: Tensor, *, workers: int = 0) -> None:
        self.source: Source = Tensors(source) if isinstance(source, Tensor) else source
        self.workers = workers
        self._targets = Tensors(targets)
        if len(self.source) != len(targets):
            raise DataError(f"there are {len(self.source)} inputs and {len(targets)} targets")

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def targets(self) -> Tensor:
        """The labels, on the CPU."""
        return self._targets.values

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = "cpu",
        drop_last: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        """One pass over the split.

        Args:
            batch_size: Samples a batch.
            generator: Shuffles, and augments images; both depend on nothing else. Without one
                the samples come in order and as they are.
            device: Where the batches are wanted.
            drop_last: Leave out a last batch that is not full.

        Returns:
            Batches with ``inputs``, ``targets`` and ``index``, the position in this split.
        """
        if batch_size < 1:
            raise DataError(f"batch_size = {batch_size} is not allowed; it is at least 1")
        seed = None
        if generator is None:
            order = torch.arange(len(self))
        else:
            order = torch.randperm(len(self), generator=generator, device=generator.device)
            if self.source.random:
                draw = torch.randint(2**62, (), generator=generator, device=generator.device)
                seed = int(draw)
        if drop_last:
            order = order[: len(order) // batch_size * batch_size]
        chunks = order.to(device).split(batch_size) if len(order) else ()
        return self._stream(chunks, seed, device)

    def _stream(
        self, chunks: Sequence[Tensor], seed: int | None, device: Device
    ) -> Iterator[dict[str, Tensor]]:
        targets = self._targets.on(device)
        inputs = self.source.stream(chunks, seed, device, self.workers)
        for chunk, part in zip(chunks, inputs, strict=True):
            yield {"inputs": part, "targets": targets.index_select(0, chunk), "index": chunk}


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
