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

HIDDEN = "***"  # what stands for a password
Model = TypeVar("Model", bound=BaseModel)


DEPTH = 40  # levels of a document; an objective has about eight
VALUES = 100_000  # of a document, those that its aliases repeat among them
_DIGITS = 300  # of a whole number: what a float can still hold
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in _KINDS}


class _Loader(yaml.SafeLoader):
    """The safe loader, for what a person may give: plain data, each key once, of a sane size.

    It reads ``1e-4`` as a number (YAML 1.1 wants ``1.0e-4``, people do not) and a date as text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[yaml.Node | None] = []  # the nodes around the one that is read
        self._sizes: dict[int, int] = {}  # values in each node that an alias may repeat
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if len(self._open) > DEPTH:
            raise _refusal(event, f"more than {DEPTH} levels lie inside each other")
        if isinstance(event, yaml.AliasEvent):
            known = self.anchors.get(event.anchor)
            if known is not None and id(known) not in self._sizes:
                raise _refusal(event, f"'*{event.anchor}' stands inside what it repeats")
            self._values += self._sizes.get(id(known), 0)
        before = self._values
        self._values += 1
        self._open.append(parent)
        node = super().compose_node(parent, index)
        self._open.pop()
        if self._values > VALUES:
            raise _refusal(event, f"it holds more than {VALUES:,} values, with what is repeated")
        if node is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = self._values - before
            self._refuse(node, event)
        return node

    def _refuse(self, node: yaml.Node, event: Any) -> None:
        """Refuse what is no plain data."""
        if node.tag not in _TAGS:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise yaml.MarkedYAMLError(
                problem=f"could not determine how to read '!!{kind}'; values are plain",
                problem_mark=event.start_mark,
            )
        if isinstance(node, yaml.ScalarNode):
            if "\0" in node.value or re.search("[\ud800-\udfff]", node.value):
                raise _refusal(event, "a text holds a character that no text may (NUL or a half)")
            if node.tag.endswith(":int") and len(node.value) > _DIGITS:
                raise _refusal(
                    event, f"a number of {len(node.value)} digits; up to {_DIGITS} can be read"
                )
        if isinstance(node, yaml.MappingNode):
            seen: dict[tuple[str, str], int] = {}
            for key, _value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _refusal(event, "a key must be a name, not a list or a mapping")
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in seen:
                    raise _Refused(
                        line, f"the key '{key.value}' stands twice, first in line {seen[name]}"
                    )
                seen[name] = line


class _Refused(ValueError):
    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def _refusal(event: Any, why: str) -> _Refused:
    return _Refused(event.start_mark.line + 1, why)


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
_Loader.yaml_implicit_resolvers = {  # a date is text
    first: [(tag, test) for tag, test in known if not tag.endswith(":timestamp")]
    for first, known in _Loader.yaml_implicit_resolvers.items()
}
_Dumper.add_representer(tuple, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v))


def dump_yaml(document: Any) -> str:
    """The document as YAML, keys in their own order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=99)


def one_line(text: str) -> str:
    """Text that a person or a file gives, for a place where a line's end would end more."""
    return " ".join(text.split())


def comment(text: str) -> str:
    """A line of comment in YAML or Python."""
    return f"# {''.join(c for c in one_line(text) if c.isprintable())}\n"


def in_docstring(text: str) -> str:
    """Text inside a Python docstring of three double quotes."""
    plain = "".join(c for c in one_line(text) if c.isprintable())
    return plain.replace("\\", "\\\\").replace('"', '\\"')


def without_password(text: str) -> str:
    """``https://me:secret@host`` as ``https://me:***@host``, wherever it stands in a text."""
    text = re.sub(r"(?<=://)([^/\s:@]*):[^/\s]*@", rf"\1:{HIDDEN}@", text)
    return re.sub(r"(?i)([?&](?:password|token|pwd)=)[^&\s]+", rf"\1{HIDDEN}", text)


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
    except _Refused as problem:
        raise error(f"{where}, line {problem.line} cannot be read: {problem}") from None
    except (ValueError, LookupError) as problem:  # what its tag denies: 0x, 99:99:x, !!bool x
        raise error(f"{where} cannot be read: {problem} is no such value") from None
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
    except ValueError:
        raise error(f"{str(path)!r} cannot be a path: it holds a NUL character") from None
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
