"""The models by name: each makes a backbone for the data; the head is added by the network."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field
from torch import nn

from lossearch.components import model
from lossearch.errors import ModelError

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class DataLike(Protocol):
    """What a model may ask of the data: the part of ``DataInfo`` that models read."""

    @property
    def task(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def num_outputs(self) -> int: ...


class Embedder(nn.Sequential):
    """A backbone of layers in sequence that knows the width of its embeddings."""

    def __init__(self, *layers: nn.Module, num_features: int) -> None:
        super().__init__(*layers)
        self.num_features = num_features


@model()
def linear(data: DataLike) -> nn.Module:
    """A linear model: the flattened inputs are the embeddings.

    Args:
        data: What the data look like.
    """
    _refuse_others("linear", data)
    return Embedder(nn.Flatten(), num_features=math.prod(data.input_shape))


@model()
def mlp(
    data: DataLike,
    *,
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    activation: Literal["relu", "gelu", "silu"] = "relu",
    batch_norm: bool = False,
) -> nn.Module:
    """A multilayer perceptron on the flattened inputs; the last hidden layer is the embedding.

    Args:
        data: What the data look like.
        hidden: Width of each hidden layer; none makes it linear.
        dropout: Share of a hidden layer's units that is dropped in training.
        activation: The nonlinearity.
        batch_norm: Normalise each hidden layer over the batch, before its nonlinearity.
    """
    _refuse_others("mlp", data)
    width = math.prod(data.input_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for units in hidden:
        layers.append(nn.Linear(width, units))
        if batch_norm:
            layers.append(nn.BatchNorm1d(units))
        layers.append(_ACTIVATIONS[activation]())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        width = units
    return Embedder(*layers, num_features=width)


@model()
def timm(
    data: DataLike,
    *,
    architecture: str = "resnet18",
    pretrained: bool = False,
    checkpoint: Path | None = None,
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """An image backbone of the timm library, pooled to one vector.

    Args:
        data: What the data look like; images ``[channels, height, width]``.
        architecture: timm's name of the model, with a pretrained tag if wanted.
        pretrained: Fetch (or take from the local cache) the weights that timm names.
        checkpoint: Weights of this architecture in a file, as timm saves them; a classifier in
            it is left out, and a stem of another number of channels is adapted.
        drop_rate: Dropout before the head.

    Raises:
        ModelError: the data are not images, timm does not know the name, or the weights cannot
            be fetched or do not fit.
    """
    if data.kind != "image":
        raise ModelError(
            f"timm model '{architecture}' reads images and the data are of kind '{data.kind}'; "
            "take 'mlp' or 'linear'"
        )
    create, config = _find(architecture)
    options: dict[str, Any] = {
        "num_classes": 0,
        "in_chans": data.input_shape[0],
        "drop_rate": drop_rate,
    }
    weights: Mapping[str, Any] = {}
    if checkpoint is not None:
        weights = _weights(architecture, checkpoint)
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(checkpoint)}}
    elif pretrained:
        options["pretrained"] = True
    try:
        if getattr(config, "fixed_input_size", False):
            backbone = create(img_size=tuple(data.input_shape[1:]), **options)
        else:
            backbone = create(**options)
    except Exception as error:  # timm and the hub raise a dozen types here
        raise ModelError(_why(architecture, checkpoint, pretrained, config, error)) from error
    if checkpoint is not None:
        _check_covers(architecture, backbone, checkpoint, weights)
    backbone.num_features = int(getattr(backbone, "head_hidden_size", backbone.num_features))
    return backbone


def model_components() -> list[Callable[..., Any]]:
    """The models that the engine offers."""
    return [linear, mlp, timm]


def is_timm(name: str) -> bool:
    """Whether timm has this architecture (with or without a pretrained tag)."""
    import timm as library

    return library.is_model(name)


def nearest_timm(name: str, also: list[str]) -> list[str]:
    """Up to five names, of timm and of ``also``, that are close to this one."""
    import timm as library

    known = [*also, *library.list_models()]
    bare = name.split(".")[0].lower()
    close = difflib.get_close_matches(bare, known, n=5, cutoff=0.6)
    return close or [known_name for known_name in known if bare in known_name][:5]


def _refuse_others(name: str, data: DataLike) -> None:
    if data.kind == "several":
        raise ModelError(
            f"model '{name}' reads one tensor, and the data give several inputs; pass a module of "
            "your own, whose forward() takes them"
        )


def _find(architecture: str) -> tuple[Callable[..., Any], Any]:
    import timm as library

    if not is_timm(architecture):
        near = ", ".join(nearest_timm(architecture, []))
        raise ModelError(
            f"timm has no model '{architecture}'"
            + (f"; near it: {near}" if near else " (timm.list_models() shows all)")
        )
    config = library.get_pretrained_cfg(architecture)

    def create(**options: Any) -> Any:
        return library.create_model(architecture, **options)

    return create, config


def _why(
    architecture: str, checkpoint: Path | None, pretrained: bool, config: Any, error: Exception
) -> str:
    last = next(iter(str(error).splitlines()), "") or type(error).__name__
    if checkpoint is not None:
        if not checkpoint.is_file():
            return f"checkpoint {checkpoint} of timm model '{architecture}' is not a file"
        return f"checkpoint {checkpoint} does not fit timm model '{architecture}': {last}"
    if pretrained:
        source = getattr(config, "hf_hub_id", None) or getattr(config, "url", None)
        tried = f"tried {source}" if source else "timm names no weights for it"
        return (
            f"the pretrained weights of timm model '{architecture}' cannot be had ({tried}): "
            f"{last}. Give checkpoint: with a local file, or pretrained: false"
        )
    return f"timm model '{architecture}' cannot be built: {last}"


def _weights(architecture: str, checkpoint: Path) -> Mapping[str, Any]:
    """A checkpoint, read without running what lies in it, which older versions of timm do."""
    from timm.models import load_state_dict

    try:
        return load_state_dict(str(checkpoint), weights_only=True)
    except Exception as error:  # torch, pickle and safetensors raise their own
        raise ModelError(_why(architecture, checkpoint, False, None, error)) from error


def _check_covers(
    architecture: str, backbone: nn.Module, checkpoint: Path, have: Mapping[str, Any]
) -> None:
    """timm loads a headless model leniently; a file that lacks a layer must not pass unseen."""
    wanted = [k for k in backbone.state_dict() if not k.endswith("num_batches_tracked")]
    missing = [key for key in wanted if key not in have]
    if missing:
        raise ModelError(
            f"checkpoint {checkpoint} does not fit timm model '{architecture}': it lacks "
            f"{len(missing)} of {len(wanted)} tensors, {missing[0]} first"
        )
