"""Images in folders, one for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from lossearch.components import dataset
from lossearch.data.dataset import Dataset, ImageFiles
from lossearch.data.sources.paths import existing
from lossearch.errors import DataError

ENDINGS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif",
    ".tiff", ".webp", ".gif",
}  # fmt: skip
TRAIN, TEST = ("train", "training"), ("test", "testing")
VALIDATION = ("val", "validation", "valid")
JUNK = {"__macosx", "__pycache__", "thumbs.db", "desktop.ini"}  # beside what begins with a dot
PLURALS = {"class": "classes", "entry": "entries", "folder": "folders"}
Side = Annotated[int, Field(ge=1)] | None


@dataset(task=("multiclass", "binary"))
def image_folder(*, path: str = "", image_size: Side = None, augment: bool = True) -> Dataset:
    """Images in a folder for each class, ``path/<class>/.../<image>``.

    Args:
        path: The folder. Where it holds ``train`` and ``test``, the second is the fixed test
            part, and ``val`` the fixed validation part; without ``test``, ``val`` is the test
            part. A folder that holds all others is gone through.
        image_size: Side in pixels that images are brought to; that of the first image, at most
            224, where left out.
        augment: Whether training images are cropped and flipped at random.

    Raises:
        DataError: no such folder, or no images in it.
    """
    notes: list[str] = []
    folder = _unwrapped(existing(path, "image_folder", folder=True), notes)
    train, others = _parts(folder, notes)
    train = _unwrapped(train, notes)
    classes = _classes(train, notes)
    files, targets = _list(train, classes, notes)
    fixed: dict[str, tuple[ImageFiles, np.ndarray]] = {}
    for part, place in others.items():
        place = _unwrapped(place, notes, classes)
        inside = _classes(place, notes)
        strange = [name for name in inside if name not in classes]
        if strange:
            raise DataError(f"{place} has a class '{strange[0]}', which {train} has not")
        lacking = [name for name in classes if name not in inside]
        if lacking:
            notes.append(f"the {part} part, {place.name}, has no {_some('class', lacking)}")
        found, of = _list(place, inside, notes)
        fixed[part] = found, np.asarray([classes.index(name) for name in inside])[of]
    return Dataset(
        files,
        targets,
        class_names=classes,
        test=fixed.get("test"),
        image_size=image_size,
        augment=augment,
        notes=tuple(notes),
        validation=fixed.get("validation"),
    )


def _parts(folder: Path, notes: list[str]) -> tuple[Path, dict[str, Path]]:
    """The folder to train on, and those of the fixed parts."""
    below = {entry.name.lower(): entry for entry in _folders(folder)}
    train, validation, test = (
        next((below[name] for name in names if name in below), None)
        for names in (TRAIN, VALIDATION, TEST)
    )
    if train is None or (validation is None and test is None):
        return folder, {}
    left = [e.name for e in below.values() if e not in (train, validation, test)]
    if left:
        notes.append(
            f"{folder.name} is split into parts; {_some('folder', left)} beside them "
            f"{'is' if len(left) == 1 else 'are'} left out"
        )
    if test is None and validation is not None:
        notes.append(
            f"there is no test folder: {validation.name} is the test part, and validation is "
            f"dealt out of {train.name}"
        )
        return train, {"test": validation}
    parts = {"validation": validation, "test": test}
    return train, {part: place for part, place in parts.items() if place is not None}


def _unwrapped(folder: Path, notes: list[str], classes: tuple[str, ...] = ()) -> Path:
    """The folder itself, or the one inside that holds all: archives unpack into such."""
    inside = folder
    while True:
        folders = _folders(inside)
        if len(folders) != 1 or folders[0].name in classes or not _folders(folders[0]):
            break
        inside = folders[0]
    if inside != folder:
        where = inside.relative_to(folder.parent)
        notes.append(f"{folder.name} holds one folder alone; what is read is {where}")
    return inside


def _classes(folder: Path, notes: list[str]) -> tuple[str, ...]:
    folders = _folders(folder)
    images = [e for e in folder.iterdir() if e.is_file() and not _junk(e.name) and _read(e)]
    if not folders:
        files = sum(1 for entry in folder.iterdir() if entry.is_file())
        raise DataError(
            f"{folder} has no subfolders ({files} files); a folder for each class is wanted, "
            "path/<class>/<image>. To leave a part out, give the path of the one that has classes"
        )
    if images:
        few = f"{len(images)} of the images in {folder.name}"
        notes.append(f"left out, since they lie in no class's folder: {few}")
    hidden = [e.name for e in folder.iterdir() if e.name[0] == "_" and not _junk(e.name)]
    if hidden:
        notes.append(f"in {folder.name}, {_some('entry', hidden)} left out, for the '_' in front")
    inner = [{e.name for e in _folders(place)} for place in folders]
    if len(inner) > 1 and len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        tops = [entry.name for entry in folders]
        notes.append(
            f"the classes are taken to be the {_some('folder', tops)}; each holds the "
            f"{_some('folder', sorted(inner[0]))}. If those are the classes, put them on top"
        )
    return tuple(entry.name for entry in folders)


def _list(folder: Path, classes: Sequence[str], notes: list[str]) -> tuple[ImageFiles, np.ndarray]:
    paths: list[str] = []
    targets: list[int] = []
    unread: Counter[str] = Counter()
    for number, name in enumerate(classes):
        place = folder / name
        files = sorted(
            p
            for p in place.rglob("*")
            if not any(map(_junk, p.relative_to(place).parts)) and p.is_file()
        )
        images = [str(p) for p in files if _read(p)]
        others = Counter(p.suffix.lower() or "no ending" for p in files if not _read(p))
        if not images:
            raise DataError(
                f"class folder {place} holds no images ({_kinds(others) or 'no files at all'}); "
                f"those that are read end in {', '.join(sorted(ENDINGS))}"
            )
        unread += others
        paths += images
        targets += [number] * len(images)
    if unread:
        notes.append(
            f"{unread.total()} files in {folder.name} are of types that are not read, and left "
            f"out: {_kinds(unread)}; save images as JPEG, PNG or TIFF"
        )
    return ImageFiles(tuple(paths)), np.asarray(targets)


def _folders(folder: Path) -> list[Path]:
    """Those in a folder, in order, without hidden ones and what archives leave."""
    return sorted(e for e in folder.iterdir() if e.is_dir() and not _junk(e.name, "._"))


def _junk(name: str, marks: str = ".") -> bool:
    return name[0] in marks or name.lower() in JUNK


def _read(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS


def _kinds(endings: Counter[str]) -> str:
    return ", ".join(f"{ending} ({count})" for ending, count in endings.most_common())


def _some(what: str, names: Sequence[str]) -> str:
    """Some names, and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{what if len(names) == 1 else PLURALS[what]} {', '.join(names[:5])}{more}"
