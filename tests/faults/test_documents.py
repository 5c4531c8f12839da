"""Documents that are changed at random: each is read, or refused in words, within seconds."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lossearch.documents import dump_yaml, parse_yaml
from lossearch.errors import LossearchError
from lossearch.registry import current
from lossearch.space import Space
from lossearch.spec import ObjectiveSpec
from lossearch.study import read_study
from lossearch.training.providers import available_fields

ROOT = Path(__file__).parents[2]
LIMIT = 5.0  # seconds for one document
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 1e9, 10**30, 10**299, 1e-320, float("inf"), float("nan"), "",
    "no", "a\nb", "[/]", '"""', "../..", "/", "{low: 1}", "\u202e", "x" * 5000, [], {}, [[]],
    [None],    {"name": 3}, {"name": ["focal"]}, {1: 2}, {None: None}, {"low": "a", "high": {}},
    {"choice": []}, {"choice": {}}, {"choice": [None, [], {}]}, {"schedule": []},
    {"schedule": {"choice": 5}}, {"low": float("nan"), "high": float("inf")}, ["*"], "*",
]  # fmt: skip
TAILS = [
    "\nx: &x [*x]", "\nx: " + "[" * 3000, "\nx: " + "9" * 5000, '\nx: "\\0"', "\nx: !!set {a}",
    "\n? [1]\n: 2", "\nx: 0x", "\nx: 99:99:99", "\n\x07: 1", "\n- 1", "\nname: 1\nname: 2",
]  # fmt: skip
OBJECTIVE = {
    "task": "multiclass",
    "terms": [
        {"loss": {"name": "focal", "gamma": 2.0}, "reweighting": {"name": "class_balanced"}},
        {"loss": {"name": "orthogonal_projection", "gamma": 0.5}, "weight": 0.1},
    ],
    "balancer": {"name": "fixed_weights"},
}


def sources() -> list[tuple[str, Any]]:
    """What is changed: spaces, studies and an objective."""
    spaces = [("space", p) for p in sorted((ROOT / "search_spaces").glob("*.yaml"))]
    studies = [("study", p) for p in sorted((ROOT / "examples").glob("*.yaml"))]
    read = [(kind, parse_yaml(p.read_text("utf-8"), p.name)) for kind, p in spaces + studies]
    return [*read, ("objective", OBJECTIVE)]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a document with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def mutated(draw: random.Random, document: Any) -> str:
    """The text of a document with some of its places changed."""
    document = copy.deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        found = list(places(document))
        if not found:
            break
        holder, key = draw.choice(found)
        how = draw.randrange(6)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        elif how == 2:
            holder[key] = [holder[key]]
        elif how == 3:
            holder[key] = {"name": holder[key]}
        else:
            holder[key] = copy.deepcopy(draw.choice(ODD))
    text = dump_yaml(document)
    if draw.random() < 0.1:
        text += draw.choice(TAILS)
    return text[: draw.randrange(len(text) + 1)] if draw.random() < 0.05 else text


def read(kind: str, text: str, folder: Path) -> None:
    """Read a document as the command line does."""
    if kind == "study":
        path = folder / "study.yaml"
        path.write_text(text, encoding="utf-8")
        config = read_study(path)
        dump_yaml(config.stored())
        kind, text = "space", dump_yaml(config.space) if isinstance(config.space, dict) else ""
    if kind == "space" and text:
        fields = available_fields("multiclass", ("logits", "embeddings", "weight"))
        document = parse_yaml(text, "space")
        space = Space.from_document(
            document, registry=current(), task="multiclass", available=fields
        )
        space.describe()
        list(space.references())
    if kind == "objective":
        spec = ObjectiveSpec.parse(parse_yaml(text, "objective"))
        spec.label(), spec.key
        for where, each in spec.components():
            current().get(each.name, where.split(".")[-1])


def faults(seed: int, count: int, folder: Path) -> list[str]:
    draw = random.Random(seed)
    originals = sources()
    found: list[str] = []
    for number in range(count):
        kind, document = draw.choice(originals)
        text = mutated(draw, document)
        started = time.perf_counter()
        try:
            read(kind, text, folder)
        except LossearchError as error:
            if not str(error) or len(str(error)) > 20_000:
                found.append(f"{number} {kind}: says {str(error)[:100]!r}")
        except Exception as error:
            found.append(f"{number} {kind}: {type(error).__name__}: {error}"[:300])
        if time.perf_counter() - started > LIMIT:
            found.append(f"{number} {kind}: took more than {LIMIT} s")
    return found


def test_the_originals_are_read(tmp_path: Path) -> None:
    for kind, document in sources():
        if kind != "space" or "multiclass" in str(document.get("task", "multiclass")):
            read(kind, dump_yaml(document), tmp_path)


def test_forty_changed_documents(tmp_path: Path) -> None:
    assert faults(1, 40, tmp_path) == []


@pytest.mark.slow
def test_five_hundred_changed_documents(tmp_path: Path) -> None:
    assert faults(2, 500, tmp_path) == []
