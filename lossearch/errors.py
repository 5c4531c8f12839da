"""What lossearch raises for a person to read, and how a message names the nearest match."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class LossearchError(Exception):
    """Base of every error that is meant for a person; the command line prints its text alone."""


class ParameterError(LossearchError, ValueError):
    """A hyperparameter is unknown, outside its range, or of the wrong type."""


class FieldError(LossearchError, ValueError):
    """A batch lacks a field that a component reads, or the field has the wrong shape or values."""


class NotFiniteError(FieldError):
    """A loss or a gradient that others act on is NaN or infinite: a training has diverged."""


class UnknownNameError(LossearchError, LookupError):
    """A name (component, metric, key, space) that nothing answers to."""


class PluginError(LossearchError):
    """A plugin cannot be loaded, or what it offers is not usable."""


class TrustError(PluginError):
    """Code that came with a study would run, and nobody has said that it may.

    Attributes:
        files: The one-file plugins (:class:`lossearch.plugins.FilePlugin`).
    """

    def __init__(self, message: str, files: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.files = tuple(files)


class SpecError(LossearchError, ValueError):
    """An objective or a space is not a valid document."""


class InfeasibleError(SpecError):
    """An objective is well formed but does not fit the task, the model or the providers."""


class DataError(LossearchError, ValueError):
    """A dataset cannot be read, or cannot be used as it is."""


class ModelError(LossearchError, ValueError):
    """A model cannot be built, or does not fit the data or the objective."""


class StudyError(LossearchError):
    """A study cannot start, go on or be read."""


class StorageError(StudyError):
    """What a study keeps cannot be written or read: no room, no right, no folder, a bad disk.

    No trial is at fault: the study stops, and goes on by ``lossearch resume`` once that is mended.
    """


class BusyError(StudyError):
    """Another process holds the study."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The end of a message: ``; did you mean 'focal'?``, or nothing without a near match."""
    match = get_close_matches(str(name)[:100], list(map(str, options)), n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""


def unknown(what: str, name: str, options: Iterable[str]) -> str:
    """A message for a name that does not exist: the nearest match, else all that is allowed."""
    allowed = sorted(options)
    hint = did_you_mean(name, allowed)
    if hint:
        return f"there is no {what} '{name}'{hint}"
    listed = ", ".join(allowed[:20]) + (", …" if len(allowed) > 20 else "")
    return f"there is no {what} '{name}'. There is: {listed or 'none'}"
