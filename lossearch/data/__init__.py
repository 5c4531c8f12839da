"""Datasets: reading them, dealing them out, making them worse, and giving batches of them."""

from lossearch.data.batches import Data, DataInfo, Split
from lossearch.data.config import BagsConfig, DataConfig, ImbalanceConfig, NoiseConfig, SplitConfig
from lossearch.data.dataset import Dataset, ImageFiles, as_dataset
from lossearch.data.sources import dataset_components
from lossearch.data.splits import prepare, prepare_dataset

__all__ = [
    "BagsConfig",
    "Data",
    "DataConfig",
    "DataInfo",
    "Dataset",
    "ImageFiles",
    "ImbalanceConfig",
    "NoiseConfig",
    "Split",
    "SplitConfig",
    "as_dataset",
    "dataset_components",
    "prepare",
    "prepare_dataset",
]
