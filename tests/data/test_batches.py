"""Batches: order, fields, augmentation, and that they cost little."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from lossearch.data import Dataset, ImageFiles, Split, as_dataset, parts, prepare_dataset
from lossearch.data.inputs import Images, Items, _mirror, normalisation
from lossearch.errors import DataError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_fields_and_order() -> None:
    split = Split(torch.arange(20.0).view(10, 2), torch.arange(10) % 3)
    batches = list(split.batches(4))
    assert [list(batch) for batch in batches] == [["inputs", "targets", "index"]] * 3
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(10))
    assert torch.equal(torch.cat([b["inputs"] for b in batches]), torch.arange(20.0).view(10, 2))
    assert [len(b["index"]) for b in split.batches(4, drop_last=True)] == [4, 4]
    assert list(split.batches(11, drop_last=True)) == []


def test_the_generator_alone_decides_the_order() -> None:
    split = Split(torch.arange(10.0)[:, None], torch.arange(10))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(split.batches(3, generator=seeded(7)))
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.randperm(10, generator=seeded(7))
    assert torch.equal(torch.cat([b["index"] for b in batches]), expected)
    for batch in batches:
        assert torch.equal(batch["targets"], batch["index"])
        assert torch.equal(batch["inputs"][:, 0], batch["index"].float())


def test_a_batch_is_a_copy() -> None:
    split = Split(torch.zeros(4, 2), torch.zeros(4))
    for batch in split.batches(2):
        batch["inputs"].add_(1)
        batch["targets"].add_(1)
    assert all(not b["inputs"].any() and not b["targets"].any() for b in split.batches(2))


def test_wrong_sizes_are_refused() -> None:
    split = Split(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(DataError, match="batch_size = 0"):
        split.batches(0)
    with pytest.raises(DataError, match="3 inputs and 4 targets"):
        Split(torch.zeros(3, 2), torch.zeros(4))


def test_a_batch_in_memory_costs_little() -> None:
    split = Split(torch.rand(20_000, 32), torch.zeros(20_000))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        count = sum(1 for _ in split.batches(64, generator=seeded()))
        best = min(best, (time.perf_counter() - start) / count)
    assert best < 1e-3  # about 1e-5 on an idle core; a DataLoader takes some 1e-3


IMAGES = torch.randint(0, 256, (40, 3, 16, 16), generator=seeded(1)).to(torch.uint8)


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in normalisation(images.shape[1]))
    return (images.float() / 255 - mean) / std


def test_byte_images_are_normalised_and_not_augmented_in_order() -> None:
    split = Split(Images(IMAGES, augment=True), torch.zeros(40))
    (batch,) = split.batches(40)
    assert torch.allclose(batch["inputs"], normalised(IMAGES), atol=1e-6)
    assert batch["inputs"].dtype == torch.float32


def test_augmentation_is_a_flip_and_a_shift_with_a_mirrored_border() -> None:
    images = Images(IMAGES, augment=True)
    (batch,) = Split(images, torch.zeros(40)).batches(40, generator=seeded(3))
    generator = seeded(3)
    order = torch.randperm(40, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    (draws,) = images._draw([order], seed)
    assert set(draws[:, 0].tolist()) == set(range(-2, 3))  # an eighth of 16
    assert set(draws[:, 2].tolist()) == {0, 1}
    for row, position in enumerate(order.tolist()):  # numpy's padding is the oracle
        down, right, flip = draws[row].tolist()
        image = IMAGES[position].flip(2) if flip else IMAGES[position]
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
        view = padded[:, 2 + down : 18 + down, 2 + right : 18 + right]
        expected = normalised(torch.from_numpy(view)[None])[0]
        assert torch.allclose(batch["inputs"][row], expected, atol=1e-6)


def test_augmentation_repeats_and_can_be_off() -> None:
    split = Split(Images(IMAGES, augment=True), torch.zeros(40))

    def epoch(generator: torch.Generator, size: int = 16) -> torch.Tensor:
        return torch.cat([b["inputs"] for b in split.batches(size, generator=generator)])

    generator = seeded(3)
    first, second = epoch(generator), epoch(generator)
    assert torch.equal(first, epoch(seeded(3)))
    assert torch.equal(first, epoch(seeded(3), size=7))  # whatever the batch size
    assert not torch.equal(first, second)
    plain = Split(Images(IMAGES, augment=False), torch.zeros(40))
    batch = next(iter(plain.batches(40, generator=seeded(3))))
    assert torch.allclose(batch["inputs"], normalised(IMAGES)[batch["index"]], atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_batches() -> None:
    split = Split(Images(IMAGES, augment=True), torch.arange(40))
    on_gpu = split.batches(16, generator=seeded(), device="cuda")
    for one, two in zip(split.batches(16, generator=seeded()), on_gpu, strict=True):
        assert all(two[key].is_cuda for key in two)
        assert torch.allclose(one["inputs"], two["inputs"].cpu(), atol=1e-5)
        assert torch.equal(one["index"], two["index"].cpu())


def test_mirror_stays_inside() -> None:
    assert _mirror(torch.arange(-2, 6), 4).tolist() == [2, 1, 0, 1, 2, 3, 2, 1]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((12, 8, 8), (1, 8, 8)), ((12, 8, 8, 3), (3, 8, 8)), ((12, 3, 8, 8), (3, 8, 8))],
)
def test_byte_arrays_are_images(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    data = prepare_dataset(as_dataset(values, np.arange(12) % 2))
    assert (data.info.kind, data.info.input_shape) == ("image", expected)
    (batch,) = data.test.batches(99)
    assert batch["inputs"].shape[1:] == expected
    assert isinstance(data.train.source, Images)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFiles:
    """Twelve files of plain colours, 20 by 30 pixels."""
    paths = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 30), (number * 20, 100, 255 - number * 20)).save(path)
        paths.append(str(path))
    return ImageFiles(tuple(paths))


def test_small_image_files_are_kept_in_memory(folder: ImageFiles) -> None:
    data = prepare_dataset(Dataset(folder, np.arange(12) % 2, image_size=8))
    assert isinstance(data.train.source, Images)
    (batch,) = data.test.batches(99)
    red = batch["inputs"][:, 0, 0, 0] * 0.229 + 0.485
    assert all(round(v * 255) % 20 == 0 for v in red.tolist())
    whole = prepare_dataset(Dataset(folder, np.arange(12) % 2))
    assert whole.info.input_shape == (3, 30, 30)


def test_large_image_files_go_through_a_loader(
    folder: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "KEPT_BYTES", 0)
    dataset = Dataset(folder, np.arange(12) % 2, image_size=8)
    data = prepare_dataset(dataset)
    assert isinstance(data.train.source, Items)
    assert data.info.fingerprint == prepare_dataset(dataset).info.fingerprint
    kept = Dataset(folder, np.arange(12) % 2, image_size=8)
    monkeypatch.undo()
    in_memory = prepare_dataset(kept)
    for one, two in zip(data.test.batches(2), in_memory.test.batches(2), strict=True):
        assert torch.allclose(one["inputs"], two["inputs"], atol=0.02)
        assert torch.equal(one["targets"], two["targets"])


def test_loaded_views_depend_on_the_generator_alone(folder: ImageFiles) -> None:
    split = Split(Items(folder, np.arange(12), image_size=8, augment=True), torch.zeros(12))

    def epoch(seed: int) -> list[torch.Tensor]:
        return [b["inputs"] for b in split.batches(5, generator=seeded(seed))]

    random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), torch.get_rng_state()
    first = torch.cat(epoch(0))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    random.seed(2)
    assert torch.equal(first, torch.cat(epoch(0)))
    split.workers = 1
    assert torch.equal(first, torch.cat(epoch(0)))
    split.workers = 0
    assert not torch.equal(first, torch.cat(epoch(1)))


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    files = ImageFiles((str(broken),) * 6)
    with pytest.raises(DataError, match=r"broken.jpg cannot be read"):
        prepare_dataset(Dataset(files, np.arange(6) % 2))


class Vectors(TorchDataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, position: int) -> tuple[np.ndarray, int]:
        return np.full(3, position, dtype=np.float64), position % 2


def test_a_torch_dataset_of_tensors() -> None:
    data = prepare_dataset(as_dataset(Vectors()))
    assert (data.info.kind, data.info.input_shape) == ("table", (3,))
    seen = []
    for split in (data.train, data.validation, data.test):
        for batch in split.batches(4, generator=seeded()):
            assert batch["inputs"].dtype == torch.float32
            assert torch.equal(batch["inputs"][:, 0] % 2, batch["targets"])
            seen += batch["inputs"][:, 0].tolist()
    assert sorted(seen) == list(range(20))


def test_items_of_other_kinds_are_refused() -> None:
    class Dicts(Vectors):
        def __getitem__(self, position: int) -> Any:
            return {"image": 1, "name": "one"}

    class Text(Vectors):
        def __getitem__(self, position: int) -> Any:
            return "words", 0

    targets = np.arange(20) % 2
    with pytest.raises(DataError, match=r"'name', in the input of item .*, is a str"):
        prepare_dataset(as_dataset(Dicts(), targets))
    with pytest.raises(DataError, match="is a str; make a tensor of it"):
        prepare_dataset(as_dataset(Text(), targets))
