"""Training: one objective on one model and data, and the bench on which units of it are run."""

from lossearch.training.config import TrainingConfig
from lossearch.training.unit import Job, JobResult, Recipe, Unit, UnitResult
from lossearch.training.workbench import Workbench

__all__ = ["Job", "JobResult", "Recipe", "TrainingConfig", "Unit", "UnitResult", "Workbench"]
