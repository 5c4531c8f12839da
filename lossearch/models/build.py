"""From a model's name, or from the user's own module, to the network of a study."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lossearch.components.inputs import Inputs, fed, tensors
from lossearch.components.modes import evaluating
from lossearch.errors import ModelError
from lossearch.models import endings
from lossearch.models.factory import Factory
from lossearch.models.network import CosineHead, Frozen, LinearHead, Network, scores
from lossearch.models.probe import Probe, batch_shape
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


Model = ModelConfig | nn.Module | Factory


def build_network(
    spec: Model,
    info: DataLike,
    registry: Registry,
    *,
    cosine_scale: float | None = None,
    samples: Inputs | None = None,
) -> Network:
    """The network for these data.

    A user's module is copied, weights included, and split before its last linear layer where that
    provably changes nothing; else it gives its scores alone. One of whose backbone no parameter
    requires a gradient is frozen, as a named one is by ``freeze: true``: batch norms and dropout
    then stay in evaluation mode too. Of one that ends in softmax, log-softmax or sigmoid the
    scores before these are taken. What was changed stands in the network's ``notes``.

    Args:
        spec: A model's name and parameters, or the user's own module, or what makes it.
        info: What the data look like.
        registry: Where the model's name is looked up; a name that it lacks is taken as timm's.
        cosine_scale: Score by cosines times this scale, as a margin loss wants it.
        samples: Inputs of a few samples, where noise would be none: tokens, or several inputs.

    Raises:
        ModelError: no model has the name, it cannot be built, or it does not fit the data.
    """
    squeeze = info.task != "multilabel"
    if isinstance(spec, Factory):
        name, module = spec.name, spec.make(info.num_outputs)
        network = _from_module(Probe(name, info, samples), module, squeeze, thaw=spec.thaw)
    elif isinstance(spec, nn.Module):
        name = type(spec).__name__
        network = _from_module(Probe(name, info, samples), spec, squeeze)
    else:
        name = spec.name
        backbone = _backbone(spec, info, registry)
        if isinstance(getattr(backbone, "num_features", None), int):
            notes = _to_float32(name, backbone)
            width = _width(Probe(name, info, samples), backbone)
            network = Network(backbone, LinearHead(width, info.num_outputs), squeeze=squeeze)
            network.notes = notes
        else:
            network = _from_module(Probe(name, info, samples), backbone, squeeze)
    if _is_to_freeze(spec, network):
        _freeze(name, network)
    if not any(p.requires_grad for p in network.parameters()):
        raise ModelError(f"model '{name}' has no parameters to train")
    if cosine_scale is not None:
        _to_cosine(name, network, cosine_scale)
    _check_outputs(Probe(name, info, samples), network)
    return network


def thawed(spec: Model) -> Model:
    """The same model with its backbone free to learn; a user's module is copied for it.

    A named model gets a new head with each seed; a user's module starts from all of its weights.
    """
    if isinstance(spec, ModelConfig):
        return spec.model_copy(update={"freeze": False})
    if isinstance(spec, Factory):
        return Factory(spec.function, thaw=True)
    return copy.deepcopy(spec).requires_grad_(True)


def _is_to_freeze(spec: Model, network: Network) -> bool:
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


def _from_module(
    probe: Probe, module: nn.Module, squeeze: bool, *, thaw: bool = False
) -> Network:
    name = probe.name
    try:
        module = copy.deepcopy(module)
    except Exception as error:
        raise ModelError(
            f"model '{name}' cannot be copied ({error}), and every trial needs a copy; give a "
            "function that makes it: model=lambda: ..."
        ) from error
    if thaw:
        module.requires_grad_(True)
    notes = _to_float32(name, module)
    output = scores(probe.run(module))
    ending = None
    if probe.info.task != "regression" and endings.possible(output):
        ending = endings.shown(scores(probe.run(module, graph=True)))
    if ending is None:
        network = _network(probe, module, output, squeeze)
    else:
        network, said = _before(probe, module, output, ending, squeeze)
        notes += (said,)
    network.notes = notes
    return network


def _network(probe: Probe, module: nn.Module, output: Tensor, squeeze: bool) -> Network:
    """A module split before its last linear layer where that can be proven, else whole."""
    parts = _split(module)
    if parts is not None and _same(probe, output, parts):
        return Network(*parts, squeeze=squeeze)
    return Network(module, None, squeeze=squeeze)


def _to_float32(name: str, module: nn.Module) -> tuple[str, ...]:
    """Bring a module of half precision there in place; what there is to say of it."""
    state = (*module.parameters(), *module.buffers())
    half = {t.dtype for t in state} & {torch.float16, torch.bfloat16}
    if not half:
        return ()
    module.float()
    given = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in half))
    return (
        f"model '{name}' came in {given}; it trains in float32 (training.precision: bfloat16 "
        "computes in bfloat16)",
    )


def _before(
    probe: Probe, module: nn.Module, output: Tensor, ending: endings.Ending, squeeze: bool
) -> tuple[Network, str]:
    """The network that gives the scores before its ending, and what there is to say of it.

    A module is left out where the probe proves it: applied to the scores, it gives the output.
    What a function made of the scores is turned back into them.
    """
    name, words = probe.name, endings.WORDS[ending]
    for bare, last in endings.last_modules(module):
        found = scores(probe.run(bare))
        if found.shape == output.shape and _close(last(found), output):
            network = _network(probe, bare, found, squeeze)
            return network, (
                f"model '{name}' ends in {last}, which is left out: the study trains on the "
                "scores before it, and what it finds wants them too"
            )
    advice = f"return the scores themselves, without {words}"
    rows = endings.sums_to_one(output, ending) and probe.info.task != "multilabel"
    if ending != "sigmoid" and not rows:
        raise ModelError(
            f"model '{name}' ends in {words} and gives {batch_shape(output.shape)}, which says "
            f"nothing for {probe.info.task}; {advice}"
        )
    taken = {
        "sigmoid": "the study trains on the log-odds of what it gives",
        "softmax": "its rows sum to 1, and the study trains on their logarithm, which is the "
        "scores up to a constant in each row",
        "log_softmax": "what it gives is taken as scores, which it is up to a constant in each "
        "row",
    }[ending]
    if ending != "log_softmax":
        module = endings.Scores(module, ending)
    network = Network(module, None, squeeze=squeeze)
    return network, f"model '{name}' ends in {words}: {taken}. Better {advice}"


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


def _same(probe: Probe, expected: Tensor, parts: tuple[nn.Module, nn.Module]) -> bool:
    """Whether the parts score the probe as the whole module did."""
    backbone, head = parts
    with evaluating(nn.ModuleList(parts)), torch.no_grad():
        try:
            embeddings = fed(backbone, probe.inputs(nn.ModuleList(parts)))
            found = head(embeddings)
        except Exception:
            return False
    return isinstance(embeddings, Tensor) and embeddings.ndim == 2 and _close(found, expected)


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


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


def _width(probe: Probe, backbone: nn.Module) -> int:
    name = probe.name
    embeddings = probe.run(backbone)
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


def _check_outputs(probe: Probe, network: Network) -> None:
    name, info = probe.name, probe.info
    logits = probe.run(network)["logits"]
    samples = len(tensors(probe.inputs(network))[0])
    single = info.num_outputs == 1 and network.squeeze
    wanted = (samples,) if single else (samples, info.num_outputs)
    if info.task == "binary" and tuple(logits.shape) == (samples, 2):
        network.two = True
        network.notes += (
            f"model '{name}' gives two scores for two classes; the second less the first is the "
            "one score of a binary task, and so it is for what is found here",
        )
        return
    if tuple(logits.shape) != wanted:
        outputs = f"{info.num_outputs} output{'s' * (info.num_outputs != 1)}"
        raise ModelError(
            f"model '{name}' gives scores of shape {batch_shape(logits.shape)} and {info.task} "
            f"with {outputs} needs {batch_shape(wanted)}; set the size of its last layer"
        )
