"""CIFAR-10 as feature vectors that need no deep network: what two of the examples train on.

Coates, Lee and Ng, "An analysis of single-layer networks in unsupervised feature learning" (2011):
whitened patches, a k-means dictionary of them, each patch coded by how much nearer than average
its atoms are, the codes summed over the image's quadrants; then PCA. No label is looked at, and
test images take no part in what is learned. An MLP on these vectors trains in seconds on a CPU.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from torch.nn.functional import unfold

SIDE, PATCH, STRIDE = 32, 6, 2
ENDINGS = {".jpg", ".jpeg", ".png"}
Features = tuple[np.ndarray, np.ndarray]


def cifar_features(
    path: Path,
    cache: Path,
    *,
    per_class: int | None = None,
    atoms: int = 400,
    width: int = 256,
) -> tuple[Features, Features]:
    """Training and test ``(inputs, classes)``: a fifth of each class's images is the test part.

    Args:
        path: A folder or a zip file with ``.../<class>/<image>``.
        cache: The folder in which the features are kept for the next time.
        per_class: Only so many images of each class.
        atoms: Size of the dictionary.
        width: Of the feature vectors.

    Raises:
        SystemExit: there are no such images, with what was looked for.
    """
    stat = path.stat() if path.exists() else None
    key = repr((str(path.resolve()), stat and stat.st_size, per_class, atoms, width, STRIDE))
    kept = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    if not kept.exists():
        images, classes = _read(path, per_class)
        print(f"features of {len(images)} images, once: into {kept}", file=sys.stderr)
        test = _every_fifth(classes)
        vectors = _features(images, ~test, atoms, width)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(kept, X=vectors, y=classes, test=test)
    with np.load(kept) as arrays:
        inputs, classes, test = arrays["X"], arrays["y"], arrays["test"]
    return (inputs[~test], classes[~test]), (inputs[test], classes[test])


def _read(path: Path, per_class: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The images as bytes ``(N, 32, 32, 3)`` and their classes, numbered by name."""
    if not path.exists():
        sys.exit(f"there is no {path}; give a folder or a zip file with <class>/<image>.jpg")
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
    else:
        sys.exit(f"{path} is neither a folder nor a zip file")
    by_class: dict[str, list[str]] = {}
    for name in map(PurePosixPath, names):
        if name.suffix.lower() in ENDINGS and name.parent.name:
            by_class.setdefault(name.parent.name, []).append(str(name))
    if len(by_class) < 2:
        sys.exit(f"{path} holds no images in folders by class, <class>/<image>.jpg")
    chosen = {name: files[:per_class] for name, files in sorted(by_class.items())}
    files = [file for each in chosen.values() for file in each]
    images = np.stack([np.asarray(image) for image in _opened(path, files)])
    return images, np.repeat(np.arange(len(chosen)), [len(f) for f in chosen.values()])


def _opened(path: Path, files: list[str]) -> Iterator[Image.Image]:
    with nullcontext() if path.is_dir() else zipfile.ZipFile(path) as archive:
        for file in files:
            raw = (path / file).read_bytes() if archive is None else archive.read(file)
            with Image.open(io.BytesIO(raw)) as image:
                yield image.convert("RGB").resize((SIDE, SIDE))


def _every_fifth(classes: np.ndarray) -> np.ndarray:
    test = np.zeros(len(classes), dtype=bool)
    for each in np.unique(classes):
        test[np.flatnonzero(classes == each)[::5]] = True
    return test


def _features(images: np.ndarray, learn: np.ndarray, atoms: int, width: int) -> np.ndarray:
    """Codes of all images, of a dictionary and a PCA that are learned on some of them."""
    draw = np.random.default_rng(0)
    some = draw.choice(np.flatnonzero(learn), min(4000, int(learn.sum())), replace=False)
    patches = _patches(torch.from_numpy(images[some])).flatten(0, 1)
    patches = patches[torch.from_numpy(draw.permutation(len(patches))[:100_000])]
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T.cov())
    whiten = (vectors / (values + 0.1).sqrt()) @ vectors.T
    means = MiniBatchKMeans(atoms, batch_size=4096, max_iter=20, random_state=0)
    means.fit(((patches - mean) @ whiten).numpy())
    centres = torch.from_numpy(means.cluster_centers_).float()
    codes = np.concatenate(
        [
            _codes((_patches(batch) - mean) @ whiten, centres).numpy()
            for batch in torch.from_numpy(images).split(256)
        ]
    )
    codes = np.sqrt(codes)  # sums of positive parts are skewed
    codes = (codes - codes[learn].mean(0)) / (codes[learn].std(0) + 1e-6)
    width = min(width, int(learn.sum()), codes.shape[1])
    pca = PCA(width, svd_solver="covariance_eigh").fit(codes[learn])
    found = pca.transform(codes)
    return (found / found[learn].std()).astype("float32")


def _patches(images: torch.Tensor) -> torch.Tensor:
    """Patches ``(images, places, values)``, each with mean 0 and its contrast taken out."""
    found = unfold(images.permute(0, 3, 1, 2).float(), PATCH, stride=STRIDE).transpose(1, 2)
    found = found - found.mean(2, keepdim=True)
    return found / (found.var(2, keepdim=True) + 10).sqrt()


def _codes(patches: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """``max(0, mean distance - distance)`` to each atom, summed over the quadrants."""
    distances = torch.cdist(patches, centres[None])
    codes = (distances.mean(2, keepdim=True) - distances).relu_()
    side = round(codes.shape[1] ** 0.5)
    grid = codes.view(len(codes), side, side, -1)
    low, high = slice(side // 2), slice(side // 2, None)
    parts = [grid[:, rows, columns].sum((1, 2)) for rows in (low, high) for columns in (low, high)]
    return torch.cat(parts, 1)
