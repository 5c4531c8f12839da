"""Sound components pass; opting out, the run over all checks, and what it reports."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import lossearch
from lossearch import ByTask, Choices, Given, Range
from lossearch.errors import FieldError, PluginError
from lossearch.testing import (
    CheckResult,
    checks,
    parametrize_with_checks,
    run_checks,
)


def failing(component: Any) -> dict[str, str]:
    return {r.name: r.message for r in run_checks(component) if not r.ok}


# Sound ones -----------------------------------------------------------------------------------


@lossearch.loss(task=("multiclass", "binary", "multilabel"))
def sound(
    logits: Tensor,
    targets: Tensor,
    class_counts: Tensor | None = None,
    *,
    gamma: Annotated[float, Field(ge=0), Range(0.0, 5.0)] = 0.5,
    mode: Annotated[
        Literal["softmax", "sigmoid"],
        ByTask(multiclass="softmax", binary="sigmoid", multilabel="sigmoid"),
    ] = "softmax",
) -> Tensor:
    z = logits.float() if logits.element_size() < 4 else logits
    if mode == "softmax":
        log_p = z.log_softmax(1)
        rest = log_p.scatter(1, targets[:, None], -torch.inf).logsumexp(1)
        return -(gamma * rest).exp() * log_p.gather(1, targets[:, None])[:, 0]
    known = targets >= 0
    signed = (2 * targets - 1) * z
    values = -(gamma * F.logsigmoid(-signed)).exp() * F.logsigmoid(signed)
    values = torch.where(known, values, 0.0)
    return values.flatten(1).mean(1) if values.ndim > 1 else values


@lossearch.loss(name="sound_stateful", task="multiclass")
class SoundStateful(nn.Module):
    """Cross-entropy over a learned temperature, with noise and a running mean of the loss."""

    def __init__(self, *, momentum: float = 0.9, seed: Annotated[int, Given("seed")] = 0) -> None:
        super().__init__()
        self.momentum = momentum
        self.log_t = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.ones(()))
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        z = logits.float() if logits.element_size() < 4 else logits
        values = F.cross_entropy(z * self.log_t.exp(), targets, reduction="none")
        mean = self.mean
        if self.training:
            noise = torch.rand(len(values), generator=self.generator).to(values)
            values = values * (1 + 0.1 * noise)
            self.mean = self.momentum * mean + (1 - self.momentum) * mean.new_tensor(2.0)
        return (values / mean).to(z.dtype)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state)


@lossearch.loss(task="regression", returns="batch")
def sound_batch(predictions: Tensor, targets: Tensor) -> Tensor:
    return (predictions - targets).square().mean()


@lossearch.loss(task="multiclass", returns="per_anchor")
def sound_anchors(embeddings: Tensor, targets: Tensor) -> Tensor:
    e = F.normalize(embeddings.float() if embeddings.element_size() < 4 else embeddings)
    same = targets[:, None] == targets[None]
    return (e @ e.T).masked_fill(same, 0.0).logsumexp(1)


@lossearch.reweighting()
def sound_weights(losses: Tensor, *, power: Annotated[float, Range(0.0, 2.0)] = 1.0) -> Tensor:
    return (power * losses.detach()).softmax(0) * losses.shape[0]


@lossearch.miner()
def sound_mask(losses: Tensor) -> Tensor:
    return losses >= losses.median()


@lossearch.miner(task=("multiclass", "binary"), returns="selection", vmap=False)
def sound_selection(targets: Tensor) -> tuple[Tensor, ...]:
    same = targets[:, None] == targets[None]
    a, p = (same & ~torch.eye(len(targets), dtype=torch.bool)).nonzero(as_tuple=True)
    b, n = (~same).nonzero(as_tuple=True)
    return a, p, b, n


@lossearch.balancer()
def sound_values(losses: Tensor) -> Tensor:
    return losses.sum()


@lossearch.balancer()
def sound_gradients(
    gradients: Tensor,
    *,
    at: Annotated[Literal["parameters", "output"], Choices()] = "output",
) -> Tensor:
    return gradients.sum(0)


@lossearch.metric(task=("multiclass", "binary"))
def sound_metric(logits: Tensor, targets: Tensor) -> float:
    found = logits.argmax(1) if logits.ndim > 1 else (logits > 0).to(targets.dtype)
    return (found == targets).double().mean().item()


SOUND = [
    sound, SoundStateful, sound_batch, sound_anchors, sound_weights, sound_mask,
    sound_selection, sound_values, sound_gradients, sound_metric,
]  # fmt: skip


@parametrize_with_checks(SOUND)
def test_sound_components_pass(check: Any) -> None:
    check()


def test_names_carry_the_task_where_there_are_several() -> None:
    names = [name for name, _ in checks(sound)]
    assert {"gradcheck [multiclass]", "no positives [binary]"} < set(names)
    assert "no positives [multiclass]" not in names
    assert len(names) == len(set(names))
    names = [name for name, _ in checks(sound_batch)]
    assert "extremes" in names and "state round trip" not in names


# Two broken ones (test_broken.py has the rest) ------------------------------------------------


@lossearch.loss(task="multiclass")
def nan_slope(
    logits: Tensor, targets: Tensor, *, gamma: Annotated[float, Range(0.5, 5.0)] = 0.5
) -> Tensor:
    p = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    return (1 - p) ** gamma * F.cross_entropy(logits, targets, reduction="none")


@lossearch.loss(task="multiclass")
def held_constant(logits: Tensor, targets: Tensor) -> Tensor:
    values = F.cross_entropy(logits, targets, reduction="none")
    return values * (1 - (-values).exp()).detach()


# Opting out, and the run ----------------------------------------------------------------------


def test_refusing_unknown_labels_by_a_field_error_is_fine() -> None:
    @lossearch.loss(task="binary")
    def refuses(logits: Tensor, targets: Tensor) -> Tensor:
        if not torch._C._functorch.is_functorch_wrapped_tensor(targets) and (targets < 0).any():
            raise FieldError("refuses: every label must be known")
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")

    dict(checks(refuses))["unknown labels"]()


def test_opting_out_needs_a_reason_and_a_check_that_exists() -> None:
    def weighted(skips: dict[str, str]) -> Any:
        @lossearch.loss(task="multiclass", name="weighted", skips=skips)
        def declared(logits: Tensor, targets: Tensor) -> Tensor:
            return held_constant(logits, targets)

        return declared

    assert list(failing(weighted({}))) == ["gradcheck"]
    opted_out = weighted({"gradcheck": "the weight is constant"})
    assert not failing(opted_out)
    skipped = [r for r in run_checks(opted_out) if r.skipped]
    assert skipped == [CheckResult("gradcheck", True, "the weight is constant", 0.0, True)]
    assert "did you mean 'gradcheck'" in failing(weighted({"gradchek": "typo"}))["checks"]


def test_skips_become_pytest_skips() -> None:
    @lossearch.loss(task="multiclass", skips={"gradcheck": "constant"})
    def weighted(logits: Tensor, targets: Tensor) -> Tensor:
        return held_constant(logits, targets)

    (cases,) = (parametrize_with_checks([weighted]).mark.args[1],)  # type: ignore[attr-defined]
    marked = {case.id: [m.kwargs["reason"] for m in case.marks] for case in cases}
    assert marked["weighted-gradcheck"] == ["constant"]
    assert marked["weighted-extremes"] == []


def test_run_checks_reports_all_and_goes_on_after_a_failure() -> None:
    results = run_checks(nan_slope)
    assert [r.name for r in results] == [name for name, _ in checks(nan_slope)]
    assert {r.name for r in results if not r.ok} == {"extremes", "extremes at range ends"}
    assert all(r.message for r in results if not r.ok)
    assert sum(r.seconds for r in results) > 0


def test_a_loss_that_returns_nothing_fails_and_never_raises() -> None:
    @lossearch.loss(task="multiclass")
    def nothing(logits: Tensor, targets: Tensor) -> None:
        return None

    failures = failing(nothing)
    assert failures["shape and dtype"] == "nothing returns NoneType, not a tensor"
    assert "breaks the check itself" in failures["permutation"]


def test_what_is_not_a_component_is_refused() -> None:
    with pytest.raises(PluginError, match="decorate it"):
        run_checks(len)


def test_importing_the_checks_does_not_import_pytest() -> None:
    code = "import sys, lossearch.testing; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
