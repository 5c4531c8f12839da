"""Training: one objective on one model and data, and the bench on which units of it are run."""

from lossearch.training.config import TrainingConfig
from lossearch.training.workbench import Job, JobResult, Recipe, Unit, UnitResult, Workbench

__all__ = ["Job", "JobResult", "Recipe", "TrainingConfig", "Unit", "UnitResult", "Workbench"]
