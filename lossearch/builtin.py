"""The engine's own plugin: the datasets and models that it ships, and the search spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lossearch import hookimpl


@hookimpl
def register_datasets() -> Iterable[Callable[..., Any]]:
    from lossearch.data.sources import dataset_components

    return dataset_components()


@hookimpl
def register_models() -> Iterable[Callable[..., Any]]:
    from lossearch.models import model_components

    return model_components()


@hookimpl
def register_spaces() -> Mapping[str, Path]:
    here = Path(__file__).parent
    installed = here / "_search_spaces"  # in a wheel; an editable install has the source folder
    folder = installed if installed.is_dir() else here.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
