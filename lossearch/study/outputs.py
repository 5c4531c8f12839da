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
from lossearch.study.folder import Folder, partial
from lossearch.study.setup import Setup
from lossearch.training.trainer import facts_of
from lossearch.trials.ledger import State
from lossearch.trust import inside, plugins_beside


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
    advice = verdict and verdict["recommend"]
    status = f"recommended: the {advice}" if advice else "the best so far"
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
    for name, file in files.items():
        path = inside(folder.path, name, folder.best)
        path.parent.mkdir(exist_ok=True)
        write(path, file.text)
    write(folder.best, header + dump_yaml(document))  # last: what it names is there by then


def _needed(setup: Setup, file: FilePlugin, objective: dict[str, Any]) -> bool:
    """Whether a one-file plugin offers a component of this objective."""
    offered = {c.name for c in setup.registry if setup.registry.owner(c.name) == file.name}
    return not offered.isdisjoint(names(objective))


def names(value: Any) -> Iterator[str]:
    """Every component's name, those of an ensemble's members included."""
    if isinstance(value, Mapping):
        if isinstance(value.get("name"), str):
            yield value["name"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from names(each)


def write_verdict(folder: Folder, verdict: Mapping[str, Any]) -> None:
    """``verdict.json``."""
    write(folder.verdict, json.dumps(verdict, indent=2, ensure_ascii=False) + "\n")


def write(path: Path, text: str) -> None:
    """Write a whole file or none: a reader never sees half of it."""
    draft = partial(path)
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise StudyError(f"{path} cannot be written: {error.strerror}") from None


_PYTHON = '''\
"""{label}

The training objective that lossearch recommends for study '{study}'. Use it in any training loop:

    objective = make_objective()
    loss = objective({call})
    loss.backward()

Give `objective.parameters()` to the optimizer beside the model's: some losses learn.
{runs}"""

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


_RUNS = """
Importing this file runs the plugins that it names, as they lie beside it: read those that you did
not write before you do. `make_objective().reads` names the fields that a batch must have.
"""


def export(folder: Folder, form: str = "yaml") -> str:
    """The objective of ``best.yaml`` as a YAML document or as a Python module.

    No plugin's code is run for it.

    Raises:
        StudyError: the study has no finished trial yet.
        PluginError: a plugin file that it needs is not there, or is not in the folder.
    """
    if not folder.best.exists():
        raise StudyError(f"{folder.path} has no best.yaml yet: no trial has finished")
    document = read_yaml(folder.best)
    kept = {k: document[k] for k in ("objective", "training", "facts", "plugins") if k in document}
    if form == "yaml":
        return dump_yaml(kept)
    spec = ObjectiveSpec.parse(document["objective"], str(folder.best))
    plugins = document.get("plugins") or []
    plugins_beside(folder.best, document)  # refused now, if one leads out of the folder
    files = ", ".join(f"_HERE / {name!r}" for name in plugins)
    return _PYTHON.format(
        label=in_docstring(spec.label()),
        study=in_docstring(_study_name(folder)),
        call=_call(spec, document.get("facts", {})),
        imports=_PLUGINS.format(files=files) if plugins else "",
        registry="registry=_REGISTRY, " if plugins else "",
        runs=_RUNS if plugins else "",
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
        return "**batch"
    return ", ".join(f"{field}=..." for field in reads)


def _literal(value: Any) -> str:
    return pprint.pformat(value, width=95, sort_dicts=False)


def copy_plugins(folder: Folder, to: Path) -> None:
    """Copy the one-file plugins that an exported objective needs to beside it.

    Raises:
        PluginError: one does not lie in the study's folder.
        StudyError: another file is in its place.
    """
    document = read_yaml(folder.best)
    for name, file in zip(
        document.get("plugins") or [], plugins_beside(folder.best, document), strict=True
    ):
        path = inside(to, name, folder.best)
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != file.text:
            raise StudyError(
                f"{path} is there already and is another file than the study's; move it away, or "
                "export into another folder"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, file.text)


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
