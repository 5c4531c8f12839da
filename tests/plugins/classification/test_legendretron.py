"""LegendreTron: the learned link."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.legendretron import ConvexGradient, LegendreTron

B, C = 40, 4


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


Z = 2 * torch.randn(B, C, generator=gen(1))
Y = torch.arange(B) % C


def made(init: Any = "random", started: bool = True, **params: Any) -> LegendreTron:
    link = LegendreTron(num_classes=C, init=init, **params)
    if started:
        link(Z, Y)
    return link


def blocks_of(link: LegendreTron) -> list[ConvexGradient]:
    return [b for b in link.blocks if isinstance(b, ConvexGradient)]


def plain_potential(block: ConvexGradient, x: Tensor) -> Tensor:
    """The authors' network, one sample and one unit at a time, in Python numbers."""
    state = block.state_dict().items()
    p: dict[str, Any] = {k: v.double().tolist() for k, v in state if isinstance(v, Tensor)}

    def soft(a: float) -> float:
        return math.log1p(math.exp(a))

    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(i * j for i, j in zip(a, b, strict=True))

    half = len(p["on_z.0"][0]) // 2
    values = []
    for row in x.tolist():
        reads = [dot(w, row) + b for w, b in zip(p["on_x.weight"], p["on_x.bias"], strict=True)]

        def total(layer: int, unit: int, z: list[float], own: float) -> float:
            weights = p[f"on_z.{layer}"][unit]
            scale = math.exp(p[f"log_scales.{layer}"][unit]) + 1e-3
            return (dot([soft(w) / len(z) for w in weights], z) + own) * scale

        z = [soft(reads.pop(0)) for _ in range(2 * half)]
        for layer in range(len(block.on_z) - 1):
            inner = [total(layer, u, z, reads.pop(0)) for u in range(half)]
            z = [soft(a) for a in inner + [reads.pop(0) for _ in range(half)]]
        n = total(len(block.on_z) - 1, 0, z, reads.pop(0))
        assert not reads
        values.append(soft(p["w1"]) * n + soft(p["w0"]) * dot(row, row) / 2)
    return torch.tensor(values, dtype=torch.double)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("hidden", [2, 8])
def test_the_map_is_the_gradient_of_the_potential(depth: int, hidden: int) -> None:
    (block,) = blocks_of(made(depth=depth, hidden=hidden))
    x = torch.randn(7, C - 1, generator=gen(2)).double().requires_grad_()
    potential = block.potential(x)
    (slope,) = torch.autograd.grad(potential.sum(), x, create_graph=True)
    torch.testing.assert_close(block(x), slope)
    torch.testing.assert_close(potential, plain_potential(block, x))
    # and its own gradients are the second derivatives
    weights = [p for p in block.parameters() if p.requires_grad]
    push = torch.randn(7, C - 1, generator=gen(3)).double()
    found = torch.autograd.grad((block(x) * push).sum(), [x, *weights])
    expected = torch.autograd.grad((slope * push).sum(), [x, *weights])
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_values_are_log_softmax_plus_of_the_map() -> None:
    link = made(blocks=2)
    x = (Z[:, :-1] - Z[:, -1:]).double()
    one, two = blocks_of(link)
    u = two(one(x))
    rest = (1 + u.exp().sum(1)).log()
    expected = torch.cat([u - rest[:, None], -rest[:, None]], 1)
    torch.testing.assert_close(link.predict_log_proba(Z.double()), expected)
    torch.testing.assert_close(link(Z.double(), Y), -expected[range(B), Y])


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_without_the_network_it_is_cross_entropy_of_scaled_logits(blocks: int) -> None:
    link = made(blocks=blocks)
    scale = 1.0
    for i, block in enumerate(blocks_of(link)):
        with torch.no_grad():
            block.w1.fill_(-200.0)
            block.w0.fill_(0.3 * i - 0.2)
        scale *= F.softplus(block.w0).item()
    torch.testing.assert_close(link(Z, Y), F.cross_entropy(scale * Z, Y, reduction="none"))


def test_identity_begins_as_cross_entropy() -> None:
    for blocks in (1, 3):
        link = made("identity", started=False, blocks=blocks)
        found = link(Z, Y)
        expected = F.cross_entropy(Z, Y, reduction="none")
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_map_is_monotone() -> None:
    (block,) = blocks_of(made())
    a, b = 5 * torch.randn(2, 500, C - 1, generator=gen(4)).double()
    inner = ((block(a) - block(b)) * (a - b)).sum(1)
    floor = F.softplus(block.w0).item() * (a - b).square().sum(1)
    assert (inner >= floor - 1e-9).all()  # strongly so: the quadratic part alone gives this


def test_probabilities_sum_to_1_and_may_order_classes_otherwise() -> None:
    differ = 0
    for seed in range(8):
        log_p = made(seed=seed).predict_log_proba(Z)
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones(B))
        differ += int((log_p.argmax(1) != Z.argmax(1)).sum())
    assert differ > 0


def test_a_shift_of_all_logits_changes_nothing() -> None:
    link = made()
    torch.testing.assert_close(link(Z + 7.0, Y), link(Z, Y), atol=1e-5, rtol=1e-5)


def test_the_first_training_batch_sets_the_normalisation() -> None:
    link = made(started=False)
    (block,) = blocks_of(link)
    link.eval()(Z, Y)
    link.train()(Z[:1], Y[:1])  # one sample, or all alike, has no spread to go by
    link(torch.zeros(B, C), Y)
    assert not block.initialised
    link(Z, Y)
    assert block.initialised
    x = Z[:, :-1] - Z[:, -1:]
    steps, n = block._run(x)
    for inner in (layer[:, :2] for layer in steps[1:]):
        torch.testing.assert_close(inner.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(inner.std(0, correction=0), torch.ones(2), atol=1e-2, rtol=0)
    assert n.std(correction=0).item() == pytest.approx(1.0, abs=1e-2)
    before = {k: v for k, v in link.state_dict().items() if isinstance(v, Tensor)}
    kept = {k: v.clone() for k, v in before.items()}
    link(3 * Z + 1, Y)
    assert all(torch.equal(v, kept[k]) for k, v in before.items())


def test_gradcheck_once_it_is_set() -> None:
    link = made(blocks=2, hidden=2).double().eval()
    z = Z[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: link(v, Y[:2]), (z,))


def test_a_checkpoint_goes_on_alike() -> None:
    link = made()
    file = io.BytesIO()
    torch.save(link.state_dict(), file)
    file.seek(0)
    resumed = made(started=False, seed=5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(link(2 * Z, Y), resumed(2 * Z, Y))  # not set anew
    assert blocks_of(resumed)[0].initialised


def test_a_seed_draws_the_weights_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    one, two, other = made(seed=1), made(seed=1), made(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one(Z, Y), two(Z, Y)) and not torch.equal(one(Z, Y), other(Z, Y))


def test_what_the_optimizer_is_told() -> None:
    link = made(weight_decay=0.02, lr_factor=3.0)
    (group,) = link.parameter_groups()
    assert (group["weight_decay"], group["lr_factor"]) == (0.02, 3.0)
    learned = {id(p) for p in group["params"]}
    (block,) = blocks_of(link)
    assert id(block.w0) in learned
    fixed = made(trainable_quadratic=False)
    (group,) = fixed.parameter_groups()
    assert id(blocks_of(fixed)[0].w0) not in {id(p) for p in group["params"]}
    link(Z, Y).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in link.parameters()
               if p.requires_grad)  # fmt: skip


def test_training_the_link_alone_mends_a_bad_scale() -> None:
    x = torch.randn(200, C, generator=gen(6))
    y = torch.distributions.Categorical(logits=4 * x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = y.sample()
    link = made("identity", started=False)
    optimizer = torch.optim.Adam(link.parameters(), 0.2)
    for _ in range(40):
        optimizer.zero_grad()
        link(x, targets).mean().backward()
        optimizer.step()
    reached, plain = link(x, targets).mean(), F.cross_entropy(x, targets)
    best = F.cross_entropy(4 * x, targets)
    assert reached < best + 0.1 * (plain - best)


def test_predictions_go_through_the_link_also_in_inference_mode() -> None:
    link = made()
    expected = link.predict_log_proba(Z)
    link.eval()
    with torch.inference_mode():
        found = link.predictions({"logits": Z, "embeddings": Z})
    torch.testing.assert_close(found, expected)


def test_autocast_and_half_precision_are_raised() -> None:
    link = made()
    expected = link(Z, Y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(link(Z, Y), expected)
    assert link(Z.bfloat16(), Y).dtype == torch.float32
    assert link(Z.double(), Y).dtype == torch.float64


def test_extremes_are_finite() -> None:
    for blocks in (1, 3):
        link = made(blocks=blocks)
        z = (80 * torch.randn(B, C, generator=gen(7)).sign()).requires_grad_()
        value = link(z, Y)
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert value.isfinite().all() and slope.isfinite().all()


def test_two_classes() -> None:
    link = LegendreTron(num_classes=2, init="random")
    log_p = link.predict_log_proba(Z[:, :2])
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(B))


def test_errors() -> None:
    link = made()
    with pytest.raises(FieldError, match="made for 4 classes"):
        link(Z[:, :3], Y % 3)
    with pytest.raises(FieldError, match="legendretron: target 4"):
        link(Z, Y + 1)
    component = component_of(LegendreTron)
    with pytest.raises(ParameterError, match="needs 'num_classes'"):
        component.build()
    bad: list[dict[str, Any]] = [
        {"num_classes": 1}, {"blocks": 0}, {"depth": 0}, {"hidden": 3}, {"weight_decay": -1},
        {"lr_factor": 0}, {"init": "zero"},
    ]  # fmt: skip
    for params in bad:
        with pytest.raises(ParameterError, match=next(iter(params))):
            component.build(**{"num_classes": C, **params})
