"""What the author of a component imports: decorators, ranges, fields."""

from lossearch.components.component import Bound, Component, Paper, component_of
from lossearch.components.decorators import (
    balancer,
    dataset,
    loss,
    metric,
    miner,
    model,
    provider,
    reweighting,
)
from lossearch.components.drawing import Drawing
from lossearch.components.fields import FIELDS, TASKS
from lossearch.components.params import ByTask, Choices, Given, Range, When
from lossearch.components.tensors import raise_precision, readable

__all__ = [
    "FIELDS",
    "TASKS",
    "Bound",
    "ByTask",
    "Choices",
    "Component",
    "Drawing",
    "Given",
    "Paper",
    "Range",
    "When",
    "balancer",
    "component_of",
    "dataset",
    "loss",
    "metric",
    "miner",
    "model",
    "provider",
    "raise_precision",
    "readable",
    "reweighting",
]
