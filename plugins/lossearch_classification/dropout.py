"""Multi-sample dropout: one batch of embeddings, several dropout masks, the mean of the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from lossearch import Bound, ByTask, Component, Given, Paper, Range, loss
from lossearch.components import Drawing
from lossearch.components.component import Returns
from lossearch.components.drawing import on_device
from lossearch.errors import FieldError, ModelError
from lossearch_classification._members import NumClasses, Spec, StudyTask, TrainSize, resolve

_NAME = "multi_sample_dropout"


def _base_of(params: Any) -> tuple[Component, BaseModel]:
    facts = {"num_classes": params.num_classes, "train_size": params.train_size}
    return resolve(_NAME, [params.base], params.study_task, params.seed, facts)[0]


def _reads(params: Any) -> Iterable[str]:
    # By Bound, which knows of the fields that the base's schedules read; the logits are made here.
    return {"embeddings", "model"} | Bound(*_base_of(params)).reads - {"logits"}


def _returns(params: Any) -> Returns:
    component, base = _base_of(params)
    return component.returns_at(base) or "per_sample"


def _soft(params: Any) -> bool:
    component, base = _base_of(params)
    return component.soft_at(base)


@loss(
    name=_NAME,
    task=("multiclass", "binary", "multilabel"),
    vmap="it draws masks from a generator of its own, and calls the head again",
    paper=Paper(
        "Multi-Sample Dropout for Accelerated Training and Better Generalization",
        2019,
        "arXiv:1905.09788",
    ),
    returns=_returns,
    soft_targets=_soft,
    reads=_reads,
    cost="the head and the base loss once for each sample",
)
class MultiSampleDropout(Drawing):
    r"""The mean over dropout masks of a base loss, :math:`\frac1M\sum_m \ell(h(d_m \odot e))`.

    The losses are averaged, not the logits, so it is never below a convex base (cross-entropy) of
    the averaged logits. Masks are independent, kept embeddings are scaled by 1/(1 - rate). With
    ``rate = 0`` it is the base loss, with ``samples = 1`` the base behind ordinary dropout. The
    head must have no dropout of its own. In evaluation it is the base loss, without dropout. The
    ``model`` is read for its ``head``, which each mask's embeddings pass again: the network's
    logits are those of the undropped ones.

    A base that reads embeddings gets the dropped ones. One that keeps a state renews it with each
    sample.

    Args:
        samples: Number M >= 1 of masks.
        rate: Odds of dropping an embedding's entry, in [0, 1).
        base: The base loss: a name, or a mapping of ``name`` and parameters.
        study_task: The task, for a base whose defaults depend on it; filled in.
        num_classes: For a base that wants it; filled in.
        train_size: For a base that wants it; filled in.
        seed: Of its own generator and, plus 1, of a random base.

    Raises:
        ParameterError: the base is no loss or has a bad parameter.
        UnknownNameError: nothing answers to the base's name.

    Written from the catalogue's formula; the paper's text could not be read.
    """

    def __init__(
        self,
        *,
        samples: Annotated[int, Field(ge=1), Range(2, 16)] = 8,
        rate: Annotated[float, Field(ge=0, lt=1), Range(0.0, 0.7)] = 0.5,
        base: Annotated[
            Spec, ByTask(binary="binary_cross_entropy", multilabel="binary_cross_entropy")
        ] = "cross_entropy",
        study_task: StudyTask = None,
        num_classes: NumClasses = None,
        train_size: TrainSize = None,
        seed: Annotated[int, Given("seed")] = 0,
    ) -> None:
        super().__init__(seed)
        facts = {"num_classes": num_classes, "train_size": train_size}
        self.base = Bound(*resolve(_NAME, [base], study_task, seed, facts)[0])
        self.samples = samples
        self.rate = rate

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The mean of the base's values over the masks, shaped as the base's.

        ``batch`` holds ``embeddings`` ``[B, E]``, ``model`` with its ``head``, and what the base
        reads, whose ``logits`` and ``embeddings`` are replaced. Where it holds the network's
        ``logits``, the head's are brought to their shape; in evaluation they are taken as they
        are, and made by the head where they are missing.

        Raises:
            FieldError: the model has no head to call.
            ModelError: the head has a dropout of its own.
        """
        known = batch.get("logits")
        if not self.training and known is not None:
            return self.base(batch)
        head = _head(batch["model"])
        embeddings: Tensor = batch["embeddings"]
        if not self.training:
            return self.base({**batch, "logits": head(embeddings)})
        generator = on_device(self.generator, embeddings.device)
        values = []
        for _ in range(self.samples):
            drawn = torch.rand(embeddings.shape, generator=generator, device=embeddings.device)
            dropped = embeddings * (drawn >= self.rate) / (1 - self.rate)
            logits = head(dropped)
            if known is not None:
                # as the network shapes a single score: [B], where a head gives [B, 1]
                logits = logits.reshape(known.shape)
            values.append(self.base({**batch, "embeddings": dropped, "logits": logits}))
        return torch.stack(values).mean(0)

    def start_epoch(self, epoch: int) -> None:
        """Tell the base."""
        self.base.start_epoch(epoch)

    def end_epoch(self, epoch: int) -> None:
        """Tell the base."""
        self.base.end_epoch(epoch)

    def after_step(self) -> None:
        """Tell the base."""
        self.base.after_step()


def _head(model: Any) -> Callable[[Tensor], Tensor]:
    head = getattr(model, "head", None)
    if not callable(head):
        raise FieldError(
            f"{_NAME} calls the head again, and this model has none: 'model' needs a 'head' that "
            "turns embeddings [B, E] into scores"
        )
    modules = head.modules() if isinstance(head, nn.Module) else ()
    if any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in modules):
        raise ModelError(f"{_NAME}: the head has a dropout of its own; set its rate to 0")
    return cast("Callable[[Tensor], Tensor]", head)
