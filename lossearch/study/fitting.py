"""The network of a study on its data, and what about the two cannot go together."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lossearch.components.inputs import each
from lossearch.data import Data
from lossearch.errors import StudyError
from lossearch.models import Factory, Model, Network, WantsIntegers, build_network, thawed
from lossearch.registry import Registry
from lossearch.study.config import StudyConfig

_LOOKED_AT = 16  # training samples
_ALONE = "Expected more than 1 value per channel"  # how torch's batch norm says it


def fitted(model: Model, data: Data, registry: Registry, seed: int) -> tuple[Network, Data]:
    """The network, and the data as it takes them, with the notes of both.

    Raises:
        ModelError: it cannot be built, or does not fit the data.
    """
    try:
        network = _built(model, data, registry, seed)
    except WantsIntegers:
        whole = data.as_integers()
        if whole is None:
            raise
        data = whole
        network = _built(model, data, registry, seed)
    notes = (*data.info.notes, *network.notes, *_bounded(network, data))
    return network, replace(data, info=replace(data.info, notes=notes))


def _built(model: Model, data: Data, registry: Registry, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):  # one seed gives one backbone, pretrained or not
        torch.manual_seed(seed)
        return build_network(model, data.info, registry, samples=data.samples())


def _bounded(network: Network, data: Data) -> tuple[str, ...]:
    """A hint where scores look like probabilities, and nothing proves that they are."""
    if data.info.task not in ("binary", "multilabel"):
        return ()
    inputs = next(iter(data.train.batches(_LOOKED_AT)))["inputs"]
    try:
        logits = _tried(network, inputs, training=False)
    except Exception:  # said where providers are tried
        return ()
    if not ((logits >= 0) & (logits <= 1)).all():
        return ()
    return (
        "all scores of the untrained model lie between 0 and 1. If they are probabilities, let it "
        "return the scores before them: losses and metrics take what it gives as scores",
    )


def refuse_lone_samples(
    config: StudyConfig, network: Network, model: Model, data: Data, registry: Registry
) -> None:
    """Refuse batches of one sample where a batch norm would end every trial in its variance.

    Raises:
        StudyError: with what to change.
    """
    one = next(iter(data.train.batches(1)))["inputs"]
    if _fails_alone(network, one, training=False):
        raise StudyError(
            "the model's batch norm has no running statistics, so that it cannot score a sample "
            "alone; make it with track_running_stats=True"
        )
    stages = [("training", config.training.batch_size, network)]
    if config.finetune is not None:
        own = config.finetune.training(config.training)
        whole = _built(thawed(model), data, registry, config.seed)
        stages = [("finetune", own.batch_size, whole)]
    for stage, batch_size, of_stage in stages:
        if not data.train.lone(batch_size) or not _fails_alone(of_stage, one, training=True):
            continue
        if len(data.train) == 1:
            what = "there is one training sample; take more data, or a model without batch norm"
        elif data.train.bag is not None and batch_size > 1:
            what = (
                f"with {stage}.batch_size = {batch_size} a bag of one sample is left alone; "
                "change it, data.bags.size or data.limit"
            )
        else:
            what = f"{stage}.batch_size = {batch_size} is too small; make it at least 2"
        raise StudyError(f"a batch norm has no variance of a batch of one sample: {what}")


def _fails_alone(network: Network, one: Any, *, training: bool) -> bool:
    try:
        _tried(network, one, training=training)
    except ValueError as error:
        return _ALONE in str(error)
    except Exception:  # said elsewhere
        return False
    return False


def _tried(network: nn.Module, inputs: Any, *, training: bool) -> torch.Tensor:
    """A copy's logits; nothing moves."""
    device = next(network.parameters()).device
    own = copy.deepcopy(network).train(training)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return own(each(lambda tensor: tensor.to(device), inputs))["logits"]


def in_words(model: Model, network: Network, document: Any) -> Any:
    """How a ledger says which model it was: text for a user's own, the document of a named one."""
    if isinstance(model, Factory):
        return f"made by {model.name}: {network!r}"
    return repr(model) if isinstance(model, nn.Module) else document
