"""The registry: one name, one component, and a message that helps where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import lossearch
from lossearch import registry as registries
from lossearch.components import component_of
from lossearch.errors import LossearchError, ParameterError, PluginError, UnknownNameError
from tests.toys import COMPONENTS, toy_ce, toy_power, toy_registry


@pytest.fixture
def toys() -> Iterator[registries.Registry]:
    registry = toy_registry()
    registries.use(registry)
    yield registry
    registries.use(None)


def test_it_holds_what_was_added() -> None:
    registry = toy_registry()
    assert len(registry) == len(COMPONENTS)
    assert {c.name for c in registry} == {component_of(t).name for t in COMPONENTS}
    assert "toy_ce" in registry and "focal" not in registry
    assert registry.get("toy_ce") is component_of(toy_ce)
    assert registry.owner("toy_ce") == "toys"


def test_a_taken_name_names_both_owners() -> None:
    registry = toy_registry()

    @lossearch.metric(name="toy_ce", task="multiclass")
    def other(logits: torch.Tensor) -> float:
        return 0.0

    with pytest.raises(PluginError) as caught:
        registry.add(component_of(other), "file:mine")
    message = str(caught.value)
    for part in ("metric 'toy_ce'", "loss 'toy_ce'", "'file:mine'", "'toys'", "Rename"):
        assert part in message
    assert registry.get("toy_ce").kind == "loss", "the first one stays"


def test_a_taken_space_name_is_refused() -> None:
    registry = toy_registry()
    registry.add_space("small", "task: multiclass", "toys")
    with pytest.raises(PluginError, match="space 'small' of 'file:mine'"):
        registry.add_space("small", "task: binary", "file:mine")
    assert registry.spaces["small"] == "task: multiclass"


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no loss 'toy_cee'; did you mean 'toy_ce'\?"):
        toy_registry().get("toy_cee", "loss")
    with pytest.raises(UnknownNameError, match=r"plugins list --kind loss"):
        toy_registry().get("toy_cee", "loss")


def test_the_nearest_is_of_the_kind_that_is_wanted() -> None:
    with pytest.raises(UnknownNameError) as caught:
        toy_registry().get("toy_belo", "reweighting")
    assert "'toy_below'" not in str(caught.value)


def test_without_a_near_name_all_are_listed() -> None:
    with pytest.raises(UnknownNameError, match=r"There is: toy_below, toy_ends"):
        toy_registry().get("zzz", "miner")
    with pytest.raises(UnknownNameError, match="There is: none"):
        toy_registry().get("zzz", "dataset")


def test_a_component_of_another_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'toy_ce' is a loss, and a miner is wanted here"):
        toy_registry().get("toy_ce", "miner")


def test_list_sorts_and_filters() -> None:
    registry = toy_registry()
    losses = [c.name for c in registry.list("loss")]
    assert losses == sorted(losses) and "toy_below" not in losses
    binary = [c.name for c in registry.list("loss", "binary")]
    assert "toy_power" in binary and "toy_ce" not in binary
    assert registry.list("loss", "regression") == []
    assert len(registry.list()) == len(registry)


def test_build_applies_the_task(toys: registries.Registry) -> None:
    logits = torch.tensor([[1.0, 3.0]])
    assert toys.build("toy_power", task="multiclass")({"logits": logits}).tolist() == [10.0]
    assert toys.build("toy_power", task="binary")({"logits": logits}).tolist() == [5.0]
    with pytest.raises(UnknownNameError, match="a metric is wanted"):
        toys.build("toy_power", kind="metric")


def test_the_public_get_and_build_use_the_registry_in_use(toys: registries.Registry) -> None:
    assert lossearch.get("toy_power").target is toy_power
    bound = lossearch.build("toy_power", exponent=1, scale=0.5)
    assert bound({"logits": torch.tensor([[2.0, -4.0]])}).tolist() == [3.0]
    with pytest.raises(ParameterError, match="exponent"):
        lossearch.build("toy_power", exponent=0.5)


def test_without_one_in_use_it_is_the_installed_plugins(toys: registries.Registry) -> None:
    registries.use(None)
    assert "toy_ce" not in registries.current()
    assert registries.current() is registries.current(), "loaded once"


def test_every_error_is_caught_by_one_type(toys: registries.Registry) -> None:
    with pytest.raises(LossearchError):
        lossearch.get("nope")
    with pytest.raises(LookupError):
        lossearch.get("nope")
    with pytest.raises(ValueError, match="no parameter"):
        lossearch.build("toy_ce", gamma=1)
