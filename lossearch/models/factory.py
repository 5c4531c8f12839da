"""A function or a class of the user's that makes the network, called anew for each seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lossearch.errors import ModelError

_SIZES = ("num_outputs", "num_classes", "n_classes")


@dataclass(frozen=True)
class Factory:
    """What makes the network; each seed thus gets initial weights of its own.

    Attributes:
        function: Called without an argument; with the number of outputs where it has a parameter
            for that (``num_outputs``, ``num_classes``), or where it needs one argument.
        thaw: Whether all of its parameters are to learn, whatever it says.
    """

    function: Callable[..., Any]
    thaw: bool = False

    @property
    def name(self) -> str:
        found = getattr(self.function, "__name__", type(self.function).__name__)
        return "model" if found == "<lambda>" else found

    def make(self, num_outputs: int) -> nn.Module:
        """A new network.

        Raises:
            ModelError: it wants arguments that a study does not have, fails, or makes none.
        """
        given = self._arguments(num_outputs)
        try:
            module = self.function(*given[0], **given[1])
        except ModelError:
            raise
        except Exception as error:
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ModelError(f"'{self.name}', which makes the network, fails: {line}") from error
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"'{self.name}', which makes the network, returns {type(module).__name__}, not "
                "an nn.Module"
            )
        return module

    def _arguments(self, num_outputs: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):  # of C
            return (), {}
        named = next((p.name for p in parameters if p.name in _SIZES), None)
        needed = [
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if named is not None and set(needed) <= {named}:
            return (), {named: num_outputs}
        if not needed:
            return (), {}
        if len(needed) == 1:
            return (num_outputs,), {}
        raise ModelError(
            f"'{self.name}', which makes the network, needs {', '.join(needed)}; a study calls it "
            f"without arguments or with the number of outputs: model=lambda: {self.name}(...)"
        )
