"""What holds for every component that ships, called outside any loop, whatever it computes.

Fields may be strided, of one sample, of a class or a label too few, large, in half precision, and
with labels ``[B]`` or ``[B, 1]``; integers of any width mean what int64 means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from lossearch.errors import FieldError, NotFiniteError
from lossearch.plugins import load_plugins
from lossearch.testing import batches
from lossearch.testing.subject import Subject

pytestmark = pytest.mark.filterwarnings("ignore:auc_margin. a batch without both classes")

REGISTRY = load_plugins().registry
ACTING = ("reweighting", "miner", "balancer")
HALVED = (*batches.COMPUTED, "losses", "gradients")
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.uint8, torch.bool)
LABELLED = ("binary", "multilabel")


def subjects(*kinds: str) -> list[Subject]:
    found: list[Subject] = []
    for kind in kinds:
        for component in REGISTRY.list(kind):
            tasks = component.tasks[:1] if kind == "balancer" else component.tasks
            found += [Subject(component, task) for task in tasks]
    return found


def each(
    which: Iterable[Subject], *reading: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test for each of some components, or of those among them that read these fields."""
    chosen = [s for s in which if set(reading) <= set(batch_of(s))]
    names = [f"{s.component.name}-{s.task}" for s in chosen]
    return pytest.mark.parametrize("subject", chosen, ids=names)


def batch_of(subject: Subject, **options: Any) -> dict[str, Any]:
    """Its example batch; a metric gets a split in float64, as in a study."""
    if subject.component.kind != "metric":
        return subject.batch(**options)
    batch = subject.batch(**{"size": 24, **options})
    return batches.cast(batch, torch.float64, tuple(batch))


def result(subject: Subject, batch: Mapping[str, Any]) -> Tensor:
    found = subject.fresh()(batch)
    return found if isinstance(found, Tensor) else torch.tensor(found, dtype=torch.float64)


def both(subject: Subject, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss's value and its slope at each output, which keeps its strides."""
    leaves = {k: batch[k].detach().requires_grad_() for k in batches.OUTPUTS if k in batch}
    value = subject.fresh()({**batch, **leaves})
    slopes = torch.autograd.grad(value.sum(), [*leaves.values()], allow_unused=True)
    return value.detach(), {k: g for k, g in zip(leaves, slopes, strict=True) if g is not None}


def assert_finite(value: Tensor, slopes: Mapping[str, Tensor] = {}) -> None:
    assert value.double().isfinite().all(), value
    for name, slope in slopes.items():
        assert slope.isfinite().all(), name


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-5, atol=1e-6)


LOSSES = subjects("loss")
ALL = [*LOSSES, *subjects(*ACTING, "metric")]


# --- every kind ----------------------------------------------------------------------------------


@each(ALL)
def test_strided_fields(subject: Subject) -> None:
    batch = batch_of(subject)
    apart = {
        k: torch.stack([v, v.flip(0)], -1)[..., 0] if isinstance(v, Tensor) and v.ndim else v
        for k, v in batch.items()
    }
    if subject.component.kind != "loss":
        assert_same(result(subject, apart), result(subject, batch))
        return
    (value, slopes), (expected, wanted) = both(subject, apart), both(subject, batch)
    assert_same(value, expected)
    for name, slope in slopes.items():
        assert_same(slope, wanted[name])


@each(ALL)
def test_one_sample(subject: Subject) -> None:
    batch = batch_of(subject, size=1)
    try:
        if subject.component.kind == "loss":
            assert_finite(*both(subject, batch))
        else:
            assert_finite(result(subject, batch))
    except FieldError as error:  # no deviation of lengths, no ranking within one class
        assert subject.component.name in ("adaface", "auroc", "average_precision"), error


@each(ALL, "targets")
def test_a_class_is_absent(subject: Subject) -> None:
    batch = batch_of(subject)
    several = subject.task == "multiclass"
    batch["targets"] = batch["targets"] % 3 if several else torch.ones_like(batch["targets"])
    if "bag" in batch:
        batch["bag"] = batch["targets"].reshape(batches.B, -1)[:, 0].long()
    try:
        assert_finite(result(subject, batch))
    except FieldError as error:
        assert subject.component.name in ("auroc", "average_precision"), error


@each(ALL)
def test_outputs_of_10000(subject: Subject) -> None:
    batch = batches.extreme(batch_of(subject), 1e4)
    if subject.component.kind == "loss":
        assert_finite(*both(subject, batch))
    else:
        assert_finite(result(subject, batch))


@each(subjects("loss", "reweighting", "metric"), "targets")
def test_integer_targets_of_any_width(subject: Subject) -> None:
    if subject.task == "regression":
        return  # its targets are numbers
    batch = batch_of(subject)
    if subject.task == "multiclass":  # so that bool holds them too
        batch["targets"] = batch["targets"] % 2
        if "bag" in batch:
            batch["bag"] = batch["targets"]
    expected = result(subject, batch)
    for dtype in INTEGERS:
        assert_same(result(subject, {**batch, "targets": batch["targets"].to(dtype)}), expected)


@each([s for s in ALL if s.task == "binary"], "targets")
def test_labels_in_a_column_or_not(subject: Subject) -> None:
    batch = batch_of(subject)
    expected = result(subject, batch)
    for columns in (("logits",), ("targets",), ("logits", "targets")):
        column = {k: batch[k].unsqueeze(1) for k in columns if k in batch}
        assert_same(result(subject, {**batch, **column}), expected)


@each([s for s in ALL if s.component.kind != "metric"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(subject: Subject, dtype: torch.dtype) -> None:
    if subject.component.name == "multi_sample_dropout":
        pytest.skip("the head makes its logits, in the precision of its embeddings")
    half = batches.cast(batch_of(subject), dtype, HALVED)
    exact = batches.cast(half, torch.float64, tuple(half))
    expected = subject.fresh().double()(exact)
    if subject.component.kind != "loss":
        found = result(subject, half)
        if "gradients" in half:  # a combined gradient is one: of the field's dtype
            torch.testing.assert_close(found, expected.to(dtype))
            return
        assert found.dtype in (torch.float32, torch.bool)
        assert_same(found, expected)
        return
    value, slopes = both(subject, half)
    assert value.dtype == torch.float32
    assert_same(value, expected.detach())
    for slope in slopes.values():
        assert slope.dtype == dtype
        assert slope.isfinite().all()


@each([s for s in ALL if s.component.kind != "metric"])
def test_double_precision(subject: Subject) -> None:
    batch = batch_of(subject)
    batch = batches.cast(batch, torch.float64, tuple(batch))
    assert subject.fresh().double()(batch).dtype in (torch.float64, torch.bool)


# --- unknown labels ------------------------------------------------------------------------------


def unknown(subject: Subject, batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    batch = {**batch, "targets": batch["targets"].clone()}
    batch["targets"][rows] = -1
    if "bag" in batch:
        batch["bag"] = torch.arange(batches.B)
    return batch


@each([s for s in LOSSES if s.task in LABELLED], "targets")
def test_a_sample_of_unknown_labels_costs_nothing(subject: Subject) -> None:
    value, slopes = both(subject, unknown(subject, batch_of(subject), slice(1)))
    assert_finite(value, slopes)
    if value.ndim:
        assert value[0] == 0
        assert all((slopes[name][0] == 0).all() for name in batches.PER_SAMPLE & slopes.keys())
    value, slopes = both(subject, unknown(subject, batch_of(subject), slice(None)))
    assert (value == 0).all() and all((slope == 0).all() for slope in slopes.values())


@each([s for s in subjects("reweighting") if s.task in LABELLED], "targets")
def test_a_sample_of_unknown_labels_weighs_what_it_does_without_a_reweighting(
    subject: Subject,
) -> None:
    batch = batch_of(subject)
    found = result(subject, unknown(subject, batch, slice(2)))
    assert found[:2].tolist() == [1, 1]
    assert_same(found[2:], result(subject, batch)[2:])


@each([s for s in subjects("metric") if s.task in LABELLED])
def test_a_metric_leaves_out_unknown_labels(subject: Subject) -> None:
    batch = batch_of(subject)
    rest = {k: v[3:] if k in batches.PER_SAMPLE else v for k, v in batch.items()}
    assert_same(result(subject, unknown(subject, batch, slice(3))), result(subject, rest))


# --- a common shift of the logits ----------------------------------------------------------------

KEEPS_DIGITS = ("cross_entropy", "focal", "poly_loss", "dual_focal")


def shifted(batch: Mapping[str, Any], by: float) -> dict[str, Any]:
    return {k: v + by if k.startswith("logits") else v for k, v in batch.items()}


@each([s for s in LOSSES if s.task == "multiclass"], "logits")
def test_a_common_shift_of_the_logits_changes_nothing(subject: Subject) -> None:
    """Where the formula is blind to it, as float64 tells."""
    single = batch_of(subject)
    exact = batches.cast(single, torch.float64, tuple(single))
    blind = torch.allclose(result(subject, exact), result(subject, shifted(exact, 3)), rtol=1e-9)
    if not blind:
        assert subject.component.name not in KEEPS_DIGITS
        return
    for by in (1e3, -1e3, *([1e4, -1e4] if subject.component.name in KEEPS_DIGITS else ())):
        batch = shifted(single, by)  # which is rounded there
        expected = result(subject, shifted(batches.cast(batch, torch.float64, tuple(batch)), -by))
        gap = (result(subject, batch).double() - expected).abs()
        assert (gap <= 2e-5 * expected.abs().clamp(min=1)).all(), by


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("focal", {"gamma": 2.0}),
        ("focal", {"gamma": 0.5, "alpha": [0.1, 0.2, 0.3, 0.4]}),
        ("poly_loss", {"base": "focal", "epsilon": [1.0, 0.5]}),
        ("poly_loss", {"label_smoothing": 0.1}),
        ("dual_focal", {"gamma": 5.0}),
    ],
)
def test_focal_losses_keep_their_digits_in_value_and_slope(
    name: str, values: dict[str, Any]
) -> None:
    subject = Subject(REGISTRY.get(name), "multiclass", values)
    batch = shifted(batch_of(subject), 1e4)
    value, slopes = both(subject, batch)
    exact = shifted(batches.cast(batch, torch.float64, ("logits",)), -1e4)
    expected, wanted = both(subject, exact)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(slopes["logits"].double(), wanted["logits"], rtol=1e-5, atol=1e-7)


# --- losses that are not finite ------------------------------------------------------------------


@each(subjects(*ACTING))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_losses_and_gradients_that_are_not_finite_are_refused(
    subject: Subject, bad: float
) -> None:
    batch = {"losses": torch.rand(batches.B), **batch_of(subject), "step": 7}
    for field in sorted({"losses", "losses_b", "gradients"} & batch.keys()):
        broken = batch[field].clone()
        broken.view(-1)[-1] = bad
        bound = subject.fresh()
        before = {k: v for k, v in bound.state_dict().items() if isinstance(v, Tensor)}
        before = {k: v.clone() for k, v in before.items()}
        with pytest.raises(NotFiniteError) as raised:
            bound({**batch, field: broken})
        text = str(raised.value)
        assert text.startswith(f"{subject.component.name} acts on finite {field} alone")
        assert f"is {bad:g} at step 7" in text
        assert all(torch.equal(bound.state_dict()[k], v) for k, v in before.items())


@each([s for s in subjects("reweighting", "miner") if s.component.vmappable])
def test_under_vmap_nothing_is_looked_at(subject: Subject) -> None:
    batch = {"losses": torch.rand(batches.B), **batch_of(subject)}
    stacked = torch.stack([batch["losses"], batch["losses"].clone()])
    stacked[1, 0] = torch.nan
    found = torch.func.vmap(lambda losses: subject.fresh()({**batch, "losses": losses}))(stacked)
    assert_same(found[0], result(subject, batch))
