"""Models: a backbone that embeds and a head that scores, from a name or from the user's module."""

from lossearch.models.build import Model, ModelConfig, build_network, thawed
from lossearch.models.factory import Factory
from lossearch.models.network import CosineHead, Frozen, LinearHead, Network
from lossearch.models.probe import WantsIntegers
from lossearch.models.zoo import model_components

__all__ = [
    "CosineHead",
    "Factory",
    "Frozen",
    "LinearHead",
    "Model",
    "ModelConfig",
    "Network",
    "WantsIntegers",
    "build_network",
    "model_components",
    "thawed",
]
