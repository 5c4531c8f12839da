"""Training: the same numbers for the same seed, across a resume, and what moves and what not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossearch.errors import LossearchError
from lossearch.models import CosineHead, LinearHead
from lossearch.training.trainer import Diverged, Trainer

Make = Callable[..., Trainer]
DROPOUT: dict[str, Any] = {"name": "mlp", "hidden": [8], "dropout": 0.3, "batch_norm": True}


def epochs(trainer: Trainer, count: int) -> Trainer:
    for _ in range(count):
        trainer.run_epoch()
    return trainer


def states(trainer: Trainer) -> dict[str, Any]:
    return {
        **{f"n.{k}": v for k, v in trainer.network.state_dict().items()},
        **{f"o.{k}": v for k, v in trainer.objective.state_dict().items()},
    }


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit, at any depth."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout, batch norm": {"model": DROPOUT},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9, "schedule": "linear"},
    "warmup": {"warmup": 0.37, "optimizer": "adam"},
    "ensloss": {"terms": "ensloss"},
    "aldr_kl": {"terms": "aldr_kl"},
    "dwa": {"terms": ["cross_entropy", "focal"], "balancer": "dwa"},
    "uncertainty": {"terms": ["cross_entropy", "focal"], "balancer": "uncertainty"},
    "pcgrad": {"terms": ["cross_entropy", "focal"], "balancer": "pcgrad"},
    "random provider": {"terms": "reads_logits_b", "providers": ("noisy_view",)},
    "learned": {"terms": "tempered", "early_stop": 5},
}


@pytest.mark.parametrize("case", CASES)
def test_one_seed_gives_bit_equal_weights(make_trainer: Make, case: str) -> None:
    from_config = dict(CASES[case])
    _as_model(from_config)
    one = epochs(make_trainer(**from_config), 2)
    torch.rand(100)  # whatever else has drawn meanwhile
    other = epochs(make_trainer(**from_config), 2)
    assert_same(states(one), states(other))
    assert one.curve == other.curve
    another = epochs(make_trainer(**from_config, seed=1), 2)
    assert one.curve != another.curve


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at", [1, 3])
def test_a_resumed_training_is_the_uninterrupted_one(
    make_trainer: Make, case: str, at: int, tmp_path: Path
) -> None:
    config = dict(CASES[case])
    _as_model(config)
    whole = epochs(make_trainer(**config), 4)
    epochs(make_trainer(**config), at).save(tmp_path / "a" / "1.pt")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["1.pt"]
    torch.rand(7)
    resumed = make_trainer(**config)
    resumed.load(tmp_path / "a" / "1.pt")
    assert resumed.epoch == at
    epochs(resumed, 4 - at)
    assert_same(states(whole), states(resumed))
    assert_same(whole.optimizer.state_dict(), resumed.optimizer.state_dict())
    assert whole.curve == resumed.curve
    assert_same(whole.best, resumed.best)


def _as_model(config: dict[str, Any]) -> None:
    from lossearch.models import ModelConfig

    if "model" in config:
        config["model"] = ModelConfig.model_validate(config["model"])


def test_objectives_start_from_the_same_weights_and_see_the_same_order(
    make_trainer: Make,
) -> None:
    one, other = make_trainer("cross_entropy"), make_trainer(["tempered", "ensloss"])
    assert_same(dict(one.network.state_dict()), dict(other.network.state_dict()))
    orders = [
        torch.cat([b["index"] for b in t.data.train.batches(32, generator=t.order)])
        for t in (one, other)
    ]
    assert torch.equal(*orders)


def factors(trainer: Trainer) -> list[float]:
    return [trainer.plan.factor(step) for step in range(trainer.total_steps)]


def test_schedules(make_trainer: Make) -> None:
    # 90 training samples in batches of 30: 3 steps an epoch, 12 in all
    constant = make_trainer(batch_size=30, schedule="constant")
    assert constant.total_steps == 12 and factors(constant) == [1.0] * 12
    linear = factors(make_trainer(batch_size=30, schedule="linear"))
    assert linear == pytest.approx([1 - s / 12 for s in range(12)])
    cosine = factors(make_trainer(batch_size=30, schedule="cosine"))
    assert cosine == pytest.approx([0.5 + 0.5 * math.cos(math.pi * s / 12) for s in range(12)])
    warm = factors(make_trainer(batch_size=30, schedule="constant", warmup=0.25))
    assert warm == pytest.approx([1 / 3, 2 / 3, 1.0] + [1.0] * 9)


@pytest.mark.parametrize("warmup", [0.01, 0.2, 0.29, 0.5, 0.99])
def test_a_warmup_never_goes_above_the_learning_rate(make_trainer: Make, warmup: float) -> None:
    rates = factors(make_trainer(batch_size=30, schedule="constant", warmup=warmup))
    assert max(rates) <= 1.0 and rates == sorted(rates)


def test_the_schedule_reaches_the_optimizer(make_trainer: Make) -> None:
    trainer = epochs(make_trainer(batch_size=30, schedule="linear", lr=0.1), 2)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - 6 / 12))


def test_early_stop_goes_back_to_the_best_weights(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=30, early_stop=2, lr=1.0, optimizer="sgd", schedule="constant")
    seen: list[tuple[float, dict[str, Tensor]]] = []
    while not trainer.stopped:
        trainer.run_epoch()
        weights = {k: v.clone() for k, v in trainer.network.state_dict().items()}
        seen.append((trainer.curve[-1]["accuracy"], weights))
    scores = [s for s, _ in seen]
    best = scores.index(max(scores))  # the first of the best
    assert trainer.epoch == best + 3 < 30
    trainer.restore_best()
    assert_same(dict(trainer.network.state_dict()), seen[best][1])
    metric = {"accuracy": trainer.metric}
    assert trainer.measure("validation", metric)["accuracy"] == max(scores)


def test_early_stop_by_a_minimised_metric(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=20, early_stop=3, metric="nll", lr=0.3, schedule="constant")
    while not trainer.stopped:
        trainer.run_epoch()
    values = [row["nll"] for row in trainer.curve]
    assert trainer.best == (min(values), values.index(min(values)) + 1)


def test_without_early_stop_the_last_weights_stay(make_trainer: Make) -> None:
    trainer = epochs(make_trainer(), 4)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.restore_best()
    assert trainer.stopped and trainer.best is None
    assert_same(before, dict(trainer.network.state_dict()))


def test_clipping_bounds_the_step(make_trainer: Make) -> None:
    def moved(clip: float | None) -> float:
        trainer = make_trainer(
            batch_size=1000, optimizer="sgd", momentum=0.0, schedule="constant", lr=1.0,
            weight_decay=0.0, clip_norm=clip,
        )  # fmt: skip
        before = [p.detach().clone() for p in trainer.parameters]
        trainer.run_epoch()  # one step
        pairs = zip(before, trainer.parameters, strict=True)
        return math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))

    free = moved(None)
    assert moved(free / 10) == pytest.approx(free / 10, rel=1e-4)
    assert moved(free * 10) == pytest.approx(free, rel=1e-4)


def test_weight_decay_is_for_weights_and_not_for_a_losss_own_parameters(
    make_trainer: Make,
) -> None:
    trainer = make_trainer("tempered", weight_decay=0.3)
    weights, own = trainer.optimizer.param_groups
    assert weights["weight_decay"] == 0.3 and own["weight_decay"] == 0.0
    assert own["params"] == list(trainer.objective.parameters())
    assert len(make_trainer().optimizer.param_groups) == 1


def test_what_an_objective_learns_moves(make_trainer: Make) -> None:
    trainer = make_trainer(["cross_entropy", "focal"], balancer="uncertainty")
    (before,) = [p.detach().clone() for p in trainer.objective.parameters()]
    epochs(trainer, 2)
    (after,) = trainer.objective.parameters()
    assert (before != after).all()
    trainer = make_trainer("tempered")
    epochs(trainer, 1)
    assert next(trainer.objective.parameters()).item() != 0.5


def test_dwa_hears_of_the_epochs(make_trainer: Make) -> None:
    trainer = epochs(make_trainer(["cross_entropy", "focal"], balancer="dwa"), 3)
    assert trainer.objective.balancer is not None
    assert trainer.objective.balancer.module is not None
    weights: Any = trainer.objective.balancer.module.weights
    assert weights.sum() == pytest.approx(2) and (weights != 1).all()


def test_a_margin_loss_gets_a_cosine_head_of_its_own_scale(make_trainer: Make) -> None:
    head = make_trainer({"name": "cosface", "scale": 20.0}).network.head
    assert isinstance(head, CosineHead) and head.scale == 20.0
    assert isinstance(make_trainer().network.head, LinearHead)
    trainer = epochs(make_trainer({"name": "cosface", "scale": 8.0}), 4)
    assert trainer.curve[-1]["accuracy"] > 0.5


def test_a_margin_loss_beside_another_finds_its_scale(make_trainer: Make) -> None:
    trainer = make_trainer(["cross_entropy", {"name": "cosface", "scale": 12.0}])
    assert isinstance(trainer.network.head, CosineHead) and trainer.network.head.scale == 12.0


@pytest.mark.parametrize("at", [0, 2])
def test_a_nan_loss_is_divergence(make_trainer: Make, at: int) -> None:
    trainer = epochs(make_trainer({"name": "turns_nan", "at": at}), at)
    with pytest.raises(Diverged, match=f"the training loss is nan in epoch {at + 1}"):
        trainer.run_epoch()


def test_weights_that_blow_up_are_divergence(make_trainer: Make) -> None:
    trainer = make_trainer(lr=1e38, optimizer="sgd", schedule="constant")
    with pytest.raises(Diverged):
        epochs(trainer, 4)


def test_bfloat16_on_the_cpu(make_trainer: Make) -> None:
    half = epochs(make_trainer(precision="bfloat16", epochs=8), 8)
    full = epochs(make_trainer(precision="float32", epochs=8), 8)
    assert all(p.dtype is torch.float32 for p in half.parameters)
    assert half.curve[-1]["train_loss"] != full.curve[-1]["train_loss"]
    assert half.curve[-1]["train_loss"] == pytest.approx(full.curve[-1]["train_loss"], rel=0.05)


def test_the_curve_has_a_row_an_epoch(make_trainer: Make) -> None:
    trainer = epochs(make_trainer(), 3)
    assert [row["epoch"] for row in trainer.curve] == [1, 2, 3]
    assert set(trainer.curve[0]) == {"epoch", "train_loss", "accuracy"}
    assert trainer.curve[2]["train_loss"] < trainer.curve[0]["train_loss"]


def test_the_users_own_module_is_copied(make_trainer: Make) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    before = [p.detach().clone() for p in module.parameters()]
    trainer = epochs(make_trainer(model=module), 2)
    for old, kept in zip(before, module.parameters(), strict=True):
        assert torch.equal(old, kept)
    assert isinstance(trainer.network.head, nn.Linear)


def test_errors_of_a_loss_pass_through(make_trainer: Make) -> None:
    with pytest.raises(LossearchError, match="not to its taste"):
        make_trainer("out_of_range").run_epoch()
    with pytest.raises(RuntimeError, match="tired"):
        make_trainer("raises_later").run_epoch()
