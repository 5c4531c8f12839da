"""From a study's document to all that a run needs: plugins, data, model, space, baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lossearch import registry as registries
from lossearch.components import Component
from lossearch.data import Data, Dataset, prepare, prepare_dataset
from lossearch.documents import parse, read_yaml
from lossearch.errors import InfeasibleError, StudyError, unknown
from lossearch.feasibility import FIXED_EMBEDDINGS, SOFT_TARGETS
from lossearch.features import HEAD, cached
from lossearch.models import Factory, Model, Network, thawed
from lossearch.plugins import FilePlugin, Plugins, load_plugins, read_plugin_files
from lossearch.registry import Registry
from lossearch.space import Space
from lossearch.spec import ComponentSpec, ObjectiveSpec
from lossearch.study.config import StudyConfig
from lossearch.study.fitting import fitted, refuse_lone_samples
from lossearch.training import Job, Recipe
from lossearch.training.evaluate import refuse_valueless
from lossearch.training.inspection import Inspection
from lossearch.training.providers import available_fields, try_providers
from lossearch.training.trainer import facts_of, pick_device, pick_precision
from lossearch.trials.fingerprint import Fingerprints
from lossearch.trials.probe import Probe
from lossearch.trials.proposer import Proposer
from lossearch.trials.rungs import Rungs
from lossearch.trials.warm import Conditions, WarmStart, read_given, read_warm_start

# What a person trains with today, and where a search begins when no space is named.
STANDARD_LOSS = {
    "multiclass": "cross_entropy",
    "binary": "binary_cross_entropy",
    "multilabel": "binary_cross_entropy",
}
STANDARD_SPACE = {
    "multiclass": "classification",
    "binary": "binary_imbalanced",
    "multilabel": "multilabel",
}
_PACKAGES = ("lossearch", "torch", "timm", "ray", "optuna", "mlflow", "pydantic")


@dataclass
class Setup:
    """A study, ready to run."""

    config: StudyConfig
    plugins: Plugins
    files: tuple[FilePlugin, ...]
    data: Data
    model: Model
    network: Network
    available: frozenset[str]
    space: Space
    baseline: Space
    deciding: tuple[Component, ...]
    provided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by each provider
    warm: WarmStart = field(default_factory=WarmStart)
    whole: tuple[Data, Any] | None = None  # the data and the model behind cached embeddings

    @property
    def metric(self) -> Component:
        """The metric that decides; of several, the first."""
        return self.deciding[0]

    @property
    def maximize(self) -> tuple[bool, ...]:
        """Whether more is better, for each metric that decides."""
        return tuple(m.maximize for m in self.deciding)

    @property
    def registry(self) -> Registry:
        return self.plugins.registry

    @property
    def rungs(self) -> Rungs:
        return Rungs.make(self.config.search.rungs, self.config.training.epochs)

    def proposer(self) -> Proposer:
        return Proposer(
            self.space,
            self.baseline,
            self.config.training.tuning(),
            self.config.search,
            maximize=self.maximize,
            seed=self.config.seed,
            given=[*self.given, *self.warm.given],
            warm=self.warm.trials,
        )

    @property
    def given(self) -> list[ObjectiveSpec]:
        """The objectives that the study is to begin with."""
        return read_given(
            self.config.search.given,
            self.data.info.task,
            registry=self.registry,
            available=self.available,
            facts=self.facts,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What components may be given of the study."""
        return {**facts_of(self.data), "seed": self.config.seed}

    def warmed(self, study: Mapping[str, Any]) -> Setup:
        """With what earlier studies give to this one, by its ledger's ``study`` row."""
        warm = read_warm_start(
            self.config.search.warm_start,
            Conditions.of(study),
            space=self.space,
            baseline=self.baseline,
            tuning=self.config.training.tuning(),
        )
        return replace(self, warm=warm)

    def probe(self) -> Probe:
        """What objectives are looked at on, before they train."""
        info, training = self.data.info, self.config.training
        return Probe.make(
            info.task,
            num_classes=info.num_classes,
            class_counts=info.class_counts,
            train_size=info.train_size,
            total_steps=math.ceil(info.train_size / training.batch_size) * training.epochs,
            seed=self.config.seed,
            soft=info.soft_targets,
        )

    @property
    def bf16(self) -> bool:
        """Whether trials train in bfloat16, as far as this machine can tell."""
        training = self.config.training
        chosen = pick_precision(training.precision, pick_device(training.device))
        return chosen is torch.bfloat16

    def fingerprints(self) -> Fingerprints:
        """An empty index; the factor of an objective matters where nothing takes it out."""
        training = self.config.training
        free = training.optimizer != "sgd" and training.clip_norm is None
        return Fingerprints(scale_free=free or self.config.fairness.gradient_norm)

    def bare(self, spec: ObjectiveSpec) -> ObjectiveSpec:
        """An objective without its factor, where the study sets it."""
        set_here = self.config.fairness.gradient_norm
        return spec.model_copy(update={"scale": 1.0}) if set_here else spec

    @property
    def inspection(self) -> Inspection:
        """With what objectives are looked at before they train."""
        fair = self.config.fairness.gradient_norm
        reference = next(iter(self.baseline.references()))[0] if fair else None
        return Inspection(self.probe(), self.bf16, reference, self.config.seed)

    def with_features(self, folder: Path, progress: Callable[[int, int], None]) -> Setup:
        """Where the backbone is frozen, the search of heads on its embeddings."""
        if not self.network.frozen:
            return self
        config = self.config
        heads = cached(
            self.data,
            self.network,
            Path(config.features.folder or folder.parent / "features"),
            views=config.features.views,
            device=pick_device(config.training.device),
            progress=progress,
        )
        return replace(self, data=heads, model=HEAD, whole=(self.data, self.model))

    def final_job(
        self, trial: int, objective: dict[str, Any], values: dict[str, float], seed: int
    ) -> Job:
        """A whole training that the verdict counts, with its test: of the last stage."""
        finetune = self.config.finetune
        epochs = finetune.epochs if finetune is not None else self.config.training.epochs
        full = finetune is not None
        return Job(trial, objective, values, seed, epochs, test=True, full=full)

    def recipe(self, checkpoints: Path) -> Recipe:
        recipe = self._recipe(checkpoints)
        finetune = self.config.finetune
        if finetune is None or self.whole is None:
            return recipe
        data, model = self.whole
        return replace(
            recipe,
            full=replace(
                recipe,
                data=data,
                model=thawed(model),
                training=finetune.training(self.config.training),
                checkpoints=checkpoints / "full",
            ),
        )

    def _recipe(self, checkpoints: Path) -> Recipe:
        return Recipe(
            data=self.data,
            model=self.model,
            training=self.config.training,
            metrics=self.config.all_metrics(),
            checkpoints=checkpoints,
            providers=self.config.providers,
            files=self.files,
            plugins=tuple(self.plugins.loaded),
            inspection=self.inspection,
        )


def set_up(
    config: StudyConfig,
    *,
    files: tuple[FilePlugin, ...] | None = None,
    dataset: Dataset | None = None,
    module: nn.Module | Factory | None = None,
) -> Setup:
    """Load, split and compile everything, refusing what cannot work before it costs anything.

    Args:
        config: The study.
        files: One-file plugins; read from ``config.plugins`` where left out.
        dataset: The user's own data, in place of ``config.data``'s loader.
        module: The user's own model, or what makes it.

    Raises:
        LossearchError: with what was given, what is allowed, and what to do.
    """
    if files is None:
        files = read_plugin_files(config.plugins)
    plugins = load_plugins(files, strict_files=True)
    registry = plugins.registry
    registries.use(registry)
    metrics = [registry.get(m.name, "metric") for m in config.all_metrics()]
    _check_names(config, registry)
    if dataset is not None:
        data = prepare_dataset(dataset, config.data, seed=config.seed)
    else:
        data = prepare(config.data, registry, seed=config.seed)
    task = data.info.task
    for metric in metrics:
        if task not in metric.tasks:
            fitting = [m.name for m in registry.list("metric", task)]
            raise InfeasibleError(
                f"metric {metric.name} serves {' and '.join(metric.tasks)}; the data is {task}. "
                f"Metrics for it: {', '.join(fitting)}"
            )
    refuse_valueless(
        data,
        {
            metric.name: metric.build(task=task, **spec.params)
            for spec, metric in zip(config.all_metrics(), metrics, strict=True)
        },
    )
    model = module if module is not None else config.model
    network, data = fitted(model, data, registry, config.seed)
    _check_stages(config, network)
    providers = [registry.get(p.name, "provider") for p in config.providers]
    # refused now rather than by every trial: bags that no batch holds, batches of one sample for
    # a batch norm, providers that cannot run
    data.train.batches(config.training.batch_size, generator=torch.Generator())
    refuse_lone_samples(config, network, model, data, registry)
    facts = {**facts_of(data), "seed": config.seed}
    provided = try_providers(network, config.providers, registry, data, facts)
    available = available_fields(task, (*network.gives, *data.train.gives), providers)
    available -= {f for p in providers for f in p.gives if f not in provided[p.name]}
    if network.frozen:
        available |= {FIXED_EMBEDDINGS}
    if data.info.soft_targets:
        available |= {SOFT_TARGETS}
    if data.info.kind == "several":
        available -= {"inputs"}  # a component reads one tensor
    where = {"registry": registry, "task": task, "available": available}
    setup = Setup(
        config=config,
        plugins=plugins,
        files=files,
        data=data,
        model=model,
        network=network,
        available=available,
        space=Space.from_document(space_document(config.space, registry, task), **where),
        baseline=Space.from_document(_baseline_document(config, task), **where),
        deciding=tuple(metrics[: len(config.deciding)]),
        provided=provided,
    )
    _ = setup.given  # refused now rather than when its turn comes
    return setup


def space_document(
    space: str | dict[str, Any] | None, registry: Registry, task: str
) -> dict[str, Any] | str:
    """The document of a space given by name, by file, inline, or left to the task.

    Raises:
        UnknownNameError: no space has the name, with the nearest one.
        SpecError: the file is not a space.
    """
    if isinstance(space, dict):
        return space
    name = space or STANDARD_SPACE.get(task, "everything")
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    if name not in registry.spaces:
        raise StudyError(
            f"{unknown('space', name, registry.spaces)} (or give the path of a .yaml file)"
        )
    return registry.spaces[name]


def _baseline_document(config: StudyConfig, task: str) -> dict[str, Any]:
    """The baseline as a space; a bare loss is fixed at what it says, its defaults otherwise."""
    given = config.baseline
    if isinstance(given, dict) and "terms" in given:
        return {"task": task, **given}
    if given is None:
        spec = ComponentSpec(name=STANDARD_LOSS.get(task, "mse"))
    else:
        spec = parse(ComponentSpec, given, "baseline", StudyError)
    registry = registries.current()
    component = registry.get(spec.name, "loss")
    searched = component.signature.domains
    fields = component.Params.model_fields
    fixed = {k: fields[k].default for k in searched}
    return {"task": task, "terms": [{"loss": {"name": spec.name, **fixed, **spec.params}}]}


def _check_stages(config: StudyConfig, network: Network) -> None:
    if network.frozen:
        return
    asked = {"finetune": config.finetune is not None, "features.views": config.features.views > 1}
    for section, given in asked.items():
        if given:
            raise StudyError(
                f"{section} is for a frozen model, whose heads are searched; add freeze: true to "
                f"the model, or leave {section} out"
            )


def _check_names(config: StudyConfig, registry: Registry) -> None:
    """Names are checked before the data are read, which may take long."""
    if config.data.name != "user":
        registry.get(config.data.name, "dataset")
    if isinstance(config.space, str) and not config.space.endswith((".yaml", ".yml")):
        space_document(config.space, registry, "")
    if isinstance(config.baseline, ComponentSpec):
        registry.get(config.baseline.name, "loss")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
