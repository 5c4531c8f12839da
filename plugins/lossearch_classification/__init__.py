"""Losses for multiclass, binary and multilabel targets, from cross-entropy to its rivals.

Each is a plain function of tensors (or a module, where it keeps state) that returns one value for
each sample, and can be used without the engine:
``from lossearch_classification import focal``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lossearch
from lossearch_classification.adaptive_margin import AdaFace, CurricularFace
from lossearch_classification.adversarial import SmoothAdversarialCompSum
from lossearch_classification.aggregate import (
    bag_loss,
    instance_loss,
    interpolated_bag_loss,
    set_level,
)
from lossearch_classification.angular import NormalizedSoftmax, sphereface
from lossearch_classification.auc import AucMargin, mann_whitney
from lossearch_classification.base import (
    binary_cross_entropy,
    cross_entropy,
    mse_logits,
    squentropy,
)
from lossearch_classification.confusion import any_loss
from lossearch_classification.density import UnnormalizedNll
from lossearch_classification.dropout import MultiSampleDropout
from lossearch_classification.elastic import ElasticArcFace, ElasticCosFace
from lossearch_classification.energy import JemDatBce
from lossearch_classification.ensemble import LossEnsemble
from lossearch_classification.ensloss import EnsLoss
from lossearch_classification.focal import dual_focal, focal, poly_loss
from lossearch_classification.hinge import binary_margin, multiclass_hinge
from lossearch_classification.imbalance import logit_adjusted
from lossearch_classification.imprecise import ImpreciseLabel
from lossearch_classification.label_distribution import AldrKl, ldr_kl
from lossearch_classification.label_ranking import DecoupledSoftmax, Mlcd, SoftTopK
from lossearch_classification.legendretron import LegendreTron
from lossearch_classification.long_tail import MultiFocalModifier, hybrid_multilabel
from lossearch_classification.margin import arcface, cosface, ldam
from lossearch_classification.multilabel import asymmetric, asymmetric_single_label
from lossearch_classification.naive_bayes import NaiveBayesHead
from lossearch_classification.negatives import unpg
from lossearch_classification.overlap import self_adjusting_dice, sorensen_dice, tversky_index
from lossearch_classification.projection import orthogonal_projection
from lossearch_classification.robust import (
    comp_sum,
    generalized_cross_entropy,
    probability_mae,
    symmetric_cross_entropy,
)
from lossearch_classification.source_free import source_free_entropy_prior
from lossearch_classification.spherical import log_z_penalty, z_loss
from lossearch_classification.symmetry import symface

LOSSES: tuple[Callable[..., Any], ...] = (
    binary_cross_entropy,
    cross_entropy,
    mse_logits,
    squentropy,
    AdaFace,
    CurricularFace,
    SmoothAdversarialCompSum,
    bag_loss,
    instance_loss,
    interpolated_bag_loss,
    set_level,
    NormalizedSoftmax,
    sphereface,
    AucMargin,
    mann_whitney,
    any_loss,
    UnnormalizedNll,
    MultiSampleDropout,
    ElasticArcFace,
    ElasticCosFace,
    JemDatBce,
    LossEnsemble,
    EnsLoss,
    dual_focal,
    focal,
    poly_loss,
    multiclass_hinge,
    binary_margin,
    logit_adjusted,
    ImpreciseLabel,
    AldrKl,
    ldr_kl,
    DecoupledSoftmax,
    Mlcd,
    SoftTopK,
    LegendreTron,
    MultiFocalModifier,
    hybrid_multilabel,
    arcface,
    cosface,
    ldam,
    asymmetric,
    asymmetric_single_label,
    NaiveBayesHead,
    unpg,
    self_adjusting_dice,
    sorensen_dice,
    tversky_index,
    orthogonal_projection,
    generalized_cross_entropy,
    symmetric_cross_entropy,
    probability_mae,
    comp_sum,
    source_free_entropy_prior,
    z_loss,
    log_z_penalty,
    symface,
)


@lossearch.hookimpl
def register_losses() -> tuple[Callable[..., Any], ...]:
    return LOSSES
