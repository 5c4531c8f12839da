"""Whether a stack pays for a model here, and how large: measured, on copies, not guessed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch

from lossearch.components.inputs import Inputs, each
from lossearch.training.plan import Plan
from lossearch.training.stacked import Stack, sample_of

WORTH = 1.1  # a stack must be faster than one after the other by more than the noise
_SIZES = (4, 8, 16, 32, 64, 128)  # that are tried on a GPU
_FEW = 8  # rows that are tried on a CPU
_SECONDS = 0.5  # enough time to measure one size
# A CPU's step of this length is spent in kernels: a stack could save dispatch alone.
_SLOW = 0.1
_SAME = 1e-3
STEPS_TIMED = 3  # the first ones load much


class Choice:
    """What was measured of the stacks of one plan.

    Attributes:
        problem: Why this model cannot be stacked, in words, or ``None``.
        most: The largest size that memory has not refused.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.problem: str | None = None
        self.most = max(_SIZES)
        self._gains: dict[int, float] = {}
        self._stepped, self._step = False, None

    def pays(self, size: int) -> bool:
        """Whether this many jobs are done sooner as a stack than one after the other."""
        return size > 1 and self.gain(min(size, self.most)) >= WORTH

    def preferred(self, wanted: int) -> int:
        """How many jobs a unit should hold, of up to ``wanted``; 1 where a stack does not pay.

        On a CPU a few rows tell: more gain as much or more, and cost only their memory.
        """
        most = min(wanted, self.most)
        if self.plan.device.type == "cpu":
            return most if self.pays(most) else 1
        best, size = 1.0, 1
        for tried in (s for s in _SIZES if s <= most):
            gain = self.gain(tried)
            if gain < WORTH:
                break
            if gain > 1.1 * best:  # a larger one that gains little only costs memory
                best, size = gain, tried
        return min(size, self.most)

    def gain(self, size: int) -> float:
        """The time of so many single steps over that of a stacked one; 0 where it fails."""
        if self.plan.device.type == "cpu":
            size = min(size, _FEW)
        bucket = 1 << (size.bit_length() - 1)
        if self.problem is not None:
            return 0.0
        if bucket not in self._gains:
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._gains[bucket] = self._measure(bucket)
        return self._gains[bucket]

    def step_seconds(self) -> float | None:
        """A plain step of the model alone, its batch fetched; ``None`` where it fails."""
        if not self._stepped:
            self._stepped = True
            with torch.random.fork_rng():
                self._step = self._first_steps()
        return self._step

    def _first_steps(self) -> float | None:
        plan, taken = self.plan, []
        try:
            batches = iter(plan.batches(torch.Generator().manual_seed(0), 0))
            for _ in range(STEPS_TIMED):
                begin = time.perf_counter()
                if (batch := next(batches, None)) is None:
                    break
                self._single(batch["inputs"])()
                taken.append(time.perf_counter() - begin)
        except Exception:  # training will say what it was
            return None
        return taken[-1] if taken else None

    def refuse(self, size: int) -> None:
        """Memory does not hold this many."""
        self.most = max(1, min(self.most, size // 2))

    def _measure(self, size: int) -> float:
        plan = self.plan
        try:
            network = plan.network(0).to(plan.device)
            batch = next(iter(plan.data.train.batches(
                plan.training.batch_size, device=plan.device
            )))  # fmt: skip
            inputs = batch["inputs"]
            alone = self._single(inputs)
            # the first step may load much
            if plan.device.type == "cpu" and all(self._time(alone) > _SLOW for _ in range(2)):
                return 0.0
            stack = Stack(network, size, plan.training, sample_of(plan), plan)
            self._check(stack, inputs)
            stack.train()
            return size * self._ratio(alone, lambda: self._stacked(stack, inputs))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            self.refuse(size)
            return 0.0
        except Exception as error:  # whatever the model does that a stack of it cannot
            line = next(iter(str(error).splitlines()), "") or type(error).__name__
            self.problem = f"the model cannot be stacked: {line}"
            return 0.0

    def _check(self, stack: Stack, inputs: Inputs) -> None:
        """A stack must score as the network does."""
        network = self.plan.network(0).to(self.plan.device).eval()
        with torch.no_grad():
            few = each(lambda tensor: tensor[:8], inputs)
            expected = network(few)["logits"]
        found = stack.evaluate(few)
        for row in (found[0], found[-1]):
            if not torch.allclose(row, expected, rtol=_SAME, atol=_SAME):
                raise ValueError("stacked, it gives other outputs than alone")

    def _single(self, inputs: Inputs) -> Callable[[], None]:
        network = self.plan.network(0).to(self.plan.device).train()
        weights = [p for p in network.parameters() if p.requires_grad]
        optimizer = self.plan.optimizer(list(weights), [], {"lr": 1e-4, "weight_decay": 0.0})

        def step() -> None:
            with self.plan.autocast():
                logits = network(inputs)["logits"]
                optimizer.zero_grad()
                logits.float().square().mean().backward()
            optimizer.step()

        return step

    def _stacked(self, stack: Stack, inputs: Inputs) -> None:
        rows = range(stack.size)
        with self.plan.autocast():
            outputs = stack(inputs, only_logits=True)
            logits = outputs["logits"].detach().requires_grad_()
            logits.float().square().mean().backward()
            assert logits.grad is not None
            stack.backward(outputs, {"logits": logits.grad}, [frozenset(("logits",))] * len(rows))
        stack.step([1e-4 for _ in rows], [0.0 for _ in rows])

    def _ratio(self, one: Callable[[], None], other: Callable[[], None]) -> float:
        """The time of a step over another's: in turns, since others use the machine as well."""
        best = [float("inf"), float("inf")]
        started = time.perf_counter()
        for repeat in range(20):
            for i, step in enumerate((one, other)):
                taken = self._time(step)
                if repeat:  # the first one warms up
                    best[i] = min(best[i], taken)
            if repeat and time.perf_counter() - started > _SECONDS:
                break
        return best[0] / best[1]

    def _time(self, step: Callable[[], None]) -> float:
        cpu = self.plan.device.type == "cpu"
        # one thread's own time is the same however busy the machine is
        clock = time.thread_time if cpu and torch.get_num_threads() == 1 else time.perf_counter
        begin = clock()
        step()
        if self.plan.device.type == "cuda":
            torch.cuda.synchronize(self.plan.device)
        return clock() - begin
