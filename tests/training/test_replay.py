"""Recorded kernels give what they would for other values; what they cannot follow is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from lossearch.training.replay import Programs, Tape, agreed


class Owner:
    """Whoever recordings are kept for."""


def record(function: Callable[..., Tensor], *inputs: Tensor) -> Programs | None:
    """A function of stacked inputs as programs, recorded on these and on others."""

    def once(again: bool) -> Programs:
        given = [x.flip(0) for x in inputs] if again else list(inputs)
        tape = Tape()
        with tape.record():
            out = vmap(function)(*given)
        return Programs(tape, [given], [[out]])

    return agreed(Owner(), "key", once)


def replayed(programs: Programs, like: Tensor, *inputs: Tensor) -> Tensor:
    out = torch.full_like(like, float("nan"))
    programs.runs[0]((), [out], inputs)
    return out


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1).relu() * x.exp() - (x + 1).relu(),
        lambda x: (x * 2) * (x * 2).t() + (x * 2),  # a view of what might be written over
        lambda x: (x @ x).t() + x.sum(0),
        lambda x: torch.where(x > 0, x, 0.0).cumsum(0).log1p().nan_to_num(),
        lambda x: torch.cat(x.unbind(0)[::-1])[:, None] + x.flatten().roll(2),
        lambda x: x,
    ],
)
def test_other_values_give_what_they_would_have_given(function: Callable[..., Tensor]) -> None:
    programs = record(function, draw(4, 3, 3))
    assert programs is not None
    for scale in (1.0, 7.0):  # the second run finds the first one's memory
        x = scale * draw(4, 3, 3).flip(1)
        before = x.clone()
        expected = vmap(function)(x)
        assert torch.equal(replayed(programs, expected, x), expected)
        assert torch.equal(x, before)


def test_gradients_and_what_a_backward_pass_keeps() -> None:
    def loss(w: Tensor, x: Tensor) -> Tensor:
        return (x @ w).relu().log_softmax(1)[:, 0].mean()

    w, x = draw(5, 6, 3), draw(5, 8, 6)
    forward = Tape()
    leaf = w.clone().requires_grad_()
    with forward.record():
        value = vmap(loss)(leaf, x)
    with forward.record():
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    programs = Programs(forward, [[leaf, x], []], [[value], [gradient]])
    w, x = w.flip(0) * 3, x.flip(1)
    rooms = [torch.empty_like(t) for t in programs.rooms[0]]
    values, gradients = torch.empty(5), torch.empty_like(w)
    kept = programs.runs[0]((), [values, *rooms], [w, x])
    programs.runs[1](kept, [gradients], [])
    expected, (_, value) = vmap(grad_and_value(lambda w, x: (loss(w, x),) * 2, has_aux=True))(w, x)
    assert torch.equal(values, value) and torch.equal(gradients, expected)


def test_what_depends_on_values_is_refused() -> None:
    def branches(x: Tensor) -> Tensor:
        return -x if fixed.sum() > 0 else x

    fixed = draw(3)
    assert record(branches, draw(4, 3)) is None
    numbers = itertools.count()
    assert record(lambda x: x * next(numbers), draw(4, 3)) is None
    assert record(lambda x: x + torch.full((3,), float(next(numbers))), draw(4, 3)) is None
    assert record(lambda x: x[torch.tensor([True, False, True])], draw(4, 3)) is None


def test_recordings_are_kept_by_key() -> None:
    owner, calls = Owner(), []

    def once(again: bool) -> Programs:
        calls.append(again)
        tape, x = Tape(), torch.ones(2)
        with tape.record():
            out = x * 2
        return Programs(tape, [[x]], [[out]])

    assert agreed(owner, 1, once) is agreed(owner, 1, once)
    assert calls == [False, True]
    assert agreed(owner, 2, once) is not agreed(owner, 1, once)


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 15, 16, 40])
@pytest.mark.parametrize("samples", [1, 26, 55, 128])
def test_narrow_log_softmax_is_bit_equal(classes: int, samples: int) -> None:
    def both(z: Tensor, g: Tensor) -> Tensor:
        out, pull = torch.func.vjp(lambda z: z.log_softmax(1), z)
        return torch.stack([out, pull(g)[0]])

    z, g = draw(5, samples, classes) * 9, draw(5, samples, classes)
    programs = record(both, z, g)
    assert programs is not None
    z, g = z.flip(1), g.flip(2)
    expected = torch.stack([both(z[k], g[k]) for k in range(5)])
    found = replayed(programs, expected, z, g)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert torch.equal(found, expected)
    assert torch.allclose(found, expected, atol=1e-6)
