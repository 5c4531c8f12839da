"""Models: a backbone that embeds and a head that scores, from a name or from the user's module."""

from lossearch.models.build import ModelConfig, build_network, thawed
from lossearch.models.network import CosineHead, Frozen, LinearHead, Network
from lossearch.models.zoo import model_components

__all__ = [
    "CosineHead",
    "Frozen",
    "LinearHead",
    "ModelConfig",
    "Network",
    "build_network",
    "model_components",
    "thawed",
]
