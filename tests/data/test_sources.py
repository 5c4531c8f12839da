"""The built-in datasets: what they read, and what they say where they cannot."""

from __future__ import annotations

import builtins
import struct
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from lossearch.data import Data, DataConfig, Dataset, dataset_components, prepare
from lossearch.data.inputs import decode
from lossearch.data.sources import csv, huggingface, image_folder, npz, openml, parquet
from lossearch.data.sources import torchvision as vision
from lossearch.data.sources.hubs import _named
from lossearch.errors import DataError
from lossearch.registry import Registry


def frame_of(dataset: Dataset) -> pd.DataFrame:
    assert isinstance(dataset.inputs, pd.DataFrame)
    return dataset.inputs


def written(folder: Path, text: str, name: str = "table.csv") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_all_are_registered_once(registry: Registry) -> None:
    names = [c.name for c in registry.list("dataset")]
    files = ["csv", "image_folder", "npz", "parquet"]
    hubs = ["huggingface", "openml", "torchvision"]
    assert names == sorted(["breast_cancer", "digits", "iris", "wine", *files, *hubs])
    assert len(dataset_components()) == len(names)
    for component in registry.list("dataset"):
        assert component.summary.endswith(".") or component.summary.endswith("class.")
        component.complete({})  # every parameter has a default


@pytest.mark.parametrize(
    ("name", "task", "size", "shape", "classes"),
    [
        ("digits", "multiclass", 1797, (64,), 10),
        ("breast_cancer", "binary", 569, (30,), 2),
        ("wine", "multiclass", 178, (13,), 3),
        ("iris", "multiclass", 150, (4,), 3),
    ],
)
def test_bundled(
    registry: Registry, name: str, task: str, size: int, shape: tuple[int, ...], classes: int
) -> None:
    info = prepare(DataConfig(name=name), registry).info
    assert (info.task, info.input_shape, info.num_classes) == (task, shape, classes)
    assert info.train_size + info.validation_size + info.test_size == size
    if name == "breast_cancer":
        assert info.class_names == ("malignant", "benign")


def test_missing_paths_name_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "a,b\n1,2\n", "train.csv")
    with pytest.raises(DataError, match=r"no 'trian.csv'; did you mean 'train.csv'"):
        csv(path=str(tmp_path / "trian.csv"))
    with pytest.raises(DataError, match=r"has no 'nowhere'"):
        parquet(path=str(tmp_path / "nowhere" / "deep" / "x.parquet"))
    with pytest.raises(DataError, match="is a folder; a file is wanted"):
        npz(path=str(tmp_path))
    with pytest.raises(DataError, match="is a file; a folder is wanted"):
        image_folder(path=str(tmp_path / "train.csv"))
    for read in (csv, parquet, npz, image_folder):
        with pytest.raises(DataError, match=f"'{read.__name__}' needs 'path'"):
            read()


def test_parquet(tmp_path: Path, registry: Registry) -> None:
    frame = pd.DataFrame(
        {"x": [1.0, None] * 15, "k": ["a", "b", "c"] * 10, "y": [True] * 9 + [False] * 21}
    )
    path = str(tmp_path / "t.parquet")
    frame.to_parquet(path)
    info = prepare(DataConfig.model_validate({"name": "parquet", "path": path}), registry).info
    assert (info.task, info.class_names) == ("binary", ("False", "True"))
    assert list(parquet(path=path, label="k").targets[:3]) == ["a", "b", "c"]
    with pytest.raises(DataError, match="did you mean"):
        parquet(path=path, label="kk")
    with pytest.raises(DataError, match="not a readable Parquet"):
        parquet(path=written(tmp_path, "no", "no.parquet"))


def test_parquet_columns_of_all_sorts(tmp_path: Path, registry: Registry) -> None:
    frame = pd.DataFrame({"x": range(30), "y": [0, 1, 1] * 10})
    path = str(tmp_path / "t.parquet")
    frame.assign(x=[[1.0, 2.0]] * 30).to_parquet(path)
    with pytest.raises(DataError, match=r"column 'x' holds list objects.*a column of its own"):
        load(registry, name="parquet", path=path)
    frame.assign(y=[[0, 1]] * 30).to_parquet(path)
    with pytest.raises(DataError, match="targets hold ndarray objects"):
        load(registry, name="parquet", path=path)
    days = pd.date_range("2024-01-01", periods=30)
    frame.assign(x=[day.date() for day in days], z=days).to_parquet(path)
    [first, second] = load(registry, name="parquet", path=path, label="y").info.reading.columns  # pyright: ignore
    assert (first.kind, second.kind, first.values) == ("date", "date", 30)


def test_npz(tmp_path: Path) -> None:
    path = str(tmp_path / "arrays.npz")
    np.savez(path, X=np.eye(4), y=[0, 1, 0, 1], names=np.array(["a", None], dtype=object))
    found = npz(path=path)
    assert np.array_equal(np.asarray(found.inputs), np.eye(4))
    assert list(found.targets) == [0, 1, 0, 1]
    with pytest.raises(DataError, match="no array 'Xs'"):
        npz(path=path, inputs="Xs")
    with pytest.raises(DataError, match="not unpickled"):
        npz(path=path, targets="names")
    np.save(tmp_path / "one.npy", np.eye(2))
    for wrong in (str(tmp_path / "one.npy"), written(tmp_path, "no", "no.npz")):
        with pytest.raises(DataError, match=r"is not an \.npz file"):
            npz(path=wrong)
    whole = Path(path).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:40] + b"\0" * 40 + whole[80:])
    with pytest.raises(DataError, match=r"cut.npz"):
        npz(path=str(tmp_path / "cut.npz"))


def images(folder: Path, classes: dict[str, int], side: int = 9) -> Path:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (side, side), (number, 0, 0)).save(folder / name / f"{number}.png")
    return folder


def load(registry: Registry, **block: Any) -> Data:
    return prepare(DataConfig.model_validate(block), registry)


def test_image_folder(tmp_path: Path, registry: Registry) -> None:
    folder = images(tmp_path / "set", {"dog": 6, "cat": 5, "emu": 5})
    (folder / "dog" / "notes.txt").write_text("no image")
    info = load(registry, name="image_folder", path=str(folder)).info
    assert info.class_names == ("cat", "dog", "emu")
    assert (info.input_shape, info.kind, info.task) == ((3, 9, 9), "image", "multiclass")
    assert info.train_size + info.validation_size + info.test_size == 16
    sized = load(registry, name="image_folder", path=str(folder), image_size=4, augment=False)
    assert sized.info.input_shape == (3, 4, 4)
    assert not sized.train.source.random


def test_image_folder_with_its_own_test_part(tmp_path: Path, registry: Registry) -> None:
    images(tmp_path / "train", {"a": 4, "b": 4, "c": 4})
    images(tmp_path / "val", {"c": 2, "a": 1})
    data = load(registry, name="image_folder", path=str(tmp_path))
    assert (data.info.train_size + data.info.validation_size, data.info.test_size) == (12, 3)
    assert data.test.targets.tolist() == [0, 2, 2]
    images(tmp_path / "val", {"d": 1})
    with pytest.raises(DataError, match="has a class 'd'"):
        image_folder(path=str(tmp_path))


def test_image_folder_refusals(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no subfolders \(0 files\)"):
        image_folder(path=str(tmp_path / "empty"))
    folder = images(tmp_path / "set", {"a": 3, "b": 0})
    with pytest.raises(DataError, match=r"class folder .*b holds no images"):
        image_folder(path=str(folder))
    folder = images(tmp_path / "two", {"a": 3, "b": 3})
    (folder / "a" / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1.png cannot be read"):
        load(registry, name="image_folder", path=str(folder))
    folder = images(tmp_path / "one", {"a": 3, "b": 1})
    with pytest.raises(DataError, match="class 'b' has one sample"):
        load(registry, name="image_folder", path=str(folder))


def mnist(root: Path) -> None:
    """Tiny files in MNIST's format, where torchvision looks for them."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        digits = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">II", 0x801, count)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + digits.tobytes())


def test_torchvision_from_disk(tmp_path: Path, registry: Registry) -> None:
    mnist(tmp_path)
    info = load(registry, name="torchvision", dataset="MNIST", root=str(tmp_path)).info
    assert (info.input_shape, info.kind, info.num_classes) == ((1, 28, 28), "image", 10)
    assert (info.train_size, info.validation_size, info.test_size) == (30, 10, 20)
    assert info.class_names[0] == "0 - zero"


def test_torchvision_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    with pytest.raises(DataError, match="did you mean 'CIFAR10'"):
        vision(dataset="CIFR10")
    with pytest.raises(DataError, match="download: true"):
        vision(root=str(tmp_path))

    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)
    with pytest.raises(DataError, match=r"Name or service.*network is not reachable.*by hand"):
        vision(root=str(tmp_path), download=True)


def test_unused_class_names_are_left_out() -> None:
    targets, names = _named([np.array([1, 3, 1]), np.array([3])], ("n", "a", "b", "c"))
    assert names == ("a", "c")
    assert [part.tolist() for part in targets] == [["a", "c", "a"], ["c"]]
    same, names = _named([np.array([0, 1])], ("a", "b"))
    assert (same[0].tolist(), names) == ([0, 1], ("a", "b"))


def test_openml(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(**options: Any) -> Any:
        asked.update(options)
        return sklearn.datasets.load_iris(as_frame=True)

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    assert frame_of(openml(id=61, label="class")).shape == (150, 4)
    assert (asked["data_id"], asked["target_column"]) == (61, "class")

    def offline(**options: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", offline)
    with pytest.raises(DataError, match=r"'iris'.*network is not reachable"):
        openml(dataset="iris")
    with pytest.raises(DataError, match=r"either 'dataset'.*or 'id'"):
        openml()


def test_huggingface_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match=r"lossearch\[huggingface\]"):
        huggingface(dataset="mnist")


def test_huggingface_from_disk(tmp_path: Path, registry: Registry) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("L", (8, 8), n) for n in range(30)]
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])}
    )
    rows = datasets.Dataset.from_dict(
        {"picture": pictures, "label": [n % 3 for n in range(30)]}, features=features
    )
    both = datasets.DatasetDict({"train": rows, "held": rows.select(range(9))})
    both.save_to_disk(str(tmp_path / "set"))
    block = {"name": "huggingface", "dataset": str(tmp_path / "set")}
    data = load(registry, **block, test_part="held")
    assert (data.info.class_names, data.info.input_shape) == (("x", "y", "z"), (3, 8, 8))
    assert (data.info.train_size, data.info.test_size) == (24, 9)
    three = load(registry, **block, validation_part="held", test_part="held")
    assert (len(three.train), len(three.validation), len(three.test)) == (30, 9, 9)
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        load(registry, **block, part="trian")
    with pytest.raises(DataError, match="no column 'lable'; did you mean 'label'"):
        load(registry, **block, label="lable")
    table = datasets.Dataset.from_dict(
        {"a": [1.0, 2.0] * 6, "b": list("pq") * 6, "label": [0, 1] * 6}
    )
    table.save_to_disk(str(tmp_path / "table"))
    found = huggingface(dataset=str(tmp_path / "table"))
    assert list(frame_of(found).columns) == ["a", "b"]
    assert list(frame_of(huggingface(dataset=str(tmp_path / "table"), columns=("b",)))) == ["b"]


def test_huggingface_images_of_16_bits_and_on_their_side(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    deep = [Image.fromarray(np.full((4, 4), n * 5000, dtype=np.uint16)) for n in range(11)]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: its left lies on top afterwards
    side = np.zeros((4, 4), dtype=np.uint8)
    side[:, 0] = 255
    Image.fromarray(side).save(tmp_path / "side.png", exif=exif)
    pictures = [*deep, str(tmp_path / "side.png")]
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict(
        {"picture": pictures, "label": [n % 2 for n in range(12)]}, features=features
    )
    rows.save_to_disk(str(tmp_path / "set"))
    found = huggingface(dataset=str(tmp_path / "set"))
    assert isinstance(found.inputs, TorchDataset)
    images, facts = decode(found.inputs, np.arange(12), 4)
    assert images[:11, 0, 0, 0].tolist() == [round(n * 5000 / 257) for n in range(11)]
    assert images[11, 0].tolist() == [[255] * 4, [0] * 4, [0] * 4, [0] * 4]
    assert facts["deep"] == 11


def test_huggingface_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"'mnist'.*network is not reachable.*save_to_disk"):
        huggingface(dataset="mnist")
    with pytest.raises(DataError, match="needs 'dataset'"):
        huggingface()
