"""Several inputs of each sample, by name or in order, each from a source of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lossearch.components.inputs import Inputs
from lossearch.data.inputs import Device, Source, Tensors


class Several:
    """Inputs that are a mapping, or a tuple, of those of other sources."""

    def __init__(self, sources: Mapping[str, Source], *, named: bool) -> None:
        self.sources, self.named = sources, named
        self.random = any(source.random for source in sources.values())

    def __len__(self) -> int:
        return len(next(iter(self.sources.values())))

    def stream(
        self, chunks: Sequence[Tensor], seed: int | None, device: Device, workers: int
    ) -> Iterator[Inputs]:
        streams = [s.stream(chunks, seed, device, workers) for s in self.sources.values()]
        for parts in zip(*streams, strict=True):
            yield dict(zip(self.sources, parts, strict=True)) if self.named else parts


def telling(source: Source) -> list[int]:
    """Two samples or more to try a model on, with the largest whole numbers among them."""
    rows = {0, min(1, len(source) - 1)}
    inside = source.sources.values() if isinstance(source, Several) else (source,)
    for one in inside:
        if isinstance(one, Tensors) and one.values.dtype == torch.int64:
            rows.add(int(one.values.reshape(len(one), -1).amax(dim=1).argmax()))
    return sorted(rows)
