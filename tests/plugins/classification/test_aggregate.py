"""Labels of whole bags."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.aggregate import (
    bag_loss,
    instance_loss,
    interpolated_bag_loss,
    set_level,
)

BAG = torch.tensor([7, -2, 7, 3, 7, -2, 3, 9])  # sizes 3, 2, 2, 1, in no order
BASES = ("squared", "bce", "cross_entropy")


def make(base: str, width: int = 3) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(8, width, generator=g, dtype=torch.float64)
    per_bag = torch.rand(10, width, generator=g, dtype=torch.float64)
    if base == "cross_entropy":
        per_bag = per_bag / per_bag.sum(1, keepdim=True)
    field = "predictions" if base == "squared" else "logits"
    return {"bag": BAG, "targets": per_bag[BAG.clamp(min=0)], field: outputs}


def members(bag: Tensor) -> list[list[int]]:
    values = bag.tolist()
    return [[i for i, b in enumerate(values) if b == one] for one in sorted(set(values))]


def element(base: str, f: list[float], t: list[float]) -> float:
    """The loss of one mean or one sample, by loops over probabilities."""
    if base == "squared":
        return sum((a - b) ** 2 for a, b in zip(f, t, strict=True)) / len(f)
    if base == "bce":
        each = [-(b * math.log(a) + (1 - b) * math.log(1 - a)) for a, b in zip(f, t, strict=True)]
        return sum(each) / len(each)
    return -sum(b * math.log(a) for a, b in zip(f, t, strict=True))


def oracle(base: str, fields: dict[str, Any], rho: float) -> float:
    if base == "squared":
        f = fields["predictions"].tolist()
    elif base == "bce":
        f = fields["logits"].sigmoid().tolist()
    else:
        f = fields["logits"].softmax(1).tolist()
    t = fields["targets"].tolist()
    values = []
    for rows in members(fields["bag"]):
        mean = [sum(f[i][d] for i in rows) / len(rows) for d in range(len(f[0]))]
        single = sum(element(base, f[i], t[i]) for i in rows) / len(rows)
        values.append((1 - rho) * element(base, mean, t[rows[0]]) + rho * single)
    return sum(values) / len(values)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_by_a_loop(base: Any, rho: float) -> None:
    fields = make(base)
    value = interpolated_bag_loss(**fields, base=base, rho=rho)
    assert value.item() == pytest.approx(oracle(base, fields, rho), rel=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_without_instances_it_is_the_bag_loss(base: Any) -> None:
    fields = make(base)
    torch.testing.assert_close(
        interpolated_bag_loss(**fields, base=base, rho=0.0), bag_loss(**fields, base=base)
    )


def test_by_hand() -> None:
    # Two bags, {1, 3} of mean response 1 and {5} of 2: (2 - 1)^2 and (5 - 2)^2.
    fields: dict[str, Any] = {
        "bag": torch.tensor([0, 0, 4]),
        "targets": torch.tensor([1.0, 1.0, 2.0]),
        "predictions": torch.tensor([1.0, 3.0, 5.0]),
    }
    assert bag_loss(**fields).item() == 5
    assert instance_loss(**fields).tolist() == [0, 4, 9]
    assert interpolated_bag_loss(**fields, rho=0.5).item() == (0.5 * 1 + 0.5 * 2 + 9) / 2


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
def test_squared_is_the_bag_loss_and_the_variance(rho: float) -> None:
    fields: dict[str, Any] = {k: v.squeeze(-1) for k, v in make("squared", width=1).items()}
    f = fields["predictions"]
    variance = [f[rows].var(correction=0).item() for rows in members(BAG)]
    expected = bag_loss(**fields).item() + rho * sum(variance) / len(variance)
    assert interpolated_bag_loss(**fields, rho=rho).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_bags_of_one_agree(base: Any) -> None:
    fields = {**make(base), "bag": torch.arange(8)}
    single = instance_loss(**fields, base=base).mean()
    torch.testing.assert_close(bag_loss(**fields, base=base), single)
    torch.testing.assert_close(interpolated_bag_loss(**fields, base=base, rho=0.3), single)


@pytest.mark.parametrize("base", BASES)
def test_instances_are_never_below_the_bag(base: Any) -> None:
    fields = {**make(base), "bag": torch.zeros(8, dtype=torch.int64)}
    fields["targets"] = fields["targets"][:1].expand(8, -1)
    assert instance_loss(**fields, base=base).mean() > bag_loss(**fields, base=base)


def test_instance_loss_is_the_plain_one() -> None:
    fields = make("bce")
    plain = F.binary_cross_entropy_with_logits(
        fields["logits"], fields["targets"], reduction="none"
    ).mean(1)
    torch.testing.assert_close(instance_loss(**fields, base="bce"), plain)
    fields = make("cross_entropy")
    plain = F.cross_entropy(fields["logits"], fields["targets"], reduction="none")
    torch.testing.assert_close(instance_loss(**fields, base="cross_entropy"), plain)


def test_a_class_for_a_bag_is_a_share_of_one() -> None:
    fields = make("cross_entropy")
    label = torch.tensor([2, 0, 2, 1, 2, 0, 1, 1])
    shares = F.one_hot(label, 3).double()
    by_label = bag_loss(**{**fields, "targets": label}, base="cross_entropy")
    by_share = bag_loss(**{**fields, "targets": shares}, base="cross_entropy")
    torch.testing.assert_close(by_label, by_share)


def test_unknown_labels_are_left_out() -> None:
    fields = make("bce")
    fields["targets"] = fields["targets"].clone()
    fields["targets"][:, 2] = -1
    first: dict[str, Any] = {k: v[:, :2] if v.ndim == 2 else v for k, v in fields.items()}
    for loss in (bag_loss, instance_loss):
        torch.testing.assert_close(loss(**fields, base="bce"), loss(**first, base="bce"))


@pytest.mark.parametrize("base", ["bce", "cross_entropy"])
def test_sure_and_wrong_bags_are_finite(base: Any) -> None:
    # Each member puts exp(-160) (softmax) or exp(-80) (sigmoid) on what the bag is.
    z = torch.tensor([[-80.0, 80.0]] * 3, requires_grad=True)
    targets = torch.tensor([[1.0, 0.0]] * 3)
    bag = torch.zeros(3, dtype=torch.int64)
    value = bag_loss(bag, targets, logits=z, base=base)
    assert value.item() == pytest.approx(80 if base == "bce" else 160)
    value.backward()
    assert z.grad is not None
    step = 0.5 if base == "bce" else 1.0  # bce: the mean of two labels
    torch.testing.assert_close(z.grad, torch.tensor([[-step / 3, step / 3]] * 3))


@pytest.mark.parametrize("base", BASES)
def test_gradients(base: Any) -> None:
    fields = make(base)
    name = "predictions" if base == "squared" else "logits"

    def value(x: Tensor) -> Tensor:
        return interpolated_bag_loss(**{**fields, name: x}, base=base)

    assert torch.autograd.gradcheck(value, fields[name].requires_grad_())


def test_bags_count_alike_whatever_their_size() -> None:
    fields: dict[str, Any] = {
        "bag": torch.tensor([0, 0, 0, 1]),
        "targets": torch.zeros(4),
        "predictions": torch.tensor([1.0, 1.0, 1.0, 3.0]),
    }
    assert bag_loss(**fields).item() == 5  # not (1 + 1 + 1 + 9) / 4
    assert interpolated_bag_loss(**fields, rho=1.0).item() == 5


@pytest.mark.parametrize("loss", [bag_loss, instance_loss, interpolated_bag_loss])
def test_refuses_unlike_targets_in_a_bag(loss: Callable[..., Tensor]) -> None:
    fields = make("squared")
    fields["targets"] = fields["targets"].clone()
    fields["targets"][2, 0] += 1
    with pytest.raises(FieldError, match="bag 7 have different targets"):
        loss(**fields)


def test_refusals() -> None:
    fields = make("squared")
    with pytest.raises(FieldError, match="reads 'logits'"):
        bag_loss(**fields, base="bce")
    with pytest.raises(FieldError, match="go with targets"):
        bag_loss(**{**fields, "predictions": fields["predictions"][:, :2]})
    with pytest.raises(FieldError, match="reads bag as int64"):
        bag_loss(**{**fields, "bag": BAG[:3]})
    with pytest.raises(FieldError, match="reads bag as int64"):
        bag_loss(**{**fields, "bag": BAG.float()})
    with pytest.raises(FieldError, match="sum to 1"):
        bag_loss(**{**make("cross_entropy"), "targets": torch.zeros(8, 3)}, base="cross_entropy")
    with pytest.raises(FieldError, match=r"in \[0, 1\]"):
        bag_loss(**{**make("bce"), "targets": torch.full((8, 3), 2.0)}, base="bce")
    with pytest.raises(ParameterError, match="rho"):
        component_of(interpolated_bag_loss).build(rho=1.5)


@pytest.mark.parametrize(
    ("task", "base", "field"),
    [
        ("regression", "squared", "predictions"),
        ("binary", "bce", "logits"),
        ("multilabel", "bce", "logits"),
        ("multiclass", "cross_entropy", "logits"),
    ],
)
def test_the_task_decides_what_it_reads(task: str, base: str, field: str) -> None:
    component = component_of(bag_loss)
    params = component.complete({}, task=task)
    assert component.reads(params) == {"bag", "targets", field}
    assert component.build(task=task).value("base") == base


def test_an_empty_batch_is_0() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    x = torch.zeros(0, 3, requires_grad=True)
    value = bag_loss(none, torch.zeros(0, 3), predictions=x)
    value.backward()
    assert value.item() == 0
    assert set_level(x, none, none).item() == 0


# set_level ------------------------------------------------------------------------------------

LABELS = torch.tensor([2, 0, 2, 1, 2, 0, 1, 1])


@pytest.mark.parametrize("pool", ["mean", "max", "logsumexp"])
def test_set_level_by_a_loop(pool: Any) -> None:
    z = make("cross_entropy")["logits"]
    values = []
    for rows in members(BAG):
        columns = [[z[i, c].item() for i in rows] for c in range(3)]
        pooled = {
            "mean": [sum(v) / len(v) for v in columns],
            "max": [max(v) for v in columns],
            "logsumexp": [math.log(sum(map(math.exp, v)) / len(v)) for v in columns],
        }[pool]
        total = math.log(sum(map(math.exp, pooled)))
        values.append(total - pooled[int(LABELS[rows[0]])])
    expected = sum(values) / len(values)
    assert set_level(z, BAG, LABELS, pool=pool).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pool", ["mean", "max", "logsumexp"])
def test_set_level_of_bags_of_one_is_cross_entropy(pool: Any) -> None:
    z = make("cross_entropy")["logits"]
    torch.testing.assert_close(
        set_level(z, torch.arange(8), LABELS, pool=pool), F.cross_entropy(z, LABELS)
    )


@pytest.mark.parametrize("pool", ["mean", "max", "logsumexp"])
def test_set_level_gradients_and_extremes(pool: Any) -> None:
    z = make("cross_entropy")["logits"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: set_level(x, BAG, LABELS, pool=pool), z)
    z = torch.tensor([[80.0, -80.0], [80.0, -80.0]], requires_grad=True)
    value = set_level(z, torch.zeros(2).long(), torch.ones(2).long(), pool=pool)
    value.backward()
    assert value.item() == 160
    assert z.grad is not None and z.grad.isfinite().all()


def test_set_level_refuses_mixed_labels() -> None:
    z = make("cross_entropy")["logits"]
    with pytest.raises(FieldError, match="bag -2 have different targets"):
        set_level(z, BAG, torch.tensor([2, 0, 2, 1, 2, 1, 1, 1]))
    with pytest.raises(FieldError, match="outside"):
        set_level(z, BAG, LABELS + 1)
