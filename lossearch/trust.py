"""What lies in a folder that somebody else may have made: its code, and the paths it names.

The one-file plugins of a study travel with it as text. A text that this user has run before, or
has said to trust, is known by its sha256, in a record outside of every study's folder; any other
runs only when a person says so. So one's own studies never ask.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from lossearch.errors import PluginError, TrustError
from lossearch.plugins import FilePlugin

_SHOWN = 5  # lines of a file
_WIDTH = 90

logger = logging.getLogger(__name__)
_here: set[str] = set()  # run by this process: counts where no record can be kept


def record() -> Path | None:
    """The folder that holds a file for each text this user trusts, named by its sha256.

    ``$XDG_STATE_HOME/lossearch/trusted``, by default in ``~/.local/state``; ``None`` for a user
    without a home.
    """
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        state = given if given.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return state / "lossearch" / "trusted"


def strange(files: Iterable[FilePlugin]) -> tuple[FilePlugin, ...]:
    """Those whose text this user has neither run nor trusted."""
    kept = record()
    return tuple(
        file
        for file in files
        if file.sha256 not in _here and not (kept and os.path.isfile(kept / file.sha256))
    )


def remember(files: Iterable[FilePlugin]) -> None:
    """These run because this user wants it: do not ask again."""
    new, kept = strange(files), record()
    _here.update(file.sha256 for file in new)
    if kept is None:
        return
    try:
        for file in new:
            kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            (kept / file.sha256).write_text(f"{file.origin}\n", encoding="utf-8")
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): what you run now will be asked for again", kept,
            error.strerror,
        )  # fmt: skip


def require(files: Sequence[FilePlugin], trust: bool, what: str, remedy: str) -> None:
    """Let no text run that this user has neither run before nor trusts now.

    Args:
        files: What would run.
        trust: Whether to trust it.
        what: Whose code it is: ``the study in runs/a``.
        remedy: How to say that it may run.

    Raises:
        TrustError: it may not; with each file's name, origin, sha256 and first lines.
    """
    unknown = strange(files)
    if unknown and not trust:
        listed = "\n".join(_shown(file) for file in unknown)
        raise TrustError(
            f"{what} brings code that you have not run here; nothing of it has been run:\n"
            f"{listed}\nRead it. If it may run, {remedy}",
            unknown,
        )
    remember(unknown)


def _shown(file: FilePlugin) -> str:
    lines = [line for line in file.text.splitlines() if line.strip()]
    rest = [f"... {len(lines) - _SHOWN} more lines"] if len(lines) > _SHOWN else []
    return "\n".join(
        (
            f"  {_plain(file.name)}, from {_plain(file.origin)}, sha256 {file.sha256}",
            *(f"    | {_plain(line)[:_WIDTH]}" for line in lines[:_SHOWN] + rest),
        )
    )


def _plain(text: str) -> str:
    """Without what would move a terminal's cursor and hide the rest."""
    return "".join(c if c.isprintable() else "?" for c in text)


def plugins_beside(path: Path, document: Mapping[str, Any]) -> tuple[FilePlugin, ...]:
    """The one-file plugins that a ``best.yaml`` or an exported file names, unread by Python.

    Raises:
        PluginError: one lies elsewhere, or cannot be read.
    """
    names = document.get("plugins") or []
    if not isinstance(names, list):
        raise PluginError(f"{path}: plugins = {names!r} is not allowed; give a list of files")
    return tuple(FilePlugin.read(inside(path.parent, name, path)) for name in names)


def inside(folder: Path, name: Any, where: str | Path) -> Path:
    """The file in a folder that a document of it names.

    Args:
        folder: The folder.
        name: What the document says: a path below the folder.
        where: The document, for the message.

    Raises:
        PluginError: it leads out of the folder: it is absolute, has ``..``, or follows a link.
    """
    folder = folder.resolve()
    if isinstance(name, str) and "\0" not in name and ".." not in PurePath(name).parts:
        try:
            found = (folder / name).resolve()
        except (OSError, RuntimeError):  # a loop of links, a name too long
            found = folder
        if found != folder and found.is_relative_to(folder):
            return folder / name
    raise PluginError(
        f"{where} names {name!r}, which leads out of {folder}; it may only name files in there, "
        "such as 'plugins/my_loss.py'"
    )
