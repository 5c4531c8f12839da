"""A loss made of losses: one of them drawn for each step or epoch, or their mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from lossearch import Bound, ByTask, Choices, Component, Given, When, loss
from lossearch.components import Drawing
from lossearch.errors import ParameterError
from lossearch_classification._members import NumClasses, Spec, StudyTask, TrainSize, resolve

_DECAY = 0.99


def _members_of(params: Any) -> list[tuple[Component, BaseModel]]:
    facts = {"num_classes": params.num_classes, "train_size": params.train_size}
    return resolve("loss_ensemble", params.members, params.study_task, params.seed, facts)


def _reads(params: Any) -> Iterable[str]:
    # By Bound, which knows of the fields that a member's schedules read.
    return {f for component, p in _members_of(params) for f in Bound(component, p).reads}


def _returns(params: Any) -> Literal["per_sample", "batch"]:
    every = all(c.returns_at(p) == "per_sample" for c, p in _members_of(params))
    return "per_sample" if every else "batch"


@loss(
    name="loss_ensemble",
    task=("multiclass", "binary", "multilabel"),
    vmap="it draws which of its members counts, and they may have state",
    returns=_returns,
    soft_targets=lambda params: all(c.soft_at(p) for c, p in _members_of(params)),
    reads=_reads,
    cost="one forward of the drawn member; of every member in mode mean and in evaluation",
)
class LossEnsemble(Drawing):
    """A random member loss for each step or epoch, or the weighted mean of all.

    The same member serves the whole batch. In evaluation it is the weighted mean, which is what
    the draws amount to. Where a member gives one value for a batch, so does the ensemble, and the
    others are averaged.

    Args:
        members: Two to six losses: a name, or a mapping of ``name`` and parameters.
        weights: One for each member, >= 0 and not all 0: the odds of the draw or the weights of
            the mean. None: all alike.
        mode: ``draw`` or ``mean``.
        draw_every: ``step`` or ``epoch``.
        normalize: Divide each member by the running mean of its absolute value (decay 0.99,
            renewed where the member is used in training), so that none rules by its scale.
        study_task: The task, for members whose defaults depend on it; filled in.
        num_classes: For members that want it; filled in.
        train_size: For members that want it; filled in.
        seed: Of its own generator and, shifted by position, of random members.

    Raises:
        ParameterError: weights that do not fit, a member that is no loss or has a bad parameter.
        UnknownNameError: nothing answers to a member's name.

    Ours.
    """

    running: Tensor

    def __init__(
        self,
        *,
        members: Annotated[
            tuple[Spec, ...],
            Field(min_length=2, max_length=6),
            ByTask(
                binary=("binary_cross_entropy", "focal"),
                multilabel=("binary_cross_entropy", "focal"),
            ),
        ] = ("cross_entropy", "focal"),
        weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None,
        mode: Annotated[Literal["draw", "mean"], Choices()] = "draw",
        draw_every: Annotated[Literal["step", "epoch"], Choices(), When(mode="draw")] = "step",
        normalize: bool = False,
        study_task: StudyTask = None,
        num_classes: NumClasses = None,
        train_size: TrainSize = None,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        odds = [1.0] * len(members) if weights is None else list(weights)
        if len(odds) != len(members) or not sum(odds) > 0:
            raise ParameterError(
                f"loss_ensemble: weights = {odds} must be one number for each of the "
                f"{len(members)} members, and not all 0"
            )
        facts = {"num_classes": num_classes, "train_size": train_size}
        resolved = resolve("loss_ensemble", members, study_task, seed, facts)
        self.members = nn.ModuleList([Bound(component, params) for component, params in resolved])
        self.per_sample = all(c.returns_at(p) == "per_sample" for c, p in resolved)
        self.odds = [weight / sum(odds) for weight in odds]
        self.mode = mode
        self.draw_every = draw_every
        self.normalize = normalize
        self.register_buffer("running", torch.zeros(len(members)))  # 0: not seen yet
        self.current = -1
        self.drawn_at = -1

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The drawn member's values, ``[B]`` or one number; the weighted mean in evaluation."""
        if self.mode == "draw" and self.training:
            if self.draw_every == "step" or self.current < 0:
                self._draw()
            return self._value(self.current, batch)
        used = [m for m, weight in enumerate(self.odds) if weight > 0]
        return torch.stack([self.odds[m] * self._value(m, batch) for m in used]).sum(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw the epoch's member, once, also if a resumed run begins the epoch again."""
        for member in self._bound():
            member.start_epoch(epoch)
        if self.draw_every == "epoch" and epoch != self.drawn_at:
            self._draw()
            self.drawn_at = epoch

    def end_epoch(self, epoch: int) -> None:
        """Tell the members."""
        for member in self._bound():
            member.end_epoch(epoch)

    def after_step(self) -> None:
        """Tell the members."""
        for member in self._bound():
            member.after_step()

    def _bound(self) -> list[Bound]:
        return cast("list[Bound]", list(self.members))

    def _draw(self) -> None:
        drawn = torch.multinomial(torch.tensor(self.odds), 1, generator=self.generator)
        self.current = int(drawn)

    def _value(self, m: int, batch: Mapping[str, Any]) -> Tensor:
        value: Tensor = self.members[m](batch)
        if not self.per_sample:
            value = value.sum() / max(value.numel(), 1)
        if self.normalize:
            value = value / self._scale(m, value.detach())
        return value

    def _scale(self, m: int, value: Tensor) -> Tensor:
        """The member's running mean absolute value, 1 as long as it is 0."""
        if self.training and value.numel() > 0:
            now = value.abs().mean().to(self.running)
            old = self.running[m]
            self.running[m] = torch.where(old > 0, _DECAY * old + (1 - _DECAY) * now, now)
        scale = self.running[m].to(value)
        return torch.where(scale > 0, scale, 1.0)

    def get_extra_state(self) -> dict[str, Any]:
        """What the state_dict holds: the draw in force and the generator's state."""
        return {
            **super().get_extra_state(),
            "current": self.current,
            "drawn_at": self.drawn_at,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` gave."""
        super().set_extra_state(state)
        self.current = state["current"]
        self.drawn_at = state["drawn_at"]
