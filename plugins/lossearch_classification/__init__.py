"""Losses for multiclass, binary and multilabel targets, from cross-entropy to its rivals.

Each is a plain function of tensors (or a module, where it keeps state) that returns one value for
each sample, and can be used without the engine:
``from lossearch_classification import focal``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lossearch
from lossearch_classification.base import (
    binary_cross_entropy,
    cross_entropy,
    mse_logits,
    squentropy,
)
from lossearch_classification.confusion import any_loss
from lossearch_classification.ensemble import LossEnsemble
from lossearch_classification.ensloss import EnsLoss
from lossearch_classification.focal import dual_focal, focal, poly_loss
from lossearch_classification.imbalance import logit_adjusted
from lossearch_classification.label_distribution import AldrKl, ldr_kl
from lossearch_classification.margin import arcface, cosface, ldam
from lossearch_classification.multilabel import asymmetric
from lossearch_classification.projection import orthogonal_projection
from lossearch_classification.robust import generalized_cross_entropy, symmetric_cross_entropy

LOSSES: tuple[Callable[..., Any], ...] = (
    cross_entropy,
    binary_cross_entropy,
    mse_logits,
    squentropy,
    generalized_cross_entropy,
    symmetric_cross_entropy,
    logit_adjusted,
    focal,
    poly_loss,
    dual_focal,
    ldr_kl,
    AldrKl,
    asymmetric,
    any_loss,
    EnsLoss,
    LossEnsemble,
    cosface,
    arcface,
    ldam,
    orthogonal_projection,
)


@lossearch.hookimpl
def register_losses() -> tuple[Callable[..., Any], ...]:
    return LOSSES
