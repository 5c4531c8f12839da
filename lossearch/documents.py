"""YAML documents in and out, and errors that say which key is wrong and what was meant."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lossearch.errors import LossearchError, SpecError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """The safe loader, reading ``1e-4`` as a number: YAML 1.1 wants ``1.0e-4``, people do not."""




class _Dumper(yaml.SafeDumper):
    """Block style for structure, one line for a list of plain values."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: Any = None) -> Any:
        plain = all(isinstance(v, (str, int, float, bool, type(None))) for v in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _side in (_Loader, _Dumper):  # the dumper too, so that it quotes a text that looks like one
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )
_Dumper.add_representer(tuple, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v))


def dump_yaml(document: Any) -> str:
    """The document as YAML, keys in their own order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=99)


def parse_yaml(text: str, where: str, error: type[LossearchError] = SpecError) -> dict[str, Any]:
    """A YAML mapping from text, read by the safe loader.

    Raises:
        SpecError: (or ``error``) it is not YAML, is empty, or is not a mapping.
    """
    try:
        document = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        what = getattr(problem, "problem", None) or str(problem).splitlines()[0]
        raise error(f"{where}{at} is not YAML: {what}") from None
    if document is None:
        raise error(f"{where} is empty")
    if not isinstance(document, dict):
        raise error(f"{where} must be a mapping of keys to values, not a {_kind(document)}")
    return document


def read_yaml(path: Path, error: type[LossearchError] = SpecError) -> dict[str, Any]:
    """A YAML mapping from a file.

    Raises:
        SpecError: (or ``error``) there is no such file, or it is not a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise error(f"{path} is not a text file") from None
    except OSError as problem:
        near = [p.name for p in path.parent.glob("*") if p.suffix == path.suffix]
        hint = did_you_mean(path.name, near) if isinstance(problem, FileNotFoundError) else ""
        raise error(f"{path} cannot be read: {problem.strerror}{hint}") from None
    return parse_yaml(text, str(path), error)


def parse(
    model: type[Model], document: Any, where: str, error: type[LossearchError] = SpecError
) -> Model:
    """Validate a document against a model.

    Raises:
        SpecError: (or ``error``) for each wrong key: where, what was given, what is allowed.
    """
    try:
        return model.model_validate(document)
    except ValidationError as problem:
        found = problem.errors()
        places = [each["loc"] for each in found]
        lines = dict.fromkeys(
            _explain(model, document, each)
            for each in found
            if not any(_inside(place, each["loc"]) for place in places)
        )
        raise error(f"{where}: " + f"\n{where}: ".join(lines)) from None


def _inside(place: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    """Whether a place lies inside another, whose own complaint then only repeats it."""
    return len(place) > len(outer) and place[: len(outer)] == outer


def _path(document: Any, problem: Any) -> list[Any]:
    """The keys that lead to a problem, without pydantic's names for the types it tried."""
    *outer, last = problem["loc"] or (None,)
    path = []
    for key in outer:
        if _holds(document, key):
            document = document[key]
            path.append(key)
    if _holds(document, last) or problem["type"] in ("missing", "extra_forbidden"):
        path.append(last)
    return path


def _holds(document: Any, key: Any) -> bool:
    if isinstance(document, dict):
        return key in document
    return isinstance(document, (list, tuple)) and isinstance(key, int) and key < len(document)


def _explain(model: type[BaseModel], document: Any, problem: Any) -> str:
    path = _path(document, problem)
    shown = ".".join(map(str, path))
    if problem["type"] == "extra_forbidden":
        holder = _model_at(model, path[:-1])
        known = list(holder.model_fields) if holder else []
        listed = f". Known: {', '.join(known)}" if known else ""
        return f"unknown key '{shown}'{did_you_mean(str(path[-1]), known) or listed}"
    if problem["type"] == "missing":
        return f"'{shown}' is missing"
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        text += did_you_mean(str(problem["input"]), allowed)
    if not path:
        return text
    return f"{shown} = {_short(problem['input'])} is not allowed: {text[0].lower()}{text[1:]}"


def _model_at(model: type[BaseModel], path: list[Any]) -> type[BaseModel] | None:
    """The model that a path of keys ends in."""
    for key in path:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(str(key))
        found = _model_in(field.annotation) if field else None
        if found is None:
            return None
        model = found
    return model


def _model_in(hint: Any) -> type[BaseModel] | None:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint
    if get_origin(hint) in (typing.Union, types.UnionType, tuple, list, typing.Annotated):
        for each in get_args(hint):
            found = _model_in(each)
            if found is not None:
                return found
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number"}.get(type(value), "value")
