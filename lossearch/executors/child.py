"""The process that a :class:`lossearch.executors.bench.ChildBench` works in.

It reads calls from its standard input and writes answers to its standard output; what components
print goes to its standard error instead. It ends when nobody is left to answer to.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

_SIZE = struct.Struct("<Q")


def send(pipe: IO[bytes], message: bytes) -> None:
    """Write a message with its length before it."""
    pipe.write(_SIZE.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes:
    """Read a message.

    Raises:
        EOFError: the other side is gone.
    """
    head = pipe.read(_SIZE.size)
    if len(head) < _SIZE.size:
        raise EOFError
    message = pipe.read(_SIZE.unpack(head)[0])
    if len(message) < _SIZE.unpack(head)[0]:
        raise EOFError
    return message


def main() -> None:
    """Answer calls until there is nobody to answer to."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who waits for us
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # what takes long to import, while the other side gets ready
    from lossearch.executors.watch import watched
    from lossearch.training import Workbench

    bench: Workbench | None = None
    while True:
        try:
            method, arguments, words, seconds = pickle.loads(receive(calls))
        except EOFError:
            return
        answer: tuple[str, Any]
        try:
            if bench is None:
                bench = Workbench(*arguments)
                answer = "value", None
            else:
                if method == "run":
                    seconds = bench.limit(*arguments)
                with watched(Path(words), seconds):
                    answer = "value", getattr(bench, method)(*arguments)
        except Exception as error:
            answer = "error", error
        send(answers, _packed(answer))


def _packed(answer: tuple[str, Any]) -> bytes:
    try:
        return pickle.dumps(answer)
    except Exception as error:  # an error that holds what cannot be sent
        text = f"{type(answer[1]).__name__}: {answer[1]} ({error})"
        return pickle.dumps(("error", RuntimeError(text)))


def _end_with(parent: int) -> None:
    """Nobody is to be left behind when the driver is killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
