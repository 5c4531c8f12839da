"""The documents say what is so: their examples run, and nothing that is there is left out."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from lossearch import hookspecs
from lossearch.components import Component
from lossearch.data import DataConfig, prepare
from lossearch.errors import StudyError
from lossearch.models import ModelConfig, build_network
from lossearch.plugins import Plugins, load_plugins, read_plugin_files
from lossearch.space import Space
from lossearch.spec import ComponentSpec
from lossearch.study import read_study
from lossearch.testing import run_checks
from lossearch.training.providers import Fields

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PLUGINS = (ROOT / "docs" / "plugins.md").read_text("utf-8")
CHECKED = ("loss", "reweighting", "miner", "balancer", "metric")


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def marked(language: str) -> list[str]:
    """The blocks of the README that are to be run."""
    pattern = rf"^<!-- tested -->\n```{language}\n(.*?)^```$"
    return re.findall(pattern, README, re.MULTILINE | re.DOTALL)


# --- docs/components.md ------------------------------------------------------------------------


def test_components_page_is_that_of_the_registry() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "generate.py"))["render"]
    page = (ROOT / "docs" / "components.md").read_text("utf-8")
    assert page == render(), "run `make docs`"


# --- docs/plugins.md ---------------------------------------------------------------------------


def examples() -> dict[str, str]:
    """The one-file plugins of the guide by file name: the first line of a block names it."""
    blocks = [block for block in fenced(PLUGINS, "python") if "hookimpl" in block]
    return {block.split("\n", 1)[0].removeprefix("# "): block for block in blocks}


def load(folder: Path, name: str) -> Plugins:
    file = folder / name
    file.write_text(examples()[name], encoding="utf-8")
    return load_plugins(read_plugin_files([file]), strict_files=True)


def own(plugins: Plugins, name: str) -> list[Component]:
    owner = f"file:{name.removesuffix('.py')}"
    return [c for c in plugins.registry if plugins.registry.owner(c.name) == owner]


def hooks() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("register_")]


@pytest.mark.parametrize("hook", hooks())
def test_hook_is_documented(hook: str) -> None:
    section = re.search(rf"^### {hook}\n(.*?)(?=^##|\Z)", PLUGINS, re.MULTILINE | re.DOTALL)
    assert section, f"docs/plugins.md has no section '### {hook}'"
    assert f"def {hook}(" in section[1], "the section has no example"
    for argument in inspect.signature(getattr(hookspecs, hook)).parameters:
        assert f"`{argument}`" in section[1]


@pytest.mark.parametrize("name", examples())
def test_example_loads_and_conforms(name: str, tmp_path: Path) -> None:
    for component in own(load(tmp_path, name), name):
        if component.kind in CHECKED:
            failed = {r.name: r.message for r in run_checks(component) if not r.ok}
            assert not failed


def test_example_of_a_test_has_the_checks(tmp_path: Path) -> None:
    [block] = [b for b in fenced(PLUGINS, "python") if b.startswith("# test_")]
    load(tmp_path, "brier.py")
    file = tmp_path / "test_of_a_plugin.py"
    file.write_text(block, encoding="utf-8")
    [mark] = runpy.run_path(str(file))["test_conformance"].pytestmark
    assert len(mark.args[1]) > 5


def test_example_dataset_and_model_fit_each_other(tmp_path: Path) -> None:
    registry = load(tmp_path, "two_moons.py").registry
    data = prepare(DataConfig.model_validate({"name": "two_moons", "samples": 50}), registry)
    assert (data.info.task, data.info.input_shape) == ("binary", (2,))
    registry = load(tmp_path, "wide.py").registry
    model = ModelConfig.model_validate({"name": "wide", "width": 8})
    network = build_network(model, data.info, registry)
    found = network(torch.zeros(3, 2))
    assert found["logits"].shape == (3,) and found["embeddings"].shape == (3, 8)


def test_example_provider_gives_what_its_loss_reads(tmp_path: Path) -> None:
    registry = load(tmp_path, "mirrored.py").registry
    data = prepare(DataConfig(name="digits"), registry)
    network = build_network(ModelConfig(name="mlp"), data.info, registry)
    loss = registry.build("mirror_consistency")
    made = Fields(network, [ComponentSpec(name="mirrored")], registry, {"logits_b"}, {})
    inputs = torch.rand(4, 64)
    batch = made({"inputs": inputs})
    torch.testing.assert_close(batch["logits_b"], network(inputs.flip(-1))["logits"])
    assert loss(batch).shape == (4,)


def test_example_space_compiles(tmp_path: Path) -> None:
    registry = load(tmp_path, "house_space.py").registry
    space = Space.from_document(
        registry.spaces["house"],
        registry=registry,
        task="multiclass",
        available=frozenset({"logits", "targets"}),
    )
    assert len(list(space.references())) == 2


def test_example_command_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    [add] = load(tmp_path, "count.py").commands
    app = typer.Typer()
    add(app)
    app([], standalone_mode=False)
    assert int(capsys.readouterr().out) > 50


# --- README ------------------------------------------------------------------------------------


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = marked("python")
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_python_blocks_of_the_page_on_models_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = fenced((ROOT / "docs" / "models.md").read_text("utf-8"), "python")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "models.md", "exec"), names)
    assert len(blocks) >= 4


@pytest.mark.parametrize("number", range(len(marked("yaml"))))
def test_study_blocks_are_valid(number: int, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(marked("yaml")[number], encoding="utf-8")
    assert read_study(file).data.name
    file.write_text(marked("yaml")[number] + "\nno_such_key: 1\n", encoding="utf-8")
    with pytest.raises(StudyError):  # so that this test can fail
        read_study(file)


def test_every_space_is_in_the_table() -> None:
    for file in (ROOT / "search_spaces").glob("*.yaml"):
        assert f"| `{file.stem}` |" in README


def test_every_command_is_listed() -> None:
    import typer.main

    from lossearch.cli import app

    def paths(command: Any, before: str = "") -> list[str]:
        inner = getattr(command, "commands", None)
        if not inner:
            return [before]
        return [p for name, c in inner.items() for p in paths(c, f"{before} {name}".strip())]

    for path in paths(typer.main.get_command(app)):
        assert f"`lossearch {path}" in README, path


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/plugins.md"]
)
def test_links_lead_somewhere(document: str) -> None:
    file = ROOT / document
    text = re.sub(r"<!--.*?-->", "", file.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#][^)]*)\)", text):
        if "://" not in target:
            assert (file.parent / target.split("#")[0]).exists(), target


