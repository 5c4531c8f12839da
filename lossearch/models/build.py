"""From a model's name, or from the user's own module, to the network of a study."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lossearch.components.modes import evaluating
from lossearch.errors import ModelError
from lossearch.models.network import CosineHead, Frozen, LinearHead, Network, scores
from lossearch.models.zoo import DataLike, is_timm, nearest_timm
from lossearch.spec import ComponentSpec

if TYPE_CHECKING:
    from lossearch.registry import Registry

_OUTPUT_NAMES = ("fc", "head", "heads", "classifier")


class ModelConfig(ComponentSpec):
    """A model by name, with its parameters beside the name; a plain string is the name alone.

    Attributes:
        freeze: Leave the backbone as it is and train the head alone.
    """

    freeze: bool = False


def build_network(
    spec: ModelConfig | nn.Module,
    info: DataLike,
    registry: Registry,
    *,
    cosine_scale: float | None = None,
) -> Network:
    """The network for these data.

    A user's module is copied, weights included, and split before its last linear layer where that
    provably changes nothing; else it gives its scores alone. One of whose backbone no parameter
    requires a gradient is frozen, as a named one is by ``freeze: true``: batch norms and dropout
    then stay in evaluation mode too.

    Args:
        spec: A model's name and parameters, or the user's own module.
        info: What the data look like.
        registry: Where the model's name is looked up; a name that it lacks is taken as timm's.
        cosine_scale: Score by cosines times this scale, as a margin loss wants it.

    Raises:
        ModelError: no model has the name, it cannot be built, or it does not fit the data.
    """
    squeeze = info.task != "multilabel"
    if isinstance(spec, nn.Module):
        name = type(spec).__name__
        network = _from_module(name, spec, info, squeeze)
    else:
        name = spec.name
        backbone = _backbone(spec, info, registry)
        if isinstance(getattr(backbone, "num_features", None), int):
            head = LinearHead(_width(name, backbone, info), info.num_outputs)
            network = Network(backbone, head, squeeze=squeeze)
        else:
            network = _from_module(name, backbone, info, squeeze)
    if _is_to_freeze(spec, network):
        _freeze(name, network)
    if not any(p.requires_grad for p in network.parameters()):
        raise ModelError(f"model '{name}' has no parameters to train")
    if cosine_scale is not None:
        _to_cosine(name, network, cosine_scale)
    _check_outputs(name, network, info)
    return network


def thawed(spec: ModelConfig | nn.Module) -> ModelConfig | nn.Module:
    """The same model with its backbone free to learn; a user's module is copied for it.

    A named model gets a new head with each seed; a user's module starts from all of its weights.
    """
    if isinstance(spec, ModelConfig):
        return spec.model_copy(update={"freeze": False})
    return copy.deepcopy(spec).requires_grad_(True)


def _is_to_freeze(spec: ModelConfig | nn.Module, network: Network) -> bool:
    if isinstance(spec, ModelConfig):
        return spec.freeze
    weights = list(network.backbone.parameters())
    return network.head is not None and bool(weights) and not any(w.requires_grad for w in weights)


def _freeze(name: str, network: Network) -> None:
    if network.head is None:
        raise ModelError(
            f"model '{name}' cannot be frozen: it does not show its last linear layer, which "
            "alone would learn; make it the last of an nn.Sequential or an attribute fc, head or "
            "classifier"
        )
    network.backbone = Frozen(network.backbone)


def _backbone(spec: ModelConfig, info: DataLike, registry: Registry) -> nn.Module:
    name, params = spec.name, spec.params
    if name not in registry:
        if not is_timm(name):
            offered = [component.name for component in registry.list("model")]
            near = ", ".join(nearest_timm(name, offered)) or ", ".join(offered)
            raise ModelError(f"neither lossearch nor timm has a model '{name}'; near it: {near}")
        name, params = "timm", {"architecture": name, **params}
    component = registry.get(name, "model")
    if info.task not in component.tasks:
        raise ModelError(
            f"model '{name}' serves {', '.join(component.tasks)}, and the task is {info.task}"
        )
    backbone = component.build(task=info.task, **params)({"data": info})
    if not isinstance(backbone, nn.Module):
        raise ModelError(f"model '{name}' returns {type(backbone).__name__}, not an nn.Module")
    return backbone


def _from_module(name: str, module: nn.Module, info: DataLike, squeeze: bool) -> Network:
    try:
        module = copy.deepcopy(module)
    except Exception as error:
        raise ModelError(
            f"model '{name}' cannot be copied ({error}), and every trial needs a copy; give a "
            "function decorated with @lossearch.model instead"
        ) from error
    parts = _split(module)
    if parts is not None and _same(name, module, nn.Sequential(*parts), info):
        return Network(*parts, squeeze=squeeze)
    return Network(module, None, squeeze=squeeze)


def _split(module: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
    """A copy without its output layer, and that layer: a proposal, which may be wrong."""
    if callable(getattr(module, "reset_classifier", None)):
        get, backbone = getattr(module, "get_classifier", None), copy.deepcopy(module)
        head = get() if callable(get) else None
        if not isinstance(head, nn.Linear):
            return None
        try:
            backbone.reset_classifier(0)  # type: ignore[operator]
        except Exception:
            return None
        return backbone, copy.deepcopy(head)
    path = _output_path(module)
    if path is None:
        return None
    head = module.get_submodule(path)
    assert isinstance(head, nn.Linear)
    if path == "":
        return nn.Identity(), head
    backbone = copy.deepcopy(module)
    parent, _, leaf = path.rpartition(".")
    setattr(backbone.get_submodule(parent), leaf, nn.Identity())
    return backbone, copy.deepcopy(head)


def _output_path(module: nn.Module) -> str | None:
    """Where the output layer stands: the last of a sequence, or under one of the usual names."""
    if isinstance(module, nn.Linear):
        return ""
    names = [n for n in _OUTPUT_NAMES if isinstance(getattr(module, n, None), nn.Module)]
    if isinstance(module, nn.Sequential) and len(module):
        names = [list(module._modules)[-1]]
    for name in names:
        below = _output_path(module.get_submodule(name))
        if below is not None:
            return f"{name}.{below}" if below else name
    return None


def _same(name: str, whole: nn.Module, split: nn.Module, info: DataLike) -> bool:
    """Whether the split module scores a random batch as the whole one does."""
    inputs = _probe(info, like=whole)
    expected = scores(_run(name, whole, inputs, info))
    with evaluating(split), torch.no_grad():
        try:
            embeddings = split[0](inputs)  # type: ignore[index]
            found = split[1](embeddings)  # type: ignore[index]
        except Exception:
            return False
    return (
        isinstance(embeddings, Tensor)
        and embeddings.ndim == 2
        and found.shape == expected.shape
        and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    )


def _to_cosine(name: str, network: Network, scale: float) -> None:
    weight = network.weight
    if weight is None:
        raise ModelError(
            f"model '{name}' does not show its last linear layer, which a margin loss scores by; "
            "make it the last of an nn.Sequential or an attribute fc, head or classifier"
        )
    with torch.random.fork_rng(devices=[]):  # the draws that follow are those of a linear head
        head = CosineHead(weight.shape[1], weight.shape[0], scale)
    head.weight = weight
    network.head = head


def _width(name: str, backbone: nn.Module, info: DataLike) -> int:
    embeddings = _run(name, backbone, _probe(info, like=backbone), info)
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
        shape = getattr(embeddings, "shape", type(embeddings).__name__)
        raise ModelError(f"backbone '{name}' must give embeddings [B, E], and gives {shape}")
    width = int(embeddings.shape[1])
    if width != backbone.num_features:
        raise ModelError(
            f"backbone '{name}' declares num_features = {backbone.num_features} and gives "
            f"embeddings of width {width}"
        )
    return width


def _check_outputs(name: str, network: Network, info: DataLike) -> None:
    inputs = _probe(info, like=network)
    logits = _run(name, network, inputs, info)["logits"]
    single = info.num_outputs == 1 and network.squeeze
    wanted = (len(inputs),) if single else (len(inputs), info.num_outputs)
    if tuple(logits.shape) != wanted:
        raise ModelError(
            f"model '{name}' gives scores of shape {_batch(logits.shape)} and {info.task} with "
            f"{info.num_outputs} output{'s' * (info.num_outputs != 1)} needs {_batch(wanted)}; "
            "set the size of its last layer"
        )


def _batch(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['B', *map(str, shape[1:])])}]"


def _probe(info: DataLike, like: nn.Module) -> Tensor:
    """Two samples of noise, where the module's parameters are and of their type."""
    if info.kind == "other" and any(isinstance(m, nn.Embedding) for m in like.modules()):
        return torch.zeros(2, *info.input_shape, dtype=torch.int64)  # tokens
    first = next((p for p in like.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.randn(2, *info.input_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(first)


def _run(name: str, module: nn.Module, inputs: Tensor, info: DataLike) -> Any:
    with evaluating(module), torch.no_grad():
        try:
            return module(inputs)
        except ModelError:
            raise
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ModelError(
                f"model '{name}' does not take inputs of shape {_batch(inputs.shape)} "
                f"(kind '{info.kind}'): {reason}"
            ) from error
