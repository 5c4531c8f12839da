"""How often a study finds a better loss where there is none.

    python tests/benchmarks/false_positives.py [exact|near] [--repeats 100]

``exact``: a space of cross-entropy in disguise: multiplied by a factor, as focal loss with
exponent 0, as PolyLoss with epsilon 0, smoothed by zero. Such objectives are the baseline,
whatever their learning rate. ``near``: the same with parameters so close to these that no one
could call it another loss (smoothing up to 0.01, an exponent up to 0.02, epsilon within 0.02 of
0): here only the verdict's statistics stand between luck and a recommendation.

Each repeat is a study of its own: new data (ten overlapping clouds), new splits, new seeds; 30
trials of up to 9 epochs, learning rates tuned and probed, 5 fresh seeds, the top 3. At least 95 of
100 must end in "keep the baseline". The last columns show how much of the rest is luck with the
test split: the share of studies whose best candidate is ahead on it at all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import stats

import lossearch

EXACT: list[dict[str, Any]] = [
    {"name": "cross_entropy", "label_smoothing": 0.0, "temperature": 1.0},
    {"name": "focal", "gamma": 0.0},
    {"name": "poly_loss", "epsilon": 0.0, "label_smoothing": 0.0, "base": "cross_entropy"},
]
NEAR: list[dict[str, Any]] = [
    {"name": "cross_entropy", "label_smoothing": {"low": 0.0, "high": 0.01}, "temperature": 1.0},
    {"name": "focal", "gamma": {"low": 0.0, "high": 0.02}},
    {"name": "poly_loss", "epsilon": {"low": -0.02, "high": 0.02}, "label_smoothing": 0.0,
     "base": "cross_entropy"},
]  # fmt: skip


def clouds(seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """3,000 samples of ten classes in 20 dimensions, about two thirds of them separable."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(10, 20))
    targets = draw.integers(0, 10, 3000)
    inputs = centres[targets] + 1.6 * draw.normal(size=(3000, 20))
    return torch.from_numpy(inputs.astype(np.float32)), targets


def repeat(losses: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = lossearch.search(
            *clouds(seed),
            model={"name": "mlp", "hidden": [32]},
            space={
                "task": "multiclass",
                "terms": [{"loss": {"choice": losses}, "weight": {"low": 0.2, "high": 5.0}}],
            },
            seed=seed,
            trials=30,
            epochs=9,
            confirm={"top": 3, "seeds": 5},
            tracking=None,
            output=f"{folder}/study",
            progress=False,
        )
    assert result.verdict is not None
    return result.verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("exact", "near"), default="near")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    losses = EXACT if chosen.what == "exact" else NEAR
    started = time.perf_counter()
    verdicts = [
        repeat(losses, chosen.seed + i)
        for i in track(range(chosen.repeats), "studies", console=Console(stderr=True))
    ]
    kept = sum(v["recommend"] == "baseline" for v in verdicts)
    n = len(verdicts)
    interval = stats.binomtest(kept, n).proportion_ci()
    out = Console(highlight=False)
    out.print(
        f"{chosen.what}: {kept} of {n} studies keep the baseline (95 % interval of the share "
        f"{interval.low:.3f} to {interval.high:.3f}; the goal is 0.95 or more); "
        f"{(time.perf_counter() - started) / n:.1f} s a study"
    )
    why = Counter(v.get("reason") or "compared" for v in verdicts)
    out.print("; ".join(f"{reason}: {count}" for reason, count in why.items()))
    compared = [v for v in verdicts if v["difference"] is not None]
    if compared:
        ahead = sum(v["difference"] > 0 for v in compared)
        low = sum(v["p_value"] < 0.05 for v in compared)
        out.print(f"ahead on the test split: {ahead} of {len(compared)}; p < 0.05: {low}")


if __name__ == "__main__":
    main()
