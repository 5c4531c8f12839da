"""What happens in a study, written down, put together, and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossearch.trials.ledger import Ledger, Row, State, apply

Listener = Callable[[State, Row], None]


class Journal:
    """The ledger, the state that it means, and who listens (the tracker, the display)."""

    def __init__(self, ledger: Ledger, state: State, listeners: list[Listener]) -> None:
        self.ledger, self.state, self.listeners = ledger, state, listeners

    def record(self, event: str, **values: Any) -> None:
        """Write an event to the ledger, take it into the state, tell the listeners."""
        row = self.ledger.append(event, **values)
        apply(self.state, row)
        for listener in self.listeners:
            listener(self.state, row)
