"""Several copies of one network trained as one: parameters, buffers and optimizer states in rows.

One forward and one backward serve all rows: under vmap, and from the second batch on, where only
the logits are wanted, as the recorded kernels of it. The optimizer runs torch's own fused kernel
on each row, with the row's learning rate, so that a row moves exactly as the network alone would.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from lossearch.components.inputs import Inputs
from lossearch.errors import ModelError
from lossearch.models import Network
from lossearch.training.blocks import Blocks
from lossearch.training.config import TrainingConfig
from lossearch.training.plan import Plan
from lossearch.training.replay import NotReplayable

Outputs = dict[str, Tensor]
_ADAM = ("exp_avg", "exp_avg_sq")
# Forward passes that keep nothing but buffers; others might count or draw in Python.
_KNOWN = ("torch.nn.", "lossearch.models.", "timm.")
_LARGE = 1 << 24  # parameters in all: from there on kernels are long, and copies cost memory


class Stack:
    """Rows of one network.

    Args:
        network: Its weights are every row's at first.
        size: The number of rows.
        training: The optimizer and the clipping.
        sample: A few inputs, to learn which buffers training changes.
        owner: For whom recorded kernels are kept, beyond this stack.

    Raises:
        ModelError: the network cannot be stacked.
    """

    def __init__(
        self,
        network: Network,
        size: int,
        training: TrainingConfig,
        sample: Inputs,
        owner: Any = None,
    ) -> None:
        self.size, self.training, self.owner = size, training, owner or network
        self.keys = _canonical(network)
        self.skeleton = copy.deepcopy(network).to("meta")
        changing = _changing(network, sample)
        self.shared: dict[str, Tensor] = {}  # what no row changes stands there once
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for name, tensor in network.named_parameters():
            if tensor.requires_grad:
                self.parameters[name] = _repeat(tensor, size).requires_grad_()
            else:
                self.shared[name] = tensor.detach()
        for name, tensor in network.named_buffers():
            if name in changing:
                self.buffers[name] = _repeat(tensor, size)
            else:
                self.shared[name] = tensor
        kinds = _ADAM if training.optimizer != "sgd" else ("momentum_buffer",)
        if training.optimizer == "sgd" and not training.momentum:
            kinds = ()
        self.moments = {
            kind: [torch.zeros_like(p.detach()) for p in self.parameters.values()]
            for kind in kinds
        }
        device = next(iter(self.parameters.values())).device
        # how often each parameter of each row has moved
        self.steps = torch.zeros(size, len(self.parameters), device=device)
        weight = next((n for n, p in network.named_parameters() if p is network.weight), None)
        self.weight = weight if weight in self.parameters else None
        self._reached: dict[str, tuple[bool, ...]] = {}
        known = all(type(m).forward.__module__.startswith(_KNOWN) for m in network.modules())
        self.replayable = known and sum(p.numel() for p in self.parameters.values()) < _LARGE
        self._view()

    def _view(self) -> None:
        """Each row of each tensor, cut once and not at every step."""
        self._recorded: dict[Any, Blocks | None] = {}
        self._pending: Blocks | None = None
        self._grads = [torch.empty_like(p.detach()) for p in self.parameters.values()]
        self._grad_rows = _rows(self._grads, self.size)
        parameters = [p.detach() for p in self.parameters.values()]
        self._rows = _rows(parameters, self.size)
        self._moment_rows = {k: _rows(v, self.size) for k, v in self.moments.items()}
        self._step_rows = [list(row.unbind()) for row in self.steps.unbind()]

    # --- forward and backward --------------------------------------------------------------

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode."""
        self.skeleton.train(mode)

    def __call__(self, inputs: Inputs, *, only_logits: bool = False) -> Outputs:
        """Every row's ``logits`` and, with a head, ``embeddings``, ``[rows, B, ...]``.

        Rows draw alike: trained alone, each would draw the same from the same seed.

        Args:
            inputs: A batch.
            only_logits: Nothing else is wanted.
        """
        self._pending = self._blocks(inputs) if only_logits and self.replayable else None
        if self._pending is not None:
            assert isinstance(inputs, Tensor)
            return {"logits": self._pending.forward(inputs)}
        return self._forward({**self.parameters, **self.buffers}, inputs, self.shared)

    def _forward(
        self, rows: Mapping[str, Tensor], inputs: Inputs, shared: Mapping[str, Tensor]
    ) -> Outputs:
        def one(row: Mapping[str, Tensor], inputs: Inputs) -> Outputs:
            return functional_call(self.skeleton, {**shared, **row}, (inputs,))

        return vmap(one, in_dims=(0, None), randomness="same")(rows, inputs)

    def _blocks(self, inputs: Inputs) -> Blocks | None:
        """The recorded kernels for batches like this one; ``None`` where they cannot be."""
        if not isinstance(inputs, Tensor):
            return None
        key = self.skeleton.training, inputs.shape, inputs.dtype
        if key not in self._recorded:
            try:
                self._recorded[key] = Blocks(
                    self.owner,
                    lambda *given: self._forward(*given)["logits"],
                    self.parameters,
                    self.buffers,
                    self.shared,
                    inputs,
                    training=self.skeleton.training,
                )
            except NotReplayable:
                self._recorded[key] = None
        return self._recorded[key]

    def evaluate(self, inputs: Inputs) -> Tensor:
        """Every row's logits, in evaluation mode, without gradients."""
        self.train(False)
        with torch.no_grad():
            return self(inputs, only_logits=True)["logits"]

    def backward(
        self,
        outputs: Outputs,
        gradients: Mapping[str, Tensor],
        reached: Sequence[frozenset[str]],
    ) -> None:
        """From the gradients at the outputs, and at the classifier's ``weight``, to the weights'.

        Args:
            outputs: What the forward pass gave, and the weight itself where it is read.
            gradients: At some of these.
            reached: For each row, where its loss has a gradient. What a loss does not reach, the
                optimizer leaves alone.
        """
        self._skip: list[tuple[bool, ...] | None] = [None] * self.size
        if self._pending is not None:
            self._ready = "logits" in gradients
            if self._ready:
                places = [[g[part] for g in self._grads] for part, *_ in self._pending.blocks]
                self._pending.backward(gradients["logits"], places)
            return
        self._ready = False
        for parameter in self.parameters.values():
            parameter.grad = None
        names = [n for n in outputs if n in gradients]
        everywhere = frozenset().union(*reached)
        for row, names_reached in enumerate(reached):
            if names_reached != everywhere:
                self._skip[row] = self._untouched(outputs, names_reached)
        if names:
            torch.autograd.backward([outputs[n] for n in names], [gradients[n] for n in names])

    def _untouched(self, outputs: Outputs, reached: Iterable[str]) -> tuple[bool, ...]:
        """Which parameters a row does not reach through these outputs."""
        names = list(self.parameters)
        touched = [False] * len(names)
        for field in reached:
            if field == "weight":
                found = tuple(name == self.weight for name in names)
            elif field in self._reached:
                found = self._reached[field]
            else:
                output = outputs[field]
                grads = torch.autograd.grad(
                    output,
                    list(self.parameters.values()),
                    torch.zeros_like(output),
                    retain_graph=True,
                    allow_unused=True,
                )
                found = self._reached[field] = tuple(g is not None for g in grads)
            touched = [a or b for a, b in zip(touched, found, strict=True)]
        return tuple(not t for t in touched)

    # --- the optimizer ---------------------------------------------------------------------

    @torch.no_grad()
    def step(self, rates: Sequence[float], decays: Sequence[float]) -> None:
        """Clip each row's gradient, and move each row at its own learning rate."""
        if self._ready:
            if self.training.clip_norm is not None:
                _clip(self._grads, self.training.clip_norm)
            self.steps += 1
            for row, grad in enumerate(self._grad_rows):
                self._move(row, None, grad, rates[row], decays[row])
            return
        grads = [p.grad for p in self.parameters.values()]
        if self.training.clip_norm is not None:
            _clip([g for g in grads if g is not None], self.training.clip_norm)
        got = [i for i, g in enumerate(grads) if g is not None]
        columns = [g.unbind(0) for g in grads if g is not None]
        plain = len(got) == len(grads) and not any(self._skip)
        if plain:
            self.steps += 1
        for row, grad in enumerate(zip(*columns, strict=True)):
            move, gradient = got, list(grad)
            skip = self._skip[row]
            if skip is not None:
                kept = [(i, g) for i, g in zip(got, grad, strict=True) if not skip[i]]
                move, gradient = [i for i, _ in kept], [g for _, g in kept]
            if not plain:
                self.steps[row, move] += 1
            if move:
                self._move(row, move if not plain else None, gradient, rates[row], decays[row])

    def _move(
        self, row: int, which: list[int] | None, grads: list[Tensor], lr: float, decay: float
    ) -> None:
        def pick(tensors: list[Tensor]) -> list[Tensor]:
            return tensors if which is None else [tensors[i] for i in which]

        parameters = pick(self._rows[row])
        moments = [pick(rows[row]) for rows in self._moment_rows.values()]
        # torch.optim's kernels, called as it calls them; its own call costs as much as the kernel
        if self.training.optimizer == "sgd":
            momentum = self.training.momentum
            torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
                parameters, grads, moments[0] if moments else [],
                weight_decay=decay, momentum=momentum, lr=lr, dampening=0.0,
                nesterov=momentum > 0, maximize=False, is_first_step=False,
            )  # fmt: skip
            return
        first, second = moments
        kernel = (
            torch._fused_adamw_  # pyright: ignore[reportPrivateImportUsage]
            if self.training.optimizer == "adamw"
            else torch._fused_adam_  # pyright: ignore[reportPrivateImportUsage]
        )
        kernel(
            parameters, grads, first, second, [], pick(self._step_rows[row]),
            lr=lr, beta1=0.9, beta2=0.999, weight_decay=decay, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    # --- rows in and out -------------------------------------------------------------------

    @torch.no_grad()
    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows stay."""
        self._become(self._taken(rows))

    def take(self, rows: Sequence[int]) -> Stack:
        """A copy that holds these rows, to evaluate them."""
        other = copy.copy(self)
        other._become(self._taken(rows))
        return other

    def _taken(self, rows: Sequence[int]) -> dict[str, Any]:
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.steps.device)

        def cut(tensor: Tensor) -> Tensor:
            return tensor.detach().index_select(0, index)

        return {
            "size": len(rows),
            "parameters": {n: cut(p).requires_grad_() for n, p in self.parameters.items()},
            "buffers": {n: cut(b) for n, b in self.buffers.items()},
            "moments": {k: [cut(m) for m in v] for k, v in self.moments.items()},
            "steps": cut(self.steps),
        }

    def _become(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._view()

    def state(self, row: int) -> dict[str, Tensor]:
        """A row as the network's ``state_dict``."""
        out: dict[str, Tensor] = {}
        for key, name in self.keys.items():
            stacked = self.parameters.get(name, self.buffers.get(name))
            tensor = self.shared[name] if stacked is None else stacked.detach()[row]
            out[key] = tensor.clone()
        return out

    @torch.no_grad()
    def load(self, row: int, state: Mapping[str, Tensor]) -> None:
        """Put a network's ``state_dict`` into a row."""
        for key, name in self.keys.items():
            stacked = self.parameters.get(name, self.buffers.get(name))
            if stacked is not None:
                stacked[row].copy_(state[key])

    def optimizer_state(self, row: int) -> list[dict[str, Any]]:
        """A row's state as torch's optimizer keeps it, a dict for each parameter."""
        out: list[dict[str, Any]] = []
        adam = self.training.optimizer != "sgd"
        for i, moved in enumerate(self.steps[row].tolist()):
            state = {k: v[i][row].clone() for k, v in self.moments.items()} if moved else {}
            if adam and moved:
                state = {"step": self.steps[row, i].clone(), **state}
            elif moved and not state:
                state = {"momentum_buffer": None}
            out.append(state)
        return out

    @torch.no_grad()
    def load_optimizer(self, row: int, states: Mapping[int, Mapping[str, Any]]) -> None:
        """Put the state of a torch optimizer into a row."""
        for i in range(len(self.parameters)):
            state = states.get(i)
            if state is None:
                continue
            self.steps[row, i] = float(state.get("step", 1.0))
            for kind, tensors in self.moments.items():
                tensors[i][row].copy_(state[kind])


def sample_of(plan: Plan) -> Inputs:
    """A few training inputs, for :class:`Stack`."""
    return next(iter(plan.data.train.batches(4, device=plan.device)))["inputs"]


def _repeat(tensor: Tensor, size: int) -> Tensor:
    stacked = tensor.detach().expand(size, *tensor.shape)
    return stacked.clone(memory_format=torch.contiguous_format)


def _rows(tensors: list[Tensor], size: int) -> list[list[Tensor]]:
    columns = [t.unbind(0) for t in tensors]
    return [[column[row] for column in columns] for row in range(size)]


def _clip(grads: list[Tensor], limit: float) -> None:
    """``clip_grad_norm_`` of each row."""
    if not grads:
        return
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in grads]
    total = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    factor = (limit / (total + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))


def _canonical(network: Network) -> dict[str, str]:
    """The keys of its ``state_dict`` to the names of parameters and buffers: ties have two."""
    names = {id(t): n for n, t in (*network.named_buffers(), *network.named_parameters())}
    state = network.state_dict(keep_vars=True)
    strange = [key for key, value in state.items() if id(value) not in names]
    if strange:
        raise ModelError(f"the model keeps state that is no parameter and no buffer: {strange[0]}")
    return {key: names[id(value)] for key, value in state.items()}


def _changing(network: Network, sample: Inputs) -> frozenset[str]:
    """The buffers that a row must have of its own: those that a training step changes, and scales.

    Constants, such as an index of positions, are better shared.
    """
    buffers = dict(network.named_buffers())
    if not buffers:
        return frozenset()
    copied = copy.deepcopy(network).train()
    theirs = dict(copied.named_buffers())
    with torch.random.fork_rng(), torch.no_grad():
        copied(sample)
    after = dict(copied.named_buffers())
    replaced = [n for n in buffers if after.get(n) is not theirs[n]]
    if replaced:
        raise ModelError(
            f"the model puts a new tensor in the place of its buffer '{replaced[0]}'; a stack "
            "follows only changes in place (copy_, add_, ...)"
        )
    return frozenset(
        n for n, b in buffers.items() if not torch.equal(b, after[n]) or n == "head.scale"
    )
