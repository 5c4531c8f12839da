"""Finding and loading plugins: installed ones by entry point, single files by their text.

Each failure has an owner and a line, and the rest load. Clashes are errors: a result must mean
one piece of code.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from lossearch import hookspecs
from lossearch.components import component_of
from lossearch.errors import PluginError, did_you_mean
from lossearch.registry import Registry

GROUP = "lossearch"
_KINDS = {
    "register_losses": "loss",
    "register_miners": "miner",
    "register_reweightings": "reweighting",
    "register_balancers": "balancer",
    "register_metrics": "metric",
    "register_datasets": "dataset",
    "register_models": "model",
    "register_providers": "provider",
}
_HOOKS = {*_KINDS, "register_spaces", "register_commands"}


@dataclass(frozen=True)
class FilePlugin:
    """A one-file plugin: its text, read once on the driver, is what every worker runs."""

    stem: str
    text: str
    origin: str

    @classmethod
    def read(cls, path: str | Path) -> FilePlugin:
        """Read a plugin file.

        Raises:
            PluginError: there is no such file, or it cannot be read.
        """
        path = Path(path)
        try:
            return cls(path.stem, path.read_text(encoding="utf-8"), str(path.resolve()))
        except (OSError, UnicodeDecodeError) as error:
            raise PluginError(f"plugin file {path} cannot be read: {error}") from None

    @classmethod
    def kept(cls, document: Any) -> FilePlugin:
        """From what a study's ledger keeps of it.

        Raises:
            PluginError: that is no plugin file, or its name is a path.
        """
        try:
            file = cls(**document)
            whole = isinstance(file.origin, str) and bool(file.sha256)
            if whole and file.stem.isprintable() and Path(file.stem).name == file.stem:
                return file
        except (AttributeError, TypeError, UnicodeEncodeError):
            pass
        raise PluginError("a one-file plugin that the ledger keeps is damaged, or named by a path")

    @property
    def name(self) -> str:
        return f"file:{self.stem}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class PluginInfo:
    """What a study records of a plugin, so that a worker can tell whether it has the same."""

    name: str
    distribution: str
    version: str
    sha256: str = ""


@dataclass
class Plugins:
    """All that loaded, and why the rest did not."""

    registry: Registry = field(default_factory=Registry)
    loaded: list[PluginInfo] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    commands: list[Callable[..., Any]] = field(default_factory=list)


def read_plugin_files(paths: Iterable[str | Path]) -> tuple[FilePlugin, ...]:
    """The plugin files at these paths; a folder means its ``*.py`` without a leading ``_``."""
    files: list[FilePlugin] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += [
                FilePlugin.read(p) for p in sorted(path.glob("*.py")) if p.name[0] != "_"
            ]
        else:
            files.append(FilePlugin.read(path))
    return tuple(files)


def load_plugins(files: Sequence[FilePlugin] = (), *, strict_files: bool = False) -> Plugins:
    """Load the installed plugins and these files into a new registry.

    Args:
        files: One-file plugins.
        strict_files: Raise where one of ``files`` does not load, instead of noting it.

    Raises:
        PluginError: with ``strict_files``, what is wrong with the file, line by line.
    """
    plugins = Plugins()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    taken: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        info = _info(entry)
        try:
            if entry.name in taken:
                raise PluginError(
                    f"two plugins are called '{entry.name}': {taken[entry.name]} and "
                    f"{info.distribution} {info.version}. Rename or uninstall one"
                )
            taken[entry.name] = f"{info.distribution} {info.version}"
            _register(manager, plugins, _import_entry(entry), info)
        except PluginError as error:
            plugins.errors[f"{entry.name} ({info.distribution})"] = str(error)
    for file in files:
        info = PluginInfo(file.name, "file", "", file.sha256)
        try:
            if file.name in taken:
                raise PluginError(
                    f"two plugin files are called '{file.stem}': {taken[file.name]} and "
                    f"{file.origin}. Rename one"
                )
            taken[file.name] = file.origin
            _register(manager, plugins, _import_file(file), info)
        except PluginError as error:
            if strict_files:
                raise
            plugins.errors[file.name] = str(error)
    return plugins


def _info(entry: EntryPoint) -> PluginInfo:
    dist = entry.dist
    return PluginInfo(entry.name, dist.name if dist else "?", dist.version if dist else "?")


def _import_entry(entry: EntryPoint) -> ModuleType:
    try:
        module = entry.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"plugin '{entry.name}' ({entry.value}) does not import: {_last_line(error)}"
        ) from error
    if not isinstance(module, ModuleType):
        raise PluginError(
            f"plugin '{entry.name}' ({entry.value}) must name a module; it names "
            f"{module!r}"
        )
    return module


class _TextLoader(importlib.abc.ExecutionLoader):
    """Loads a module from text, so that workers run what the driver read."""

    def __init__(self, file: FilePlugin) -> None:
        self.file = file

    def get_source(self, fullname: str) -> str:
        return self.file.text

    def get_filename(self, fullname: str) -> str:
        return self.file.origin

    def get_code(self, fullname: str) -> Any:
        return compile(self.file.text, self.file.origin, "exec", dont_inherit=True)


def _import_file(file: FilePlugin) -> ModuleType:
    # One module for each process and text. It stands in sys.modules before it runs: dataclasses
    # with string annotations, and pickle, look it up there.
    name = f"lossearch_file_{file.stem}_{file.sha256[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.machinery.ModuleSpec(name, _TextLoader(file), origin=file.origin)
    spec.has_location = True
    lines = file.text.splitlines(keepends=True)
    linecache.cache[file.origin] = (len(file.text), None, lines, file.origin)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise PluginError(
            f"plugin '{file.name}' ({file.origin}) does not import: "
            f"{_last_line(error, file.origin)}"
        ) from error
    return module


def _last_line(error: BaseException, origin: str | None = None) -> str:
    """The error in one line, with the line of the plugin's file that it came from."""
    message = str(error.msg if isinstance(error, SyntaxError) else error).strip()
    text = f"{type(error).__name__}: {message.splitlines()[0]}" if message else repr(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == origin]
    if isinstance(error, SyntaxError) and error.filename == origin:
        lines.append(error.lineno)
    return f"line {lines[-1]}: {text}" if lines else text


def _register(
    manager: pluggy.PluginManager, plugins: Plugins, module: ModuleType, info: PluginInfo
) -> None:
    faults = _faults(module)
    if faults:
        where = getattr(module, "__file__", None) or module.__name__
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise PluginError(f"plugin '{info.name}' ({where}) is not usable:\n{listed}")
    try:
        manager.register(module, info.name)
        manager.check_pending()
        found = _components(manager, module, info)
    except PluginError:
        manager.unregister(name=info.name)
        raise
    except Exception as error:
        if manager.has_plugin(info.name):
            manager.unregister(name=info.name)
        raise PluginError(
            f"plugin '{info.name}': {_last_line(error, module.__file__)}"
        ) from error
    components, spaces, commands = found
    for component in components:  # all or nothing: look for clashes before anything is added
        if component.name in plugins.registry:
            Registry.add(plugins.registry, component, info.name)
    seen: set[str] = set()
    for component in components:
        if component.name in seen:
            raise PluginError(f"plugin '{info.name}' offers '{component.name}' twice")
        seen.add(component.name)
    for name in spaces:
        if name in plugins.registry.spaces:
            plugins.registry.add_space(name, "", info.name)
    for component in components:
        plugins.registry.add(component, info.name)
    for name, text in spaces.items():
        plugins.registry.add_space(name, text, info.name)
    plugins.commands += commands
    plugins.loaded.append(info)


def _components(
    manager: pluggy.PluginManager, module: ModuleType, info: PluginInfo
) -> tuple[list[Any], dict[str, str], list[Callable[..., Any]]]:
    """Call this plugin's hooks one at a time, so that each result and failure has an owner."""
    components: list[Any] = []
    spaces: dict[str, str] = {}
    commands: list[Callable[..., Any]] = []
    for caller in manager.get_hookcallers(manager.get_plugin(info.name)) or ():
        for impl in caller.get_hookimpls():
            if impl.plugin is not module:
                continue
            if caller.name == "register_commands":
                commands.append(impl.function)
                continue
            try:
                offered: Any = impl.function()
                if caller.name == "register_spaces":
                    for name, space in offered.items():
                        text = space.read_text("utf-8") if isinstance(space, Path) else space
                        spaces[name] = text
                    continue
                offered = list(offered)  # a generator raises only here
            except Exception as error:
                raise PluginError(
                    f"plugin '{info.name}': {caller.name}() raised "
                    f"{_last_line(error, module.__file__)}"
                ) from error
            for target in offered:
                component = component_of(target)
                if component.kind != _KINDS[caller.name]:
                    raise PluginError(
                        f"plugin '{info.name}': {caller.name}() returns "
                        f"'{component.name}', which is a {component.kind}"
                    )
                components.append(component)
    return components, spaces, commands


def _faults(module: ModuleType) -> list[str]:
    """What pluggy would pass over in silence, each with its line."""
    faults: list[str] = []
    lines = _definition_lines(module)
    marker = f"{hookspecs.PROJECT}_impl"
    for name, value in vars(module).items():
        if not inspect.isfunction(value) or not name.startswith("register_"):
            continue
        if value.__module__ != module.__name__:
            continue
        at = f"line {lines.get(name, '?')}: "
        if name not in _HOOKS:
            hint = did_you_mean(name, _HOOKS) or f". Hooks: {', '.join(sorted(_HOOKS))}"
            faults.append(f"{at}there is no hook '{name}'{hint}")
        elif not hasattr(value, marker):
            faults.append(f"{at}{name}() lacks @lossearch.hookimpl, so it would be ignored")
        else:
            allowed = set(inspect.signature(getattr(hookspecs, name)).parameters)
            for extra in set(inspect.signature(value).parameters) - allowed:
                faults.append(f"{at}{name}() takes '{extra}', which the hook does not give")
    if not faults and not any(hasattr(v, marker) for v in vars(module).values()):
        faults.append(
            "it implements no hook; add e.g. @lossearch.hookimpl def register_losses()"
        )
    return faults


def _definition_lines(module: ModuleType) -> dict[str, int]:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, SyntaxError, TypeError):
        return {}
    return {n.name: n.lineno for n in tree.body if isinstance(n, ast.FunctionDef)}
