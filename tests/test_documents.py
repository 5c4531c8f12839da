"""YAML in and out, and messages that say which key is wrong and what was meant."""

from __future__ import annotations

import ast
import math
import time
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lossearch.documents import (
    comment,
    dump_yaml,
    in_docstring,
    parse,
    parse_yaml,
    read_yaml,
    without_password,
)
from lossearch.errors import SpecError, StudyError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    width: int | str = 3


class Other(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner = Field(default_factory=Inner)
    either: Inner | Other | None = None
    many: tuple[Inner, ...] = Field((), min_length=1)
    learning_rate: float = 0.1

    @model_validator(mode="after")
    def _not_forbidden(self) -> Config:
        if self.name == "forbidden":
            raise ValueError("This name is taken")
        return self


# Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e3", -2500.0),
        ("1.e+2", 100.0),
        (".5e1", 5.0),
        ("1.0e-4", 1e-4),
        (".inf", math.inf),
        ("0.5", 0.5),
    ],
)
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    found = parse_yaml(f"x: {text}", "here")["x"]
    assert isinstance(found, float) and found == value


@pytest.mark.parametrize("text", ["e4", "1e", "1e-4x", "'1e-4'", "a1e4"])
def test_what_only_looks_like_a_number_is_text(text: str) -> None:
    assert isinstance(parse_yaml(f"x: {text}", "here")["x"], str)


def test_whole_numbers_stay_whole() -> None:
    assert parse_yaml("x: [3, -1]", "here") == {"x": [3, -1]}
    assert all(type(v) is int for v in parse_yaml("x: [3, -1]", "here")["x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "here is empty"),
        ("# a comment\n", "here is empty"),
        ("- a\n- b", "here must be a mapping of keys to values, not a list"),
        ("just words", "here must be a mapping of keys to values, not a text"),
        ("3", "here must be a mapping of keys to values, not a number"),
        ("a: 1\nb: [1, 2\nc: 3", "here, line 3 is not YAML: "),
        ("a: 1\n\tb: 2", "here, line 2 is not YAML: found character"),
        ("a: !!python/object/apply:os.system ['true']", "here, line 1 is not YAML: could not det"),
        ("a: \x00", "here is not YAML"),
    ],
)
def test_what_is_not_a_mapping(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "here")
    assert str(caught.value).startswith(message)


def test_the_caller_names_the_error() -> None:
    with pytest.raises(StudyError):
        parse_yaml("", "here", StudyError)
    with pytest.raises(StudyError):
        parse(Config, {}, "here", StudyError)


def test_a_file_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("a: 1")
    assert read_yaml(tmp_path / "study.yaml") == {"a": 1}
    with pytest.raises(SpecError, match=r"stduy\.yaml cannot be read: .*did you mean 'study"):
        read_yaml(tmp_path / "stduy.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"bytes\.yaml is not a text file"):
        read_yaml(tmp_path / "bytes.yaml")


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (BOMB, 5, "it holds more than 100,000 values, with what is repeated"),
        ("a: &x [1, *x]", 1, "'*x' stands inside what it repeats"),
        ("&x\na: *x", 2, "'*x' stands inside what it repeats"),
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' stands twice, first in line 1"),
        ("a:\n- b:\n    c: 1\n    c: 2", 4, "the key 'c' stands twice, first in line 3"),
        ("a: {b: 1, b: 2}", 1, "the key 'b' stands twice, first in line 1"),
        ("a: " + "[" * 5000, 1, "more than 40 levels lie inside each other"),
        ("a: " + "{b: " * 5000, 1, "more than 40 levels lie inside each other"),
        ("a:\n" + "".join(" " * i + "-\n" for i in range(60)), None, "more than 40 levels"),
        ("a: 1\nb: " + "9" * 5000, 2, "a number of 5000 digits; up to 300 can be read"),
        ('a: "b\\0c"', 1, "a text holds a character that no text may"),
        ('a: "\\ud800"', 1, "a text holds a character that no text may"),
        ("? [1, 2]\n: 3", 1, "a key must be a name, not a list or a mapping"),
    ],
)
def test_what_no_person_writes_is_refused_at_once(
    text: str, line: int | None, message: str
) -> None:
    started = time.perf_counter()
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "here")
    assert time.perf_counter() - started < 5.0
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert line is None or str(caught.value).startswith(f"here, line {line} cannot be read: ")


def test_what_is_repeated_once_is_read() -> None:
    found = parse_yaml("a: &x {b: 1, c: 2}\nd: *x\ne: {<<: *x, c: 3}", "here")
    assert found == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 2}, "e": {"b": 1, "c": 3}}


def test_a_date_is_text() -> None:
    assert parse_yaml("a: 2024-01-31\nb: 2024-99-99", "here") == {
        "a": "2024-01-31",
        "b": "2024-99-99",
    }


# Text of a person in other languages ------------------------------------------------------------

NAME = '""" + str(__import__("os").system("true"))\nobjective: 1\\'


def test_text_in_a_docstring_is_no_code() -> None:
    tree = ast.parse(f'"""{in_docstring(NAME)}"""')
    assert ast.get_docstring(tree) == " ".join(NAME.split())
    assert len(tree.body) == 1


def test_text_in_a_comment_is_no_document() -> None:
    text = comment(NAME) + comment("a\x85b: 1\u2028c: 2") + "key: 1"
    assert parse_yaml(text, "here") == {"key": 1}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:se@cret@host:5000/x", "https://me:***@host:5000/x"),
        ("postgresql+psycopg2://me:secret@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("https://host/x?token=secret&b=1", "https://host/x?token=***&b=1"),
        ("at https://me:secret@host or http://host", "at https://me:***@host or http://host"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_a_password_is_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


# Writing --------------------------------------------------------------------------------------


def test_it_is_written_as_a_person_would() -> None:
    document = {"b": 1, "a": {"list": [1, 2.5, "x"], "terms": [{"k": None}]}, "t": (1, 2)}
    assert dump_yaml(document) == (
        "b: 1\na:\n  list: [1, 2.5, x]\n  terms:\n  - k: null\nt: [1, 2]\n"
    )
    shared = [1, 2]
    assert "&" not in dump_yaml({"a": shared, "b": shared})


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
    st.from_regex(r"[-+]?[0-9.]{1,3}[eE]-?[0-9]{1,2}", fullmatch=True),
)
trees = st.recursive(
    plain, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text("abc", min_size=1), x)
)


@settings(deadline=None, max_examples=60, database=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "1e5"]), trees, min_size=1))
def test_documents_round_trip(document: dict[str, Any]) -> None:
    text = dump_yaml(document)
    assert parse_yaml(text, "here") == document
    assert _types(parse_yaml(text, "here")) == _types(document)


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _types(v) for k, v in value.items()}
    return [_types(v) for v in value] if isinstance(value, list) else type(value)


def test_other_readers_get_plain_yaml() -> None:
    assert yaml.safe_load(dump_yaml({"x": 1e-10, "y": 1e20})) == {"x": 1e-10, "y": 1e20}


# Validating -----------------------------------------------------------------------------------


def complaint(document: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(Config, document, "here")
    return str(caught.value).splitlines()


def good(**more: Any) -> dict[str, Any]:
    return {"name": "x", "many": [{}], **more}


def test_a_good_document() -> None:
    assert parse(Config, good(inner={"rate": 1e-4}), "here").inner.rate == 1e-4


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (good(nam=1), "unknown key 'nam'; did you mean 'name'?"),
        (good(zzz=1), "unknown key 'zzz'. Known: name, inner, either, many, learning_rate"),
        ({"learning-rate": 1, **good()}, "unknown key 'learning-rate'; did you mean 'learning_r"),
        ({"a[b]": 1, **good()}, "unknown key 'a[b]'. Known: name, inner"),
        (good(inner={"rat": 1}), "unknown key 'inner.rat'; did you mean 'rate'?"),
        (good(many=[{}, {"rtae": 1}]), "unknown key 'many.1.rtae'; did you mean 'rate'?"),
        ({"many": [{}]}, "'name' is missing"),
        (good(inner={"rate": 2}), "inner.rate = 2 is not allowed: input should be less than or"),
        (good(many=[{"rate": "x"}]), "many.0.rate = 'x' is not allowed: input should be a valid"),
        (good(many=[]), "many = [] is not allowed: tuple should have at least 1 item"),
        (good(name="forbidden"), "This name is taken"),
        ([1], "input should be a valid dictionary or instance of Config"),
    ],
)
def test_one_wrong_key(document: Any, message: str) -> None:
    lines = complaint(document)
    assert len(lines) == 1
    assert lines[0].lower().startswith(f"here: {message}".lower())


def test_pydantics_names_for_types_are_not_shown() -> None:
    lines = complaint(good(inner={"width": [1]}, either={"depth": "deep"}))
    assert any(line.startswith("here: inner.width = [1] is not allowed") for line in lines)
    assert any(line.startswith("here: either.depth = 'deep' is not allowed") for line in lines)
    text = "\n".join(lines)
    assert "width.int" not in text and "Inner" not in text and "Other" not in text


def test_every_wrong_key_is_listed() -> None:
    lines = complaint({"nam": 1, "inner": {"rate": -1}, "many": [{}]})
    assert len(lines) == 3


def test_a_list_is_not_called_too_short_for_an_error_inside_it() -> None:
    (line,) = complaint(good(many=[{"rtae": 1}]))
    assert line == "here: unknown key 'many.0.rtae'; did you mean 'rate'?"


def test_a_long_value_is_cut() -> None:
    (line,) = complaint(good(learning_rate="x" * 500))
    assert len(line) < 200 and "..." in line
