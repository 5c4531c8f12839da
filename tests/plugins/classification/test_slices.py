"""Slices give what the whole gives: values, slopes, second slopes and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lossearch
import lossearch_classification._slices as slices
from lossearch.errors import FieldError
from lossearch.testing import run_checks
from lossearch_classification import focal, self_adjusting_dice
from lossearch_classification._slices import sliced

SLICED = {
    "focal": ("multiclass", "multilabel"),
    "poly_loss": ("multiclass", "multilabel"),
    "dual_focal": ("multiclass",),
    "asymmetric": ("multilabel",),
    "asymmetric_single_label": ("multiclass",),
    "binary_margin": ("multilabel",),
    "multiclass_hinge": ("multiclass",),
    "mse_logits": ("multiclass",),
    "squentropy": ("multiclass",),
    "logit_adjusted": ("multiclass",),
    "ldr_kl": ("multiclass",),
    "self_adjusting_dice": ("multiclass", "multilabel"),
    "sorensen_dice": ("multilabel",),
    "ldam": ("multilabel",),
}
CASES = [(name, task) for name, tasks in SLICED.items() for task in tasks]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of two or three samples in the batches below."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(slices, "_ELEMENTS", max(1, 16 // threads))


def fields(task: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 5, (7,), generator=draw)
    if task == "multilabel":
        targets = torch.randint(-1, 2, (7, 5), generator=draw).to(dtype)
    logits = torch.randn(7, 5, generator=draw, dtype=torch.float64).to(dtype)
    return {"logits": logits, "targets": targets, "class_counts": torch.arange(5) + 3}


def slope(bound: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    leaf = batch["logits"].clone().requires_grad_()
    value = bound({**batch, "logits": leaf})
    (value * torch.arange(1, 8)).sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize(("name", "task"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_and_slopes_are_those_of_the_whole(
    name: str, task: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = lossearch.get(name).build(task=task, facts={"num_classes": 5, "train_size": 7})
    batch = fields(task, dtype)
    whole = slope(bound, batch)
    monkeypatch.setattr(slices, "_ELEMENTS", 16 // min(16, torch.get_num_threads()))
    apart = slope(bound, batch)
    torch.testing.assert_close(apart[0], whole[0])
    torch.testing.assert_close(
        apart[1],
        whole[1],
        rtol=2e-2 if dtype == torch.bfloat16 else 1e-7,
        atol=1e-3 if dtype == torch.bfloat16 else 1e-9,
    )
    with torch.no_grad():
        torch.testing.assert_close(bound(batch), whole[0])


@pytest.mark.parametrize("name", ["focal", "asymmetric", "self_adjusting_dice", "ldr_kl"])
def test_conformance_in_slices(name: str, small: None) -> None:
    assert [result for result in run_checks(lossearch.get(name)) if not result.ok] == []


def test_second_slopes_are_those_of_the_formula(small: None) -> None:
    batch = fields("multiclass")
    z = batch["logits"].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: focal(x, batch["targets"], gamma=1.5), (z,))


def test_a_slope_can_be_taken_twice(small: None) -> None:
    batch = fields("multiclass")
    z = batch["logits"].requires_grad_()
    value = focal(z, batch["targets"]).sum()
    (first,) = torch.autograd.grad(value, z, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * value, z)
    torch.testing.assert_close(second, 3 * kept)
    assert torch.equal(first, kept)


def test_a_slice_holds_few_samples_and_each_is_seen_once(small: None) -> None:
    seen: list[int] = []

    @sliced("logits")
    def sums(logits: Tensor) -> Tensor:
        seen.append(len(logits))
        return logits.sum(1)

    z = torch.randn(7, 5).requires_grad_()
    torch.testing.assert_close(sums(z), z.sum(1))
    assert sum(seen) == 7
    assert max(seen) < 7


def test_whole_where_slices_would_lose_something(small: None) -> None:
    batch = fields("multiclass")
    z, y = batch["logits"], batch["targets"]
    gamma = torch.tensor(2.0, dtype=z.dtype, requires_grad=True)
    focal(z, y, gamma=gamma).sum().backward()  # type: ignore[arg-type]
    assert gamma.grad is not None and gamma.grad < 0
    stacked = torch.stack([z, 2 * z])
    found = torch.func.vmap(lambda x: focal(x, y))(stacked)
    torch.testing.assert_close(found, torch.stack([focal(z, y), focal(2 * z, y)]))
    value = self_adjusting_dice(z, y, scope="batch")
    assert value.ndim == 0


def test_errors_are_those_of_the_whole(small: None) -> None:
    batch = fields("multiclass")
    z, y = batch["logits"], batch["targets"]
    with pytest.raises(FieldError, match=r"targets \[7\], not \[6\]"):
        focal(z, y[:6])
    with pytest.raises(FieldError, match=r"target 9 is outside \[0, 5\)"):
        focal(z, y.index_fill(0, torch.tensor([6]), 9))
