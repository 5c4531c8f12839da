"""What a decorator declares, and a component bound to its parameters."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossearch
from lossearch import Paper
from lossearch.components import FIELDS, TASKS, Component, component_of
from lossearch.errors import FieldError, PluginError
from tests import toys

BATCH = {"logits": torch.tensor([[1.0, -2.0], [0.5, 0.0]]), "targets": torch.tensor([0, 1])}


# Decorators -----------------------------------------------------------------------------------


def test_a_decorated_function_is_still_the_function() -> None:
    assert toys.toy_ce.__name__ == "toy_ce"
    assert pickle.loads(pickle.dumps(toys.toy_ce)) is toys.toy_ce
    assert torch.equal(toys.toy_power(BATCH["logits"]), torch.tensor([5.0, 0.25]))


def test_what_a_loss_declares() -> None:
    component = component_of(toys.toy_ce)
    assert (component.name, component.kind, component.tasks) == ("toy_ce", "loss", ("multiclass",))
    assert component.target is toys.toy_ce
    assert component.summary == "Cross-entropy with label smoothing."
    assert str(component.paper) == "A toy (2020), arXiv:0000.00000"
    assert str(Paper("Untitled", 1999)) == "Untitled (1999)"
    assert component.vmappable and not component.stateful and not component.auxiliary
    assert component.returns == "per_sample"


def test_what_the_other_kinds_declare() -> None:
    assert component_of(toys.toy_norm).auxiliary
    assert component_of(toys.toy_batch).returns == "batch"
    assert component_of(toys.toy_below).returns == "mask"
    assert component_of(toys.toy_ends).returns == "selection"
    assert component_of(toys.toy_teacher).gives == ("teacher_logits",)
    assert component_of(toys.toy_accuracy).maximize
    assert component_of(toys.toy_by_loss).tasks == TASKS
    kinds = {component_of(t).kind for t in toys.COMPONENTS}
    assert kinds == {"loss", "reweighting", "miner", "balancer", "provider", "metric"}


def test_a_class_is_stateful_and_not_vmappable_unless_it_says_so() -> None:
    component = component_of(toys.ToyRunning)
    assert component.stateful and not component.vmappable
    assert component.name == "toy_running"


def test_returns_may_depend_on_the_parameters() -> None:
    component = component_of(toys.toy_either)
    assert component.returns_at(component.complete({})) == "per_sample"
    assert component.returns_at(component.complete({"whole": True})) == "batch"


def test_a_class_needs_a_name() -> None:
    with pytest.raises(PluginError, match=r"class Nameless needs a name: @loss\(name=\.\.\.\)"):

        @lossearch.loss(task="binary")
        class Nameless(nn.Module):
            def forward(self, logits: Tensor) -> Tensor:
                return logits


@pytest.mark.parametrize("task", ["multiclas", ("binary", "multiclas")])
def test_an_unknown_task_is_refused(task: Any) -> None:
    with pytest.raises(PluginError, match=r"no task 'multiclas'; did you mean 'multiclass'\?"):
        lossearch.loss(task=task)


def test_component_of_wants_a_decorated_one() -> None:
    def plain(logits: Tensor) -> Tensor:
        return logits

    with pytest.raises(PluginError, match="'plain' is not a component; decorate it"):
        component_of(plain)
    with pytest.raises(PluginError, match="'3' is not a component"):
        component_of(3)

    class Child(toys.ToyRunning):
        """Inherits code, not the declaration."""

    with pytest.raises(PluginError, match="'Child' is not a component"):
        component_of(Child)
    found = component_of(toys.toy_ce)
    assert isinstance(found, Component) and component_of(found) is found


def test_every_field_has_a_shape_and_a_meaning() -> None:
    assert all(shape and meaning for shape, meaning in FIELDS.values())
    read = {f for t in toys.COMPONENTS for f in component_of(t).reads()}
    assert read <= set(FIELDS)


# Bound ----------------------------------------------------------------------------------------


def test_fields_that_are_not_read_do_no_harm() -> None:
    bound = component_of(toys.toy_power).build()
    extra = {**BATCH, "embeddings": torch.ones(2, 3), "epoch": 4, "nonsense": object()}
    assert torch.equal(bound(extra), torch.tensor([5.0, 0.25]))


def test_an_optional_field_is_used_where_it_is_there() -> None:
    bound = component_of(toys.toy_power).build()
    counts = torch.tensor([1, 2])
    assert bound({**BATCH, "class_counts": counts}).tolist() == [3.0, 0.25]
    assert bound({**BATCH, "class_counts": None}).tolist() == [5.0, 0.25]


def test_a_missing_field_names_what_the_batch_has() -> None:
    bound = component_of(toys.toy_ce).build()
    with pytest.raises(FieldError) as caught:
        bound({"logit": BATCH["logits"], "targets": BATCH["targets"], "index": None})
    message = str(caught.value)
    said = "toy_ce reads 'logits', which the batch lacks; did you mean 'logit'?"
    assert message.startswith(said)
    assert message.endswith("It has: logit, targets"), "a None field is not there"
    with pytest.raises(FieldError, match="It has: nothing"):
        bound({})


def test_a_bound_class_has_its_state_and_its_parameters() -> None:
    bound = component_of(toys.ToyRunning).build(num_classes=2, decay=0)
    bound(BATCH)
    assert bound.state_dict()["module.scale"].tolist() == [0.75, 1.0]
    bound.eval()
    bound({"logits": 100 * BATCH["logits"]})
    assert bound.state_dict()["module.scale"].tolist() == [0.75, 1.0]

    learned = component_of(toys.ToyLearned).build(init=0.5)
    assert [p.item() for p in learned.parameters()] == [0.5]
    assert list(component_of(toys.toy_ce).build().parameters()) == []


def test_a_listener_hears_of_epochs_and_others_do_not_mind() -> None:
    bound = component_of(toys.ToyRunning).build(num_classes=2)
    bound.start_epoch(0)
    bound.end_epoch(0)
    assert isinstance(bound.module, toys.ToyRunning)
    assert bound.module.epochs == [("start", 0), ("end", 0)]
    for other in (toys.toy_ce, toys.ToyLearned):
        deaf = component_of(other).build()
        deaf.start_epoch(0)
        deaf.end_epoch(0)


def test_its_repr_shows_name_and_parameters() -> None:
    assert "toy_ce(smoothing=0.1)" in repr(component_of(toys.toy_ce).build(smoothing=0.1))
