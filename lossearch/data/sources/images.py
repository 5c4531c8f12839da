"""Images in folders, one for each class."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from lossearch.components import dataset
from lossearch.data.dataset import Dataset, ImageFiles
from lossearch.data.sources.paths import existing
from lossearch.errors import DataError

logger = logging.getLogger(__name__)
ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "validation", "valid")
Side = Annotated[int, Field(ge=1)] | None


@dataset(task=("multiclass", "binary"))
def image_folder(*, path: str = "", image_size: Side = None, augment: bool = True) -> Dataset:
    """Images in a folder for each class, ``path/<class>/.../<image>``.

    Args:
        path: The folder. Where it holds ``train`` and ``test`` (or ``val``), the second is the
            fixed test part.
        image_size: Side in pixels that images are brought to; that of the first image, at most
            224, where left out.
        augment: Whether training images are cropped and flipped at random.

    Raises:
        DataError: no such folder, or no images in it.
    """
    folder = existing(path, "image_folder", folder=True)
    below = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()}
    train = next((below[name] for name in TRAIN if name in below), None)
    test = next((below[name] for name in TEST if name in below), None)
    if train is None or not set(below) <= {*TRAIN, *TEST}:
        train, test = folder, None
    classes = _classes(train)
    files, targets = _list(train, classes)
    fixed = None
    if test is not None:
        inside = _classes(test)
        strange = [name for name in inside if name not in classes]
        if strange:
            raise DataError(f"{test} has a class '{strange[0]}', which {train} has not")
        test_files, test_targets = _list(test, inside)
        fixed = test_files, np.asarray([classes.index(name) for name in inside])[test_targets]
    return Dataset(
        files, targets, class_names=classes, test=fixed, image_size=image_size, augment=augment
    )


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(e.name for e in folder.iterdir() if e.is_dir() and e.name[0] not in "._")
    if not names:
        files = sum(1 for entry in folder.iterdir() if entry.is_file())
        raise DataError(
            f"{folder} has no subfolders ({files} files); a folder for each class is wanted, "
            "path/<class>/<image>"
        )
    return tuple(names)


def _list(folder: Path, classes: tuple[str, ...]) -> tuple[ImageFiles, np.ndarray]:
    paths: list[str] = []
    targets: list[int] = []
    other = 0
    for number, name in enumerate(classes):
        files = sorted(p for p in (folder / name).rglob("*") if p.name[0] != "." and p.is_file())
        images = [str(p) for p in files if p.suffix.lower() in ENDINGS]
        if not images:
            raise DataError(
                f"class folder {folder / name} holds no images ({len(files)} other files); images "
                f"end in {', '.join(sorted(ENDINGS))}"
            )
        other += len(files) - len(images)
        paths += images
        targets += [number] * len(images)
    if other:
        logger.info("%s: %d files that are no images are left out", folder, other)
    return ImageFiles(tuple(paths)), np.asarray(targets)
