"""Python source that calls a tape's kernels again, with their memory planned.

Views that change nothing and results that nobody reads are left out. Elementwise kernels write
over operands that nobody reads again; others write to memory of the caller's, or to some that
every run uses again: fresh memory costs more than many a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lossearch.training.kernels import Call, faster, in_place, log_softmax_backward, with_out

Tensors = Sequence[Tensor]
_aten = torch.ops.aten
_VIEWS = {
    _aten.view.default, _aten.alias.default, _aten._unsafe_view.default, _aten.expand.default,
}  # fmt: skip


class Writer:
    """Writes the functions of a tape's stretches.

    Args:
        stretches: The calls.
        inputs: For each stretch, the tensors that its function will be given.
        outputs: For each stretch, those that it makes.
        scope: Gets what the functions use.

    Attributes:
        rooms: For each stretch whose text was written, what it keeps in memory of the caller's.
    """

    def __init__(
        self,
        stretches: Sequence[Sequence[Call]],
        inputs: Sequence[Tensors],
        outputs: Sequence[Tensors],
        scope: dict[str, Any],
    ) -> None:
        self.scope, self.inputs = scope, inputs
        self.names: dict[int, str] = {}
        self.numbers: dict[tuple[float, torch.dtype], Tensor] = {}
        self.same: dict[int, Tensor] = {}
        self.moved: dict[int, int] = {}  # memory to the memory that takes its place
        self.calls = [self._thinned(calls) for calls in stretches]
        self.outputs = [[self._first(t) for t in some] for some in outputs]
        self._drop_dead()
        self._find_lives()
        self._share()
        self.rooms: list[list[Tensor]] = []
        self.free: dict[Any, list[Tensor]] = {}

    def _thinned(self, calls: Sequence[Call]) -> list[Call]:
        out: list[Call] = []
        for call in calls:
            call.args, call.kwargs = self._mapped(call.args), self._mapped(call.kwargs)
            if call.op in _VIEWS:
                given, made = call.args[0], call.outs[0]
                if made.shape == given.shape and made.stride() == given.stride():
                    self.same[id(made)] = given
                    continue
            out.append(call)
        return out

    def _first(self, tensor: Tensor) -> Tensor:
        return self.same.get(id(tensor), tensor)

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._first(value)
        if isinstance(value, (list, tuple)):
            return [self._mapped(v) for v in value]
        if isinstance(value, dict):
            return {k: self._mapped(v) for k, v in value.items()}
        return value

    def _drop_dead(self) -> None:
        wanted = {id(t) for some in self.outputs for t in some}
        for i in reversed(range(len(self.calls))):
            kept: list[Call] = []
            for call in reversed(self.calls[i]):
                if call.effect or any(id(o) in wanted for o in call.outs):
                    wanted.update(id(t) for t in call.ins)
                    kept.append(call)
            self.calls[i] = kept[::-1]

    def _find_lives(self) -> None:
        """Where each tensor, and each piece of memory, is used for the last time."""
        self.last: dict[int, tuple[int, float]] = {}
        self.kept: list[dict[int, Tensor]] = [{} for _ in self.calls]
        made = {id(t): i for i, some in enumerate(self.inputs) for t in some}
        never = (len(self.calls), 0)
        for tensor in (t for some in self.inputs for t in some):
            self.last[_memory(tensor)] = never  # the caller's
        for i, calls in enumerate(self.calls):
            for j, call in enumerate(calls):
                for tensor in (*call.ins, *call.outs):
                    memory = _memory(tensor)
                    if id(tensor) not in made and not any(tensor is o for o in call.outs):
                        self.last[memory] = never  # a constant
                    for k in range(made.setdefault(id(tensor), i), i):
                        self.kept[k][id(tensor)] = tensor
                    for key in (id(tensor), memory):
                        self.last[key] = max(self.last.get(key, (i, j)), (i, j))
            for tensor in self.outputs[i]:
                for key in (id(tensor), _memory(tensor)):
                    self.last[key] = max(self.last.get(key, never), (i, math.inf))

    def _share(self) -> None:
        """Let elementwise kernels write over an operand that nobody reads again."""
        self.over: dict[int, Tensor] = {}
        for i, calls in enumerate(self.calls):
            for j, call in enumerate(calls):
                if torch.Tag.pointwise not in call.op.tags or not call.single or call.effect:
                    continue
                out, written = call.outs[0], with_out(call) is not None
                for tensor in call.ins if written else call.ins[:1]:
                    memory = self._home(tensor)
                    alike = _layout(tensor) == _layout(out) and self.last[memory] == (i, j)
                    # other views of it must not see what has been written already
                    alone = all(_same_view(t, tensor) for t in call.ins if self._home(t) == memory)
                    if alike and alone and (written or in_place(call)):
                        self.over[id(call)] = tensor
                        self.moved[_memory(out)] = memory
                        self.last[memory] = self.last[_memory(out)]
                        break

    def _home(self, tensor: Tensor) -> int:
        memory = _memory(tensor)
        while memory in self.moved:
            memory = self.moved[memory]
        return memory

    # --- source ----------------------------------------------------------------------------

    def text(self, i: int) -> str:
        """The function of a stretch."""
        lines = ["def run(kept, into, inputs):"]
        before = list(self.kept[i - 1].values()) if i else []
        for source, tensors in (("kept", before), ("inputs", self.inputs[i])):
            if tensors:
                names = [self._name(t, new=source == "inputs") for t in tensors]
                lines.append(f"    {', '.join(names)}, = {source}")
        places = self._places(i)
        count = len(self.outputs[i]) + len(self.rooms[i])
        lines.append(f"    {', '.join(f'to{n}' for n in range(count))}, = into")
        for j, call in enumerate(self.calls[i]):
            lines.append(f"    {self._line(i, call, places)}")
            tensors = {id(t): t for t in (*call.ins, *call.outs)}.values()
            spent = [self._name(t) for t in tensors if self.last[id(t)] == (i, j)]
            spent = [name for name in spent if name not in self.scope]
            if spent:
                lines.append(f"    del {', '.join(spent)}")
            for memory in {self._home(t) for t in tensors}:
                if self.last[memory] == (i, j) and memory in self.taken:
                    key, tensor = self.taken.pop(memory)
                    self.free.setdefault(key, []).append(tensor)
        for n, tensor in enumerate(self.outputs[i]):
            if id(tensor) not in self.placed:
                lines.append(f"    to{n}.copy_({self._name(tensor)})")
        kept = "".join(f"{self._name(t)}, " for t in self.kept[i].values())
        lines.append(f"    return ({kept})")
        return "\n".join(lines)

    def _places(self, i: int) -> dict[int, str]:
        """Where memory is, that outputs or later stretches need: handed in by the caller."""
        self.placed: set[int] = set()
        self.taken: dict[int, tuple[Any, Tensor]] = {}
        made = {id(o): c for c in self.calls[i] for o in c.outs}
        first = {}  # the kernel that writes each piece of memory first
        for call in self.calls[i]:
            direct = call.single and not call.effect and faster(call) is None
            if direct and id(call) not in self.over and with_out(call):
                first.setdefault(self._home(call.outs[0]), call.outs[0])
        out: dict[int, str] = {}
        for n, tensor in enumerate(self.outputs[i]):
            place, source, call = f"to{n}", tensor, made.get(id(tensor))
            if call is not None and call.op is _aten.transpose.int:
                inner = made.get(id(call.args[0]))
                if inner is not None and inner.op is _aten.bmm.default:  # it writes turned as well
                    place, source = f"to{n}.transpose(1, 2)", inner.outs[0]
            memory = self._home(source)
            root = first.get(memory)
            if memory not in out and root is not None and _layout(root) == _layout(source):
                out[memory] = place
                self.placed.add(id(tensor))
        rooms: list[Tensor] = []
        for tensor in self.kept[i].values():
            memory = self._home(tensor)
            if memory in first and memory not in out:
                out[memory] = f"to{len(self.outputs[i]) + len(rooms)}"
                rooms.append(first[memory])
        self.rooms.append(rooms)
        return out

    def _line(self, i: int, call: Call, places: Mapping[int, str]) -> str:
        helper, arguments = faster(call), self._arguments(call)
        function = helper or call.op._op
        if call.single and not call.effect:
            variant, over = with_out(call), self.over.get(id(call))
            into = self._name(over) if over is not None else None
            if variant is not None and helper is None:
                into = into or self._place(i, call.outs[0], places)
                function = variant[0]._op
                turn = ".transpose(1, 2)"
                if into.endswith(turn):  # a product: of the turned factors in turned order
                    left, right = (self._name(t) + turn for t in call.args)
                    arguments = f"{right}, {left}, out={into.removesuffix(turn)}"
                else:
                    arguments = f"{arguments}, {variant[1]}={into}"
            elif over is not None:
                function = in_place(call)
        names = [self._name(o, new=True) for o in call.outs]
        if helper is log_softmax_backward and not any(call.outs[0] is t for t in self.outputs[i]):
            arguments += ").contiguous("
        left = names[0] if call.single else f"[{', '.join(names)}]" if names else "_"
        return f"{left} = {self._global(function)}({arguments})"

    def _place(self, i: int, tensor: Tensor, places: Mapping[int, str]) -> str:
        """Memory for a result: the caller's, or some that all runs use again."""
        memory = self._home(tensor)
        if memory in places:
            return places[memory]
        key = _layout(tensor)
        free = self.free.get(key)
        room = free.pop() if free else torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
        if self.last[memory][0] == i:
            self.taken[memory] = key, room
        return self._global(room, scratch=True)

    def _name(self, tensor: Tensor, *, new: bool = False) -> str:
        if id(tensor) not in self.names:
            if not new:
                return self._global(tensor)
            self.names[id(tensor)] = f"v{len(self.names)}"
        return self.names[id(tensor)]

    def _global(self, value: Any, *, scratch: bool = False) -> str:
        """The name of something that every run uses."""
        for name, other in self.scope.items():
            if other is value:
                return name
        name = f"{'s' if scratch else 'g'}{len(self.scope)}"
        self.scope[name] = value
        return name

    def _arguments(self, call: Call) -> str:
        kinds = [str(a.type) for a in call.op._schema.arguments]
        made = call.outs[0] if call.single else None
        written: list[str] = []
        for value, kind in zip(call.args, kinds, strict=False):
            if kind == "Tensor" and isinstance(value, float) and made is not None:
                # else torch would make this tensor of the number at every call
                value = self._number(value, made)
            written.append(self._written(value))
        written += [f"{k}={self._written(v)}" for k, v in call.kwargs.items()]
        return ", ".join(written)

    def _number(self, value: float, like: Tensor) -> Tensor | float:
        if not like.is_floating_point():
            return value
        key = value, like.dtype
        if key not in self.numbers:
            self.numbers[key] = torch.tensor(value, dtype=like.dtype)
        return self.numbers[key]

    def _written(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return self._name(value)
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(self._written(v) for v in value)}]"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        if isinstance(value, float) and math.isfinite(value):
            return repr(value)
        return self._global(value)


def _memory(tensor: Tensor) -> int:
    return -tensor.untyped_storage()._cdata  # never the id of a tensor


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


def _same_view(one: Tensor, other: Tensor) -> bool:
    return (_layout(one), one.storage_offset()) == (_layout(other), other.storage_offset())
