"""A new plugin from a template that passes its checks, and the checks of a plugin by its name."""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Iterator
from pathlib import Path

from lossearch import hookspecs
from lossearch.components import Component, component_of
from lossearch.errors import PluginError, unknown
from lossearch.plugins import load_plugins, read_plugin_files
from lossearch.registry import Registry
from lossearch.testing.checks import CheckResult, run_checks
from lossearch.testing.templates import TEMPLATES


def new_plugin(
    name: str, folder: str | Path, kind: str = "loss", *, registry: Registry | None = None
) -> list[Path]:
    """Write ``NAME.py``, a complete plugin, and ``test_NAME.py``, which passes.

    Args:
        name: Of the component, in snake_case.
        folder: Where the files go; it is made if it is not there.
        kind: ``loss``, ``reweighting`` or ``metric``.
        registry: Components whose names are taken.

    Raises:
        PluginError: the name is not usable or taken, there is no template of the kind, or a file
            exists already.
    """
    if kind not in TEMPLATES:
        raise PluginError(unknown("plugin template", kind, TEMPLATES))
    if not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise PluginError(f"'{name}' is no name for a component: use snake_case, e.g. my_{kind}")
    if keyword.iskeyword(name) or name[0] == "_" or name.startswith("test_"):
        raise PluginError(f"'{name}' is no name for a component: it means something to Python")
    if registry is not None and name in registry:
        raise PluginError(
            f"there is a {registry.get(name).kind} '{name}' already, of plugin "
            f"'{registry.owner(name)}', and component names are global; choose another"
        )
    folder = Path(folder)
    files = [folder / f"{name}.py", folder / f"test_{name}.py"]
    for file in files:
        if file.exists():
            raise PluginError(f"{file} exists already; choose another name or folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, template in zip(files, TEMPLATES[kind], strict=True):
        file.write_text(template.replace("NAME", name), encoding="utf-8")
    return files


def check_target(target: str, registry: Registry) -> dict[str, list[CheckResult]]:
    """Run the checks of a plugin file, of a folder of them, of a component, or of a package.

    Args:
        target: The path, the component's name, or the package's import name.
        registry: Where a component's name is looked up.

    Returns:
        The results by component.

    Raises:
        PluginError: the plugin does not load, or nothing answers to the target.
    """
    return {c.name: run_checks(c) for c in _components(target, registry)}


def _components(target: str, registry: Registry) -> Iterator[Component]:
    path = Path(target)
    if path.suffix == ".py" or path.is_dir():
        files = read_plugin_files([path])
        if not files:
            raise PluginError(f"there is no plugin file in {path}")
        loaded = load_plugins(files, strict_files=True).registry
        owners = {file.name for file in files}
        yield from (c for c in loaded.list() if loaded.owner(c.name) in owners)
    elif target in registry:
        yield registry.get(target)
    else:
        yield from _of_package(target, registry)


def _of_package(target: str, registry: Registry) -> Iterator[Component]:
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != target.split(".")[0]:
            raise PluginError(f"package '{target}' does not import: {error}") from error
        names = [component.name for component in registry]
        raise PluginError(
            f"'{target}' is neither a file, a package that imports, nor a component: "
            f"{unknown('component', target, names)}"
        ) from None
    except Exception as error:
        raise PluginError(f"package '{target}' does not import: {error}") from error
    hooks = [h for h in vars(hookspecs) if h.startswith("register_")]
    offered = set(hooks) - {"register_spaces", "register_commands"}
    found = [component_of(c) for h in sorted(offered) for c in getattr(module, h, tuple)()]
    if not found:
        raise PluginError(f"package '{target}' implements no hook that registers components")
    yield from found
