"""A made-up study's ledger, for tests of what is derived from one."""

from __future__ import annotations

import math
import random
from typing import Any

LOSSES: dict[str, dict[str, tuple[float, float]]] = {
    "focal": {"gamma": (0.0, 5.0)},
    "poly_loss": {"epsilon": (-1.0, 6.0)},
    "generalized_cross_entropy": {"q": (0.05, 1.0)},
    "symmetric_cross_entropy": {"alpha": (0.1, 10.0), "beta": (0.1, 1.0)},
    "label_smoothing": {"smoothing": (0.0, 0.4)},
}
FAILURES = [
    ("diverged", "the training loss is nan in epoch 3"),
    ("raised", "RuntimeError: selected index k out of range <in tiny_plugin.py:12>"),
]
REJECTIONS = [
    ("repeated", "equal to trial 3 up to scale on the probe batch"),
    ("not_aligned", "following its gradient makes macro_f1 worse on the probe batch"),
]
TEST_METRICS = ("macro_f1", "accuracy")


def study_rows(
    trials: int = 40, epochs: int = 8, seed: int = 4, *, winner: bool = True, end: bool = True
) -> list[dict[str, Any]]:
    """All rows of a study; with ``winner`` the search's best is better, else it is not.

    Without ``end`` the study was killed while its last trial ran.
    """
    draw = random.Random(seed)
    clock = [1_760_000_000.0]
    rows: list[dict[str, Any]] = []

    def add(event: str, **values: Any) -> None:
        clock[0] += draw.uniform(0.05, 3.0)
        rows.append({"event": event, "time": round(clock[0], 3), **values})

    add(
        "study",
        name="shirts & shoes",
        config={
            "data": {"name": "fashion", "noise": {"kind": "symmetric", "rate": 0.4}},
            "model": {"name": "mlp", "widths": [256, 128]},
            "search": {"trials": trials, "epochs": epochs, "seed": seed},
            "metric": {"name": "macro_f1"},
        },
        metric="macro_f1",
        maximize=True,
        data={
            "task": "multiclass",
            "num_classes": 20,
            "class_names": [f"class {i}" for i in range(20)],
            "train_size": 48000,
            "validation_size": 12000,
            "test_size": 10000,
            "fingerprint": "9f2b5c0d17aa",
        },
        model={"name": "mlp", "widths": [256, 128]},
        versions={"lossearch": "0.1.0", "torch": "2.15.0", "python": "3.11.9"},
        plugins=[{"name": "classification", "version": "0.1.0"}],
        left_out=[
            {"what": "proxy_anchor", "why": "it reads 'embeddings'; the model 'mlp' gives none"},
            {"what": "knowledge_distillation", "why": "it reads 'teacher_logits'; no teacher is"},
        ],
    )
    for number in range(trials):
        _trial(add, draw, number, epochs, last=number == trials - 1 and not end)
    if not end:
        return rows
    _confirm(add, rows, draw, winner)
    add("ended", status="complete")
    return rows


def _trial(add: Any, draw: random.Random, number: int, epochs: int, last: bool) -> None:
    role = "baseline" if number % 4 == 0 else "reference" if number < 8 else "search"
    name = "cross_entropy" if role == "baseline" else draw.choice(list(LOSSES))
    params = {k: round(draw.uniform(*r), 4) for k, r in LOSSES.get(name, {}).items()}
    objective: dict[str, Any] = {
        "task": "multiclass",
        "terms": [{"loss": {"name": name, **params}}],
    }
    label = f"{name}({', '.join(f'{k}={v:g}' for k, v in params.items())})"
    label = label.replace("()", "")
    if role == "search" and draw.random() < 0.3:
        objective["terms"][0]["reweighting"] = {"name": "class_balanced", "beta": 0.999}
        objective["terms"].append({"loss": {"name": "confidence_penalty"}, "weight": 0.1})
        objective["balancer"] = {"name": "dwa", "temperature": 2.0}
        label += " · class_balanced(beta=0.999) + 0.1 × confidence_penalty | dwa"
    rate = round(10 ** draw.uniform(-3.5, -1.0), 6)
    proposal = {
        "trial": number,
        "role": role,
        "objective": objective,
        "label": label,
        "training": {"lr": rate, "weight_decay": 0.0001},
        "params": {"lr": rate},
        "distributions": {},
    }
    if role == "search" and draw.random() < 0.12:
        reason, detail = draw.choice(REJECTIONS)
        add("rejected", **proposal, reason=reason, detail=detail)
        return
    add("proposed", **proposal)
    robust = {"generalized_cross_entropy": 0.06, "symmetric_cross_entropy": 0.05}.get(name, 0.0)
    top = 0.74 + robust - 0.05 * abs(math.log10(rate) + 2) + draw.gauss(0, 0.008)
    fails = role == "search" and draw.random() < 0.12
    seconds, score = 0.0, 0.0
    for epoch in range(2, epochs + 1, 2):
        curve = []
        for e in (epoch - 1, epoch):
            score = top * (1 - 0.5 * math.exp(-e / 1.5)) + draw.gauss(0, 0.003)
            curve.append(
                {"epoch": e, "train_loss": 2.3 * math.exp(-e / 3) + 0.2, "macro_f1": score}
            )
        if fails and epoch == 4:
            reason, detail = draw.choice(FAILURES)
            add("failed", trial=number, reason=reason, detail=detail, epoch=3)
            return
        seconds += (spent := draw.uniform(0.5, 1.0))
        add("rung", trial=number, epoch=epoch, score=score, seconds=spent, curve=curve)
        if last:
            return
        if epoch < epochs and role == "search" and score < 0.6:
            add("pruned", trial=number, epoch=epoch, score=score)
            return
    metrics = {"accuracy": score + 0.01}
    add("finished", trial=number, score=score, metrics=metrics, epochs=epochs, seconds=seconds)


def _confirm(add: Any, rows: list[dict[str, Any]], draw: random.Random, winner: bool) -> None:
    proposed = {r["trial"]: r for r in rows if r["event"] == "proposed"}
    scores = {r["trial"]: r["score"] for r in rows if r["event"] == "finished"}
    ranked = sorted(scores, key=lambda t: -scores[t])
    baseline = next(t for t in ranked if proposed[t]["role"] == "baseline")
    finalists = [t for t in ranked if proposed[t]["role"] != "baseline"][:3]
    if not finalists:
        return
    seeds = [1001, 1002, 1003, 1004, 1005]
    values: dict[int, list[float]] = {}
    for trial in (baseline, *finalists):
        gain = 0.0 if trial == baseline or not winner else 0.04 - 0.01 * finalists.index(trial)
        values[trial] = [0.742 + gain + draw.gauss(0, 0.005) for _ in seeds]
        for seed, value in zip(seeds, values[trial], strict=True):
            curve = [
                {"epoch": e, "train_loss": 2.0 / e, "macro_f1": value - 0.1 / e}
                for e in range(1, 9)
            ]
            test = {"macro_f1": value, "accuracy": value + 0.02}
            add("confirmed", trial=trial, seed=seed, validation=value, test=test, curve=curve,
                seconds=4.0)  # fmt: skip

    def side(trial: int) -> dict[str, Any]:
        mean = sum(values[trial]) / len(seeds)
        row = {k: proposed[trial][k] for k in ("trial", "label", "objective", "training")}
        return {**row, "values": values[trial], "mean": mean}

    difference = side(finalists[0])["mean"] - side(baseline)["mean"]
    p_value = 0.0031 if winner else 0.71
    add(
        "verdict",
        metric="macro_f1",
        maximize=True,
        recommend="winner" if winner else "baseline",
        baseline=side(baseline),
        winner=side(finalists[0]),
        difference=difference,
        interval=[difference - 0.008, difference + 0.008],
        p_value=p_value,
        seeds=seeds,
        candidates=[
            {
                **side(t),
                "difference": (gap := side(t)["mean"] - side(baseline)["mean"]),
                "interval": [gap - 0.008, gap + 0.008],
                "p_value": p_value,
                "validation": side(t)["mean"],
            }
            for t in finalists
        ],
        text="Use the winner." if winner else "Keep the baseline.",
    )
