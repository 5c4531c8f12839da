"""One objective of a cohort, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lossearch.components import Bound
from lossearch.errors import StorageError
from lossearch.objective import cosine_scale
from lossearch.spec import ObjectiveSpec
from lossearch.training import checkpoint
from lossearch.training.evaluate import score
from lossearch.training.plan import Plan, Progress


class Member(Progress):
    """One objective of a cohort, and what becomes of it.

    Attributes:
        error: What ended it early, if something did.
        done: Whether its training is over, rather than at a rung.
        metrics, tested: Its metrics on the validation and on the test split.
        seconds: Its share of the cohort's time.
    """

    def __init__(
        self,
        plan: Plan,
        spec: ObjectiveSpec,
        values: Mapping[str, float],
        seed: int,
        path: Path,
        *,
        test: bool = False,
    ) -> None:
        super().__init__(plan)
        torch.manual_seed(seed)  # as alone
        self.objective = plan.objective(spec, seed)
        self.values, self.seed, self.path, self.test = values, seed, path, test
        self.scale = cosine_scale(self.objective)
        own = self.objective.parameter_groups()
        self.optimizer = plan.optimizer([], own, values) if own else None
        self.state = checkpoint.read(path)
        if self.state is not None:
            self.objective.load_state_dict(self.state["objective"])
            self.resume(self.state)
        self.error: Exception | None = None
        self.measured = False
        self.done = False
        self.metrics: dict[str, float] = {}
        self.tested: dict[str, float] = {}
        self.seconds = 0.0

    @property
    def over(self) -> bool:
        """Whether there is nothing more to do for it here."""
        return self.measured or self.error is not None

    @property
    def stream(self) -> tuple[Any, ...]:
        """What the members of one cohort have in common: weights' seed, epoch, order, head."""
        state = self.state
        draws: tuple[bytes, ...] = ()
        if state is not None:
            kinds = ("order", "random", "cuda_random")
            draws = tuple(state[k].numpy().tobytes() for k in kinds if k in state)
        return self.seed, self.epoch, draws, self.scale is not None

    def tries(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Do what may fail; an error is kept, and ends this member alone."""
        try:
            return action(*arguments)
        except (torch.cuda.OutOfMemoryError, StorageError):
            raise  # the cohort's, which is then halved; the study's, which stops
        except Exception as error:  # a bad loss must not cost its companions
            self.error = error
        return None

    def start_epoch(self) -> None:
        """Tell the objective that an epoch begins."""
        self.objective.train()
        self.objective.start_epoch(self.epoch)

    def end_epoch(self, mean: float) -> None:
        """Count an epoch, unless its mean loss is not finite.

        Raises:
            Diverged: it is not.
        """
        self.check_loss(mean)
        self.objective.end_epoch(self.epoch)
        self.epoch += 1

    def scored(
        self, split: str, predicted: dict[str, Tensor], row: int, metrics: dict[str, Bound]
    ) -> dict[str, float]:
        """Its metrics on a split, of its row of the predictions.

        Raises:
            Diverged: these are not finite.
        """
        self.check_outputs(split, predicted["finite"][row])
        logits = predicted["logits"][row]
        return score({"logits": logits, "targets": predicted["targets"]}, metrics)
