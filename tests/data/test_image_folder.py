"""Folders as people have them: parts, wrapping folders, hidden files, unread types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lossearch.data import Dataset, ImageFiles, prepare_dataset
from lossearch.data.sources import image_folder
from lossearch.errors import DataError


def images(folder: Path, classes: dict[str, int]) -> Path:
    """Bright images of 4 x 4, so many in the folder of each class."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (4, 4), 200 + number).save(folder / name / f"{number}.png")
    return folder


def names(dataset: Dataset, root: Path) -> list[str]:
    assert isinstance(dataset.inputs, ImageFiles)
    return [str(Path(path).relative_to(root)) for path in dataset.inputs.paths]


def test_val_is_the_validation_part(tmp_path: Path) -> None:
    for train, val, test in (("train", "val", "test"), ("Training", "valid", "Testing")):
        root = tmp_path / val
        images(root / train, {"a": 4, "b": 4, "c": 4})
        images(root / val, {"a": 1, "c": 2})
        images(root / test, {"b": 2, "c": 3})
        found = image_folder(path=str(root))
        data = prepare_dataset(found)
        info = data.info
        assert (info.train_size, info.validation_size, info.test_size) == (12, 3, 5)
        assert data.validation.targets.tolist() == [0, 2, 2]
        assert data.test.targets.tolist() == [1, 1, 2, 2, 2]
        assert found.notes == (
            f"the validation part, {val}, has no class b",
            f"the test part, {test}, has no class a",
        )
    images(root / "valid", {"d": 1})
    with pytest.raises(DataError, match="valid has a class 'd'"):
        image_folder(path=str(root))


def test_val_without_test_is_the_test_part_and_said(tmp_path: Path) -> None:
    images(tmp_path / "train", {"a": 5, "b": 5})
    images(tmp_path / "val", {"a": 2, "b": 2})
    found = image_folder(path=str(tmp_path))
    assert found.validation is None
    assert prepare_dataset(found).info.test_size == 4
    assert "there is no test folder: val is the test part" in found.notes[0]


def test_parts_with_folders_beside_them(tmp_path: Path) -> None:
    """An archive that was packed with itself, as sets on Kaggle are."""
    for root in (tmp_path, tmp_path / "xray", tmp_path / "__MACOSX"):
        for part in ("train", "test"):
            images(root / part, {"a": 3, "b": 3})
    found = image_folder(path=str(tmp_path))
    assert (len(names(found, tmp_path)), found.class_names) == (6, ("a", "b"))
    assert found.notes == (
        f"{tmp_path.name} is split into parts; folder xray beside them is left out",
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    images(tmp_path, {"bus": 3, "car": 3, "train": 3})
    assert image_folder(path=str(tmp_path)).class_names == ("bus", "car", "train")


@pytest.mark.parametrize("inside", ["set", "set/images", "train"])
def test_wrapping_folders_are_gone_through(tmp_path: Path, inside: str) -> None:
    images(tmp_path / inside, {"a": 3, "b": 3})
    (tmp_path / "__MACOSX" / "set").mkdir(parents=True)
    (tmp_path / "readme.txt").write_text("about")
    found = image_folder(path=str(tmp_path))
    assert found.class_names == ("a", "b")
    assert names(found, tmp_path / inside)[0] == "a/0.png"
    assert found.notes == (
        f"{tmp_path.name} holds one folder alone; what is read is {tmp_path.name}/{inside}",
    )


def test_wrapping_folders_of_parts(tmp_path: Path) -> None:
    images(tmp_path / "train" / "images", {"a": 3, "b": 3})
    images(tmp_path / "test" / "images", {"a": 1, "b": 1})
    images(tmp_path / "valid", {"a": 1})
    (tmp_path / "valid" / "a" / "more").mkdir()  # a class, though it is alone and holds a folder
    found = image_folder(path=str(tmp_path))
    assert found.class_names == ("a", "b")
    assert prepare_dataset(found).info.validation_size == 1


def test_classes_that_are_one_folder_deeper_are_said(tmp_path: Path) -> None:
    for site in ("one", "two"):
        images(tmp_path / site, {"cat": 2, "dog": 2})
    found = image_folder(path=str(tmp_path))
    assert found.class_names == ("one", "two")
    assert found.notes == (
        "the classes are taken to be the folders one, two; each holds the folders cat, dog. If "
        "those are the classes, put them on top",
    )


def test_hidden_files_and_what_archives_leave_are_not_read(tmp_path: Path) -> None:
    images(tmp_path, {"a": 3, "b": 3, ".cache": 2, "__MACOSX": 2, "_old": 2})
    images(tmp_path / "a", {".ipynb_checkpoints": 2, "__MACOSX/a": 2, "deeper": 1})
    (tmp_path / "a" / "._0.png").write_bytes(b"\0\5\x16\7AppleDouble")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"thumbs")
    (tmp_path / "b" / ".DS_Store").write_bytes(b"store")
    found = image_folder(path=str(tmp_path))
    assert found.class_names == ("a", "b")
    assert names(found, tmp_path) == [
        *(f"a/{n}.png" for n in range(3)),
        "a/deeper/0.png",
        *(f"b/{n}.png" for n in range(3)),
    ]
    assert found.notes == (f"in {tmp_path.name}, entry _old left out, for the '_' in front",)
    assert np.array_equal(found.targets, [0] * 4 + [1] * 3)


def test_files_of_types_that_are_not_read_are_counted(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", {"a": 3, "b": 3})
    for number in range(4):
        (folder / "a" / f"{number}.HEIC").write_bytes(b"heic")
    (folder / "b" / "labels.txt").write_text("a list")
    (folder / "b" / "README").write_text("about")
    Image.new("L", (4, 4), 250).save(folder / "loose.png")
    found = image_folder(path=str(folder))
    assert len(names(found, folder)) == 6
    assert found.notes == (
        "left out, since they lie in no class's folder: 1 of the images in set",
        "6 files in set are of types that are not read, and left out: .heic (4), no "
        "ending (1), .txt (1); save images as JPEG, PNG or TIFF",
    )
    assert prepare_dataset(found).info.notes == found.notes
    (folder / "c").mkdir()
    (folder / "c" / "1.heic").write_bytes(b"heic")
    with pytest.raises(DataError, match=r"folder .*c holds no images \(.heic \(1\)\); those that"):
        image_folder(path=str(folder))


def test_a_part_without_classes_is_refused(tmp_path: Path) -> None:
    images(tmp_path / "train", {"a": 3, "b": 3})
    images(tmp_path, {"test": 5})
    with pytest.raises(DataError, match=r"test has no subfolders \(5 files\).*give the path"):
        image_folder(path=str(tmp_path))
