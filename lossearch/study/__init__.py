"""A study, from its file to its verdict."""

from lossearch.study.config import StudyConfig, read_study
from lossearch.study.session import StudyResult, resume, start

__all__ = ["StudyConfig", "StudyResult", "read_study", "resume", "start"]
