"""Plugins: what each hook registers, several plugins together, and installed ones."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from lossearch import hookspecs, plugins
from lossearch.errors import PluginError
from lossearch.plugins import Plugins, load_plugins, read_plugin_files
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


# Several --------------------------------------------------------------------------------------


def test_a_bad_file_does_not_keep_the_others_out(write: Write) -> None:
    loaded = load(
        write("a.py", GOOD.format(name="loss_a")),
        write("b.py", "1 / 0\n"),
        write("c.py", GOOD.format(name="loss_c")),
    )
    assert {c.name for c in loaded.registry} == {"loss_a", "loss_c"}
    assert list(loaded.errors) == ["file:b"]
    assert [i.name for i in loaded.loaded] == ["file:a", "file:c"]


def test_a_name_offered_by_two_files_is_an_error(write: Write) -> None:
    more = GOOD.format(name="fresh").replace("[fresh]", "[fresh, shared]") + (
        '\n@lossearch.loss(task="binary")\ndef shared(logits):\n    return logits\n'
    )
    loaded = load(write("a.py", GOOD.format(name="shared")), write("z.py", more))
    assert (
        "'shared' of 'file:z' has the name of the loss 'shared' of 'file:a'"
        in (loaded.errors["file:z"])
    )
    assert "component names are global" in loaded.errors["file:z"]
    assert {c.name for c in loaded.registry} == {"shared"}, "all of a plugin or nothing"


def test_two_files_of_one_stem_are_an_error(write: Write) -> None:
    first = write("one/same.py", GOOD.format(name="loss_a"))
    second = write("two/same.py", GOOD.format(name="loss_b"))
    loaded = load(first, second)
    assert {c.name for c in loaded.registry} == {"loss_a"}
    said = f"two plugin files are called 'same': {first} and {second}. Rename one"
    assert loaded.errors == {"file:same": said}
    with pytest.raises(PluginError, match="two plugin files"):
        load_plugins(read_plugin_files([first, second]), strict_files=True)


# Each hook ------------------------------------------------------------------------------------

OFFERS = {
    "losses": '@lossearch.loss(task="multiclass")\ndef offered(logits): ...',
    "miners": "@lossearch.miner()\ndef offered(losses): ...",
    "reweightings": "@lossearch.reweighting()\ndef offered(losses): ...",
    "balancers": "@lossearch.balancer()\ndef offered(losses): ...",
    "metrics": '@lossearch.metric(task="multiclass")\ndef offered(logits): ...',
    "datasets": "@lossearch.dataset()\ndef offered(*, size: int = 3): ...",
    "models": "@lossearch.model()\ndef offered(data): ...",
    "providers": '@lossearch.provider(gives="features")\ndef offered(inputs): ...',
}
KINDS = ["loss", "miner", "reweighting", "balancer", "metric", "dataset", "model", "provider"]


@pytest.mark.parametrize(("hook", "kind"), list(zip(OFFERS, KINDS, strict=True)))
def test_a_hook_registers_its_kind(write: Write, hook: str, kind: str) -> None:
    text = f"import lossearch\n{OFFERS[hook]}\n@lossearch.hookimpl\ndef register_{hook}():\n"
    loaded = load(write("mine.py", text + "    return [offered]\n"))
    assert loaded.errors == {}
    assert [c.name for c in loaded.registry.list(kind)] == ["offered"]


def test_every_hook_has_its_test() -> None:
    specs = {n for n in vars(hookspecs) if n.startswith("register_")}
    assert specs == {f"register_{h}" for h in OFFERS} | {"register_spaces", "register_commands"}


def test_spaces_are_texts_or_files(write: Write, tmp_path: Path) -> None:
    space = write("wide.yaml", "task: binary")
    text = f"""\
        import lossearch
        from pathlib import Path
        @lossearch.hookimpl
        def register_spaces():
            return {{"wide": Path({str(space)!r}), "narrow": "task: multiclass"}}
        """
    loaded = load(write("mine.py", text))
    assert loaded.registry.spaces == {"wide": "task: binary", "narrow": "task: multiclass"}
    clash = textwrap.dedent(text).replace("wide", "broad", 1) + OFFERS["losses"]
    clash += "\n@lossearch.hookimpl\ndef register_losses():\n    return [offered]\n"
    both = load(write("mine.py", text), write("rival.py", clash))
    assert "space 'narrow' of 'file:rival'" in both.errors["file:rival"]
    assert "offered" not in both.registry, "all of a plugin or nothing"


def test_a_space_file_that_is_not_there(write: Write) -> None:
    text = """\
        import lossearch
        from pathlib import Path
        @lossearch.hookimpl
        def register_spaces():
            return {"wide": Path("nowhere.yaml")}
        """
    assert "register_spaces() raised FileNotFoundError" in refused(write("mine.py", text))


def test_commands_are_added_to_the_command_line(write: Write) -> None:
    text = """\
        import lossearch
        @lossearch.hookimpl
        def register_commands(app):
            @app.command()
            def hello(): ...
        """
    loaded = load(write("mine.py", text))
    app = typer.Typer()
    for register in loaded.commands:
        register(app)
    assert [c.callback.__name__ for c in app.registered_commands if c.callback] == ["hello"]


# Installed ones -------------------------------------------------------------------------------


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list[EntryPoint]
) -> Callable[..., None]:
    """Install a distribution: a module, and its entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(module: str, text: str, *, name: str = "", dist: str = "dist") -> None:
        (tmp_path / f"{module}.py").write_text(text)
        entry = EntryPoint(name or module, module, "lossearch")
        vars(entry)["dist"] = SimpleNamespace(name=dist, version="1.0")
        installed.append(entry)

    return install


def test_an_installed_plugin_loads(install: Callable[..., None]) -> None:
    install("pack_good", GOOD.format(name="packed"), dist="lossearch-good")
    loaded = load_plugins()
    assert loaded.errors == {} and loaded.registry.owner("packed") == "pack_good"
    assert [(i.distribution, i.version) for i in loaded.loaded] == [("lossearch-good", "1.0")]


def test_installed_ones_that_fail_are_named_and_the_rest_load(
    install: Callable[..., None], write: Write
) -> None:
    install("pack_broken", "import no_such_module_here\n", dist="broken")
    install("pack_exits", "raise SystemExit\n", dist="exits")
    install("pack_misspelt", "def register_loses(): ...\n", dist="misspelt")
    install("pack_fine", GOOD.format(name="fine"), dist="fine")
    loaded = load_plugins(read_plugin_files([write("mine.py", GOOD.format(name="mine"))]))
    assert {c.name for c in loaded.registry} == {"fine", "mine"}
    errors = loaded.errors
    assert errors["pack_broken (broken)"] == (
        "plugin 'pack_broken' (pack_broken) does not import: ModuleNotFoundError: No module "
        "named 'no_such_module_here'"
    )
    assert "does not import: SystemExit" in errors["pack_exits (exits)"]
    assert "line 1: there is no hook 'register_loses'" in errors["pack_misspelt (misspelt)"]
    assert len(errors) == 3


def test_two_installed_ones_of_one_name_are_an_error(install: Callable[..., None]) -> None:
    install("pack_first", GOOD.format(name="first"), name="metric", dist="ours")
    install("pack_rival", GOOD.format(name="second"), name="metric", dist="rival")
    loaded = load_plugins()
    assert {c.name for c in loaded.registry} == {"first"}
    assert loaded.errors["metric (rival)"] == (
        "two plugins are called 'metric': ours 1.0 and rival 1.0. Rename or uninstall one"
    )


def test_an_entry_point_must_name_a_module(
    install: Callable[..., None], installed: list[EntryPoint]
) -> None:
    install("pack_thing", "thing = 3\n")
    entry = EntryPoint("thing", "pack_thing:thing", "lossearch")
    vars(entry)["dist"] = None
    installed[:] = [entry]
    assert load_plugins().errors == {
        "thing (?)": "plugin 'thing' (pack_thing:thing) must name a module; it names 3"
    }


def test_a_file_may_not_take_the_name_of_an_installed_component(
    install: Callable[..., None], write: Write
) -> None:
    install("pack_owner", GOOD.format(name="taken"))
    loaded = load(write("mine.py", GOOD.format(name="taken")))
    assert "has the name of the loss 'taken' of 'pack_owner'" in loaded.errors["file:mine"]


def test_what_the_wheel_declares_loads_without_an_error(monkeypatch: Any) -> None:
    monkeypatch.undo()
    loaded = load_plugins()
    assert loaded.errors == {}
    assert {i.name for i in loaded.loaded} >= {"engine", "classification", "dynamics"}
    assert "classification" in loaded.registry.spaces
