"""Networks that end in softmax, log-softmax or sigmoid: the scores before these are trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossearch.errors import ModelError
from lossearch.models import Factory, build_network, thawed
from lossearch.registry import Registry


@dataclass(frozen=True)
class Info:
    task: str = "multiclass"
    num_outputs: int = 3
    kind: str = "table"
    input_shape: tuple[int, ...] = (5,)


BINARY = Info("binary", 1)
X = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A function follows its last layer."""

    def __init__(self, end: Callable[[Tensor], Tensor], outputs: int = 3) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 4), nn.Linear(4, outputs)
        self.end = end

    def scores(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.scores(x))


class Child(nn.Module):
    """The ending is the last child."""

    def __init__(self, last: nn.Module, outputs: int = 3) -> None:
        super().__init__()
        self.gate, self.fc, self.last = nn.Sigmoid(), nn.Linear(5, outputs), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(x * self.gate(x)))


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def log_softmax(x: Tensor) -> Tensor:
    return F.log_softmax(x, dim=1)


def by_hand(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(1, keepdim=True)


def probability(x: Tensor) -> Tensor:
    return x[:, 0].sigmoid()


@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.LogSoftmax(dim=-1), nn.Sigmoid()])
def test_a_module_at_the_end_is_left_out(registry: Registry, last: nn.Module) -> None:
    plain = nn.Linear(5, 3)
    for module in (nn.Sequential(plain, last), nn.Sequential(nn.Sequential(plain), last)):
        network = build_network(module, Info(), registry)
        assert torch.equal(network(X)["logits"], plain(X))
        assert network.gives == ("logits", "embeddings", "weight")
        assert f"ends in {last}, which is left out" in network.notes[0]
    child = Child(last)
    network = build_network(child, Info(), registry)
    assert torch.equal(network(X)["logits"], child.fc(X * X.sigmoid()))  # the gate stays
    assert network.gives == ("logits", "embeddings", "weight")
    assert torch.equal(child(X), last(network(X)["logits"]))  # the user's own has its ending


def test_probabilities_of_a_function_are_turned_back(registry: Registry) -> None:
    def logits(module: nn.Module, info: Info = Info()) -> Tensor:
        network = build_network(module, info, registry)
        assert network.gives == ("logits",)
        assert "Better return the scores themselves" in network.notes[0]
        return network(X)["logits"]

    for end in (softmax, by_hand):
        module = Net(end)  # up to a constant in each row, the scores
        difference = logits(module) - module.scores(X)
        assert torch.allclose(difference, difference[:, :1].expand(-1, 3), atol=1e-5)
    module = Net(log_softmax)
    assert torch.equal(logits(module), module(X))
    module = Net(probability, 1)
    assert torch.allclose(logits(module, BINARY), module.scores(X)[:, 0], atol=1e-5)
    network = build_network(module, BINARY, registry)
    with torch.no_grad():
        module.two.bias.fill_(500)  # a probability of 1 has finite log-odds
        network.load_state_dict(build_network(module, BINARY, registry).state_dict())
    assert network(X)["logits"].isfinite().all()


def test_training_is_that_of_the_scores(registry: Registry) -> None:
    module = Net(softmax)
    network = build_network(module, Info(), registry)
    targets = torch.arange(7) % 3
    F.cross_entropy(network(X)["logits"], targets).backward()
    F.cross_entropy(module.scores(X), targets).backward()
    for name, parameter in module.named_parameters():
        found = network.get_parameter(f"backbone.network.{name}").grad
        assert found is not None and parameter.grad is not None
        assert torch.allclose(found, parameter.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "info"),
    [
        (nn.Sequential(nn.Linear(5, 1), nn.Sigmoid()), Info("regression", 1)),  # a bounded one
        (nn.Linear(5, 3), Info()),
        (nn.Sequential(nn.Linear(5, 3), nn.ReLU()), Info()),
    ],
)
def test_what_is_no_ending_stays(registry: Registry, module: nn.Module, info: Info) -> None:
    network = build_network(module, info, registry)
    assert network.notes == ()
    assert torch.equal(network(X)["logits"], module(X).squeeze(1))


@pytest.mark.parametrize(
    ("module", "info"),
    [
        (Net(lambda x: x.softmax(0)), Info()),  # over the batch
        (Net(lambda x: x.softmax(1), 1), BINARY),  # always 1
        (Net(softmax), Info("multilabel")),
    ],
)
def test_an_ending_that_says_nothing_is_refused(
    registry: Registry, module: nn.Module, info: Info
) -> None:
    with pytest.raises(ModelError, match=r"ends in softmax and gives .*return the scores"):
        build_network(module, info, registry)


# two scores for two classes --------------------------------------------------------------------


@pytest.mark.parametrize("end", [lambda x: x, softmax, log_softmax])
def test_two_scores_give_their_difference(registry: Registry, end: Any) -> None:
    module = Net(end, 2)
    network = build_network(module, BINARY, registry)
    logits = network(X)["logits"]
    expected = module.scores(X).softmax(1)[:, 1]
    assert logits.shape == (7,)
    assert torch.allclose(logits.sigmoid(), expected, atol=1e-5)
    assert "weight" not in network.gives  # it has a row for each class
    assert "two scores for two classes" in network.notes[-1]


def test_two_probabilities_by_sigmoid_keep_their_order(registry: Registry) -> None:
    module = nn.Sequential(nn.Linear(5, 2), nn.Sigmoid())
    logits = build_network(module, BINARY, registry)(X)["logits"]
    assert torch.equal(logits > 0, module(X).argmax(1) == 1)


# precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(registry: Registry, dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).to(dtype)
    network = build_network(module, Info(), registry)
    assert {p.dtype for p in network.state_dict().values()} == {torch.float32, torch.int64}
    assert network(X)["logits"].dtype == torch.float32
    assert f"came in {str(dtype)[6:]}; it trains in float32" in network.notes[0]
    assert module[0].weight.dtype == dtype  # the user's own stays


# what makes a network ---------------------------------------------------------------------------


def sized(num_outputs: int, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, num_outputs))


class Sized(nn.Sequential):
    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(nn.Linear(5, num_classes))


@pytest.mark.parametrize(
    "function", [sized, Sized, lambda: nn.Linear(5, 3), lambda count: nn.Linear(5, count)]
)
def test_a_function_or_class_makes_the_network_by_seed(registry: Registry, function: Any) -> None:
    def weight(seed: int) -> Tensor:
        torch.manual_seed(seed)
        network = build_network(Factory(function), Info(), registry)
        assert network(X)["logits"].shape == (7, 3)
        return next(network.parameters())

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


def test_what_makes_a_network_may_freeze_it(registry: Registry) -> None:
    whole = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    whole[0].requires_grad_(False)
    factory = Factory(lambda: whole)
    assert build_network(factory, Info(), registry).frozen
    assert not build_network(thawed(factory), Info(), registry).frozen
    assert not whole[0].weight.requires_grad


def fails() -> nn.Module:
    raise ValueError("no such file")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (nn.Linear, r"'Linear', which makes the network, needs in_features, out_features.*lambda"),
        (fails, "'fails', which makes the network, fails: no such file"),
        (lambda: "net", "returns str, not an nn.Module"),
        (lambda: nn.Linear(5, 7), r"'model' gives scores of shape \[B, 7\]"),
    ],
)
def test_functions_that_make_none(registry: Registry, function: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_network(Factory(function), Info(), registry)


# what it is given and returns --------------------------------------------------------------------


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Output:
        return Output(None, self.net(x))


def test_a_dataclass_with_logits(registry: Registry) -> None:
    module = Answering()
    network = build_network(module, Info(), registry)
    assert torch.equal(network(X)["logits"], module.net(X))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.fc((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))


class OneDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Masked()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.inner(**batch)


IDS = torch.tensor([[1, 2, 8], [3, 4, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
SEVERAL = Info(kind="several", input_shape=())


def test_several_inputs_by_name_in_order_or_as_one_dict(registry: Registry) -> None:
    module = Masked()
    named = {"attention_mask": MASK, "input_ids": IDS}
    network = build_network(module, SEVERAL, registry, samples=named)
    assert network.gives == ("logits", "embeddings", "weight")
    assert torch.equal(network(named)["logits"], module(IDS, MASK))
    network = build_network(module, SEVERAL, registry, samples=(IDS, MASK))
    assert torch.equal(network((IDS, MASK))["logits"], module(IDS, MASK))
    whole = OneDict()
    network = build_network(whole, SEVERAL, registry, samples=named)
    assert torch.equal(network(named)["logits"], whole.inner(IDS, MASK))
    frozen = build_network(module, SEVERAL, registry, samples=named)
    module.embedding.requires_grad_(False)
    frozen = build_network(module, SEVERAL, registry, samples=named)
    assert frozen.frozen and torch.equal(frozen(named)["logits"], module(IDS, MASK))


def test_inputs_that_the_network_does_not_take_are_named(registry: Registry) -> None:
    words = r"takes? inputs of the form \{ids: int64 \[B, 3\], attention_mask: int64 \[B, 3\]\}"
    with pytest.raises(ModelError, match=words):
        wrong = {"ids": IDS, "attention_mask": MASK}
        build_network(Masked(), SEVERAL, registry, samples=wrong)
