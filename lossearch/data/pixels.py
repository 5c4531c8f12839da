"""From a picture of any kind to the pixels that a network reads: one rule for each kind.

A kind with a stated range is brought to that range as a whole (16 bits by 65,535); one without is
read by a rule that is the same for all images of all sets, or refused by name. No image is ever
scaled by its own values: brightness would mean something else in each.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lossearch.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

EXIF = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where Pillow keeps it
ORIENTATION, BITS, PHOTOMETRIC, FORMAT = 0x0112, 0x0102, 0x0106, 0x0153  # tags of EXIF and TIFF
DARK = 64  # of 255: no set of pictures stays below it, masks and 12-bit values do
FACTS = {
    "deep": "of 16 bits: scaled to 8 by the full range, 65,535 (a TIFF of 12 bits by 4,095)",
    "float": "of floats within [0, 1]: scaled to 8 bits, 1 becomes 255",
    "colours": "in CMYK, YCbCr, LAB or HSV: converted to RGB, without their colour profiles",
    "ground": "with a transparent ground: it is made white",
    "turned": "turned upright, as their EXIF orientation says",
    "frames": "animated or of several pages: the first one is taken",
}


def read_image(path: str) -> tuple[Image, tuple[str, ...]]:
    """The picture in a file, as 8-bit RGB, and what was done to it: keys of :data:`FACTS`.

    Raises:
        DataError: it cannot be read, is too large, or its values have no stated range.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return rgb(image, f"image {path}")
    except DataError:
        raise
    except Exception as error:  # Pillow's readers fail in many ways on a broken file
        raise unreadable(f"image {path}", error, path) from None


def unreadable(name: str, error: Exception, path: str = "") -> DataError:
    """What to say of a picture that Pillow cannot read."""
    from PIL import Image

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        size = str(error).split(", ")[0]
        return DataError(
            f"{name} is too large: {size}. Save a smaller copy (images are brought to image_size "
            "anyway), or take it out"
        )
    with suppress(OSError):
        if path and os.path.getsize(path) == 0:
            return DataError(f"{name} is empty (0 bytes); take it out of the folder")
    return DataError(f"{name} cannot be read ({error}); repair it or take it out of the folder")


def rgb(image: Any, name: str) -> tuple[Image, tuple[str, ...]]:
    """A PIL image as 8-bit RGB, upright and on white ground, and what was done to it.

    Raises:
        DataError: it is no PIL image, or its values have no stated range.
    """
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise DataError(f"{name} is a {type(image).__name__}, where other items are PIL images")
    facts: list[str] = []
    with suppress(Exception):  # of a file that is closed; asked before loading, since it seeks
        if image.is_animated and image.format != "MPO":  # a photo with its preview  # pyright: ignore
            facts.append("frames")
    top = _top(image)
    negative = top is not None and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
    image.load()
    if EXIF & image.info.keys():
        with suppress(Exception):  # damaged EXIF says nothing of the pixels
            if image.getexif().get(ORIENTATION, 1) in range(2, 9):
                image = ImageOps.exif_transpose(image)
                facts.append("turned")
    if top is not None:
        facts.append("deep" if top > 1 else "float")
        return Image.fromarray(_bytes(image, top, negative, name)).convert("RGB"), tuple(facts)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        facts.append("colours")
    if image.has_transparency_data:
        drawn = image.convert("RGBA")
        if drawn.getextrema()[3][0] < 255:  # pyright: ignore
            ground = Image.new("RGBA", drawn.size, "white")
            return Image.alpha_composite(ground, drawn).convert("RGB"), (*facts, "ground")
    try:
        found = image.convert("RGB")
    except ValueError as error:
        raise DataError(f"{name} is of mode {image.mode}, which is not read ({error})") from None
    if image.mode == "P" and _flat(found) and not _flat(image):
        raise DataError(
            f"{name} is a palette image whose palette gives its {len(image.getcolors() or ())} "
            "indices one colour, so that nothing is left of them; save the indices as grey values "
            "(mode L), spread over 0 to 255, or with a palette"
        )
    return found, tuple(facts)


def _top(image: Image) -> int | None:
    """What is white in a deep image: 65,535 or 4,095, 1 for floats, 0 where nothing says it."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        return 2 ** tags.get(BITS, (16,))[0] - 1
    if image.mode == "L" and tags.get(FORMAT) == (2,):  # with a sign, which Pillow reads without
        return 0
    if image.mode == "I":  # Pillow brings a PGM of any depth to 16 bits
        return 65535 if image.format in ("PNG", "PPM") else 0
    return 1 if image.mode == "F" else None


def _bytes(image: Image, top: int, negative: bool, name: str) -> np.ndarray:
    if top == 0:
        raise DataError(
            f"{name} holds integers of 32 bits or with a sign (mode {image.mode}), which state no "
            "range; divide all images by one number, the same for the whole set, and save them "
            "with 8 or 16 bits"
        )
    values = np.asarray(image).astype(np.float32)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # NaN too
        raise DataError(
            f"{name} holds floats from {low:g} to {high:g}; only those within [0, 1] are read. "
            "Divide all images by one number, the same for the whole set, or save them with 8 or "
            "16 bits"
        )
    values = top - values if negative else values
    return np.rint(values * (255 / top)).astype(np.uint8)


def _flat(image: Image) -> bool:
    """Whether all pixels are equal."""
    return len(image.getcolors(1) or ()) == 1


def image_notes(found: Counter[str], looked: int, total: int) -> tuple[str, ...]:
    """Sentences on what was done to the images.

    Args:
        found: How many images each fact holds of.
        looked: Images that were looked at, of
        total: all.
    """
    these = f"{looked} images" if looked == total else f"{looked} images looked at, of {total},"
    return tuple(f"{found[key]} of {these} are {FACTS[key]}" for key in FACTS if found[key])


def deep_note(dtype: torch.dtype) -> tuple[str, ...]:
    """The same for an array of images."""
    if dtype != torch.uint16:
        return ()
    return ("the images are arrays of 16 bits (uint16): scaled by their full range, 65,535",)


def dark_note(largest: Iterable[Tensor]) -> tuple[str, ...]:
    """A sentence where the largest value of all images, out of 255, is low."""
    top = max(float(values.max()) for values in largest)
    if top >= DARK:
        return ()
    return (
        f"no pixel of the images is above {top:.3g} of 255, so that they are all but black to a "
        "network; if they are masks, or hold fewer bits than their files could, multiply all by "
        "one number so that they span the full range",
    )


def images_of(values: Tensor) -> Tensor | None:
    """An array of 8- or 16-bit images as ``(N, channels, H, W)`` out of 255; None for another.

    8-bit ones stay bytes; 16-bit ones become float32, by which they lose nothing.
    """
    if values.dtype not in (torch.uint8, torch.uint16) or values.ndim not in (3, 4):
        return None
    if values.dtype == torch.uint16:
        values = values.to(torch.float32) * (255 / 65535)
    return channels_first(values if values.ndim == 4 else values[:, None]).contiguous()


def channels_first(values: Tensor) -> Tensor:
    """``(N, H, W, channels)`` as ``(N, channels, H, W)``, where only the last can be channels."""
    if values.ndim == 4 and values.shape[3] in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
        return values.permute(0, 3, 1, 2)
    return values
