"""From a picture of any mode to pixels: real values, and refusals that name the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from lossearch.data import Data, Dataset, ImageFiles, as_dataset, parts, prepare_dataset
from lossearch.data.inputs import decode
from lossearch.data.pixels import read_image
from lossearch.errors import DataError

LABELS = np.arange(12) % 2
RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257  # 0 to 65,535


def saved(folder: Path, image: Image.Image, name: str = "it.png", **options: Any) -> str:
    path = folder / name
    image.save(path, **options)
    return str(path)


def pixels(path: str) -> np.ndarray:
    """As they are decoded, ``(H, W, 3)``."""
    return np.asarray(read_image(path)[0])


def tiff(
    folder: Path, values: np.ndarray, bits: int, photometric: int = 1, signed: bool = False
) -> str:
    """A grey TIFF, written by hand: Pillow writes no 12 bits, signs or negatives of 16."""
    height, width = values.shape
    if bits == 12:
        halves = "".join(f"{value:03x}" for value in values.ravel())
        data = bytes.fromhex(halves)
    else:
        data = values.astype(f"<u{bits // 8}").tobytes()
    tags = [
        (256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 200),
        (277, 1), (278, height), (279, len(data)), (339, 1 + signed),
    ]  # fmt: skip
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    head += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    path = folder / f"{bits}-{photometric}.tif"
    path.write_bytes(head.ljust(200, b"\0") + data)
    return str(path)


@pytest.mark.parametrize(
    ("shape", "fingerprint"),
    [
        ((6, 6, 3), "02c1e82cf38f31c1c819c66984db172fd6575a1158b9fb57afae660ba9fcc01d"),
        ((6, 6), "9727175630aa013923187a22f93579831ae806f1f9f791b8d73c1fd2ebe6ec4c"),
    ],
)
def test_plain_images_are_what_they_were(
    tmp_path: Path, shape: tuple[int, ...], fingerprint: str
) -> None:
    """Of the releases before other modes were read; ledgers and embeddings hang on it."""
    steps = np.arange(np.prod(shape))
    paths = [
        saved(
            tmp_path,
            Image.fromarray((steps * (n + 7) % 256).astype("u1").reshape(shape)),
            f"{n}.png",
        )
        for n in range(12)
    ]
    assert (
        prepare_dataset(Dataset(ImageFiles(tuple(paths)), LABELS)).info.fingerprint == fingerprint
    )


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_span_the_full_range(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP), f"ramp.{ending}")
    image, facts = read_image(path)
    assert np.asarray(image)[..., 0].ravel().tolist() == list(range(256))
    assert facts == ("deep",)
    dark = saved(tmp_path, Image.fromarray(np.full((2, 2), 20000, np.uint16)), f"dark.{ending}")
    assert pixels(dark).max() == 78  # 20000 / 257 = 77.8


def test_twelve_bits_and_negatives_of_a_tiff(tmp_path: Path) -> None:
    values = np.array([[0, 1000], [3000, 4095]])
    assert pixels(tiff(tmp_path, values, 12))[..., 0].tolist() == [[0, 62], [187, 255]]
    deep = np.array([[0, 257], [65278, 65535]])  # white is zero
    assert pixels(tiff(tmp_path, deep, 16, 0))[..., 1].tolist() == [[255, 254], [1, 0]]


def test_floats_within_one_are_read_and_others_refused(tmp_path: Path) -> None:
    values = np.array([[0, 0.25], [0.5, 1]], dtype=np.float32)
    assert pixels(saved(tmp_path, Image.fromarray(values), "f.tif"))[..., 2].tolist() == [
        [0, 64],
        [128, 255],
    ]
    for factor, message in ((4095, "floats from 0 to 4095"), (-1, "floats from -1 to -0")):
        path = saved(tmp_path, Image.fromarray(values * factor), "g.tif")
        with pytest.raises(DataError, match=rf"g.tif holds {message}.*Divide all images by one"):
            read_image(path)
    values[0, 0] = np.nan
    with pytest.raises(DataError, match="floats from nan to nan"):
        read_image(saved(tmp_path, Image.fromarray(values), "n.tif"))


def test_integers_of_32_bits_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.arange(4, dtype=np.int32)[None]), "i.tif")
    with pytest.raises(DataError, match=r"i.tif holds integers of 32 bits.*mode I.*16 bits"):
        read_image(path)
    signed = tiff(tmp_path, np.array([[0, 127], [128, 255]]), 8, signed=True)
    with pytest.raises(DataError, match=r"with a sign \(mode L\)"):
        read_image(signed)


def test_masks_of_one_bit(tmp_path: Path) -> None:
    mask = np.array([[True, False]])
    assert pixels(saved(tmp_path, Image.fromarray(mask)))[0, :, 0].tolist() == [255, 0]


def test_palettes_give_their_colours(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putdata([0, 1, 2])
    image.putpalette([0, 0, 0] * 3)
    with pytest.raises(DataError, match=r"it.png is a palette image.*its 3 indices one colour"):
        read_image(saved(tmp_path, image))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert pixels(saved(tmp_path, image))[0].tolist() == colours
    clear = saved(tmp_path, image, "clear.png", transparency=1)
    assert pixels(clear)[0].tolist() == [colours[0], [255] * 3, colours[2]]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (76, 85, 255), (255, 0, 0)),
        ("LAB", (138, 209, 198), (255, 0, 0)),  # L 54.3, a 80.8, b 69.9 under D50
        ("LAB", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_other_colours(
    tmp_path: Path, mode: str, value: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    path = saved(tmp_path, Image.new(mode, (2, 2), value), "it.tif")
    image, facts = read_image(path)
    assert np.asarray(image)[0, 0].tolist() == pytest.approx(expected, abs=5)
    assert facts == ("colours",)


def test_transparent_ground_becomes_white(tmp_path: Path) -> None:
    values = np.array([[[0, 0, 0, 0], [0, 0, 0, 128], [200, 10, 0, 255]]], dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(values))
    assert pixels(path)[0].tolist() == [[255] * 3, [127] * 3, [200, 10, 0]]
    assert read_image(path)[1] == ("ground",)
    grey = Image.fromarray(np.array([[[0, 0], [90, 255]]], dtype=np.uint8))
    assert grey.mode == "LA"
    assert pixels(saved(tmp_path, grey))[0, :, 0].tolist() == [255, 90]
    values[..., 3] = 255
    path = saved(tmp_path, Image.fromarray(values))
    assert (pixels(path)[0, 0].tolist(), read_image(path)[1]) == ([0] * 3, ())


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 1), (8, 3)])
def test_exif_orientation(tmp_path: Path, ending: str, orientation: int, turns: int) -> None:
    """6 says: to be turned clockwise by a quarter; so what lies there was turned the other way."""
    upright = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    image = Image.fromarray(np.rot90(upright, turns).copy())
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path, image, f"it.{ending}", exif=exif, **options)
    assert np.array_equal(pixels(path), upright)


def test_damaged_exif_says_nothing(tmp_path: Path) -> None:
    path = saved(
        tmp_path, Image.new("RGB", (8, 8), "red"), "it.jpg", exif=b"Exif\0\0II*\0\xff\xff"
    )
    assert (pixels(path)[0, 0, 0] > 250, read_image(path)[1]) == (True, ())


@pytest.mark.parametrize("ending", ["gif", "png", "tif", "webp"])
def test_of_several_frames_the_first(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (250, 100, 0)]
    path = saved(tmp_path, frames[0], f"it.{ending}", save_all=True, append_images=frames[1:])
    image, facts = read_image(path)
    assert (np.asarray(image).min(), facts) == (250, ("frames",))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    paths = [saved(tmp_path, Image.fromarray(noise), f"{n}.png") for n in range(12)]
    whole = Path(paths[3]).read_bytes()
    Path(paths[3]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"3.png cannot be read \(image file is truncated.*repair"):
        prepare_dataset(Dataset(ImageFiles(tuple(paths)), LABELS))
    Path(paths[3]).write_bytes(b"")
    with pytest.raises(DataError, match=r"3.png is empty \(0 bytes\)"):
        read_image(paths[3])
    Path(paths[5]).write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"3.png is empty.*\(1 more images are refused too\)"):
        decode(ImageFiles(tuple(paths)), np.arange(12), 8)
    with pytest.raises(DataError, match=r"5.png cannot be read"):
        read_image(paths[5])


def test_a_file_of_400_megapixels(tmp_path: Path) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    path = tmp_path / "huge.png"
    start = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + start + struct.pack(">I", 9) + b"IDAT")
    with pytest.raises(DataError, match=r"huge.png is too large: .*400000000.*smaller copy"):
        read_image(str(path))


class Listed(TorchDataset[Any]):
    """Items at hand."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Any:
        return self.items[position]


def deep(number: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), number * 5000, dtype=np.uint16))


def whole(data: Data) -> torch.Tensor:
    """Red of the first pixel of all samples, out of 255, sorted."""
    batches = [b["inputs"] for s in (data.train, data.validation, data.test) for b in s.batches(9)]
    return ((torch.cat(batches)[:, 0, 0, 0] * 0.229 + 0.485) * 255).round().sort().values


def test_images_of_a_torch_dataset_follow_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    items = Listed([deep(number) for number in range(12)])
    expected = [round(number * 5000 / 257) for number in range(12)]
    data = prepare_dataset(Dataset(items, LABELS))
    assert whole(data).tolist() == expected
    assert any("12 of 12 images are of 16 bits" in note for note in data.info.notes)
    monkeypatch.setattr(parts, "KEPT_BYTES", 0)  # read one by one
    monkeypatch.setattr(parts, "LOOKED_AT", 6)
    large = prepare_dataset(Dataset(items, LABELS))
    assert whole(large).tolist() == expected
    (note,) = large.info.notes
    assert note.startswith("6 of 6 images looked at, of 12, are of 16 bits")
    items.items[7] = None
    with pytest.raises(DataError, match="item 7 of the dataset is a NoneType"):
        decode(items, np.arange(12), 4)
    items.items[7] = Image.fromarray(np.full((4, 4), 7, dtype=np.int32))
    with pytest.raises(DataError, match="item 7 of the dataset holds integers of 32 bits"):
        decode(items, np.arange(12), 4)


def test_dark_images_are_said(tmp_path: Path) -> None:
    masks = [Image.fromarray(np.full((4, 4), n % 3, dtype=np.uint8)) for n in range(12)]
    (note,) = prepare_dataset(Dataset(Listed(masks), LABELS)).info.notes
    assert "no pixel of the images is above 2 of 255" in note
    array = np.stack([np.asarray(mask) for mask in masks])
    (note,) = prepare_dataset(as_dataset(array, LABELS)).info.notes
    assert "above 2 of 255" in note
    array[-1] = 255
    assert prepare_dataset(as_dataset(array, LABELS)).info.notes == ()


@pytest.mark.parametrize("shape", [(12, 8, 8), (12, 8, 8, 3), (12, 3, 8, 8)])
def test_arrays_of_16_bits_are_images_and_lose_nothing(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    data = prepare_dataset(as_dataset(values, LABELS, test=(values, LABELS)))
    channels = 1 if values.ndim == 3 else 3
    assert (data.info.kind, data.info.input_shape) == ("image", (channels, 8, 8))
    (batch,) = data.test.batches(99)
    images = {3: values[:, None], 4: values}[values.ndim]
    if shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    mean, std = (0.5, 0.5) if channels == 1 else (0.485, 0.229)
    red = (images[:, 0] / 65535 - mean) / std
    assert np.allclose(batch["inputs"][:, 0].numpy(), red, atol=1e-6)
    assert data.train.source.random  # augmented like those of 8 bits
    assert any("uint16" in note and "65,535" in note for note in data.info.notes)
    with pytest.raises(DataError, match=r"uint16\), and one of the test part .*float32"):
        prepare_dataset(as_dataset(values, LABELS, test=(values.astype(np.float32), LABELS)))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint32])
def test_other_arrays_are_used_as_they_are_and_said(dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 4)).astype(dtype)
    data = prepare_dataset(as_dataset(values, LABELS, test=(values, LABELS)))
    (batch,) = data.test.batches(99)
    assert np.array_equal(batch["inputs"].numpy(), values.astype(np.float32))
    (note,) = data.info.notes
    assert "reach 25" in note
    assert "uint8 or uint16" in note
    small = as_dataset((values / 255).astype(np.float32), LABELS)
    assert prepare_dataset(small).info.notes == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_items_that_are_image_arrays_are_read_like_arrays(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    values = np.random.default_rng(0).integers(0, top, (12, 3, 4, 4)).astype(dtype)
    array = prepare_dataset(as_dataset(values, LABELS, test=(values, LABELS)))
    items = Listed(list(map(torch.from_numpy, values)))
    data = prepare_dataset(Dataset(items, LABELS, test=(items, LABELS)))
    assert data.info.input_shape == array.info.input_shape == (3, 4, 4)
    (one,), (two,) = data.test.batches(99), array.test.batches(99)
    assert torch.equal(one["inputs"], two["inputs"])
