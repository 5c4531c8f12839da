"""The kernels that a stacked computation ran, written down once and run again without vmap.

Each operation under :func:`torch.func.vmap` and autograd passes through several layers of
dispatch, which on small networks cost more than the kernels below them. A :class:`Tape` sees what
reaches the bottom, plain kernels on plain tensors, and makes Python functions that call them.
What Python itself decided on the way is fixed in them, so a tape counts only where a second one,
of another batch, is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lossearch.training.kernels import Call
from lossearch.training.source import Tensors, Writer

Kept = tuple[Tensor, ...]
Run = Callable[[Kept, Sequence[Tensor], Sequence[Tensor]], Kept]


class NotReplayable(Exception):
    """What ran depends on the values of tensors, or on more than tensors."""


class Tape(TorchDispatchMode):
    """Kernels of one or more stretches of a computation, in order.

    A later stretch may use tensors of an earlier one: a backward pass those of its forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stretches: list[list[Call]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # wrapping it would import torch's compiler, which takes seconds

    @contextmanager
    def record(self) -> Iterator[None]:
        """Write down what runs in here, as one more stretch."""
        self.stretches.append([])
        with self:
            yield

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.stretches[-1].append(Call(func, args, kwargs or {}, out))
        return out


class Programs:
    """The stretches of a tape as functions.

    Args:
        tape: The tape.
        inputs: For each stretch, the tensors that its function will be given.
        outputs: For each stretch, those that it makes.

    Attributes:
        runs: The functions: of what the stretch before kept, of tensors to write the outputs to,
            and of the inputs. They return what the next one needs.
        shape, dtype: Of the first output of all.
        random: Whether something draws random numbers.
        largest: Bytes of the largest tensor that is made.

    Raises:
        NotReplayable: something on the tape is no kernel on tensors alone; or, called again on
            the same tensors, the functions give something else.
    """

    def __init__(
        self, tape: Tape, inputs: Sequence[Tensors], outputs: Sequence[Tensors]
    ) -> None:
        calls = [call for some in tape.stretches for call in some]
        if not all(call.legal for call in calls):
            raise NotReplayable("a kernel's result depends on values")
        self.random = any(call.random for call in calls)
        self.largest = max((o.nbytes for call in calls for o in call.outs), default=1) or 1
        self.scope: dict[str, Any] = {}
        writer = Writer(tape.stretches, inputs, outputs, self.scope)
        self.texts = [writer.text(i) for i in range(len(tape.stretches))]
        self.rooms = [[torch.empty_like(t) for t in some] for some in writer.rooms]
        self.shape, self.dtype = outputs[0][0].shape, outputs[0][0].dtype
        self.runs: list[Run] = []
        for text in self.texts:
            scope = dict(self.scope)
            exec(compile(text, "<replay>", "exec"), scope)
            self.runs.append(scope["run"])
        if not self.random:
            self._prove(inputs, outputs)

    @torch.no_grad()
    def _prove(self, inputs: Sequence[Tensors], outputs: Sequence[Tensors]) -> None:
        """The functions must give what was recorded."""
        kept: Kept = ()
        for run, rooms, given, expected in zip(
            self.runs, self.rooms, inputs, outputs, strict=True
        ):
            found = [torch.empty_like(t) for t in expected]
            kept = run(kept, [*found, *rooms], [t.detach() for t in given])
            for one, other in zip(found, expected, strict=True):
                scale = float(other.nan_to_num(0.0, 0.0, 0.0).abs().max()) if len(other) else 1.0
                if not torch.allclose(one, other, rtol=1e-4, atol=1e-6 * scale, equal_nan=True):
                    raise NotReplayable("called again, the kernels give something else")

    def same_as(self, other: Programs) -> bool:
        """Whether another recording came to the same kernels and constants."""
        return self.texts == other.texts and all(
            name.startswith("s") or _alike(value, other.scope[name])
            for name, value in self.scope.items()
        )


_CACHES: WeakKeyDictionary[Any, dict[Any, Programs | None]] = WeakKeyDictionary()
_MOST = 64  # recordings of one owner; each holds the memory that its kernels write to


def agreed(owner: Any, key: Any, record: Callable[[bool], Programs]) -> Programs | None:
    """The programs of a recording, or ``None`` where a second one, of other values, differs.

    Args:
        owner: For whom it is kept as long as he lives: a plan.
        key: All that the kernels depend on.
        record: Records and compiles; told whether it is the second time.
    """
    cache = _CACHES.setdefault(owner, {})
    if key not in cache:
        while len(cache) >= _MOST:
            del cache[next(iter(cache))]
        cache[key] = _agreed(record)
    return cache[key]


def _agreed(record: Callable[[bool], Programs]) -> Programs | None:
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, second = record(False), record(True)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # vmap's own way goes on, and says what is wrong if something is
        return None
    return first if first.same_as(second) else None


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (
            one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        )
    return one is other or bool(one == other)
