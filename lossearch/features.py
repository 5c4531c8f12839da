"""A frozen backbone's embeddings, computed once, kept in a file, and read by every worker.

A file is a plain ``.npy`` array ``[rows, width]`` with the sha256 of its data behind it: the
training split, once for each view, then the validation and the test split. Its name is the hash of
all that the embeddings depend on, so that studies share files and no file is ever out of date.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lossearch.components.inputs import fed
from lossearch.data import Data, Split
from lossearch.data.inputs import Device
from lossearch.errors import DataError, ModelError
from lossearch.models import ModelConfig, Network
from lossearch.storage import whole

__all__ = ["HEAD", "FeaturesConfig", "Rows", "cached"]

logger = logging.getLogger(__name__)
HEAD = ModelConfig(name="linear")  # what is left of the network where embeddings are the inputs
Progress = Callable[[int, int], None]
_FORMAT = 1  # of the file, and of how inputs become what a backbone reads
_DIGEST = 32  # bytes
_SAMPLE = 8  # embeddings that are computed again to see that a file is this backbone's
_SAME = 1e-2  # by how much they may differ: GPUs round to 10 bits
_RESIDENT = 2**30  # bytes that are copied to a GPU as a whole
_ABANDONED = 24 * 3600  # seconds after which a partial file is nobody's


class FeaturesConfig(BaseModel):
    """The ``features:`` section of a study with a frozen model.

    Attributes:
        views: Passes over the training split: the first as it is, the others augmented.
        folder: Where the embeddings are kept; ``features`` beside the study where left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    views: int = Field(default=1, ge=1, le=1000)
    folder: str | None = None


class Rows:
    """Inputs of one split that are rows of a file of embeddings. It pickles as the file's path.

    With several views, each sample of a training batch is one of its views, drawn anew for each
    epoch, as it would be augmented anew; without a generator it is the first, as it is.

    Args:
        path: The file, which workers map rather than load: all read the same memory.
        start: The first row.
        size: Samples of the split.
        views: How many times they follow each other.
    """

    def __init__(self, path: Path, start: int, size: int, views: int = 1) -> None:
        self.path, self.start, self.size, self.views = path.absolute(), start, size, views
        self.random = views > 1
        self._held: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}

    @property
    def values(self) -> Tensor:
        """All views, ``[views * samples, width]``, on the CPU."""
        if "cpu" not in self._held:
            try:
                # Copy on write: no tensor can reach the file, and torch takes no read-only ones.
                rows = np.lib.format.open_memmap(self.path, mode="c")
            except (OSError, ValueError) as error:
                raise DataError(
                    f"the embeddings {self.path} cannot be read ({error}); the folder must be one "
                    "that every worker sees, and stay as long as the study runs"
                ) from None
            end = self.start + self.views * self.size
            self._held["cpu"] = torch.from_numpy(rows[self.start : end])
        return self._held["cpu"]

    def stream(
        self, chunks: Sequence[Tensor], seed: int | None, device: Device, workers: int
    ) -> Iterator[Tensor]:
        values, name = self.values, str(device)
        if name != "cpu" and values.nbytes <= _RESIDENT:
            if name not in self._held:
                self._held[name] = values.to(device)
            values = self._held[name]
        draws = self._draw(chunks, seed) if self.random and seed is not None else None
        for number, chunk in enumerate(chunks):
            rows = chunk if draws is None else chunk + draws[number].to(chunk.device)
            yield values.index_select(0, rows.to(values.device)).to(device)

    def _draw(self, chunks: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
        """Where the view of each sample of an epoch begins."""
        sizes = [len(chunk) for chunk in chunks]
        generator = torch.Generator().manual_seed(seed)
        return (torch.randint(self.views, (sum(sizes),), generator=generator) * self.size).split(
            sizes
        )


def cached(
    data: Data,
    network: Network,
    folder: Path,
    *,
    views: int = 1,
    seed: int = 0,
    device: Device = "cpu",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Data:
    """The same data with a frozen network's embeddings as inputs: train :data:`HEAD` on them.

    Embeddings are float32. They are computed where the folder has none, or a damaged file, of
    this backbone, these data and these views.

    Args:
        data: The splits; targets, order and fingerprint stay.
        network: A network whose backbone is frozen.
        folder: Where files are kept; several studies, at the same time too, may share it.
        views: Passes over the training split: the first as it is, the others augmented as images
            are in training.
        seed: Of the augmentation.
        device: Where the backbone runs.
        batch_size: Samples at a time.
        progress: Called with the samples done and their number.

    Raises:
        ModelError: the backbone is not frozen, or gives embeddings that are not finite.
        DataError: several views are asked for of data that are not augmented.
        StorageError: the folder cannot be written to.
    """
    if not network.frozen:
        raise ModelError("only a frozen backbone's embeddings can be kept; set freeze: true")
    if views > 1 and not data.train.source.random:
        raise DataError(
            f"views = {views} would all be equal: these data are not augmented. Leave views out"
            + ("" if data.info.kind != "image" else ", or have the images augmented")
        )
    backbone = copy.deepcopy(network.backbone).to(device)
    splits = (data.train, data.validation, data.test)
    sizes = [views * len(data.train), len(data.validation), len(data.test)]
    path = folder / f"{_key(data, network.backbone, views, seed)}.npy"
    first = torch.arange(min(_SAMPLE, len(data.train)))
    sample = next(_embeddings(data.train, [first], None, backbone, device)).numpy()
    shape = (sum(sizes), sample.shape[1])
    found = path.exists()
    problem = _problem(path, shape, sample) if found else "is missing"
    if problem is None:
        logger.info("embeddings are taken from %s", path)
    else:
        if found:
            logger.warning("the embeddings in %s %s; they are computed again", path, problem)
        started = time.perf_counter()
        passes = _passes(splits, views, seed, backbone, device, batch_size)
        _write(path, shape, passes, progress)
        torch.cuda.empty_cache()  # the workers' processes need the memory
        seconds = time.perf_counter() - started
        logger.info("embeddings of %d samples took %.1f s: %s", shape[0], seconds, path)
    starts = np.cumsum([0, *sizes]).tolist()
    train, validation, test = (
        Split(
            Rows(path, start, len(split), views if split is data.train else 1),
            split.targets,
            bag=split.bag,
        )
        for start, split in zip(starts, splits, strict=False)
    )
    info = replace(data.info, kind="table", input_shape=(shape[1],), shapes={})
    return replace(data, train=train, validation=validation, test=test, info=info)


def _passes(
    splits: Sequence[Split],
    views: int,
    seed: int,
    backbone: nn.Module,
    device: Device,
    batch_size: int,
) -> Iterator[Tensor]:
    """All rows of a file, in order."""
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (views - 1,), generator=generator).tolist()
    train, *others = splits
    for split, view in [(train, s) for s in (None, *seeds)] + [(s, None) for s in others]:
        chunks = torch.arange(len(split)).split(batch_size)
        yield from _embeddings(split, chunks, view, backbone, device)


def _embeddings(
    split: Split,
    chunks: Sequence[Tensor],
    seed: int | None,
    backbone: nn.Module,
    device: Device,
) -> Iterator[Tensor]:
    chunks = [chunk.to(device) for chunk in chunks]
    source = copy.copy(split.source)  # what it brings to the device goes with it
    for inputs in source.stream(chunks, seed, device, split.workers):
        with torch.inference_mode():
            embeddings = fed(backbone, inputs).to("cpu", torch.float32)
        bad = int((~embeddings.isfinite()).any(dim=1).sum())
        if bad:
            raise ModelError(
                f"the frozen backbone gives embeddings that are not finite for {bad} of "
                f"{len(embeddings)} samples; check its weights and the scale of the inputs"
            )
        yield embeddings


def _key(data: Data, backbone: nn.Module, views: int, seed: int) -> str:
    """The hash of all that the embeddings depend on."""
    info = data.info
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(backbone))
    facts: list[Any] = [_FORMAT, layers, info.fingerprint, info.input_shape, views]
    if views > 1:
        facts.append(seed)
    sha = hashlib.sha256(repr(facts).encode())
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _problem(path: Path, shape: tuple[int, ...], sample: np.ndarray) -> str | None:
    """What is wrong with a file, or ``None``.

    The sample finds what the key cannot see: another code behind the same layers and weights.
    """
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
        with path.open("rb") as file:
            file.seek(-_DIGEST, 2)
            digest = file.read()
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    if rows.shape != shape or rows.dtype != np.float32:
        return f"are {rows.dtype} {list(rows.shape)}, not float32 {list(shape)}"
    if hashlib.sha256(rows.data).digest() != digest:
        return "are damaged"
    distance = np.linalg.norm(rows[: len(sample)] - sample)
    return None if distance <= _SAME * np.linalg.norm(sample) else "are not this backbone's"


def _write(
    path: Path, shape: tuple[int, ...], rows: Iterator[Tensor], progress: Progress | None
) -> None:
    """Write the whole file or none; of several writers the last one's stays."""
    _tidy(path.parent)
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
    with whole(path, "the embeddings", partial) as file:
        _write_rows(file, shape, rows, progress)


def _write_rows(
    file: IO[bytes], shape: tuple[int, ...], rows: Iterator[Tensor], progress: Progress | None
) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    sha = hashlib.sha256()
    done = 0
    for part in rows:
        data = np.ascontiguousarray(part.numpy(), dtype="<f4").data
        file.write(data)
        sha.update(data)
        done += len(part)
        if progress is not None:
            progress(done, shape[0])
    file.write(sha.digest())


def _tidy(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for left in folder.glob(".*.partial"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
