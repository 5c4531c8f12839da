"""The orthogonal projection loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.projection import orthogonal_projection

NEGATIVES = ["mean_abs", "mean", "abs_mean"]


def make() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(8, 4, generator=g, dtype=torch.float64), torch.arange(8) % 3


def oracle(e: Tensor, y: Tensor, gamma: float, negative: str) -> float:
    same, other = [], []
    for i in range(len(e)):
        for j in range(len(e)):
            cos = float(e[i] @ e[j] / (e[i].norm() * e[j].norm()))
            if i != j and y[i] == y[j]:
                same.append(cos)
            elif y[i] != y[j]:
                other.append(abs(cos) if negative == "mean_abs" else cos)
    s, d = sum(same) / (len(same) + 1e-6), sum(other) / (len(other) + 1e-6)
    return (1 - s) + gamma * (abs(d) if negative == "abs_mean" else d)


@pytest.mark.parametrize("negative", NEGATIVES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_by_a_loop(negative: str, gamma: float) -> None:
    e, y = make()
    bound = component_of(orthogonal_projection).build(gamma=gamma, negative=negative)
    got = bound({"embeddings": e, "targets": y})
    assert got.shape == () and got.item() == pytest.approx(oracle(e, y, gamma, negative), rel=1e-9)


def test_by_hand() -> None:
    e = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1])
    half = 0.5**0.5
    for negative, d in (("mean_abs", half / 2), ("mean", -half / 2), ("abs_mean", half / 2)):
        got = orthogonal_projection(e, y, gamma=1.0, negative=negative)  # type: ignore[arg-type]
        assert got.item() == pytest.approx(1 - half + d, abs=1e-5)


@pytest.mark.parametrize("negative", NEGATIVES)
def test_zero_for_orthogonal_classes_with_collapsed_samples(negative: Any) -> None:
    y = torch.arange(9) % 3
    e = torch.eye(3)[y] * torch.linspace(0.5, 4, 9)[:, None]
    assert orthogonal_projection(e, y, negative=negative).item() == pytest.approx(0, abs=1e-6)


def test_batches_without_a_kind_of_pair() -> None:
    e, _ = make()
    apart = orthogonal_projection(e, torch.arange(8), gamma=0.0)
    assert apart.item() == 1.0  # no same-class pair: s = 0
    together = orthogonal_projection(e, torch.zeros(8, dtype=torch.long))
    assert together.item() == orthogonal_projection(e, torch.zeros(8).long(), gamma=0.0).item()
    single = orthogonal_projection(e[:1], torch.tensor([2]))
    assert single.item() == 1.0


def test_lengths_and_order_do_not_matter() -> None:
    e, y = make()
    expected = orthogonal_projection(e, y)
    lengths = torch.linspace(0.1, 30, 8, dtype=e.dtype)[:, None]
    torch.testing.assert_close(orthogonal_projection(e * lengths, y), expected)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    torch.testing.assert_close(orthogonal_projection(e[order], y[order]), expected)


@pytest.mark.parametrize("negative", NEGATIVES)
def test_gradcheck(negative: Any) -> None:
    e, y = make()
    e.requires_grad_()
    torch.autograd.gradcheck(lambda e: orthogonal_projection(e, y, negative=negative), (e,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes(dtype: torch.dtype) -> None:
    e = torch.tensor([[80.0, -80.0], [80.0, -80.0], [-80.0, 80.0]], dtype=dtype)
    e.requires_grad_()
    value = orthogonal_projection(e, torch.tensor([0, 0, 1]))
    value.backward()
    assert value.dtype == torch.float32 and value.item() == pytest.approx(2.0, abs=1e-5)
    assert e.grad is not None and e.grad.isfinite().all()


def test_autocast_does_not_round_the_cosines() -> None:
    e, y = make()
    expected = orthogonal_projection(e.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(orthogonal_projection(e.float(), y), expected)


def test_vmap() -> None:
    e, y = make()
    stack, gammas = torch.stack([e, e.flip(0)]), torch.tensor([0.5, 3.0], dtype=e.dtype)
    got = torch.func.vmap(lambda e, g: orthogonal_projection(e, y, gamma=g))(stack, gammas)
    for k in range(2):
        alone = orthogonal_projection(stack[k], y, gamma=float(gammas[k]))
        torch.testing.assert_close(got[k], alone)


def test_declaration_and_errors() -> None:
    component = component_of(orthogonal_projection)
    assert component.auxiliary and component.returns == "batch"
    e, y = make()
    with pytest.raises(FieldError, match=r"embeddings \[B, E\] and targets \[B\]"):
        orthogonal_projection(e, y[:5])
    with pytest.raises(FieldError, match=r"not \[8, 2, 2\]"):
        orthogonal_projection(e.reshape(8, 2, 2), y)
    unknown = torch.where(y == 1, -1, y)
    with pytest.raises(FieldError, match=r"from 0 on; these are torch\.int64, and one is -1"):
        orthogonal_projection(e, unknown)
    with pytest.raises(FieldError, match=r"class indices \(int64\).*torch\.float64"):
        orthogonal_projection(e, y.double())
    bad: dict[str, Any]
    for bad in ({"gamma": -1.0}, {"eps": 0.0}, {"negative": "abs"}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            component.build(**bad)
