"""Second views, half images and attacks: each fact by another way than the code's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossearch.components import FIELDS
from lossearch.errors import FieldError, ModelError, ParameterError
from lossearch.models import Frozen, Network
from lossearch.plugins import load_plugins
from lossearch_dynamics.attack import Attack
from lossearch_dynamics.providers import SecondView, half_images

torch.set_num_threads(1)
OFF: dict[str, Any] = {"shift": 0, "flip": False, "jitter": 0, "erase": 0, "noise": 0, "drop": 0}


def images(number: int = 64, channels: int = 3, height: int = 8, width: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(number, channels, height, width, generator=draw)


def network(inputs: Tensor, outputs: int = 3, *, batch_norm: bool = False) -> Network:
    torch.manual_seed(0)
    width = inputs[0].numel()
    norm = [nn.BatchNorm1d(5), nn.Dropout(0.5)] if batch_norm else []
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(width, 5), *norm), nn.Linear(5, outputs))


def test_they_are_registered_and_documented() -> None:
    registry = load_plugins().registry
    for name in ("second_view", "half_images", "teacher", "attack"):
        component = registry.get(name, kind="provider")
        assert registry.owner(name) == "dynamics" and component.cost
        for parameter in component.Params.model_fields:
            assert f"{parameter}:" in component.doc, f"{name}: {parameter}"
        for field in component.gives:
            assert field in FIELDS or field == "embeddings_left"


# --- second_view -------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [images(), torch.randn(64, 7), torch.randn(8, 4, 5)])
def test_a_view_without_augmentation_is_the_input(inputs: Tensor) -> None:
    assert torch.equal(SecondView(**OFF).view(inputs), inputs)


@pytest.mark.parametrize("flip", [False, True])
def test_a_shift_is_reflection_padding_and_a_crop(flip: bool) -> None:
    inputs = images(200)
    made = SecondView(**{**OFF, "shift": 0.25, "flip": flip}).view(inputs)
    seen = set()
    for image, view in zip(inputs.numpy(), made.numpy(), strict=True):
        wide = np.pad(image, ((0, 0), (2, 2), (3, 3)), mode="symmetric")
        crops = {(y, x): wide[:, y : y + 8, x : x + 12] for y in range(5) for x in range(7)}
        found = {(*at, 0) for at, crop in crops.items() if np.array_equal(view, crop)}
        found |= {(*at, 1) for at, crop in crops.items() if np.array_equal(view[..., ::-1], crop)}
        assert len(found) == 1
        seen |= found
    assert {y for y, _, _ in seen} == set(range(5))
    assert {x for _, x, _ in seen} == set(range(7))
    assert {f for _, _, f in seen} == ({0, 1} if flip else {0})


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_alike_at_every_scale(channels: int) -> None:
    inputs = images(channels=channels)
    one = SecondView(**{**OFF, "jitter": 0.5}).view(inputs)
    other = SecondView(**{**OFF, "jitter": 0.5}).view(10 * inputs + 3)
    torch.testing.assert_close(other, 10 * one + 3, rtol=1e-4, atol=1e-4)
    mean, spread = inputs.mean((1, 2, 3)), inputs.std((1, 2, 3), correction=0)
    moved = (one.mean((1, 2, 3)) - mean) / spread  # brightness alone moves the mean
    assert 0.4 < moved.abs().max() <= 0.5 + 1e-5
    contrast = one.mean(1).std((1, 2), correction=0) / inputs.mean(1).std((1, 2), correction=0)
    assert 0.5 <= contrast.min() < 0.6 and 1.4 < contrast.max() <= 1.5 + 1e-5
    if channels == 3:  # saturation alone changes the colours against their grey
        colour = (one - one.mean(1, keepdim=True)) / (inputs - inputs.mean(1, keepdim=True))
        factor = colour.flatten(1).median(1).values / contrast
        assert 0.5 < factor.min() < 0.6 and 1.4 < factor.max() < 1.51


def test_an_erased_part_is_a_rectangle_of_the_mean() -> None:
    inputs = images(300, height=32, width=32)
    assert torch.equal(SecondView(**OFF).view(inputs), inputs)
    made = SecondView(**{**OFF, "erase": 1}).view(inputs)
    changed = (made != inputs).all(1)
    shares = []
    for image, view, mask in zip(inputs, made, changed, strict=True):
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])  # a rectangle
        torch.testing.assert_close(view[:, mask], image.mean().expand_as(view[:, mask]))
        assert int(rows.sum()) == int(rows.nonzero()[-1] - rows.nonzero()[0]) + 1
        shares.append(mask.float().mean().item())
    assert 0.015 < min(shares) < 0.05 and 0.25 < max(shares) < 0.36
    half = (SecondView(**{**OFF, "erase": 0.5}).view(inputs) != inputs).flatten(1).any(1)
    assert half.float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_noise_is_relative_to_each_feature_and_features_drop() -> None:
    scale = torch.tensor([0.01, 1, 100, 0])
    inputs = 5 + torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1)) * scale
    made = SecondView(**{**OFF, "noise": 0.3}).view(inputs)
    torch.testing.assert_close((made - inputs).std(0), 0.3 * scale, rtol=0.03, atol=1e-6)
    dropped = SecondView(**{**OFF, "drop": 0.2}).view(inputs)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(dropped[dropped != 0], inputs[dropped != 0])


def test_both_outputs_of_a_view_carry_gradients() -> None:
    inputs = images()
    model = network(inputs)
    logits, embeddings = SecondView()(inputs, model)
    assert embeddings is not None
    torch.testing.assert_close(model.head(embeddings), logits)  # pyright: ignore
    expected = model(SecondView().view(inputs))["logits"]
    assert torch.equal(logits, expected)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    scores_alone = Network(nn.Sequential(nn.Flatten(), nn.Linear(288, 3)), None)
    assert SecondView()(inputs, scores_alone)[1] is None


def test_tokens_are_refused() -> None:
    tokens = torch.zeros(4, 6, dtype=torch.int64)
    with pytest.raises(FieldError, match=r"second_view changes real inputs.*torch\.int64"):
        SecondView().view(tokens)
    with pytest.raises(FieldError, match="attack changes real inputs"):
        Attack().attacked(tokens, torch.zeros(4), nn.Identity())


@pytest.mark.parametrize("kind", [SecondView, Attack])
def test_draws_are_its_own_and_travel_with_its_state(kind: type[SecondView | Attack]) -> None:
    inputs, targets = images(16), torch.arange(16) % 3
    model = network(inputs)

    def made(provider: SecondView | Attack) -> Tensor:
        if isinstance(provider, SecondView):
            return provider.view(inputs)
        return provider.attacked(inputs, targets, model)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = kind(seed=1)
    once = made(first)
    assert torch.equal(torch.get_rng_state(), before)
    state = first.state_dict()
    again = made(first)
    assert not torch.equal(once, again)
    assert torch.equal(made(kind(seed=1)), once)
    other = kind(seed=2)
    assert not torch.equal(made(other), once)
    other.load_state_dict(state)
    assert torch.equal(made(other), again)


# --- half_images -------------------------------------------------------------------------------


def test_halves_of_a_symmetric_image_are_the_same() -> None:
    left = images(width=6)
    for middle in ([], [torch.full((64, 3, 8, 1), 9.0)]):  # an odd width's middle counts for none
        inputs = torch.cat([left, *middle, left.flip(3)], dim=3)
        one, other, rho = half_images(inputs, network(inputs))
        assert torch.equal(one, other)
        torch.testing.assert_close(rho, torch.ones(64))


def test_halves_by_hand() -> None:
    inputs = torch.tensor([[[[1.0, 1, 5, 3]]], [[[0, 2, 1, 2]]], [[[0, 2, 2, 4]]]])
    model = Network(nn.Flatten(), nn.Linear(4, 2))
    left, right, rho = half_images(inputs, model)
    # 2 pixels to 4, at positions -1/4, 1/4, 3/4, 5/4 between them
    assert left.tolist() == [[1, 1, 1, 1], [0, 0.5, 1.5, 2], [0, 0.5, 1.5, 2]]
    assert right.tolist() == [[3, 3.5, 4.5, 5], [2, 1.75, 1.25, 1], [4, 3.5, 2.5, 2]]
    assert rho.tolist() == [0, 0, 0]  # one colour; and halves that go against each other


def test_rho_is_the_correlation() -> None:
    inputs = images(width=7)
    inputs = inputs + 0.8 * inputs.flip(3)
    _, _, rho = half_images(inputs, network(inputs))
    for image, value in zip(inputs.numpy(), rho.tolist(), strict=True):
        pair = np.stack([image[..., :3].ravel(), image[..., :3:-1].ravel()])
        assert value == pytest.approx(max(np.corrcoef(pair)[0, 1], 0), abs=1e-5)


def test_half_images_need_images_and_embeddings() -> None:
    with pytest.raises(FieldError, match=r"half_images cuts images .*\[4, 6\]"):
        half_images(torch.zeros(4, 6), nn.Identity())
    scores_alone = Network(nn.Sequential(nn.Flatten(), nn.Linear(288, 3)), None)
    with pytest.raises(ModelError, match="half_images compares embeddings"):
        half_images(images(), scores_alone)


# --- attack ------------------------------------------------------------------------------------


def linear(weight: list[list[float]]) -> Network:
    model = Network(nn.Flatten(), nn.Linear(len(weight[0]), len(weight)))
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))  # pyright: ignore
    return model


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_linear_model_is_attacked_at_the_far_end_of_the_ball(norm: Any, task: str) -> None:
    model = linear([[3.0, -4.0]] if task == "binary" else [[0.0, 0.0], [3.0, -4.0]])
    inputs = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    targets = targets.float() if task == "binary" else targets
    start = norm == "linf"  # there signs alone count, and the corner is reached from anywhere
    attack = Attack(norm=norm, epsilon=0.5, steps=10, task=task, random_start=start)
    moved = attack.attacked(inputs, targets, model) - inputs
    away = torch.tensor([0.5, -0.5]) if norm == "linf" else torch.tensor([0.3, -0.4])
    torch.testing.assert_close(moved, (1 - 2 * targets.float())[:, None] * away)
    logits = attack(inputs, targets, model)
    torch.testing.assert_close(logits, model(inputs + moved)["logits"])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_stays_in_its_ball_and_raises_the_loss(norm: Any) -> None:
    inputs, targets = images(), torch.arange(64) % 3
    model = network(inputs)
    attack = Attack(norm=norm, epsilon=0.3, steps=5)
    moved = (attack.attacked(inputs, targets, model) - inputs).flatten(1)
    size = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert size.max() <= 0.3 + 1e-5
    assert size.min() > 0.25

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(model(x)["logits"], targets, reduction="none")

    assert (loss(inputs + moved.view_as(inputs)) > loss(inputs)).all()


def test_a_random_start_is_uniform_in_the_l2_ball() -> None:
    inputs = torch.zeros(20_000, 3)
    attack = Attack(norm="l2", epsilon=2.0, steps=0)
    start = attack.attacked(inputs, torch.zeros(20_000, dtype=torch.long), nn.Identity())
    radius = start.norm(dim=1)
    assert radius.max() <= 2 + 1e-5
    # of a ball in three dimensions, the mean radius is 3/4, and half of the radius holds 1/8
    assert radius.mean().item() == pytest.approx(1.5, abs=0.01)
    assert (radius < 1).float().mean().item() == pytest.approx(1 / 8, abs=0.01)
    assert start.mean(0).abs().max() < 0.03


def test_an_attack_leaves_the_network_as_it_was() -> None:
    inputs, targets = images(), torch.arange(64) % 3
    model = network(inputs, batch_norm=True).train()
    model.backbone[3].eval()  # pyright: ignore
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    with torch.no_grad():
        moved = Attack().attacked(inputs, targets, model)
    assert not moved.requires_grad
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    logits = Attack()(inputs, targets, model)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    norm: Any = model.backbone[2]  # pyright: ignore
    assert norm.num_batches_tracked == 1  # of the one forward that trains


def test_unknown_labels_are_not_attacked() -> None:
    inputs = torch.randn(5, 4)
    model = network(inputs, 2)
    targets = torch.full((5, 2), -1.0)
    attack = Attack(task="multilabel", random_start=False)
    assert torch.equal(attack.attacked(inputs, targets, model), inputs)
    targets[:, 0] = 1
    moved = attack.attacked(inputs, targets, model)
    assert (model(moved)["logits"][:, 0] < model(inputs)["logits"][:, 0]).all()


def test_proportions_of_bags_are_attacked_too() -> None:
    inputs, targets = images(), torch.arange(64) % 3
    model = network(inputs)
    hard = Attack().attacked(inputs, targets, model)
    soft = Attack().attacked(inputs, F.one_hot(targets, 3).float(), model)
    torch.testing.assert_close(soft, hard)


def test_what_cannot_be_attacked() -> None:
    inputs = images()
    model = network(inputs)
    model.backbone = Frozen(model.backbone)
    with pytest.raises(ModelError, match="passes no gradient to its inputs"):
        Attack()(inputs, torch.arange(64) % 3, model)
    with pytest.raises(ParameterError, match="task regression has no classes"):
        Attack(task="regression")
    assert Attack(epsilon=0.4).step_size == pytest.approx(0.1)
    assert math.isclose(Attack(step_size=0.2).step_size, 0.2)
