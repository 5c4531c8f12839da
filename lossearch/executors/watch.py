"""A process that hangs or crashes: how it is ended, and its last words."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lossearch.training.unit import Death

_FRAME = re.compile(r'File "(.+)", line (\d+) in (.+)')
_PACKAGE = Path(__file__).parents[1]
_BENCH = str(_PACKAGE / "training" / "workbench.py")
_PATHS = sysconfig.get_paths()
_NOBODYS = (str(_PACKAGE) + os.sep, _PATHS["stdlib"], _PATHS["purelib"], _PATHS["platlib"], "<")


@contextmanager
def watched(words: Path, seconds: float | None) -> Iterator[None]:
    """End this process if what is done in here takes longer, and note where it then was.

    The clock is C's own: it also ends code that never gives Python a turn.

    Args:
        words: The file that then says where, as it does after a crash; otherwise it goes again.
        seconds: The limit, if there is one.
    """
    file = _opened(words)
    faulthandler.enable(file)
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        if file is not sys.__stderr__:
            file.close()
            with suppress(OSError):
                words.unlink(missing_ok=True)


def _opened(words: Path) -> IO[str]:
    try:
        words.parent.mkdir(parents=True, exist_ok=True)
        return words.open("w")
    except OSError:  # a full disk: the limit holds all the same
        assert sys.__stderr__ is not None
        return sys.__stderr__


def last_words(words: Path, code: int | None = None) -> tuple[Death, str]:
    """How a watched process ended, and where it was then.

    Args:
        words: The file that :func:`watched` was given; it goes with this.
        code: How the process ended, as ``subprocess`` tells it, where that is known.
    """
    try:
        text = words.read_text(errors="replace")
        words.unlink(missing_ok=True)
    except OSError:
        text = ""
    where = _place(text)
    if text.startswith("Timeout"):
        return "timed_out", f"it did not end in its time{where}"
    if fatal := re.search(r"Fatal Python error: (.+)", text):
        return "worker_died", f"it crashed its process: {fatal[1]}{where}"
    if code is None:
        return "worker_died", "it ended its process (crashed, killed or out of memory)"
    if code < 0:
        name = signal.Signals(-code).name
        memory = " (out of memory, or killed)" if name == "SIGKILL" else ""
        return "worker_died", f"it ended its process by {name}{memory}"
    return "worker_died", f"it ended its process with exit code {code}"


def _place(text: str) -> str:
    """Of the thread that worked, the innermost frame in a component's file."""
    threads = re.split(r"(?m)^(?=(?:Current t|T)hread 0x)", text)
    working = next((t for t in threads if _BENCH in t), "")
    for file, line, name in _FRAME.findall(working):
        if "lossearch_" in file or not file.startswith(_NOBODYS):
            return f", in {name} ({Path(file).name}, line {line})"
    return ""
