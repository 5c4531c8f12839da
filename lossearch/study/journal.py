"""What happens in a study, written down, put together, and told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lossearch.trials.ledger import Ledger, Row, State, apply

Listener = Callable[[State, Row], None]


class Journal:
    """The ledger, the state that it means, and who listens (the tracker, the display)."""

    def __init__(self, ledger: Ledger, state: State, listeners: list[Listener]) -> None:
        self.ledger, self.state, self.listeners = ledger, state, listeners
        self._together = False
        self._untold: deque[Row] = deque()

    def record(self, event: str, **values: Any) -> None:
        """Write an event to the ledger, take it into the state, tell the listeners."""
        row = self.ledger.append(event, **values)
        apply(self.state, row)
        self._untold.append(row)
        if not self._together:
            self._tell()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Events that are one: the ledger has all of them or none, and then they are told.

        A unit's proposals, and its results: a resume that found a part of them would hand out
        another unit than the one that was killed, and the search would go another way.
        """
        self._together = True
        try:
            with self.ledger.together():
                yield
        except BaseException:
            self._untold.clear()  # they have not happened
            raise
        finally:
            self._together = False
        self._tell()

    def _tell(self) -> None:
        while self._untold:  # also what an interrupt kept from being told
            row = self._untold.popleft()
            for listener in self.listeners:
                listener(self.state, row)
