"""Files that are there as a whole or not at all, after a kill and after a power cut too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lossearch.errors import StorageError


@contextmanager
def whole(path: Path, what: str = "", partial: Path | None = None) -> Iterator[IO[bytes]]:
    """Write a file, with its folder: what the block has written then stands at ``path``.

    Its content is on the disk by then. The name follows within seconds: after a power cut the old
    file may stand there, but no half one; to wait for the name takes several times as long.

    Args:
        path: The file; one that is there stays until the new one is whole.
        what: What it is, for the message: ``the checkpoint``.
        partial: Where it is written first, in the same folder.

    Raises:
        StorageError: the system refuses to write it; no part of it is left.
    """
    partial = partial or path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before what is renamed
        partial.replace(path)
    except Exception as error:
        refused = _refusal(error, path)
        if refused is None:
            raise
        name = f"{what} {path}".strip()
        raise StorageError(f"{name} cannot be written: {refused.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _refusal(error: BaseException | None, path: Path) -> OSError | None:
    """The system's word against writing the file, if an error comes of one.

    torch puts an error of its own over it, and what the block reads may fail too.
    """
    while error is not None:
        if isinstance(error, OSError) and error.strerror and _concerns(error, path):
            return error
        error = error.__cause__ or error.__context__
    return None


def _concerns(error: OSError, path: Path) -> bool:
    """An error of a write names no file; one of opening a file, or making a folder, does."""
    if not isinstance(error.filename, (str, os.PathLike)):
        return True
    named = Path(error.filename)
    return named in path.parents or named.parent == path.parent
