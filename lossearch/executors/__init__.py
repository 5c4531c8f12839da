"""Where units of work run: in a process beside this one, or on Ray."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lossearch.errors import unknown
from lossearch.executors.bench import Bench
from lossearch.executors.source import Source

EXECUTORS = ("local", "ray")


class Executor(Protocol):
    """Runs a source's units until it is over."""

    @property
    def workers(self) -> int:
        """How many units run side by side."""
        ...

    @property
    def devices(self) -> float:
        """GPUs of one worker, a fraction where several share one; 1 without any."""
        ...

    def run(self, bench: Bench, source: Source) -> None:
        """Run every unit; a KeyboardInterrupt stops it and passes through.

        Args:
            bench: The study's in the driver's reach, whose recipe all units share.
            source: Who hands out the units.
        """
        ...


class ExecutorConfig(BaseModel):
    """The ``executor:`` section of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "local"
    address: str | None = Field(default=None, description="of a running Ray cluster, or 'auto'")
    workers: int | None = Field(
        default=None, ge=1, le=4096, description="units side by side; as many as fit"
    )
    cpus: float = Field(default=1.0, gt=0, le=4096, description="CPU cores of one worker")
    gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs of one worker, a fraction to share one; 1 where there is one",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in EXECUTORS:
            raise ValueError(unknown("executor", name, EXECUTORS))
        return name


def make_executor(config: ExecutorConfig) -> Executor:
    """The executor of a study.

    Raises:
        StudyError: no Ray cluster answers, or a worker fits nowhere on it.
    """
    if config.name == "ray":
        from lossearch.executors.ray import RayExecutor

        return RayExecutor(config)
    from lossearch.executors.local import LocalExecutor

    return LocalExecutor()
