"""Plugins: every fault has an owner and a line, and the rest load."""

from __future__ import annotations

import inspect
import linecache
import pickle
import sys
import textwrap
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from lossearch import plugins
from lossearch.errors import PluginError
from lossearch.plugins import FilePlugin, Plugins, load_plugins, read_plugin_files
from tests.toys import PLUGIN as GOOD

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The installed plugins: none, unless a test adds one."""
    entries: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries)
    return entries


def load(*paths: Path) -> Plugins:
    return load_plugins(read_plugin_files(paths))


def refused(path: Path) -> str:
    """Why a file does not load; that it raises if strict and is noted if not."""
    with pytest.raises(PluginError) as caught:
        load_plugins(read_plugin_files([path]), strict_files=True)
    noted = load(path)
    assert noted.errors == {f"file:{path.stem}": str(caught.value)}
    assert not noted.loaded and len(noted.registry) == 0
    return str(caught.value)


# One file -------------------------------------------------------------------------------------


def test_a_file_loads(write: Write) -> None:
    loaded = load(write("mine.py", GOOD.format(name="mine_a")))
    assert loaded.errors == {}
    assert loaded.registry.owner("mine_a") == "file:mine"
    value = loaded.registry.build("mine_a")({"logits": torch.ones(2, 3), "targets": None or 0})
    assert value.tolist() == [3.0, 3.0]
    (info,) = loaded.loaded
    assert (info.name, info.distribution) == ("file:mine", "file") and len(info.sha256) == 64


def test_a_folder_means_its_files_without_a_leading_underscore(write: Write) -> None:
    for stem in ("b_two", "a_one", "_shared"):
        write(f"folder/{stem}.py", GOOD.format(name=stem))
    folder = write("folder/notes.txt", "not a plugin").parent
    files = read_plugin_files([folder])
    assert [f.stem for f in files] == ["a_one", "b_two"]
    assert {c.name for c in load(folder).registry} == {"a_one", "b_two"}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"plugin file .*nowhere\.py cannot be read"):
        read_plugin_files([tmp_path / "nowhere.py"])


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PluginError, match=r"binary\.py cannot be read"):
        FilePlugin.read(path)


def test_the_text_that_was_read_is_what_runs(write: Write) -> None:
    path = write("edited.py", GOOD.format(name="before"))
    files = read_plugin_files([path])
    path.write_text(GOOD.format(name="after"))
    assert "before" in load_plugins(files).registry
    path.unlink()
    again = load_plugins(pickle.loads(pickle.dumps(files)))
    assert "before" in again.registry and again.errors == {}


def test_an_edited_file_that_is_read_again_is_another_module(write: Write) -> None:
    first = load(write("twice.py", GOOD.format(name="one"))).registry
    second = load(write("twice.py", GOOD.format(name="two"))).registry
    assert ("one" in first, "two" in first) == (True, False)
    assert ("one" in second, "two" in second) == (False, True)


def test_a_text_runs_once_in_a_process_wherever_it_lies(write: Write) -> None:
    text = GOOD.format(name="once")
    here = load(write("once.py", text)).registry.get("once").target
    assert load(write("once.py", text)).registry.get("once").target is here
    copy = load(write("copied/once.py", text)).registry.get("once").target
    assert copy is here, "a study's own copy of the file gives the same functions"


def test_a_string_annotated_dataclass_and_pickle_work(write: Write) -> None:
    text = """\
        from __future__ import annotations
        from dataclasses import KW_ONLY, dataclass
        from typing import ClassVar

        import lossearch

        @dataclass
        class Options:
            scale: float = 2.0
            known: ClassVar[int] = 3
            _: KW_ONLY
            shift: float = 0.0

        @lossearch.loss(task="multiclass")
        def scaled(logits, *, scale: float = Options().scale):
            return scale * logits.sum(1)

        @lossearch.hookimpl
        def register_losses():
            return [scaled]
        """
    scaled = load(write("with_class.py", text)).registry.get("scaled").target
    module = sys.modules[scaled.__module__]
    assert module.__name__.startswith("lossearch_file_with_class_")
    options = pickle.loads(pickle.dumps(module.Options(5.0)))
    assert options == module.Options(5.0) and type(options) is module.Options
    assert pickle.loads(pickle.dumps(scaled)) is scaled


def test_a_traceback_shows_the_source_even_when_the_file_is_gone(write: Write) -> None:
    text = """\
        import lossearch

        @lossearch.loss(task="multiclass")
        def brittle(logits):
            return logits.no_such_thing  # here

        @lossearch.hookimpl
        def register_losses():
            return [brittle]
        """
    path = write("brittle.py", text)
    bound = load(path).registry.build("brittle")
    path.write_text("\n" * 50)
    path.unlink()
    linecache.checkcache()
    with pytest.raises(AttributeError) as caught:
        bound({"logits": torch.ones(2, 2)})
    shown = "".join(traceback.format_exception(caught.value))
    assert "brittle.py" in shown and "return logits.no_such_thing  # here" in shown
    assert "def brittle(logits):" in inspect.getsource(bound.component.target)


# What is wrong with a file, line by line ------------------------------------------------------


def test_a_misspelt_hook(write: Write) -> None:
    text = "import lossearch\n@lossearch.hookimpl\ndef register_loses(): ...\n"
    message = refused(write("bad.py", text))
    assert message.startswith("plugin 'file:bad' (") and "bad.py) is not usable:" in message
    said = "  line 3: there is no hook 'register_loses'; did you mean 'register_losses'?"
    assert said in message


def test_a_hook_like_no_other_lists_all(write: Write) -> None:
    message = refused(write("bad.py", "def register_xyzzy_things_of_mine(): ...\n"))
    assert "there is no hook 'register_xyzzy_things_of_mine'. Hooks: register_balancers" in message


def test_a_missing_hookimpl(write: Write) -> None:
    message = refused(write("bad.py", "x = 1\n\ndef register_miners():\n    return []\n"))
    assert "line 3: register_miners() lacks @lossearch.hookimpl, so it would be ignored" in message


def test_a_marker_of_another_project(write: Write) -> None:
    text = """\
        import pluggy
        other = pluggy.HookimplMarker("datasette")
        @other
        def register_losses():
            return []
        """
    assert "register_losses() lacks @lossearch.hookimpl" in refused(write("bad.py", text))


@pytest.mark.parametrize("argument", ["app", "app=None", "*, app=None"])
def test_an_argument_that_the_hook_does_not_give(write: Write, argument: str) -> None:
    text = f"""\
        import lossearch
        @lossearch.hookimpl
        def register_losses({argument}):
            return []
        """
    message = refused(write("bad.py", text))
    assert "line 3: register_losses() takes 'app', which the hook does not give" in message


def test_every_fault_is_listed_at_once(write: Write) -> None:
    text = """\
        import lossearch
        @lossearch.hookimpl
        def register_loses(): ...
        def register_miners(): ...
        @lossearch.hookimpl
        def register_metrics(registry=None): ...
        """
    message = refused(write("bad.py", text))
    assert [n for n in range(1, 8) if f"line {n}: " in message] == [3, 4, 6]


def test_a_file_without_a_hook(write: Write) -> None:
    assert "it implements no hook; add e.g." in refused(write("bad.py", "x = 1\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nimport no_such_module_here\n", "line 2: ModuleNotFoundError: No module named"),
        ("x = 1\n\ndef f(:\n", "line 3: SyntaxError: invalid syntax"),
        ("def f():\n    raise ValueError('first\\nsecond')\nf()\n", "line 2: ValueError: first"),
        ("import sys\nsys.exit('usage: train')\n", "line 2: SystemExit: usage: train"),
        ("raise KeyError\n", "line 1: KeyError()"),
    ],
)
def test_a_file_that_does_not_import(write: Write, text: str, message: str) -> None:
    refusal = refused(write("wreck.py", text))
    assert refusal.startswith("plugin 'file:wreck' (")
    assert f") does not import: {message}" in refusal
    assert not [m for m in sys.modules if m.startswith("lossearch_file_wreck_")]


def test_a_wrong_declaration_has_its_line(write: Write) -> None:
    text = """\
        import lossearch

        @lossearch.loss(task="multiclass")
        def careless(logits, *, gamma=1.0):
            return logits
        """
    message = refused(write("bad.py", text))
    assert "line 3: PluginError: careless: hyperparameter 'gamma' has no annotation" in message


@pytest.mark.parametrize("body", ["    return 1 / 0", "    for x in (1, 0):\n        yield 1 / x"])
def test_a_hook_that_raises(write: Write, body: str) -> None:
    text = "import lossearch\n@lossearch.hookimpl\ndef register_losses():\n" + body + "\n"
    message = refused(write("bad.py", text))
    line = len(text.splitlines())
    assert message == (
        f"plugin 'file:bad': register_losses() raised line {line}: "
        "ZeroDivisionError: division by zero"
    )


def test_a_hook_that_returns_nothing(write: Write) -> None:
    text = "import lossearch\n@lossearch.hookimpl\ndef register_losses():\n    pass\n"
    message = refused(write("bad.py", text))
    assert "register_losses() raised TypeError: 'NoneType' object is not iterable" in message


def test_a_hook_of_the_wrong_kind(write: Write) -> None:
    text = GOOD.format(name="misplaced").replace("register_losses", "register_miners")
    message = refused(write("bad.py", text))
    assert message == "plugin 'file:bad': register_miners() returns 'misplaced', which is a loss"


def test_a_hook_that_returns_a_plain_function(write: Write) -> None:
    text = GOOD.format(name="plain").replace('@lossearch.loss(task="multiclass")\n', "")
    assert "'plain' is not a component; decorate it" in refused(write("bad.py", text))


def test_one_name_twice_inside_a_file(write: Write) -> None:
    text = GOOD.format(name="same").replace("[same]", "[same, same]")
    assert refused(write("bad.py", text)) == "plugin 'file:bad' offers 'same' twice"
