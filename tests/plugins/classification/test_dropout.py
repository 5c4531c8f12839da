"""Multi-sample dropout over a base loss."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossearch
from lossearch import Bound, registry
from lossearch.components import component_of
from lossearch.errors import FieldError, ModelError, ParameterError, UnknownNameError
from lossearch.feasibility import FIXED_EMBEDDINGS, component_problem
from lossearch.models import Network
from lossearch_classification import binary_cross_entropy, cross_entropy
from lossearch_classification.dropout import MultiSampleDropout
from lossearch_classification.ensloss import EnsLoss
from lossearch_classification.legendretron import LegendreTron
from lossearch_classification.naive_bayes import NaiveBayesHead

B, C, E = 6, 4, 5


@lossearch.loss(task="multiclass")
def recorded(logits: Tensor, embeddings: Tensor) -> Tensor:
    """What the base is given: the logits' and the embeddings' sums."""
    return logits.sum(1) + 1000 * embeddings.sum(1)


@lossearch.loss(task="multiclass", returns="batch")
def pulled(logits: Tensor, weight: Tensor) -> Tensor:
    """A batch loss of another field."""
    return logits.mean() + weight.sum()


@lossearch.loss(task="multiclass")
def scaled(logits: Tensor, *, by: float = 1.0) -> Tensor:
    """The logits' sum, times a number."""
    return by * logits.sum(1)


@lossearch.loss(name="counting", task="multiclass")
class Counting(nn.Module):
    """Hears of epochs and steps."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def forward(self, logits: Tensor) -> Tensor:
        return logits.sum(1)

    def start_epoch(self, epoch: int) -> None:
        self.heard.append(("start", epoch))

    def end_epoch(self, epoch: int) -> None:
        self.heard.append(("end", epoch))

    def after_step(self) -> None:
        self.heard.append("step")


@lossearch.metric(task="multiclass")
def score(logits: Tensor) -> Tensor:
    """Not a loss."""
    return logits.mean()


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    made = registry.Registry()
    each = (cross_entropy, binary_cross_entropy, recorded, pulled, scaled, Counting, score)
    for target in (*each, EnsLoss, LegendreTron, NaiveBayesHead, MultiSampleDropout):
        made.add(component_of(target), "test")
    registry.use(made)
    yield
    registry.use(None)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(outputs: int = C, head: nn.Module | None = None) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(nn.Linear(3, E), nn.Linear(E, outputs) if head is None else head)


def batch_of(net: Network, targets: Tensor) -> dict[str, Any]:
    out = net(torch.randn(B, 3, generator=gen(1)))
    return {**out, "targets": targets, "model": net, "weight": net.weight}


NET = network()
Y = torch.arange(B) % C
BATCH = batch_of(NET, Y)


def build(task: str = "multiclass", **params: Any) -> Bound:
    return component_of(MultiSampleDropout).build(task=task, **params)


def masks(samples: int, rate: float, seed: int = 0) -> list[Tensor]:
    """The masks of a fresh loss's first step, found through a base that tells them."""
    bound = build(samples=1, rate=rate, base="recorded", seed=seed)
    found = []
    ones = {**BATCH, "embeddings": torch.eye(E), "logits": torch.zeros(E, 1)}
    assert isinstance(bound.module, MultiSampleDropout)

    class Told(nn.Module):
        def forward(self, fields: dict[str, Tensor]) -> Tensor:
            found.append(fields["embeddings"])
            return fields["logits"].sum(1)

    bound.module.base = Told()  # type: ignore[assignment]
    bound.module.samples = samples
    bound({**ones, "model": network(1)})
    return found


def test_without_dropout_it_is_the_base() -> None:
    for samples in (1, 3):
        value = build(rate=0.0, samples=samples)(BATCH)
        torch.testing.assert_close(value, cross_entropy(BATCH["logits"], Y))


def test_evaluation_is_the_base_on_the_networks_logits() -> None:
    bound = build().eval()
    before = bound.state_dict()["module._extra_state"]["generator"].clone()
    assert torch.equal(bound(BATCH), cross_entropy(BATCH["logits"], Y))
    assert torch.equal(before, bound.state_dict()["module._extra_state"]["generator"])


def test_masks_are_independent_and_what_is_kept_is_scaled() -> None:
    rate = 0.75
    found = torch.stack(masks(400, rate))
    on = found[:, range(E), range(E)]
    assert set(on.unique().tolist()) == {0.0, 4.0}
    assert (on > 0).double().mean().item() == pytest.approx(1 - rate, abs=0.03)
    assert on.mean().item() == pytest.approx(1.0, abs=0.12)
    both = (on[:-1] > 0) & (on[1:] > 0)  # of one mask and the next
    assert both.double().mean().item() == pytest.approx((1 - rate) ** 2, abs=0.03)


def test_the_value_is_the_mean_of_the_losses_at_dropped_embeddings() -> None:
    head, seen = NET.head, []

    def spying(embeddings: Tensor) -> Tensor:
        assert head is not None
        seen.append(embeddings)
        return head(embeddings)

    class Spy:
        head = staticmethod(spying)

    value = build(samples=5, rate=0.4)({**BATCH, "model": Spy()})
    e = BATCH["embeddings"]
    assert len(seen) == 5 and head is not None
    for dropped in seen:
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], (e / 0.6)[kept])
        assert not kept.all()
    losses = [F.cross_entropy(head(d), Y, reduction="none") for d in seen]
    torch.testing.assert_close(value, sum(losses) / 5)
    averaged = F.cross_entropy(torch.stack([head(d) for d in seen]).mean(0), Y, reduction="none")
    assert (value >= averaged - 1e-6).all()  # Jensen: cross-entropy is convex in the logits
    assert (value > averaged + 1e-3).any()


def test_one_sample_is_ordinary_dropout_in_the_mean() -> None:
    bound, total = build(samples=1, rate=0.5), torch.zeros(B)
    for _ in range(300):
        total += bound(BATCH).detach()
    many = build(samples=300, rate=0.5, seed=9)(BATCH)
    torch.testing.assert_close(total / 300, many, atol=0.2, rtol=0.05)


def test_gradients_reach_the_head_and_the_backbone() -> None:
    net = network()
    build()(batch_of(net, Y)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_base_gets_dropped_embeddings_and_the_other_fields() -> None:
    value = build(base="recorded", rate=0.5, samples=2)(BATCH)
    whole = recorded(BATCH["logits"], BATCH["embeddings"])
    assert not torch.isclose(value, whole).any()
    bound = build(base="pulled", rate=0.0)
    torch.testing.assert_close(bound(BATCH), pulled(BATCH["logits"], BATCH["weight"]))
    component = component_of(MultiSampleDropout)
    assert component.returns_at(bound.params) == "batch"
    assert component.reads(bound.params) == {"embeddings", "model", "weight"}
    assert component.returns_at(build().params) == "per_sample"
    with pytest.raises(FieldError, match="multi_sample_dropout reads 'weight'"):
        bound({k: v for k, v in BATCH.items() if k != "weight"})


def test_it_makes_the_logits_that_a_batch_lacks() -> None:
    bare = {k: v for k, v in BATCH.items() if k != "logits"}
    assert torch.equal(build(seed=3)(bare), build(seed=3)(BATCH))
    torch.testing.assert_close(build().eval()(bare), build().eval()(BATCH))
    net, y = network(1), (torch.arange(B) % 2).float()
    batch = batch_of(net, y)
    one = {k: v for k, v in batch.items() if k != "logits"}  # a head gives [B, 1]
    assert torch.equal(build("binary", seed=3)(one), build("binary", seed=3)(batch))


def test_a_frozen_backbone_leaves_it_the_head_to_learn() -> None:
    component = component_of(MultiSampleDropout)
    fields = {"embeddings", "targets", "model", FIXED_EMBEDDINGS}
    params = build(base="cross_entropy").params
    assert component_problem(component, "multiclass", fields, params) is None


def test_binary_and_multilabel_take_their_own_base() -> None:
    net = network(1)
    y = (torch.arange(B) % 2).float()
    batch = batch_of(net, y)
    assert batch["logits"].shape == (B,)
    value = build("binary", rate=0.0)(batch)
    torch.testing.assert_close(value, binary_cross_entropy(batch["logits"], y))
    labels = (torch.arange(B * C).reshape(B, C) % 2).float()
    value = build("multilabel", rate=0.0)(batch_of(NET, labels))
    torch.testing.assert_close(value, binary_cross_entropy(BATCH["logits"], labels))


def test_a_base_with_parameters_and_one_that_draws() -> None:
    value = build(rate=0.0, base={"name": "cross_entropy", "label_smoothing": 0.2})(BATCH)
    expected = F.cross_entropy(BATCH["logits"], Y, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(value, expected)
    bound = build(base="ensloss", seed=4)
    base = bound.module.base.module  # type: ignore[union-attr]
    assert isinstance(base, EnsLoss)
    assert torch.equal(base.generator.get_state(), gen(5).get_state())


def test_the_base_hears_of_epochs_and_steps() -> None:
    bound = build(base="counting")
    bound.start_epoch(2)
    bound.after_step()
    bound.end_epoch(2)
    assert bound.module.base.module.heard == [("start", 2), "step", ("end", 2)]  # type: ignore[union-attr]


def test_a_checkpoint_goes_on_alike() -> None:
    bound = build(seed=3)
    bound(BATCH)
    file = io.BytesIO()
    torch.save(bound.state_dict(), file)
    file.seek(0)
    resumed = build(seed=8)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    first = bound(BATCH)
    assert torch.equal(first, resumed(BATCH)) and not torch.equal(first, bound(BATCH))


def test_params_round_trip_as_json() -> None:
    params = build(base={"name": "cross_entropy", "label_smoothing": 0.1}).params
    assert type(params).model_validate_json(params.model_dump_json()) == params


def test_errors() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cross_entropy'"):
        build(base="cross_entropi")
    with pytest.raises(ParameterError, match="multi_sample_dropout: 'score' is a metric"):
        build(base="score")
    with pytest.raises(ParameterError, match=r"multi_sample_dropout: member .* has no 'name'"):
        build(base={"label_smoothing": 0.1})
    with pytest.raises(ParameterError, match="'recorded' serves multiclass, not binary"):
        build("binary", base="recorded")
    bad: list[dict[str, Any]] = [{"samples": 0}, {"rate": 1.0}, {"rate": -0.1}]
    for params in bad:
        with pytest.raises(ParameterError, match=next(iter(params))):
            build(**params)
    with pytest.raises(FieldError, match="this model has none"):
        build()({**BATCH, "model": Network(nn.Linear(3, C), None)})
    dropping = network(head=nn.Sequential(nn.Dropout(0.5), nn.Linear(E, C)))
    with pytest.raises(ModelError, match="the head has a dropout of its own"):
        build()(batch_of(dropping, Y))
    assert build().eval()(batch_of(dropping, Y)).shape == (B,)
    off = network(head=nn.Sequential(nn.Dropout(0.0), nn.Linear(E, C)))
    assert build()(batch_of(off, Y)).shape == (B,)


def test_a_scheduled_base_is_followed() -> None:
    rising = {"name": "scaled", "by": {"schedule": "linear", "start": 1.0, "end": 3.0}}
    bound = build(base=rising, rate=0.0)
    clock = {"step", "total_steps"}
    fields = {"embeddings", "model"}  # the logits are made here
    assert component_of(MultiSampleDropout).reads(bound.params) == fields | clock
    got = bound({**BATCH, "step": 5, "total_steps": 10})
    torch.testing.assert_close(got, 2 * BATCH["logits"].sum(1))
    with pytest.raises(FieldError, match="multi_sample_dropout reads 'step'"):
        bound(BATCH)


def test_the_networks_logits_are_read_for_a_base_that_reads_them() -> None:
    @lossearch.loss(name="long", task="multiclass")
    def long(embeddings: Tensor) -> Tensor:
        """The embeddings' squared length."""
        return embeddings.square().sum(1)

    registry.current().add(component_of(long), "test")
    bound = build(base="long", rate=0.0)
    assert component_of(MultiSampleDropout).reads(bound.params) == {"embeddings", "model"}
    batch = {k: v for k, v in BATCH.items() if k != "logits"}
    torch.testing.assert_close(bound(batch), BATCH["embeddings"].square().sum(1))
    made = bound.module
    assert isinstance(made, MultiSampleDropout)
    made.base = build(base="cross_entropy").module.base  # type: ignore[union-attr]
    torch.testing.assert_close(made(batch), cross_entropy(BATCH["logits"], Y))


@pytest.mark.parametrize("base", ["legendretron", "naive_bayes_head"])
def test_a_base_with_a_prediction_rule_is_refused(base: str) -> None:
    with pytest.raises(ParameterError, match=f"multi_sample_dropout: '{base}' has a prediction"):
        build(base=base)
