"""Kernels that were called, their variants that write to given memory, and faster equals.

A kernel is what torch runs below autograd and vmap: an operation of ``torch.ops.aten``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey  # pyright: ignore[reportAttributeAccessIssue]
from torch._ops import OpOverload
from torch.nn.functional import pad

_aten = torch.ops.aten
_REFUSED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_RANDOM = torch.Tag.nondeterministic_seeded


class Call:
    """One kernel: operation, arguments and the tensors that it gave."""

    def __init__(self, op: OpOverload, args: Any, kwargs: Any, out: Any) -> None:
        self.op, self.args, self.kwargs = op, args, kwargs
        self.single = isinstance(out, Tensor)
        self.outs: list[Any] = [out] if self.single else [] if out is None else list(out)
        self.random = _RANDOM in op.tags
        self.effect = self.random or op._schema.is_mutable

    @property
    def legal(self) -> bool:
        """Whether it gave tensors alone, of shapes that depend on shapes alone."""
        return all(isinstance(o, Tensor) for o in self.outs) and not _REFUSED & {*self.op.tags}

    @property
    def ins(self) -> list[Tensor]:
        """The tensors that it reads."""
        return [a for a in _flat((self.args, self.kwargs)) if isinstance(a, Tensor)]


def with_out(call: Call) -> tuple[OpOverload, str] | None:
    """The variant of a kernel that writes to given memory, and the name of that argument."""
    key = _key(call.outs[0])
    plain = [(a.name, str(a.type)) for a in call.op._schema.arguments]
    packet = call.op.overloadpacket
    for name in packet.overloads():
        other = getattr(packet, name)
        places = [a.name for a in other._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in other._schema.arguments if not a.is_out]
        if len(places) == 1 and rest == plain and other.has_kernel_for_dispatch_key(key):
            return other, places[0]
    return None


def in_place(call: Call) -> Any:
    """The variant of a kernel that writes over its first argument, if there is one."""
    packet = getattr(_aten, call.op.overloadpacket.__name__ + "_", None)
    return getattr(getattr(packet, call.op._overloadname, None), "_op", None)


def _key(tensor: Tensor) -> DispatchKey:
    return DispatchKey.CUDA if tensor.device.type == "cuda" else DispatchKey.CPU


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


# --- rows narrower than a vector register --------------------------------------------------
# torch's CPU kernels for the last dimension then go number by number, at a tenth of the speed of
# those for any other one, and add in the same order: turned and padded, the results are equal.

_THIN = 32  # columns of a matrix product that alone would use a processor badly
_LONG = 256  # terms of a sum; from there on no two kernels give the same bits
_LANES = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 0)


def faster(call: Call) -> Callable[..., Tensor] | None:
    """A function of the same arguments that gives the same sooner, if there is one."""
    kinds = {
        _aten._log_softmax.default: (_log_softmax, 1),
        _aten._log_softmax_backward_data.default: (log_softmax_backward, 2),
    }
    helper, where = kinds.get(call.op, (None, 0))
    if call.op is _aten.bmm.default and call.args[0].stride(0) == 0 and len(call.args[0]) > 1:
        _, inner, width = call.args[1].shape
        return _one_product if inner >= _LONG and width <= _THIN else None
    if helper is None:
        return None
    given, dim = call.args[0], call.args[where]
    fits = given.dtype is torch.float32 and 1 < given.shape[-1] < _LANES and given.numel()
    return helper if fits and dim == given.ndim - 1 and given.device.type == "cpu" else None


def _one_product(shared: Tensor, factors: Tensor) -> Tensor:
    """Products of one matrix with many thin ones: with all of them side by side."""
    count, inner, width = factors.shape
    wide = factors.transpose(1, 2).reshape(count * width, inner).t()
    return (shared[0] @ wide).view(-1, count, width).transpose(0, 1).contiguous()


def _turned(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    missing = -len(rows) % _LANES
    return (pad(rows, (0, 0, 0, missing)) if missing else rows).t().contiguous()


def _back(turned: Tensor, like: Tensor) -> Tensor:
    return turned[:, : like.numel() // like.shape[-1]].t().reshape(like.shape)


def _log_softmax(x: Tensor, dim: int, half: bool) -> Tensor:
    return _back(_aten._log_softmax.default(_turned(x), 0, half), x).contiguous()


def log_softmax_backward(grad: Tensor, out: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    turned = _aten._log_softmax_backward_data.default(_turned(grad), _turned(out), 0, dtype)
    return _back(turned, grad)
