"""A study's document: what is searched, on what, how, and where the results go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lossearch.data import DataConfig
from lossearch.documents import parse, read_yaml, without_password
from lossearch.errors import StudyError
from lossearch.executors import ExecutorConfig
from lossearch.features import FeaturesConfig
from lossearch.models import ModelConfig
from lossearch.spec import ComponentSpec
from lossearch.training import TrainingConfig
from lossearch.training.stages import FinetuneConfig
from lossearch.trials.proposer import SearchConfig

_STRICT = ConfigDict(extra="forbid", frozen=True)


class ConfirmConfig(BaseModel):
    """How the verdict is reached: so many finalists, trained again on so many fresh seeds."""

    model_config = _STRICT
    top: int = Field(default=3, ge=1, le=20)
    seeds: int = Field(default=5, ge=2, le=100)


class FairnessConfig(BaseModel):
    """What keeps a larger learning rate from passing for a better loss."""

    model_config = _STRICT
    gradient_norm: bool = Field(
        default=True, description="bring every objective to the baseline's initial gradient norm"
    )
    probe_lr: bool = Field(
        default=True,
        description="train each trial at three learning rates up to the first rung, where trials "
        "train as a stack, and go on with the best",
    )


class TrackingConfig(BaseModel):
    """Where MLflow keeps the runs: any tracking URI.

    A password in it is not kept with the study: ``resume`` and ``report`` take it from the
    environment, ``MLFLOW_TRACKING_PASSWORD``.
    """

    model_config = _STRICT
    uri: str | None = Field(
        default=None, description="sqlite:///<output's parent>/mlflow.db by default"
    )
    experiment: str = Field(default="lossearch", min_length=1, max_length=200)

    @field_validator("uri")
    @classmethod
    def _is_uri(cls, uri: str | None) -> str | None:
        if uri is not None and not re.fullmatch(r"databricks|[A-Za-z][\w+.-]*://\S+", uri):
            raise ValueError(
                "a tracking URI is https://..., sqlite:///FILE.db, postgresql://... or databricks"
            )
        return uri


class StudyConfig(BaseModel):
    """A study file. Keys left out take these defaults; the resolved file goes into the output."""

    model_config = _STRICT

    name: str = Field(default="study", min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    data: DataConfig
    model: ModelConfig = ModelConfig(name="mlp")
    space: str | dict[str, Any] | None = Field(
        default=None, description="a name, a file or a document; by default the task's own"
    )
    metric: ComponentSpec | tuple[ComponentSpec, ...] = Field(
        default=ComponentSpec(name="accuracy"),
        description="what is searched by; of several, trade-offs, the first one leads",
    )
    metrics: tuple[ComponentSpec, ...] = Field(
        default=(), description="measured too, but not searched by"
    )
    baseline: ComponentSpec | dict[str, Any] | None = Field(
        default=None, description="a loss, or a space of its own; the task's standard by default"
    )
    search: SearchConfig = SearchConfig()
    training: TrainingConfig = TrainingConfig()
    fairness: FairnessConfig = FairnessConfig()
    features: FeaturesConfig = FeaturesConfig()
    finetune: FinetuneConfig | None = Field(
        default=None, description="a frozen model's best objectives train the whole network"
    )
    confirm: ConfirmConfig = ConfirmConfig()
    executor: ExecutorConfig = ExecutorConfig()
    tracking: TrackingConfig | None = TrackingConfig()
    providers: tuple[ComponentSpec, ...] = ()
    plugins: tuple[str, ...] = ()
    output: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = dict(value)
            for key in ("data", "executor"):
                if isinstance(value.get(key), str):
                    value[key] = {"name": value[key]}
            if isinstance(value.get("baseline"), str):
                value["baseline"] = {"name": value["baseline"]}
        return value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if name != name.strip() or not name.isprintable():
            raise ValueError("a study's name is one line of text, without space around it")
        if name in (".", "..") or "/" in name or "\\" in name or len(name.encode()) > 200:
            raise ValueError(
                "a study's name is that of its folder: without / and \\, up to 200 bytes. "
                "'output' says where the folder lies"
            )
        return name

    @property
    def deciding(self) -> tuple[ComponentSpec, ...]:
        """The metrics that are searched by."""
        return self.metric if isinstance(self.metric, tuple) else (self.metric,)

    def all_metrics(self) -> tuple[ComponentSpec, ...]:
        """The metrics that decide, then those that are only measured."""
        names = {m.name for m in self.deciding}
        return (*self.deciding, *(m for m in self.metrics if m.name not in names))

    @field_validator("metric")
    @classmethod
    def _some_metric(cls, value: Any) -> Any:
        names = [m.name for m in value] if isinstance(value, tuple) else [value.name]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"give one metric or several different ones, not {names}")
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value

    def document(self) -> dict[str, Any]:
        """Plain data for ``study.yaml``; reading it back gives the same study.

        A null is kept, since it may stand in place of a default: no rungs, no tracking.
        """
        return self.model_dump(mode="json")

    def stored(self) -> dict[str, Any]:
        """The document as it is kept and shown: without the password of ``tracking.uri``."""
        document = self.document()
        if document["tracking"] is not None and document["tracking"]["uri"] is not None:
            document["tracking"]["uri"] = without_password(document["tracking"]["uri"])
        return document


def read_study(path: Path, overrides: dict[str, Any] | None = None) -> StudyConfig:
    """A study file with overrides from the command line, its paths made absolute.

    Raises:
        StudyError: the file is missing, is not YAML or is empty; or a key or value is wrong, with
            the nearest allowed one.
    """
    document = read_yaml(path, StudyError)
    document.setdefault("name", path.stem)
    document = expand(document, overrides or {})
    _absolute_paths(document, path.parent)
    return parse(StudyConfig, document, str(path), StudyError)


def expand(document: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of a study's document with overrides by dotted key: ``search.trials``."""
    document = dict(document)
    for dotted, value in overrides.items():
        *outer, last = dotted.split(".")
        inside = document
        for key in outer:
            held = inside.get(key) or {}
            inside[key] = {"name": held} if isinstance(held, str) else held
            if not isinstance(inside[key], dict):
                break  # no section at all, which validation will say
            inside[key] = inside = dict(inside[key])
        else:
            inside[last] = value
    return document


def _absolute_paths(document: dict[str, Any], base: Path) -> None:
    """A path in a study file is looked for beside the file, then in the working directory."""

    def resolve(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            path = Path(value).expanduser()
            if path.is_absolute():
                return str(path)
            return str((base / path if os.path.exists(base / path) else path).resolve())
        except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, NUL
            raise StudyError(f"{value[:60]!r} cannot be a path: {error}") from None

    data = document.get("data")
    if isinstance(data, dict):
        for key in ("path", "root"):
            if key in data:
                data[key] = resolve(data[key])
        # a Hugging Face dataset is a name on the hub, or a folder
        if data.get("name") == "huggingface" and os.path.exists(base / str(data.get("dataset"))):
            data["dataset"] = resolve(data["dataset"])
    model = document.get("model")
    if isinstance(model, dict) and "checkpoint" in model:
        model["checkpoint"] = resolve(model["checkpoint"])
    providers = document.get("providers")
    for provider in providers if isinstance(providers, list) else ():
        if isinstance(provider, dict) and "checkpoint" in provider:
            provider["checkpoint"] = resolve(provider["checkpoint"])
    if isinstance(document.get("plugins"), list):
        document["plugins"] = [resolve(p) for p in document["plugins"]]
    search = document.get("search")
    if isinstance(search, dict) and isinstance(search.get("warm_start"), list):
        search["warm_start"] = [resolve(folder) for folder in search["warm_start"]]
    features = document.get("features")
    if isinstance(features, dict) and "folder" in features:
        features["folder"] = resolve(features["folder"])
    space = document.get("space")
    if isinstance(space, str) and space.endswith((".yaml", ".yml")):
        document["space"] = resolve(space)
