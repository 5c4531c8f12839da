"""What a study leaves behind for a person: best.yaml, verdict.json, the loss as code, shapes."""

from __future__ import annotations

import json
import pprint
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lossearch.components import Bound
from lossearch.documents import comment, dump_yaml, in_docstring, read_yaml
from lossearch.errors import LossearchError, StudyError
from lossearch.objective import Objective
from lossearch.plugins import FilePlugin
from lossearch.registry import Registry
from lossearch.spec import ObjectiveSpec
from lossearch.study.folder import Folder
from lossearch.study.setup import Setup
from lossearch.training.trainer import facts_of
from lossearch.trials.ledger import State


def write_best(
    folder: Folder,
    setup: Setup,
    state: State,
    trial: int,
    chosen: Mapping[str, Any] | None = None,
) -> None:
    """``best.yaml``: the recommended objective, or before the verdict the best so far.

    Args:
        folder: The study's folder.
        setup: The study.
        state: What its ledger says.
        trial: The trial to write.
        chosen: The verdict's side of it, whose objective may be a simpler one than the trial's.
    """
    best = state.trials[trial]
    verdict = state.verdict
    status = f"recommended: the {verdict['recommend']}" if verdict else "the best so far"
    chosen = chosen or {}
    objective, label = chosen.get("objective", best.objective), chosen.get("label", best.label)
    whole = chosen.get("simplified_from")
    files = {f"plugins/{f.stem}.py": f for f in setup.files if _needed(setup, f, objective)}
    document = {
        "objective": objective,
        "training": best.final,
        "facts": facts_of(setup.data),
        "plugins": list(files),
        "metric": setup.metric.name,
        "validation": chosen.get("validation", best.score),
        "trial": best.number,
    }
    document = {k: v for k, v in document.items() if v != []}
    header = comment(label) + comment(f"{status}, of study {setup.config.name}")
    header += comment(f"what is left of {whole}") if whole else ""
    write(folder.best, header + dump_yaml(document))
    for name, file in files.items():
        (folder.path / name).parent.mkdir(exist_ok=True)
        write(folder.path / name, file.text)


def _needed(setup: Setup, file: FilePlugin, objective: dict[str, Any]) -> bool:
    """Whether a one-file plugin offers a component of this objective."""
    offered = {c.name for c in setup.registry if setup.registry.owner(c.name) == file.name}
    return not offered.isdisjoint(_names(objective))


def _names(value: Any) -> Iterator[str]:
    """Every component's name, those of an ensemble's members included."""
    if isinstance(value, Mapping):
        if isinstance(value.get("name"), str):
            yield value["name"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _names(each)


def write_verdict(folder: Folder, verdict: Mapping[str, Any]) -> None:
    """``verdict.json``."""
    write(folder.verdict, json.dumps(verdict, indent=2, ensure_ascii=False) + "\n")


def write(path: Path, text: str) -> None:
    """Write a whole file or none: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StudyError(f"{path} cannot be written: {error.strerror}") from None


_PYTHON = '''\
"""{label}

The training objective that lossearch recommends for study '{study}'. Use it in any training loop:

    objective = make_objective()
    loss = objective({call})
    loss.backward()

Give `objective.parameters()` to the optimizer beside the model's: some losses learn.
"""

from lossearch import Objective
{imports}
SPEC = {spec}

# What the components were told of the training data; change them for other data.
FACTS = {facts}

# The training hyperparameters that were tuned with it.
TRAINING = {training}


def make_objective() -> Objective:
    """The objective as an nn.Module."""
    return Objective.from_spec(SPEC, {registry}**FACTS)
'''

_PLUGINS = """from pathlib import Path

from lossearch.plugins import load_plugins, read_plugin_files

_HERE = Path(__file__).parent
_REGISTRY = load_plugins(read_plugin_files([{files}])).registry
"""


def export(folder: Folder, form: str = "yaml") -> str:
    """The objective of ``best.yaml`` as a YAML document or as a Python module.

    Raises:
        StudyError: the study has no finished trial yet.
    """
    if not folder.best.exists():
        raise StudyError(f"{folder.path} has no best.yaml yet: no trial has finished")
    document = read_yaml(folder.best)
    kept = {k: document[k] for k in ("objective", "training", "facts", "plugins") if k in document}
    if form == "yaml":
        return dump_yaml(kept)
    spec = ObjectiveSpec.parse(document["objective"], str(folder.best))
    plugins = document.get("plugins", [])
    files = ", ".join(f"_HERE / {name!r}" for name in plugins)
    return _PYTHON.format(
        label=in_docstring(spec.label()),
        study=in_docstring(_study_name(folder)),
        call=_call(spec, document.get("facts", {})),
        imports=_PLUGINS.format(files=files) if plugins else "",
        registry="registry=_REGISTRY, " if plugins else "",
        spec=_literal(document["objective"]),
        facts=_literal(document.get("facts", {})),
        training=_literal(document.get("training", {})),
    )


def _study_name(folder: Folder) -> str:
    return str(read_yaml(folder.study).get("name", "")) if folder.study.exists() else ""


def _call(spec: ObjectiveSpec, facts: Mapping[str, Any]) -> str:
    try:
        reads = sorted(Objective.from_spec(spec, **facts).reads)
    except LossearchError:  # a one-file plugin's component: the registry at hand lacks it
        reads = ["logits", "targets"]
    return ", ".join(f"{field}=..." for field in reads)


def _literal(value: Any) -> str:
    return pprint.pformat(value, width=95, sort_dicts=False)


def copy_plugins(folder: Folder, to: Path) -> None:
    """Copy the one-file plugins that an exported objective needs to beside it."""
    for name in read_yaml(folder.best).get("plugins", []):
        if (folder.path / name) != to / name:
            (to / name).parent.mkdir(exist_ok=True)
            write(to / name, (folder.path / name).read_text(encoding="utf-8"))


def shapes(
    objectives: Mapping[str, dict[str, Any]], registry: Registry, facts: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The first term's loss, and its slope, against the margin of the true class.

    The margin is the true class's logit above the others', which are equal to each other. Losses
    of embeddings are shown over the cosine's margin in the same way; a loss that exists only for
    the whole batch has no such shape and is left out.

    Returns:
        ``margin``, and for each label its ``loss`` and ``gradient``; ``None`` where no loss has
        a shape.
    """
    margin = torch.linspace(-6, 6, 121)
    found: dict[str, Any] = {"margin": margin.tolist(), "loss": {}, "gradient": {}}
    for label, document in objectives.items():
        try:
            objective = Objective(ObjectiveSpec.parse(document), registry, facts)
            objective.eval()
            loss = objective.get_submodule("terms.0.loss")
            assert isinstance(loss, Bound)
            value, slope = _shape(loss, margin, document["task"], facts)
        except (LossearchError, RuntimeError, ValueError, TypeError):
            continue
        found["loss"][label], found["gradient"][label] = value, slope
    return found if found["loss"] else None


def _shape(
    loss: Bound, margin: torch.Tensor, task: str, facts: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    classes, n = int(facts.get("num_classes", 2)), len(margin)
    x = margin.clone().requires_grad_(True)
    counts = torch.tensor(facts.get("class_counts", [1] * classes))
    batch: dict[str, Any] = {
        "class_counts": counts,
        "index": torch.zeros(n, dtype=torch.long),
        "epoch": 0,
        "step": 0,
        "total_steps": 1,
    }
    if task == "multiclass":
        targets = torch.zeros(n, dtype=torch.long)
        logits = torch.cat([x[:, None], torch.zeros(n, classes - 1)], dim=1)
        scaled = x / margin.abs().max()  # a cosine lies in [-1, 1]
        rest = (1 - scaled.square()).clamp_min(1e-6).sqrt()
        batch |= {
            "targets": targets,
            "logits": logits,
            "embeddings": torch.stack([scaled, rest], dim=1),
            "weight": torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * (classes - 1)),
        }
    else:
        batch |= {"targets": torch.ones(n), "logits": x}
    values = loss(batch)
    if values.shape != (n,):
        raise ValueError("a loss of the whole batch has no shape")
    slope = torch.autograd.grad(values.sum(), x)[0]
    return values.detach().tolist(), slope.tolist()
