"""An objective's value and gradient, against what is worked out by hand."""

from __future__ import annotations

import math
import pickle
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossearch
from lossearch import registry as registries
from lossearch.documents import dump_yaml
from lossearch.errors import (
    FieldError,
    NotFiniteError,
    ParameterError,
    PluginError,
    SpecError,
    UnknownNameError,
)
from lossearch.objective import Objective, load_objective
from lossearch.plugins import load_plugins
from lossearch.registry import Registry
from tests.toys import (
    BATCH,
    LOGITS,
    NORM,
    POWER,
    TARGETS,
    ToyRunning,
    toy_registry,
)
from tests.toys import toy_objective as objective


@pytest.fixture(autouse=True)
def toys() -> Iterator[Registry]:
    registry = toy_registry()
    registries.use(registry)
    yield registry
    registries.use(None)


def value(*terms: Any, **more: Any) -> float:
    return float(objective(*terms, **more)(BATCH))


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


# Values ---------------------------------------------------------------------------------------


def test_one_term_is_the_mean_over_samples() -> None:
    assert value("toy_ce") == pytest.approx(float(F.cross_entropy(LOGITS, TARGETS)))
    assert value("toy_power") == pytest.approx(sum(POWER) / 3)


def test_parameters_and_the_task_reach_the_component() -> None:
    assert value({"name": "toy_power", "exponent": 1}) == pytest.approx((3.5 + 3 + 3) / 3)
    assert value("toy_power", task="binary") == pytest.approx(sum(POWER) / 9)


def test_terms_are_summed_with_their_weights() -> None:
    terms = [{"loss": "toy_power", "weight": 0.5}, {"loss": "toy_norm", "weight": 3}]
    assert value(*terms) == pytest.approx(0.5 * sum(POWER) / 3 + 3 * sum(NORM) / 3)
    assert value(terms[0]) == pytest.approx(0.5 * sum(POWER) / 3)
    shown = objective(*terms).values(BATCH)
    assert shown.tolist() == pytest.approx([sum(POWER) / 3, sum(NORM) / 3]), "unweighted"


def test_a_batch_loss_is_taken_as_it_is() -> None:
    assert value("toy_batch") == pytest.approx(float(LOGITS.mean() ** 2))


def test_a_reweighting_multiplies_the_samples() -> None:
    found = value({"loss": "toy_power", "reweighting": "toy_by_loss"})
    mean = sum(POWER) / 3
    assert found == pytest.approx(sum(v * v / mean for v in POWER) / 3)


def test_a_reweighting_is_not_differentiated() -> None:
    logits = LOGITS.clone().requires_grad_()
    objective({"loss": "toy_power", "reweighting": "toy_by_loss"})(logits=logits).backward()
    weights = torch.tensor(POWER, dtype=torch.float64) / (sum(POWER) / 3)
    assert torch.allclose(_grad(logits), weights[:, None] * 2 * LOGITS / 3)


def test_a_mask_keeps_some_samples() -> None:
    miner = {"name": "toy_below", "limit": 6}
    assert value({"loss": "toy_power", "miner": miner}) == pytest.approx((5.25 + 3) / 2)
    both = value({"loss": "toy_power", "miner": miner, "reweighting": "toy_by_loss"})
    mean = sum(POWER) / 3
    assert both == pytest.approx((5.25**2 + 3**2) / mean / 2)


ACTING: list[dict[str, Any]] = [
    {"terms": [{"loss": "toy_power", "miner": {"name": "toy_below", "limit": 6}}]},
    {"terms": [{"loss": "toy_power", "reweighting": "toy_by_loss"}]},
    {"terms": [{"loss": "toy_power"}] * 2, "balancer": "toy_max"},
]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("document", ACTING)
def test_losses_that_are_not_finite_are_refused(document: dict[str, Any], bad: float) -> None:
    logits = LOGITS.clone()
    logits[1, 0] = bad
    found = Objective.from_spec({"task": "multiclass", **document})
    with pytest.raises(NotFiniteError, match=rf"toy_\w+ acts on finite losses .* is {bad:g}"):
        found(logits=logits, targets=TARGETS)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("document", ACTING[:2])
def test_in_a_stack_they_end_the_row_that_they_are_in(
    document: dict[str, Any], bad: float
) -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[1, 1, 0] = bad
    found = Objective.from_spec({"task": "multiclass", **document})
    values = torch.func.vmap(lambda z: found(logits=z, targets=TARGETS))(logits)
    assert values[0].item() == pytest.approx(found(logits=LOGITS, targets=TARGETS).item())
    assert not values[1].isfinite()


def test_a_mask_without_a_sample_teaches_nothing() -> None:
    logits = LOGITS.clone().requires_grad_()
    found = objective({"loss": "toy_power", "miner": {"name": "toy_below", "limit": 0.1}})(
        logits=logits
    )
    found.backward()
    assert found.item() == 0 and not _grad(logits).any()


def test_a_miner_of_pairs_hands_its_selection_to_the_loss() -> None:
    assert value({"loss": "toy_pairs", "miner": "toy_ends"}) == pytest.approx(5)
    assert value("toy_pairs") == pytest.approx((2 + 13) / 2)


def test_fields_are_given_as_a_mapping_by_name_or_both() -> None:
    built = objective("toy_ce")
    expected = built(BATCH).item()
    assert built(logits=LOGITS, targets=TARGETS).item() == expected
    assert built({"targets": TARGETS}, logits=LOGITS).item() == expected
    with pytest.raises(FieldError, match="toy_ce reads 'targets', which the batch lacks"):
        built(logits=LOGITS)


def test_what_it_reads_and_what_it_uses() -> None:
    built = objective(
        {"loss": "toy_power", "reweighting": "toy_by_loss"},
        {"loss": "toy_pairs", "miner": "toy_ends"},
        balancer="toy_max",
    )
    assert built.reads == {"logits", "embeddings"}
    assert built.uses == {"class_counts"}, "not what the objective makes itself"
    known = objective("toy_power", class_counts=[1, 2, 3])
    assert known.uses == frozenset(), "what is known need not be in the batch"


def test_constants_are_filled_in() -> None:
    term = {"loss": "toy_ce", "reweighting": "toy_by_class"}
    built = objective(term, class_counts=[10, 20, 40])
    weights = torch.tensor([1 / 10, 1 / 40, 1 / 20], dtype=torch.float64)
    losses = F.cross_entropy(LOGITS, TARGETS, reduction="none")
    expected = (losses * weights / weights.mean()).mean()
    assert built(BATCH).item() == pytest.approx(expected.item())
    given = built({**BATCH, "class_counts": torch.tensor([1, 1, 1])})
    assert given.item() == pytest.approx(losses.mean().item()), "the batch goes first"
    with pytest.raises(FieldError, match="reads 'class_counts'"):
        objective(term)(BATCH)


# Its own parameters and state -----------------------------------------------------------------


def test_learned_parameters_of_a_loss_get_their_gradient() -> None:
    built = objective({"name": "toy_learned", "init": 1.0})
    (centre,) = built.parameters()
    built(logits=LOGITS.float()).backward()
    expected = -2 * (LOGITS - 1).sum() / 3
    assert _grad(centre).item() == pytest.approx(expected.item())


def test_they_do_so_with_every_balancer() -> None:
    power, norm = sum(POWER) / 3, sum(NORM) / 3
    built = objective("toy_power", "toy_norm", balancer="toy_uncertainty")
    (s,) = built.parameters()
    built(BATCH).backward()
    assert _grad(s).tolist() == pytest.approx([1 - power, 1 - norm])

    centre = -2 * LOGITS.sum().item() / 3
    for balancer in ("toy_normalised", "toy_mean_gradient"):
        built = objective("toy_learned", "toy_power", balancer=balancer)
        (learned,) = built.parameters()
        logits = nn.Parameter(LOGITS.float())
        built.backward({"logits": logits}, [logits])
        assert _grad(learned).item() == pytest.approx(centre), balancer


def test_state_travels_in_the_state_dict() -> None:
    terms = ("toy_running", {"name": "toy_learned", "init": 0.0})
    first = objective(*terms, balancer="toy_uncertainty")
    with torch.no_grad():
        for number, parameter in enumerate(first.parameters()):
            parameter.fill_(0.25 + number)
    first(logits=LOGITS.float())
    second = objective(*terms, balancer="toy_uncertainty")
    second.load_state_dict(first.state_dict())
    first.eval()
    second.eval()
    batch = {"logits": LOGITS.float()}
    assert second(batch).item() == first(batch).item()
    fresh = objective(*terms, balancer="toy_uncertainty").eval()
    assert fresh(batch).item() != first(batch).item()


def test_everyone_hears_of_epochs() -> None:
    built = objective("toy_running", "toy_ce")
    built.start_epoch(3)
    built.end_epoch(3)
    (running,) = (m for m in built.modules() if isinstance(m, ToyRunning))
    assert running.epochs == [("start", 3), ("end", 3)]


def test_facts_reach_the_components() -> None:
    built = objective("toy_running", num_classes=5, seed=11)
    (running,) = (m for m in built.modules() if isinstance(m, ToyRunning))
    assert running.seed == 11 and running.scale.shape == (5,)


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "error", "message"),
    [
        ("toy_cee", UnknownNameError, r"no loss 'toy_cee'; did you mean 'toy_ce'\?"),
        ("toy_below", UnknownNameError, "'toy_below' is a miner, and a loss is wanted"),
        ({"name": "toy_ce", "smoothing": 3}, ParameterError, "toy_ce: smoothing = 3"),
        ({"loss": "toy_ce", "weight": -1}, SpecError, r"terms\.0\.weight = -1 is not allowed"),
        (
            {"loss": "toy_batch", "reweighting": "toy_by_loss"},
            SpecError,
            "whole batch, so the reweighting toy_by_loss cannot reach its samples",
        ),
        (
            {"loss": {"name": "toy_either", "whole": True}, "miner": "toy_below"},
            SpecError,
            "toy_either exists only for the whole batch",
        ),
    ],
)
def test_what_cannot_be_built(term: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        objective(term)


# From a file ----------------------------------------------------------------------------------

DOCUMENT = {
    "task": "multiclass",
    "terms": [{"loss": {"name": "toy_power", "exponent": 1}}, {"loss": "toy_norm", "weight": 2.0}],
}


def test_it_loads_from_an_exported_file(tmp_path: Path) -> None:
    path = tmp_path / "objective.yaml"
    path.write_text(dump_yaml(DOCUMENT))
    loaded = load_objective(path)
    assert float(loaded(BATCH)) == pytest.approx(9.5 / 3 + 2 * 12 / 3)
    assert loaded.spec.document()["terms"][0]["loss"] == {"name": "toy_power", "exponent": 1}
    assert float(lossearch.load_objective(str(path))(BATCH)) == float(loaded(BATCH))


def test_it_loads_from_a_studys_folder_with_its_facts(tmp_path: Path) -> None:
    term = {"loss": "toy_ce", "reweighting": "toy_by_class"}
    best = {
        "objective": {"task": "multiclass", "terms": [term]},
        "facts": {"class_counts": [10, 20, 40], "num_classes": 3},
        "score": 0.9,
    }
    (tmp_path / "best.yaml").write_text(dump_yaml(best))
    expected = objective(term, class_counts=[10, 20, 40])(BATCH).item()
    for path in (tmp_path, tmp_path / "best.yaml"):
        assert load_objective(path)(BATCH).item() == expected


def test_a_plugin_beside_the_file_is_read(tmp_path: Path) -> None:
    registries.use(None)
    text = """\
        import lossearch
        @lossearch.loss(task="multiclass")
        def from_beside(logits, *, scale: float = 1.0):
            return scale * logits.sum(1)
        @lossearch.hookimpl
        def register_losses():
            return [from_beside]
        """
    (tmp_path / "beside.py").write_text(textwrap.dedent(text))
    loss = {"name": "from_beside", "scale": 2}
    document = {
        "plugins": ["beside.py"],
        "objective": {"task": "multiclass", "terms": [{"loss": loss}]},
    }
    path = tmp_path / "objective.yaml"
    path.write_text(dump_yaml(document))
    value = load_objective(path, trust=True)(BATCH).item()
    assert value == pytest.approx(2 * LOGITS.sum().item() / 3)
    (tmp_path / "beside.py").write_text("1 / 0")
    with pytest.raises(PluginError, match=r"beside.* does not import: line 1: ZeroDivisionError"):
        load_objective(path, trust=True)
    (tmp_path / "beside.py").unlink()
    with pytest.raises(PluginError, match=r"beside\.py cannot be read"):
        load_objective(path, trust=True)


def test_a_file_that_holds_no_objective(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"best\.yaml cannot be read"):
        load_objective(tmp_path)
    path = tmp_path / "objective.yaml"
    path.write_text("task: multiclass\nterm: []\n")
    with pytest.raises(SpecError, match=r"objective\.yaml: unknown key 'term'; did you mean"):
        load_objective(path)
    path.write_text("task: [")
    with pytest.raises(SpecError, match="is not YAML"):
        load_objective(path)


def test_objectives_pickle_and_each_component_is_told_once() -> None:
    registry = load_plugins().registry
    members = ["ensloss", {"name": "adaface"}]
    terms = [{"loss": {"name": "loss_ensemble", "members": members, "mode": "mean"}}, "focal"]
    document = {"task": "multiclass", "terms": [terms[0], {"loss": terms[1], "weight": 0.5}]}
    objective = Objective.from_spec(document, registry=registry, num_classes=3)
    again = pickle.loads(pickle.dumps(objective))
    assert again.spec == objective.spec and again.reads == objective.reads
    assert again.state_dict().keys() == objective.state_dict().keys()
    told: list[int] = []
    inner: Any = objective.terms[0].loss.module  # type: ignore[union-attr]
    inner.members[0].module.start_epoch = told.append
    objective.start_epoch(3)
    assert told == [3]
