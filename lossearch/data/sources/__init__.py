"""The built-in dataset components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossearch.data.sources.bundled import breast_cancer, digits, iris, wine
from lossearch.data.sources.files import csv, npz, parquet
from lossearch.data.sources.hubs import huggingface, openml, torchvision
from lossearch.data.sources.images import image_folder


def dataset_components() -> list[Callable[..., Any]]:
    """All of them, for the plugin that registers them."""
    return [
        breast_cancer,
        csv,
        digits,
        huggingface,
        image_folder,
        iris,
        npz,
        openml,
        parquet,
        torchvision,
        wine,
    ]
