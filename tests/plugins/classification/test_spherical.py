"""The Z-loss in its plain and its factored form, and the penalty on log Z."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification import cross_entropy
from lossearch_classification.spherical import log_z_penalty, z_loss

CLASSES, WIDTH = 5, 3


@pytest.fixture
def h() -> Tensor:
    return torch.randn(8, WIDTH, dtype=torch.float64, generator=torch.manual_seed(1))


@pytest.fixture
def w() -> Tensor:
    return torch.randn(CLASSES, WIDTH, dtype=torch.float64, generator=torch.manual_seed(2))


def plain(z: Tensor, y: Tensor, **params: Any) -> Tensor:
    return z_loss(y, z, **params)


def test_z_loss_by_hand() -> None:
    z, y = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([2])  # mean 3, variance 14/3
    standard = 3 / math.sqrt(14 / 3)
    value = plain(z, y, a=0.5, b=4.0)
    assert value.item() == pytest.approx(math.log1p(math.exp(0.5 * (4 - standard))) / 0.5)


def test_z_loss_is_the_authors_code(z: Tensor, y: Tensor) -> None:
    values = []
    for row, k in zip(z.tolist(), y.tolist(), strict=True):
        mean = sum(row) / CLASSES
        sigma = math.sqrt(sum(x * x for x in row) / CLASSES - mean**2)
        values.append(math.log1p(math.exp((mean - row[k]) / (sigma + 1e-12))))
    torch.testing.assert_close(
        plain(z, y, a=1.0, b=0.0), torch.tensor(values, dtype=torch.float64)
    )


def test_z_loss_is_blind_to_shift_and_scale(z: Tensor, y: Tensor) -> None:
    for scale, shift in ((7.0, 0.0), (1.0, -30.0), (0.2, 4.0)):
        torch.testing.assert_close(plain(scale * z + shift, y, b=2.0), plain(z, y, b=2.0))


def test_z_loss_gradient(z: Tensor, y: Tensor) -> None:
    a, b = 0.7, 1.5
    slope = grad(lambda z: plain(z, y, a=a, b=b).sum())(z)
    sigma = z.std(1, correction=0, keepdim=True)
    standard = (z - z.mean(1, keepdim=True)) / sigma
    target = standard.gather(1, y[:, None])
    onehot = F.one_hot(y, CLASSES).double()
    inner = 1 / CLASSES + target * standard / CLASSES - onehot
    torch.testing.assert_close(slope, (a * (b - target)).sigmoid() / sigma * inner)
    torch.testing.assert_close(slope.sum(1), torch.zeros(8, dtype=torch.float64))
    torch.testing.assert_close((slope * z).sum(1), torch.zeros(8, dtype=torch.float64))


def test_z_loss_is_bounded_below_where_the_others_are_equal(z: Tensor, y: Tensor) -> None:
    a, b = 2.0, 3.0
    bound = math.log1p(math.exp(a * (b - math.sqrt(CLASSES - 1)))) / a
    assert (plain(z, y, a=a, b=b) > bound).all()
    best = torch.zeros(8, CLASSES, dtype=torch.float64).scatter(1, y[:, None], 9.0)
    reached = torch.full((8,), bound, dtype=torch.float64)
    torch.testing.assert_close(plain(best, y, a=a, b=b), reached)


def test_z_loss_of_equal_logits(y: Tensor) -> None:
    a, b, eps = 0.5, 3.0, 1e-4
    z = torch.full((8, CLASSES), 7.0, dtype=torch.float64, requires_grad=True)
    value = plain(z, y, a=a, b=b, eps=eps)
    expected = torch.full((8,), math.log1p(math.exp(a * b)) / a, dtype=torch.float64)
    torch.testing.assert_close(value, expected)
    slope = torch.autograd.grad(value.sum(), z)[0]
    steep = 1 / (1 + math.exp(-a * b)) / math.sqrt(eps)
    onehot = F.one_hot(y, CLASSES).double()
    torch.testing.assert_close(slope, steep * (1 / CLASSES - onehot))


def test_z_loss_depends_on_the_sum_the_squares_and_the_target_alone(z: Tensor) -> None:
    u = torch.tensor([0.0, 0.5, 0.5, -0.5, -0.5], dtype=torch.float64)
    mirrored = z - 2 * (z @ u)[:, None] * u  # keeps class 0, the sum and the sum of squares
    assert (mirrored - z)[:, 1:].abs().min() > 1e-3
    y = torch.zeros(8, dtype=torch.long)
    torch.testing.assert_close(plain(mirrored, y, b=1.0), plain(z, y, b=1.0))


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_factored_is_the_plain_form(h: Tensor, w: Tensor, y: Tensor, offset: float) -> None:
    def dense(h: Tensor, w: Tensor) -> Tensor:
        return z_loss(y, h @ w.T, a=0.7, b=2.0)

    def factored(h: Tensor, w: Tensor) -> Tensor:
        return z_loss(y, embeddings=h, weight=w, a=0.7, b=2.0, factored=True)

    w = w + offset  # a common part of the class vectors cancels exactly
    torch.testing.assert_close(factored(h, w), dense(h, w))
    for argument in (0, 1):
        slopes = [grad(lambda *x, f=f: f(*x).sum(), argument)(h, w) for f in (factored, dense)]
        torch.testing.assert_close(slopes[0], slopes[1])


def test_factored_does_not_cancel_in_float32(h: Tensor, w: Tensor, y: Tensor) -> None:
    exact = z_loss(y, h @ w.T, b=2.0)
    value = z_loss(y, None, h.float(), w.float() + 30, b=2.0, factored=True)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=0)


def test_factored_makes_no_batch_by_class_tensor() -> None:
    made: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple) else (out,):
                if isinstance(each, Tensor):
                    made.append(each.untyped_storage().nbytes())  # a view makes nothing
            return out

    h = torch.randn(200, 2, requires_grad=True)
    w = torch.randn(300, 2, requires_grad=True)
    with Watch():
        z_loss(torch.arange(200), embeddings=h, weight=w, factored=True).sum().backward()
    assert max(made) == w.untyped_storage().nbytes()


def test_what_z_loss_reads_follows_factored() -> None:
    z_component = component_of(z_loss)
    plain_reads = z_component.reads(z_component.complete({}))
    assert plain_reads == {"logits", "targets"}
    factored = z_component.reads(z_component.complete({"factored": True}))
    assert factored == {"embeddings", "weight", "targets"}


def test_log_z_penalty_by_hand() -> None:
    z = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    expected = torch.tensor([math.log(4) ** 2, math.log(2) ** 2])
    torch.testing.assert_close(log_z_penalty(z, coefficient=0.5), 0.5 * expected)
    torch.testing.assert_close(log_z_penalty(z), 1e-4 * expected)


def test_log_z_penalty_gradient(z: Tensor) -> None:
    slope = grad(lambda z: log_z_penalty(z, coefficient=0.3).sum())(z)
    torch.testing.assert_close(slope, 0.6 * z.logsumexp(1, keepdim=True) * z.softmax(1))


def test_log_z_penalty_of_log_probabilities_is_zero(z: Tensor) -> None:
    value = log_z_penalty(z.log_softmax(1), coefficient=1.0)
    torch.testing.assert_close(value, torch.zeros(8, dtype=torch.float64), atol=1e-28, rtol=0)


def test_log_z_penalty_fixes_the_shift_and_nothing_else() -> None:
    q = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)  # what the labels say

    def both(z: Tensor) -> Tensor:
        return (cross_entropy(z, q) + log_z_penalty(z, coefficient=0.1)).sum()

    best = q.log()
    torch.testing.assert_close(grad(both)(best), torch.zeros_like(best))
    for shift in (-0.5, 0.5):
        torch.testing.assert_close(cross_entropy(best + shift, q), cross_entropy(best, q))
        assert both(best + shift) > both(best)


def test_dense_is_the_mean_over_positions() -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(2))
    y = torch.randint(3, (2, 4, 5), generator=torch.manual_seed(3))
    flat = z.movedim(1, -1).reshape(-1, 3)
    expected = log_z_penalty(flat).reshape(2, -1).mean(1)
    torch.testing.assert_close(log_z_penalty(z), expected)
    expected = plain(flat, y.reshape(-1)).reshape(2, -1).mean(1)
    torch.testing.assert_close(plain(z, y), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    rows = [[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0], [80.0, 80.0, 80.0]]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    h = torch.full((3, 2), 80.0, dtype=dtype, requires_grad=True)
    for y in range(3):
        targets = torch.full((3,), y)
        for a in (0.01, 10.0):
            values = [
                z_loss(targets, z, a=a),
                z_loss(targets, embeddings=h, weight=z[:, :2], a=a, factored=True),
                log_z_penalty(z, coefficient=a),
            ]
            for value in values:
                slope = torch.autograd.grad(value.sum(), z)[0]
                assert value.dtype == torch.float32
                assert value.isfinite().all() and slope.isfinite().all()


def test_members_and_hyperparameters_stack(z: Tensor, y: Tensor, h: Tensor, w: Tensor) -> None:
    stack, p = torch.stack([z, -z, 2 * z]), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    heads = torch.stack([w, -w, 2 * w + 1])

    def factored(w: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        return z_loss(y, embeddings=h, weight=w, a=a, b=b, factored=True)  # pyright: ignore

    cases = [
        (lambda z, p: z_loss(y, z, a=p, b=3 * p), stack),
        (lambda w, p: factored(w, p, 3 * p), heads),
        (lambda z, p: log_z_penalty(z, coefficient=p), stack),
    ]
    for case, members in cases:
        loop = torch.stack([case(members[i], p[i].item()) for i in range(3)])
        torch.testing.assert_close(vmap(case)(members, p), loop)


def test_errors(z: Tensor, y: Tensor, h: Tensor, w: Tensor) -> None:
    with pytest.raises(FieldError, match="target 5 is outside"):
        z_loss(y + 1, z)
    with pytest.raises(FieldError, match="target 5 is outside"):
        z_loss(y + 1, embeddings=h, weight=w, factored=True)
    with pytest.raises(FieldError, match="reads 'logits'"):
        z_loss(y, embeddings=h, weight=w)
    with pytest.raises(FieldError, match="reads 'weight'"):
        z_loss(y, z, embeddings=h, factored=True)
    with pytest.raises(FieldError, match=r"weight \[C, E\], not \[8, 3\] and \[5, 2\]"):
        z_loss(y, embeddings=h, weight=w[:, :2], factored=True)
    with pytest.raises(FieldError, match=r"logits \[B, C\] with C >= 2 classes, not \[8\]"):
        log_z_penalty(z[:, 0])
    cases: list[tuple[Any, dict[str, Any]]] = [
        (z_loss, {"a": 0.0}),
        (z_loss, {"eps": 0.0}),
        (log_z_penalty, {"coefficient": -1.0}),
    ]
    for loss, params in cases:
        with pytest.raises(ParameterError, match=f"{loss.__name__}: {next(iter(params))}"):
            component_of(loss).build(**params)
