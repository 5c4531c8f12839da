"""The registry: component names to components, each with its owner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lossearch.components import Bound, Component
from lossearch.errors import PluginError, UnknownNameError, unknown


class Registry:
    """Components by name, over all kinds, and search spaces by name."""

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}
        self._owners: dict[str, str] = {}
        self.spaces: dict[str, str] = {}

    def add(self, component: Component, owner: str) -> None:
        """Register a component.

        Raises:
            PluginError: the name is taken. A result must mean one piece of code.
        """
        if component.name in self._components:
            taken = self._components[component.name]
            raise PluginError(
                f"{component.kind} '{component.name}' of '{owner}' has the name of the "
                f"{taken.kind} '{component.name}' of '{self._owners[component.name]}'; component "
                "names are global. Rename one, or leave one plugin out"
            )
        self._components[component.name] = component
        self._owners[component.name] = owner

    def add_space(self, name: str, text: str, owner: str) -> None:
        if name in self.spaces:
            raise PluginError(f"space '{name}' of '{owner}' has the name of another space")
        self.spaces[name] = text

    def get(self, name: str, kind: str | None = None) -> Component:
        """The component of this name.

        Raises:
            UnknownNameError: nothing answers to it, with the nearest name; or it is of another
                kind.
        """
        if not isinstance(name, str):
            raise UnknownNameError(f"the name of a {kind or 'component'} is a text, not {name!r}")
        found = self._components.get(name)
        if found is None:
            names = [c.name for c in self._components.values() if kind in (None, c.kind)]
            raise UnknownNameError(
                f"{unknown(kind or 'component', name, names)} (`lossearch plugins list"
                f"{f' --kind {kind}' if kind else ''}` shows all)"
            )
        if kind is not None and found.kind != kind:
            raise UnknownNameError(f"'{name}' is a {found.kind}, and a {kind} is wanted here")
        return found

    def owner(self, name: str) -> str:
        return self._owners[name]

    def list(self, kind: str | None = None, task: str | None = None) -> list[Component]:
        """All components of a kind that serve a task, by name."""
        return sorted(
            (
                c
                for c in self._components.values()
                if kind in (None, c.kind) and (task is None or task in c.tasks)
            ),
            key=lambda c: c.name,
        )

    def build(
        self,
        name: str,
        params: Mapping[str, Any] = {},
        *,
        kind: str | None = None,
        task: str | None = None,
        facts: Mapping[str, Any] = {},
    ) -> Bound:
        return self.get(name, kind).build(task=task, facts=facts, **params)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._components

    def __iter__(self) -> Iterator[Component]:
        return iter(self._components.values())

    def __len__(self) -> int:
        return len(self._components)


_current: Registry | None = None


def current() -> Registry:
    """The registry of this process: that of the study under way, else all installed plugins."""
    global _current
    if _current is None:
        from lossearch.plugins import load_plugins

        _current = load_plugins().registry
    return _current


def use(registry: Registry | None) -> None:
    """Make this the registry of the process; ``None`` goes back to the installed plugins."""
    global _current
    _current = registry


@contextmanager
def using(registry: Registry) -> Iterator[None]:
    """Make this the registry of the process for a while: a component may look others up."""
    before = _current
    use(registry)
    try:
        yield
    finally:
        use(before)


def get(name: str) -> Component:
    """Describe a component: its kind, task, fields, ``Params``, returns and paper.

    Raises:
        UnknownNameError: nothing answers to the name, with the nearest one.
    """
    return current().get(name)


def build(name: str, **params: Any) -> Bound:
    """A component bound to its parameters, called with a mapping of batch fields.

    Raises:
        UnknownNameError: nothing answers to the name.
        ParameterError: an unknown parameter or an illegal value.
    """
    return current().build(name, params)
