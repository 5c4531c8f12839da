"""Bad candidates: which share of them is stopped before the first training step.

    python tests/benchmarks/bad_candidates.py [--candidates 1000]

For each task a space of the bundled losses, salted by a one-file plugin with losses of wrong sign,
NaN makers, constants, losses that learn nothing, losses that raise, and cross-entropy in disguise.
A disguise is bad from the second time on; the first could be trained. Counted as a false refusal
is every bundled loss, or first disguise, that is refused or taken for another; not one that was
drawn twice, the same to three digits. All candidates have one learning rate: with a searched one,
a repeated objective is a new trial.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from typing import Any

import optuna
import torch
from rich.console import Console
from rich.table import Table

from lossearch.plugins import FilePlugin, load_plugins
from lossearch.space import Space
from lossearch.trials.fingerprint import Fingerprints, fingerprint
from lossearch.trials.preflight import preflight
from lossearch.trials.probe import Probe

PLUGIN = '''
from typing import Annotated

import torch
import torch.nn.functional as F

import lossearch
from lossearch import Range

ALL = ("multiclass", "binary", "multilabel")
LOSSES = []


def bad(function):
    LOSSES.append(lossearch.loss(task=ALL)(function))
    return LOSSES[-1]


def rows(values):
    return values.mean(1) if values.ndim > 1 else values


def entropy(z, t):
    if t.is_floating_point():
        return rows(F.binary_cross_entropy_with_logits(z, t, reduction="none"))
    return F.cross_entropy(z, t, reduction="none")


def p_true(z, t):
    if t.is_floating_point():
        return torch.where(t > 0.5, z.sigmoid(), (-z).sigmoid())
    return z.softmax(1).gather(1, t[:, None])[:, 0]


def wide(z):
    return z.reshape(len(z), -1)


def other(z, t):
    return 1 - t if t.is_floating_point() else (t + 1) % z.shape[1]


# --- wrong sign
@bad
def sign_entropy(logits, targets, *, scale: Annotated[float, Range(0.1, 10.0, log=True)] = 1.0):
    return -scale * entropy(logits, targets)

@bad
def sign_logits(logits, targets):
    return entropy(-logits, targets)

@bad
def sign_power(logits, targets, *, q: Annotated[float, Range(0.1, 1.0)] = 0.5):
    return rows(p_true(logits, targets) ** q)

@bad
def sign_class(logits, targets):
    return entropy(logits, other(logits, targets))

@bad
def sign_focal(logits, targets, *, gamma: Annotated[float, Range(0.5, 5.0)] = 2.0):
    p = p_true(logits, targets).clamp(1e-6, 1 - 1e-6)
    return rows((1 - p) ** gamma * p.log())


# --- not finite somewhere
@bad
def nan_log(logits, targets):
    if targets.is_floating_point():
        p = logits.sigmoid()
        return rows(-torch.where(targets > 0.5, p, 1 - p).log())
    return rows(-p_true(logits, targets).log())

@bad
def nan_root(logits, targets, *, power: Annotated[float, Range(0.1, 0.9)] = 0.5):
    return rows((1 - p_true(logits, targets)) ** power)

@bad
def nan_ratio(logits, targets):
    return entropy(logits, targets) / entropy(logits, other(logits, targets))

@bad
def nan_exp(logits, targets):
    return entropy(logits, targets) * (wide(logits).square().mean(1) / 10).exp()

@bad
def nan_always(logits, targets):
    return entropy(logits, targets) + rows((wide(logits) - 1e4).sqrt())


# --- no gradient
@bad
def flat_constant(logits, targets, *, value: Annotated[float, Range(0.0, 3.0)] = 1.0):
    return torch.full((len(logits),), value)

@bad
def flat_detached(logits, targets):
    return entropy(logits.detach(), targets)

@bad
def flat_times_zero(logits, targets):
    return 0 * entropy(logits, targets)

@bad
def flat_hits(logits, targets):
    return rows((p_true(logits, targets) > 0.5).float()) + 0 * wide(logits).sum(1)

@bad
def flat_total(logits, targets):
    z = logits if logits.ndim > 1 else torch.stack([logits, -logits], 1)
    return z.log_softmax(1).exp().sum(1)


# --- a gradient that teaches nothing
@bad
def idle_norm(logits, targets, *, power: Annotated[float, Range(1.0, 3.0)] = 2.0):
    return rows(logits.abs() ** power)

@bad
def idle_sure(logits, targets):
    z = logits if logits.ndim > 1 else torch.stack([logits, -logits], 1)
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)

@bad
def idle_flat(logits, targets):
    z = logits if logits.ndim > 1 else torch.stack([logits, -logits], 1)
    return (z.softmax(1) * z.log_softmax(1)).sum(1)

@bad
def idle_sum(logits, targets):
    return rows(logits)

@bad
def idle_shuffled(logits, targets):
    return entropy(logits, targets[torch.randperm(len(targets))])


# --- raises
@bad
def raise_shape(logits, targets):
    return entropy(logits[:-1], targets)

@bad
def raise_index(logits, targets):
    return wide(logits)[:, 10_000]

@bad
def raise_value(logits, targets):
    raise ValueError("not written yet")

@bad
def raise_pairs(logits, targets):
    return entropy(logits, targets) @ torch.ones(3)


# --- cross-entropy in disguise
@bad
def same_scaled(logits, targets, *, scale: Annotated[float, Range(0.1, 10.0, log=True)] = 1.0):
    return scale * entropy(logits, targets)

@bad
def same_shifted(logits, targets, *, shift: Annotated[float, Range(-3.0, 3.0)] = 1.0):
    return entropy(logits, targets) + shift

@bad
def same_by_hand(logits, targets):
    if targets.is_floating_point():
        return rows(F.softplus(logits) - targets * logits)
    return logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]

@bad
def same_smoothed(logits, targets):
    if targets.is_floating_point():
        return entropy(logits, 0.0 + targets * 1.0)
    return F.cross_entropy(logits, targets, label_smoothing=0.0, reduction="none")


@lossearch.hookimpl
def register_losses():
    return LOSSES
'''
GOOD = {
    "multiclass": (
        *("focal", "poly_loss", "generalized_cross_entropy", "symmetric_cross_entropy"),
        *("squentropy", "mse_logits", "ldr_kl", "aldr_kl", "dual_focal", "logit_adjusted"),
        *("ensloss", "cosface", "arcface", "ldam"),
    ),
    "binary": ("focal", "poly_loss", "asymmetric", "any_loss", "ensloss"),
    "multilabel": ("focal", "poly_loss", "asymmetric", "any_loss", "ensloss", "ldam"),
}
COUNTS = {
    "multiclass": (150, 90, 60, 40, 30, 20, 15, 10, 8, 5),
    "binary": (200, 20),
    "multilabel": (100, 60, 40, 15, 5),
}
FIELDS = {"logits", "targets", "embeddings", "weight", "class_counts", "index", "epoch", "step",
          "total_steps"}  # fmt: skip
TRAINING = {"lr": 1e-3}


def candidates(task: str, count: int, salt: list[str], registry: Any) -> list[Any]:
    """Random objectives, about half of them bad."""
    good = list(GOOD[task])
    names = good * (len(salt) // len(good)) + salt
    spaces = {
        name: Space.from_document(
            {"task": task, "terms": [{"loss": {"choice": [name]}}]},
            registry=registry,
            task=task,
            available=FIELDS,
        )
        for name in set(names)
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    made = []
    for number in range(count):
        made.append(spaces[names[number * 7919 % len(names)]].suggest(study.ask()))
    return made


def measure(task: str, count: int) -> tuple[list[tuple[str, int, int, str]], int, int, float]:
    """Of each sort of bad candidate: how many, how many stopped, and as what.

    Then how many were good, how many of these falsely stopped, and the seconds a candidate took.
    """
    registry = load_plugins([FilePlugin("salt", PLUGIN, "salt.py")], strict_files=True).registry
    salt = [c.name for c in registry if registry.owner(c.name) == "file:salt"]
    counts = COUNTS[task]
    probe = Probe.make(
        task, num_classes=len(counts), class_counts=counts, train_size=sum(counts)
    )
    metric = registry.get("accuracy")
    known = Fingerprints()
    bad, stopped, false, good = Counter[str](), Counter[str](), 0, 0
    times: list[float] = []
    reasons = defaultdict[str, set[str]](set)
    disguised = False
    for number, spec in enumerate(candidates(task, count, salt, registry)):
        begin = time.perf_counter()
        refusal = preflight(spec, registry, probe, metric, bf16=True)
        found = None if refusal else fingerprint(spec, registry, probe)
        match = None if refusal else known.equal(spec, found, TRAINING)
        if refusal is None and match is None:
            known.add(number, spec, found, TRAINING)
        times.append(time.perf_counter() - begin)
        name = spec.terms[0].loss.name
        sort = name.split("_")[0] if name in salt else ""
        if sort and (sort != "same" or disguised):
            bad[sort] += 1
            reasons[sort].add(refusal.reason if refusal else "equal" if match else "passed")
            stopped[sort] += refusal is not None or match is not None
            if refusal is None and match is None:
                print(f"  not stopped: {task}, {spec.label()}")
        else:
            good += 1
            disguised |= sort == "same"
            again = match is not None and match.label == spec.label()
            if refusal is not None or (match is not None and not again):
                false += 1
                print(f"  falsely stopped: {task}, {spec.label()}: {refusal or match}")
    rows = [(s, bad[s], stopped[s], ", ".join(sorted(reasons[s]))) for s in sorted(bad)]
    return rows, good, false, statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=1000)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = Table("task", "sort", "bad", "stopped", "share", "as")
    every, caught = 0, 0
    lines: list[str] = []
    for task in COUNTS:
        rows, good, false, seconds = measure(task, chosen.candidates)
        for sort, bad, stopped, reasons in rows:
            table.add_row(task, sort, str(bad), str(stopped), f"{stopped / bad:.1%}", reasons)
            every, caught = every + bad, caught + stopped
        lines.append(f"{task}: {false} of {good} good candidates falsely stopped; "
                     f"{1e3 * seconds:.1f} ms a candidate")  # fmt: skip
    console = Console(width=100)
    console.print(table)
    console.print("\n".join(lines))
    console.print(f"stopped before the first training step: {caught / every:.2%} (goal 99 %)")


if __name__ == "__main__":
    main()
