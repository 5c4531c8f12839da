"""SymFace: the two halves of a face."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lossearch.components import component_of
from lossearch.errors import FieldError, ParameterError
from lossearch_classification.symmetry import symface


def make() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(6, 4, generator=g, dtype=torch.float64),
        torch.randn(6, 4, generator=g, dtype=torch.float64),
    )


def test_by_hand() -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert symface(a, b, normalize=False).tolist() == [16.0, 5.0]
    assert symface(a, b).tolist() == pytest.approx([0.4**2 + 0.8**2, 2.0])


def test_normalized_it_is_two_minus_two_cosines_and_at_most_four() -> None:
    a, b = make()
    torch.testing.assert_close(symface(a, b), 2 - 2 * F.cosine_similarity(a, b))
    torch.testing.assert_close(symface(3 * a, 0.2 * b), symface(a, b))
    torch.testing.assert_close(symface(a, -2 * a), torch.full((6,), 4.0, dtype=a.dtype))


@pytest.mark.parametrize("normalize", [True, False])
def test_equal_halves_cost_nothing(normalize: bool) -> None:
    a, _ = make()
    assert symface(a, a.clone(), normalize=normalize).tolist() == [0.0] * 6


def test_only_frontal_faces_count() -> None:
    a, b = make()
    a.requires_grad_()
    rho = torch.tensor([0.0, 0.5, 0.69, 0.7, 0.9, 1.0], dtype=a.dtype)
    value = symface(a, b, rho)
    assert value[:3].tolist() == [0.0] * 3
    torch.testing.assert_close(value[3:], symface(a, b)[3:])
    value.sum().backward()
    assert a.grad is not None and not a.grad[:3].any() and (a.grad[3:].abs().sum(1) > 0).all()
    torch.testing.assert_close(symface(a, b, rho, threshold=0.0), symface(a, b))


def test_gradient_by_hand() -> None:
    a, b = make()
    a.requires_grad_()
    symface(a, b, normalize=False).sum().backward()
    torch.testing.assert_close(a.grad, 2 * (a - b).detach())


def test_bfloat16_is_raised() -> None:
    a, b = (x.bfloat16() * 80 for x in make())
    value = symface(a, b)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, symface(a.float(), b.float()))


def test_declaration_and_errors() -> None:
    component = component_of(symface)
    assert component.auxiliary and component.returns == "per_sample"
    assert component.fields == ("embeddings", "embeddings_b")
    assert component.optional_fields == ("rho", "embeddings_left")
    a, b = make()
    with pytest.raises(FieldError, match=r"one shape \[B, E\], not \[6, 4\] and \[6, 3\]"):
        symface(a, b[:, :3])
    with pytest.raises(FieldError, match=r"rho \[6\], one for each sample, not \[2\]"):
        symface(a, b, torch.ones(2))
    bad: dict[str, Any]
    for bad in ({"threshold": 1.1}, {"threshold": -0.1}):
        with pytest.raises(ParameterError, match="threshold"):
            component.build(**bad)


def test_the_left_half_may_have_a_field_of_its_own() -> None:
    draw = torch.Generator().manual_seed(3)
    whole, left, right = (torch.randn(4, 5, generator=draw) for _ in range(3))
    found = symface(whole, right, None, left)
    torch.testing.assert_close(found, symface(left, right))
    assert not torch.equal(found, symface(whole, right))
