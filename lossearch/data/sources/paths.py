"""Paths that a study names."""

from __future__ import annotations

from pathlib import Path

from lossearch.errors import DataError, did_you_mean


def existing(path: str, dataset: str, *, folder: bool = False) -> Path:
    """The file or folder at ``path``.

    Raises:
        DataError: there is none, with the nearest name that exists, or it is of the other kind.
    """
    kind = "folder" if folder else "file"
    if not path:
        raise DataError(f"dataset '{dataset}' needs 'path', the {kind} to read")
    found = Path(path).expanduser()
    if found.exists():
        if found.is_dir() != folder:
            raise DataError(f"{found} is a {'file' if folder else 'folder'}; a {kind} is wanted")
        return found
    reached = found.parent
    missing = found
    while not reached.is_dir() and reached != reached.parent:
        missing, reached = reached, reached.parent
    names = [entry.name for entry in reached.iterdir()] if reached.is_dir() else []
    hint = did_you_mean(missing.name, names)
    inside = "the working directory" if str(reached) == "." else str(reached)
    raise DataError(f"there is no {kind} {found}: {inside} has no '{missing.name}'{hint}")
