"""A frozen teacher from a file, for distillation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

import lossearch
from lossearch.errors import ModelError, ParameterError

Outputs = tuple[Tensor, Tensor | None]


@lossearch.provider(
    name="teacher",
    gives=("teacher_logits", "teacher_embeddings"),
    cost="a forward of the teacher, without gradients",
)
class Teacher(nn.Module):
    """The outputs of a frozen teacher at the batch's own, augmented inputs.

    Without ``architecture`` it is the study's own model with other weights: those of a
    ``lossearch.models.Network``, or of the user's module or timm model that it was made from. It
    stays in evaluation
    mode, gets no gradient, and is no part of checkpoints, which name its file through the study.
    The file is read at the first batch.

    Args:
        checkpoint: Its weights: a state dict, or a checkpoint that holds one under ``state_dict``
            or ``model``, as torch or safetensors save it. Every worker has to see the file.
        architecture: timm's name of the teacher, whose classifier is then in the file too.

    Returns:
        ``teacher_logits`` in the shape of the logits, and ``teacher_embeddings`` ``[B, E]``, which
        is missing where the model gives scores alone.

    Raises:
        ParameterError: there is no such file.
        ModelError: the weights do not fit the model, or its scores do not fit the task.
    """

    def __init__(
        self,
        *,
        checkpoint: Path | None = None,
        architecture: Annotated[str, Field(min_length=1)] | None = None,
    ) -> None:
        super().__init__()
        if checkpoint is None:
            raise ParameterError("teacher needs 'checkpoint', the file of its weights")
        if not checkpoint.is_file():
            raise ParameterError(f"teacher: checkpoint {checkpoint} is not a file")
        self.checkpoint, self.architecture = checkpoint, architecture
        # Not as a submodule: training mode, the optimizer and checkpoints are not for it.
        self._run: Callable[[Tensor], Outputs] | None = None

    def forward(self, inputs: Tensor, logits: Tensor, model: nn.Module) -> Outputs:
        if self._run is None:
            self._run = self._loaded(inputs, logits, model)
        with torch.no_grad():
            scores, embeddings = self._run(inputs)
        if scores.shape == (*logits.shape, 1):
            scores = scores[..., 0]
        if scores.shape != logits.shape:
            raise ModelError(
                f"teacher: its scores are {list(scores.shape)}, and the student's "
                f"{list(logits.shape)}; it has to know the same classes"
            )
        return scores, embeddings

    def _loaded(
        self, inputs: Tensor, logits: Tensor, model: nn.Module
    ) -> Callable[[Tensor], Outputs]:
        weights = self._weights()
        with torch.random.fork_rng(devices=[]):  # a teacher does not change what training draws
            if self.architecture is not None:
                teacher = self._from_timm(inputs, logits)
            else:
                teacher = copy.deepcopy(model)
                weights = _as_network(weights, set(model.state_dict()))
                _linear_head(teacher, weights)
        try:
            teacher.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(self._misfit(str(error))) from None
        teacher = teacher.to(inputs.device).requires_grad_(False).eval()
        if self.architecture is not None:
            return lambda inputs: _timm_outputs(teacher, inputs)
        return lambda inputs: _outputs(teacher(inputs))

    def _weights(self) -> dict[str, Tensor]:
        from timm.models import load_state_dict

        try:
            found = load_state_dict(str(self.checkpoint), device="cpu", weights_only=True)
        except Exception as error:  # torch, pickle and safetensors raise their own
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ModelError(
                f"teacher: checkpoint {self.checkpoint} cannot be read: {line}"
            ) from None
        if not found or not all(isinstance(v, Tensor) for v in found.values()):
            raise ModelError(f"teacher: checkpoint {self.checkpoint} holds no state dict")
        return found

    def _from_timm(self, inputs: Tensor, logits: Tensor) -> nn.Module:
        import timm

        assert self.architecture is not None
        if not timm.is_model(self.architecture):
            raise ModelError(
                f"teacher: timm has no model '{self.architecture}' (timm.list_models() shows all)"
            )
        if inputs.ndim != 4:
            raise ModelError(
                f"teacher: timm model '{self.architecture}' reads images, and the inputs are "
                f"{list(inputs.shape)}"
            )
        options: dict[str, Any] = {
            "num_classes": 1 if logits.ndim == 1 else logits.shape[1],
            "in_chans": inputs.shape[1],
        }
        if getattr(timm.get_pretrained_cfg(self.architecture), "fixed_input_size", False):
            options["img_size"] = tuple(inputs.shape[2:])
        return timm.create_model(self.architecture, **options)

    def _misfit(self, error: str) -> str:
        """What does not fit: the lines in which torch names the keys."""
        what = f"timm model '{self.architecture}'" if self.architecture else "the study's model"
        lines = [line.strip() for line in error.splitlines()[1:]]
        shown = " ".join(lines[:2]) + (f" … ({len(lines)} in all)" if len(lines) > 2 else "")
        hint = "" if self.architecture else "; if it is another model, give its architecture"
        return f"teacher: checkpoint {self.checkpoint} does not fit {what}: {shown}{hint}"


def _as_network(weights: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """A whole module's weights by a network's names: what is not of its backbone is its head."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        inside = f"backbone.{name}" in names
        renamed[f"backbone.{name}" if inside else f"head.{name.rpartition('.')[2]}"] = value
    is_network = any(name.startswith("backbone.") and name in names for name in weights)
    return weights if is_network or len(renamed) < len(weights) else renamed


def _linear_head(teacher: nn.Module, weights: dict[str, Tensor]) -> None:
    """A student that scores by cosines may learn from a teacher that does not."""
    weight = weights.get("head.weight")
    has_bias = isinstance(getattr(teacher, "head", None), nn.Linear)
    if weight is not None and weight.ndim == 2 and "head.bias" in weights and not has_bias:
        teacher.head = nn.Linear(weight.shape[1], weight.shape[0])


def _outputs(out: dict[str, Tensor]) -> Outputs:
    return out["logits"], out.get("embeddings")


def _timm_outputs(teacher: Any, inputs: Tensor) -> Outputs:
    features = teacher.forward_features(inputs)
    return teacher.forward_head(features), teacher.forward_head(features, pre_logits=True)
