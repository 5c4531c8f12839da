"""A new plugin passes at once; names are checked; a target is a file, a package or a name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lossearch
from lossearch.components import component_of
from lossearch.errors import PluginError
from lossearch.registry import Registry
from lossearch.testing.scaffold import TEMPLATES, check_target, new_plugin


@lossearch.loss(task="multiclass")
def taken(logits: Any, targets: Any) -> Any:
    return (logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]).abs()


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add(component_of(taken), "test")
    return registry


def test_new_plugins_pass_their_own_tests(tmp_path: Path) -> None:
    for kind in TEMPLATES:
        files = new_plugin(f"fresh_{kind}", tmp_path / "new", kind)
        assert [f.name for f in files] == [f"fresh_{kind}.py", f"test_fresh_{kind}.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-loss", "snake_case"),
        ("MyLoss", "snake_case"),
        ("1st", "snake_case"),
        ("lambda", "means something"),
        ("_mine", "means something"),
        ("taken", "there is a loss 'taken' already, of plugin 'test'"),
    ],
)
def test_bad_names_are_refused(
    tmp_path: Path, registry: Registry, name: str, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        new_plugin(name, tmp_path, registry=registry)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("kept")
    with pytest.raises(PluginError, match="exists already"):
        new_plugin("mine", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["test_mine.py"]
    assert (tmp_path / "test_mine.py").read_text() == "kept"


def test_kind_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="did you mean 'loss'"):
        new_plugin("mine", tmp_path, "los")


def test_target_file_and_folder(tmp_path: Path, registry: Registry) -> None:
    file, test = new_plugin("of_a_file", tmp_path)
    test.unlink()
    for target in (file, tmp_path):
        results = check_target(str(target), registry)
        assert list(results) == ["of_a_file"]
        assert all(r.ok for r in results["of_a_file"]) and len(results["of_a_file"]) > 10


def test_target_component(registry: Registry) -> None:
    assert list(check_target("taken", registry)) == ["taken"]


def test_target_package(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_plugin("of_a_package_here", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(check_target("of_a_package_here", registry)) == ["of_a_package_here"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("takn", "neither a file, a package that imports, nor a component.*did you mean 'taken'"),
        ("none.py", "cannot be read"),
        ("json", "implements no hook"),
    ],
)
def test_target_that_is_nothing(registry: Registry, target: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        check_target(target, registry)


def test_target_package_that_fails(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_on_import_here.py").write_text("import there_is_no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="does not import: No module named 'there_is_no"):
        check_target("fails_on_import_here", registry)
