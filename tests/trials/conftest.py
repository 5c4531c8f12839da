"""Small spaces and ledger trials for tests of the search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lossearch.registry import Registry, current
from lossearch.space import Between, Space
from lossearch.trials.ledger import Trial
from lossearch.trials.proposer import Proposer, SearchConfig


@pytest.fixture(scope="session")
def registry() -> Registry:
    return current()


@pytest.fixture
def make_proposer(registry: Registry) -> Callable[..., Proposer]:
    """A proposer over cross-entropy, focal and PolyLoss, and the learning rate."""

    def make(
        seed: int = 0,
        maximize: Any = True,
        losses: Any = None,
        given: Any = (),
        warm: Any = (),
        **config: Any,
    ) -> Proposer:
        where: dict[str, Any] = {
            "registry": registry,
            "task": "multiclass",
            "available": {"logits", "targets"},
        }
        choice = losses or ["cross_entropy", "focal", "poly_loss"]
        document = {"task": "multiclass", "terms": [{"loss": {"choice": choice}}]}
        plain = {"name": "cross_entropy", "label_smoothing": 0.0}
        return Proposer(
            Space.from_document(document, **where),
            Space.from_document({"task": "multiclass", "terms": [{"loss": plain}]}, **where),
            {"lr": Between(1e-4, 1e-1, log=True, default=3e-3)},
            SearchConfig(**config),
            maximize=maximize,
            seed=seed,
            given=given,
            warm=warm,
        )

    return make


@pytest.fixture
def drive() -> Callable[..., list[Trial]]:
    """Runs a proposer as a study does; ``become`` says what each trial becomes."""

    def run(
        proposer: Proposer, become: Callable[[Trial], None], until: int | None = None
    ) -> list[Trial]:
        trials: list[Trial] = []
        number = proposer.config.trials - proposer.left
        while proposer.left and (until is None or number < until):
            p = proposer.propose()
            trial = Trial(
                number,
                p.role,
                p.objective.document(),
                p.objective.label(),
                p.training,
                p.params,
                p.distributions,
                sampler=p.sampler,
            )
            become(trial)
            proposer.register(trial)
            trials.append(trial)
            number += 1
        return trials

    return run
