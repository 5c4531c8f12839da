"""A workbench beside the driver: in a process of its own, which a bad loss may take down."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lossearch.executors.child import receive, send
from lossearch.executors.watch import last_words
from lossearch.registry import current
from lossearch.spec import ObjectiveSpec
from lossearch.training import Recipe, Unit, UnitResult, Workbench
from lossearch.training.inspection import Look
from lossearch.trials.preflight import Refusal

logger = logging.getLogger(__name__)

_START = "from lossearch.executors.child import main; main()"
# Seconds for a look at so many objectives, which takes milliseconds each.
_LOOK, _EACH = 30.0, 1.0


class Bench(Protocol):
    """What :class:`lossearch.training.Workbench` can do for a driver."""

    recipe: Recipe

    def run(self, unit: Unit) -> UnitResult:
        """Train the jobs of a unit."""
        ...

    def look(self, specs: Sequence[ObjectiveSpec]) -> list[Look]:
        """What there is to know of objectives before they train."""
        ...

    def fingerprints(self, specs: Sequence[ObjectiveSpec]) -> list[Look]:
        """Of that, the fingerprints alone."""
        ...

    def close(self) -> None:
        """Nothing more is wanted."""
        ...


def open_bench(recipe: Recipe) -> Bench:
    """A bench in a process of its own; in this one, aloud, where the recipe cannot be sent."""
    try:
        message = _dumps((None, (recipe,), "", None))
    except Exception as error:
        logger.warning(
            "objectives are looked at and trained in this process, which a bad one may take down: "
            "the model or the data cannot be sent to another (%s)",
            error,
        )
        return Workbench(recipe, current())
    return ChildBench(recipe, message)


def _dumps(value: Any) -> bytes:
    """By value what only this process knows: a class of a script or of a notebook."""
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps(value)
    return cloudpickle.dumps(value)


class ChildBench:
    """A workbench in a process of its own; where that ends, the next call has a new one.

    Args:
        recipe: The study's.
        message: The call that makes the workbench, as bytes.
    """

    def __init__(self, recipe: Recipe, message: bytes) -> None:
        self.recipe, self._message = recipe, message
        self._scratch = tempfile.TemporaryDirectory("", "lossearch-", ignore_cleanup_errors=True)
        self._words = Path(self._scratch.name) / "last-words"
        self._process = self._start()

    def run(self, unit: Unit) -> UnitResult:
        """Train the jobs of a unit; what took the process down is in the result."""
        try:
            return self._call("run", unit)
        except _Ended as end:
            reason, detail = last_words(self._words, end.code)
            return UnitResult(died=reason, detail=detail)

    def look(self, specs: Sequence[ObjectiveSpec]) -> list[Look]:
        """What there is to know of objectives; of one that takes the process down, just that."""
        return self._each("look", specs)

    def fingerprints(self, specs: Sequence[ObjectiveSpec]) -> list[Look]:
        """Of that, the fingerprints alone."""
        return self._each("fingerprints", specs)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._scratch.cleanup()

    def _each(self, method: str, specs: Sequence[ObjectiveSpec]) -> list[Look]:
        try:
            return self._call(method, list(specs), seconds=_LOOK + _EACH * len(specs))
        except _Ended as end:
            reason, detail = last_words(self._words, end.code)
            if len(specs) == 1:
                return [Look(Refusal(reason, f"looked at before it trains, {detail}"))]
        return [look for spec in specs for look in self._each(method, [spec])]

    def _call(self, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """What the workbench returns.

        Raises:
            _Ended: the process did.
            LossearchError: what it raised.
        """
        if self._process.poll() is not None:
            self._process = self._start()
        try:
            if not self._made:
                self._answer(self._message)
                self._made = True
            return self._answer(_dumps((method, arguments, str(self._words), seconds)))
        except (EOFError, BrokenPipeError):
            self._made = False
            raise _Ended(self._process.wait()) from None

    def _answer(self, message: bytes) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        send(self._process.stdin, message)
        kind, value = pickle.loads(receive(self._process.stdout))
        if kind == "error":
            raise value
        return value

    def _start(self) -> subprocess.Popen[bytes]:
        self._made = False
        process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # what this process can import, the other can
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
        )
        threading.Thread(target=_pass_on, args=(process,), daemon=True).start()
        return process


class _Ended(Exception):
    """The process is gone; ``code`` says how."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _pass_on(process: subprocess.Popen[bytes]) -> None:
    """What components print is shown here, where a progress bar knows to make room for it."""
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line.decode(errors="replace"))
    process.stderr.close()
