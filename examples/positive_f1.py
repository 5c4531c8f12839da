"""A metric of your own, as a one-file plugin; imbalanced_tables.py is judged by it.

    lossearch plugins check examples/positive_f1.py
    lossearch run study.yaml --plugin examples/positive_f1.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import lossearch


@lossearch.metric(task="binary")
def positive_f1(logits: Tensor, targets: Tensor) -> float:
    """F1 of class 1 where the score is above 0, which is probability 1/2.

    Args:
        logits: Scores, ``[N]``.
        targets: 0 or 1, ``[N]``.

    Returns:
        In [0, 1], more is better; 0 where no positive is found.
    """
    chosen, positive = logits > 0, targets > 0.5
    total = int(chosen.sum()) + int(positive.sum())
    return 2 * int((chosen & positive).sum()) / total if total else 0.0


@lossearch.hookimpl
def register_metrics() -> list[Callable[..., Any]]:
    return [positive_f1]
