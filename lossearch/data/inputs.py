"""Where batches of inputs come from: tensors, images kept as bytes, or a torch dataset's items.

Each source streams the inputs of given index chunks. What fits is kept in memory and indexed; the
rest goes through a ``DataLoader``.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lossearch.components.inputs import Inputs, each
from lossearch.data.dataset import ImageFiles
from lossearch.data.items import as_inputs, collated, parted, several
from lossearch.data.pixels import images_of, read_image, rgb, unreadable
from lossearch.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Device = torch.device | str
_EXACT = 2**24  # up to here float32 holds every whole number


class Source(Protocol):
    """Inputs of one split. ``random``: whether training inputs depend on a seed."""

    random: bool

    def __len__(self) -> int: ...

    def stream(
        self, chunks: Sequence[Tensor], seed: int | None, device: Device, workers: int
    ) -> Iterator[Inputs]:
        """The inputs of each chunk of positions; augmented where there is a seed."""
        ...


class Tensors:
    """Inputs that are one tensor, moved to a device once."""

    random = False

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._resident: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.values)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resident": {}}  # copies on devices do not travel

    def on(self, device: Device) -> Tensor:
        """The whole tensor on a device, copied there on first use."""
        name = str(device)
        if name not in self._resident:
            self._resident[name] = self.values.to(device)
        return self._resident[name]

    def as_integers(self) -> Tensors | None:
        """The same as int64; None where they are no whole numbers, or too large for float32."""
        values = self.values
        if not values.is_floating_point() or not (values == values.round()).all():
            return None
        return Tensors(values.long()) if values.abs().max() < _EXACT else None

    def stream(
        self, chunks: Sequence[Tensor], seed: int | None, device: Device, workers: int
    ) -> Iterator[Tensor]:
        values = self.on(device)
        for chunk in chunks:
            yield values.index_select(0, chunk)


class Images(Tensors):
    """Images ``(N, channels, H, W)`` out of 255, mostly bytes, normalised batch by batch.

    Training batches are shifted by up to an eighth of the side, mirrored beyond the edge, and
    flipped left to right: the usual augmentation of small images.
    """

    def __init__(self, values: Tensor, *, augment: bool) -> None:
        super().__init__(values)
        self.random = augment

    def stream(
        self, chunks: Sequence[Tensor], seed: int | None, device: Device, workers: int
    ) -> Iterator[Tensor]:
        values = self.on(device)
        channels = values.shape[1]
        mean, std = (
            torch.tensor(v, device=device).view(1, -1, 1, 1) for v in normalisation(channels)
        )
        draws = self._draw(chunks, seed) if self.random and seed is not None else None
        for number, chunk in enumerate(chunks):
            images = values.index_select(0, chunk)
            if draws is not None:
                images = _shifted(images, draws[number].to(device))
            yield images.float().div_(255).sub_(mean).div_(std)

    def _draw(self, chunks: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
        """Shift down, shift right and flip of each sample, drawn for the whole epoch."""
        generator = torch.Generator().manual_seed(seed)
        sizes = [len(chunk) for chunk in chunks]
        height, width = (side // 8 for side in self.values.shape[2:])
        total = sum(sizes)
        return torch.stack(
            [
                torch.randint(-height, height + 1, (total,), generator=generator),
                torch.randint(-width, width + 1, (total,), generator=generator),
                torch.randint(0, 2, (total,), generator=generator),
            ],
            dim=1,
        ).split(sizes)


def _shifted(images: Tensor, draws: Tensor) -> Tensor:
    """One gather does all: the index arithmetic holds shift, mirrored border and flip."""
    height, width = images.shape[2:]
    down, right, flip = draws.unbind(1)
    rows = _mirror(torch.arange(height, device=images.device) + down[:, None], height)
    columns = _mirror(torch.arange(width, device=images.device) + right[:, None], width)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    flat = images.flatten(2)
    return flat.gather(2, pixels[:, None].expand_as(flat)).view_as(images)


def _mirror(position: Tensor, size: int) -> Tensor:
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)


def normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by which images are normalised: ImageNet's for three channels."""
    if channels == 3:
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return (0.5,) * channels, (0.5,) * channels


class Items:
    """Inputs that a torch dataset makes one by one: images of files, or its own tensors.

    Args:
        items: The dataset, and
        positions: which of its items belong to this split.
        image_size: For items that are images, the side that timm's transforms bring them to;
            None for items that are tensors already, one or several by name or in order.
        augment: Whether training images get timm's training transform.
    """

    def __init__(
        self,
        items: TorchDataset[Any],
        positions: np.ndarray,
        *,
        image_size: int | None = None,
        augment: bool = False,
    ) -> None:
        self.items = items
        self.positions = positions
        self.image_size = image_size
        self.random = augment and image_size is not None
        self.whole = False  # whether a tensor is to be int64

    def __len__(self) -> int:
        return len(self.positions)

    def as_integers(self) -> Items | None:
        """The same as int64; None where the items are no tensors of whole numbers."""
        item = item_input(self.items, int(self.positions[0]))
        dtype = getattr(item, "dtype", None)
        kinds = (torch.int64, torch.int32, torch.int16)
        if dtype not in (*kinds, *(np.dtype(str(k).removeprefix("torch.")) for k in kinds)):
            return None
        other = copy.copy(self)
        other.whole = True
        return other

    def stream(
        self, chunks: Sequence[Tensor], seed: int | None, device: Device, workers: int
    ) -> Iterator[Inputs]:
        view = _View(self, seed if self.random else None)
        loader = DataLoader(
            view,
            batch_sampler=[chunk.tolist() for chunk in chunks],
            num_workers=workers,
            generator=torch.Generator(),  # else it draws from the global one
            collate_fn=collated,
        )
        for batch in loader:
            yield each(lambda tensor: tensor.to(device), batch)


class _View(TorchDataset[Any]):
    """The items of one pass, transformed."""

    def __init__(self, source: Items, seed: int | None) -> None:
        self.source = source
        self.seed = seed

    def __getitem__(self, position: int) -> Inputs:
        source = self.source
        row = int(source.positions[position])
        if source.image_size is None:
            return item_array(item_input(source.items, row), row, whole=source.whole)
        transform = _transform(source.image_size, self.seed is not None)
        item, _ = picture(source.items, row)
        if self.seed is None:
            return transform(item)
        # timm's transforms draw from the global generators: seeded for each sample, so that a
        # sample's view depends on neither the workers nor its batch, and put back afterwards.
        state = random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):
                random.seed(self.seed + position)
                torch.manual_seed(self.seed + position)
                return transform(item)
        finally:
            random.setstate(state)


@cache
def _transform(image_size: int, training: bool) -> Any:
    from timm.data.transforms_factory import create_transform

    mean, std = normalisation(3)
    return create_transform(
        input_size=(3, image_size, image_size),
        is_training=training,
        interpolation="bicubic",
        crop_pct=1.0,
        mean=mean,
        std=std,
    )


def item_input(items: TorchDataset[Any], position: int) -> Any:
    """The input of a torch dataset's item: the item, its first part, or all but its label.

    Raises:
        DataError: the item has parts that are neither input nor target.
    """
    return parted(items[position], position)[0]


def item_array(item: Any, position: int, *, whole: bool = False) -> Inputs:
    """An item that is no PIL image, as tensors; normalised where it is an 8- or 16-bit image."""
    if not (whole or several(item)) and hasattr(item, "shape"):
        images = images_of(torch.as_tensor(item)[None])
        if images is not None:
            first = torch.tensor([0])
            return next(Images(images, augment=False).stream([first], None, "cpu", 0))[0]
    return as_inputs(item, position, whole=whole)


def picture(items: TorchDataset[Any], position: int) -> tuple[Image, tuple[str, ...]]:
    """An item that is an image, as 8-bit RGB, and what was done to it.

    Raises:
        DataError: it cannot be read, or its values have no stated range.
    """
    from PIL.Image import DecompressionBombError

    if isinstance(items, ImageFiles):
        return read_image(items.paths[position])
    name = f"item {position} of the dataset"
    try:
        return rgb(item_input(items, position), name)
    except (OSError, SyntaxError, DecompressionBombError) as error:
        raise unreadable(name, error) from None


def decode(
    items: TorchDataset[Any], positions: np.ndarray, image_size: int
) -> tuple[Tensor, Counter[str]]:
    """Images as bytes ``(N, 3, side, side)``, cropped to a square and resized.

    Returns:
        The images, and how many of them each of the facts of ``pixels`` holds of.

    Raises:
        DataError: some cannot be read: the first, and how many more.
    """
    from PIL import ImageOps
    from PIL.Image import Resampling

    side = (image_size, image_size)
    out = np.empty((len(positions), *side, 3), dtype=np.uint8)

    def one(row: int) -> tuple[str, ...] | DataError:
        try:
            image, facts = picture(items, int(positions[row]))
        except DataError as error:
            return error
        if image.size != side:
            image = ImageOps.fit(image, side, Resampling.BICUBIC)
        out[row] = np.asarray(image)
        return facts

    found: Counter[str] = Counter()
    refused: list[DataError] = []
    with ThreadPoolExecutor() as pool:  # decoding leaves Python's lock free
        for said in pool.map(one, range(len(positions))):
            if isinstance(said, DataError):
                refused.append(said)
            else:
                found.update(said)
    if refused:
        more = f" ({len(refused) - 1} more images are refused too)" if refused[1:] else ""
        raise DataError(f"{refused[0]}{more}")
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous(), found
