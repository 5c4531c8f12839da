"""Models by name and the user's own: what they give, and how each mistake is named."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossearch
from lossearch.components import component_of
from lossearch.errors import ModelError, ParameterError
from lossearch.models import (
    CosineHead,
    LinearHead,
    ModelConfig,
    Network,
    WantsIntegers,
    build_network,
)
from lossearch.registry import Registry


@dataclass(frozen=True)
class Info:
    task: str = "multiclass"
    num_outputs: int = 3
    kind: str = "table"
    input_shape: tuple[int, ...] = (5,)


IMAGE = Info(kind="image", input_shape=(1, 32, 32))


def test_importing_models_does_not_import_timm() -> None:
    code = "import sys, lossearch.models; print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_config_takes_a_name_or_a_name_with_parameters() -> None:
    assert ModelConfig.model_validate("mlp") == ModelConfig(name="mlp")
    config = ModelConfig.model_validate({"name": "mlp", "hidden": [4]})
    assert config.params == {"hidden": [4]}


@pytest.mark.parametrize(
    ("params", "width"),
    [({}, 128), ({"hidden": []}, 5), ({"hidden": [7, 4], "batch_norm": True, "dropout": 0.1}, 4)],
)
def test_mlp_gives_logits_embeddings_and_weight(
    registry: Registry, params: Any, width: int
) -> None:
    network = build_network(ModelConfig(name="mlp", **params), Info(), registry)
    out = network(torch.randn(6, 5))
    assert out["logits"].shape == (6, 3)
    assert out["embeddings"].shape == (6, width)
    assert network.gives == ("logits", "embeddings", "weight")
    assert network.weight is not None and network.weight.shape == (3, width)


def test_linear_is_an_affine_map_of_the_flattened_input(registry: Registry) -> None:
    network = build_network(ModelConfig(name="linear"), IMAGE, registry)
    x = torch.randn(2, 1, 32, 32)
    head = network.head
    assert isinstance(head, LinearHead)
    assert torch.equal(network(x)["logits"], F.linear(x.flatten(1), head.weight, head.bias))


@pytest.mark.parametrize(
    ("task", "outputs", "shape"),
    [("binary", 1, (6,)), ("regression", 1, (6,)), ("multilabel", 1, (6, 1)),
     ("regression", 2, (6, 2))],
)  # fmt: skip
def test_single_output_is_flat_unless_multilabel(
    registry: Registry, task: str, outputs: int, shape: tuple[int, ...]
) -> None:
    network = build_network(ModelConfig(name="mlp"), Info(task, outputs), registry)
    assert network(torch.randn(6, 5))["logits"].shape == shape


def test_cosine_head_is_scale_times_cosine() -> None:
    head = CosineHead(2, 2, scale=10.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    logits = head(torch.tensor([[3.0, 4.0]]))
    assert torch.allclose(logits, torch.tensor([[6.0, 8.0]]))


def test_both_heads_start_from_the_same_weight_and_draw_alike(registry: Registry) -> None:
    weights, states = [], []
    for scale in (None, 16.0):
        torch.manual_seed(0)
        weights.append(
            build_network(ModelConfig(name="mlp"), Info(), registry, cosine_scale=scale).weight
        )
        states.append(torch.get_rng_state())
    assert torch.equal(*weights)
    assert torch.equal(*states)


def test_network_is_stackable(registry: Registry) -> None:
    nets = [build_network(ModelConfig(name="mlp"), Info(), registry) for _ in range(2)]
    params, buffers = torch.func.stack_module_state(nets)  # type: ignore[arg-type]
    x = torch.randn(4, 5)
    out = torch.func.vmap(
        lambda p, b: torch.func.functional_call(nets[0], (p, b), (x,)), in_dims=(0, 0)
    )(params, buffers)
    assert torch.allclose(out["logits"][1], nets[1](x)["logits"], atol=1e-6)


# timm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet10t", 512), ("vit_tiny_patch16_224", 192), ("mobilenetv3_small_050", 1024)],
)
def test_timm_by_its_own_name(registry: Registry, name: str, width: int) -> None:
    network = build_network(ModelConfig(name=name), IMAGE, registry)
    out = network(torch.randn(2, 1, 32, 32))
    assert out["embeddings"].shape == (2, width)
    assert out["logits"].shape == (2, 3)


def test_checkpoint_is_loaded_without_its_classifier(registry: Registry, tmp_path: Any) -> None:
    import timm

    source = timm.create_model("resnet10t", num_classes=1000, in_chans=3).eval()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    config = ModelConfig(name="resnet10t", checkpoint=str(tmp_path / "w.pt"))
    info = Info(kind="image", input_shape=(3, 32, 32))
    network = build_network(config, info, registry).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = source.forward_head(source.forward_features(x), pre_logits=True)
    assert torch.allclose(network(x)["embeddings"], expected, atol=1e-5)
    assert build_network(config, IMAGE, registry).gives[0] == "logits"  # stem adapted to one


def test_checkpoint_of_another_model_is_refused(registry: Registry, tmp_path: Any) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    config = ModelConfig(name="resnet10t", checkpoint=str(tmp_path / "w.pt"))
    with pytest.raises(ModelError, match="does not fit timm model 'resnet10t'"):
        build_network(config, IMAGE, registry)
    config = ModelConfig(name="resnet10t", checkpoint=str(tmp_path / "none.pt"))
    with pytest.raises(ModelError, match="is not a file"):
        build_network(config, IMAGE, registry)


def test_checkpoint_with_code_in_it_is_refused(
    registry: Registry, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": Info()}, tmp_path / "w.pt")  # a pickled object of ours
    config = ModelConfig(name="resnet10t", checkpoint=str(tmp_path / "w.pt"))
    untouched = (lambda **_: pytest.fail("timm has read it"), None)  # older ones run the code
    monkeypatch.setattr("lossearch.models.zoo._find", lambda architecture: untouched)
    with pytest.raises(ModelError, match="does not fit"):
        build_network(config, IMAGE, registry)


def test_pretrained_weights_that_cannot_be_fetched(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    config = ModelConfig(name="resnet18.a1_in1k", pretrained=True)
    with pytest.raises(ModelError, match=r"tried timm/resnet18.a1_in1k.*Give checkpoint:"):
        build_network(config, IMAGE, registry)


# the user's own module ------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, outputs: int = 3, last: str = "fc") -> None:
        super().__init__()
        self.body = nn.Linear(5, 4)
        self.last = last
        setattr(self, last, nn.Linear(4, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.last)(self.body(x).relu())


class Bounded(Net):
    def forward(self, x: Tensor) -> Tensor:  # something follows the last layer
        return super().forward(x).tanh()


class Several(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.net, self.form = nn.Linear(5, 3), form

    def forward(self, x: Tensor) -> Any:
        y = self.net(x)
        return {"tuple": (y, x), "dict": {"loss": x, "logits": y}, "none": None}[self.form]


def _sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Sequential(nn.Dropout(), nn.Linear(4, 3)))


@pytest.mark.parametrize(
    "make", [Net, lambda: Net(last="classifier"), _sequential, lambda: nn.Linear(5, 3)]
)
def test_users_module_is_split_and_scores_as_before(registry: Registry, make: Any) -> None:
    module = make()
    network = build_network(module, Info(), registry)
    x = torch.randn(6, 5)
    assert network.gives == ("logits", "embeddings", "weight")
    assert torch.allclose(network.eval()(x)["logits"], module.eval()(x), atol=1e-6)
    with torch.no_grad():
        network.weight.zero_()  # type: ignore[union-attr]
    assert module(x).std() > 0  # the user's own module is left as it was


def test_timm_like_module_is_split(registry: Registry) -> None:
    import timm

    module = timm.create_model("resnet10t", num_classes=3, in_chans=1).eval()
    network = build_network(module, IMAGE, registry).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.allclose(network(x)["logits"], module(x), atol=1e-5)
    assert network(x)["embeddings"].shape == (2, 512)
    assert module.get_classifier().out_features == 3


@pytest.mark.parametrize("make", [Bounded, lambda: Several("tuple"), lambda: Several("dict")])
def test_what_cannot_be_split_gives_its_scores_alone(registry: Registry, make: Any) -> None:
    module = make()
    network = build_network(module, Info(), registry)
    out = network(torch.randn(6, 5))
    assert set(out) == {"logits"} == set(network.gives)
    assert out["logits"].shape == (6, 3)
    assert network.weight is None
    with pytest.raises(ModelError, match="does not show its last linear layer"):
        build_network(module, Info(), registry, cosine_scale=8.0)


def test_users_module_gets_a_cosine_head_with_its_own_weight(registry: Registry) -> None:
    module = Net()
    network = build_network(module, Info(), registry, cosine_scale=8.0)
    x = torch.randn(6, 5)
    expected = 8 * F.cosine_similarity(
        module.body(x).relu()[:, None], module.get_parameter("fc.weight")[None], dim=-1
    )
    assert torch.allclose(network(x)["logits"], expected, atol=1e-5)


def test_modes_are_kept_and_no_global_randomness_is_used(registry: Registry) -> None:
    module = _sequential()
    module[0].eval()
    before = torch.get_rng_state()
    network = build_network(module, Info(), registry)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training and not network.backbone.get_submodule("0").training


# mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "info", "message"),
    [
        (ModelConfig(name="resnet81"), IMAGE, "neither lossearch nor timm has.*resnet18"),
        (ModelConfig(name="timm", architecture="resnet81"), IMAGE, "timm has no model.*resnet18"),
        (ModelConfig(name="mpl"), Info(), "near it:.*mlp"),
        (ModelConfig(name="resnet18"), Info(), "reads images and the data are of kind 'table'"),
        (ModelConfig(name="vit_tiny_patch16_224"), Info(kind="image", input_shape=(3, 9, 9)),
         "vit_tiny_patch16_224"),
        (Net(7), Info(), r"gives scores of shape \[B, 7\].*needs \[B, 3\]"),
        (Net(4), Info("binary", 1), r"gives scores of shape \[B, 4\].*needs \[B\]"),
        (Net(3), Info(input_shape=(9,)), r"does not take inputs of shape \[B, 9\]"),
        (Several("none"), Info(), "returns NoneType"),
        (nn.Flatten(), Info(num_outputs=5), "no parameters to train"),
    ],
)  # fmt: skip
def test_mistakes_are_named(registry: Registry, spec: Any, info: Info, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_network(spec, info, registry)


def test_unknown_parameter_is_named(registry: Registry) -> None:
    with pytest.raises(ParameterError, match="did you mean 'hidden'"):
        build_network(ModelConfig(name="mlp", hiden=[3]), Info(), registry)


def test_backbone_that_misstates_its_width(registry: Registry) -> None:
    @lossearch.model()
    def wrong(data: Any) -> nn.Module:
        net = nn.Linear(5, 4)
        net.num_features = 7
        return net

    registry.add(component_of(wrong), "test")
    with pytest.raises(ModelError, match=r"declares num_features = 7 and gives.*4"):
        build_network(ModelConfig(name="wrong"), Info(), registry)


def test_component_may_return_a_whole_module(registry: Registry) -> None:
    @lossearch.model(task="multiclass")
    def whole(data: Any) -> nn.Module:
        return Net(data.num_outputs)

    registry.add(component_of(whole), "test")
    assert "weight" in build_network(ModelConfig(name="whole"), Info(), registry).gives
    with pytest.raises(ModelError, match="serves multiclass, and the task is binary"):
        build_network(ModelConfig(name="whole"), Info("binary", 1), registry)


def test_opaque_network_has_no_head() -> None:
    network = Network(Several("tuple"), None)
    assert network.gives == ("logits",)


def test_tokens_reach_an_embedding(registry: Registry) -> None:
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 3))
    info = Info(kind="tokens")
    tokens = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    network = build_network(module, info, registry, samples=tokens)
    assert "weight" in network.gives
    assert torch.allclose(network(tokens)["logits"], module(tokens))
    with pytest.raises(WantsIntegers, match="holds an embedding, which takes whole numbers"):
        build_network(module, Info(), registry)
    with pytest.raises(ModelError, match=r"form int64 \[B, 5\].*index out of range"):
        build_network(module, info, registry, samples=tokens + 1)
