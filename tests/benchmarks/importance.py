"""What the importance of parameters costs, and whether a cheaper way says the same.

    python tests/benchmarks/importance.py [--trials 200 2000]

A made-up search by TPE over the space ``classification``: a trial's score is the sum of a loss's
own quality, the distance of its learning rate from 0.01, 0.4 for a reweighting, and noise; quality
and rate weigh differently in the three cases. The truth is Optuna's fANOVA as it comes, with 64
trees of any depth; beside it stand smaller forests and PED-ANOVA, with seconds, the largest
difference of a share, and the first parameter each names.
"""

from __future__ import annotations

import argparse
import math
import random
import time
import warnings
from collections import defaultdict
from typing import Any

import optuna
import torch
from proposals import LR, spaces
from rich.console import Console
from rich.table import Table

from lossearch.trials.ledger import Trial
from lossearch.trials.proposer import Proposer, SearchConfig
from lossearch.trials.samplers import frozen, new_study
from lossearch.trials.tpe import FINISHED

CASES = {"rate": (0.2, 1.0), "loss": (1.0, 0.15), "both": (0.7, 0.7)}  # weights of loss and rate
fanova = optuna.importance.FanovaImportanceEvaluator
WAYS: dict[str, Any] = {
    "fANOVA, 64 trees": lambda: fanova(seed=0),
    "16 trees of depth 6 (ours)": lambda: fanova(n_trees=16, max_depth=6, seed=0),
    "16 trees of depth 8": lambda: fanova(n_trees=16, max_depth=8, seed=0),
    "8 trees of depth 5": lambda: fanova(n_trees=8, max_depth=5, seed=0),
    "PED-ANOVA": optuna.importance.PedAnovaImportanceEvaluator,
}


def searched(count: int, weights: tuple[float, float]) -> optuna.Study:
    """The finished trials of a search, as Optuna's."""
    draw = random.Random(0)
    quality: defaultdict[str, float] = defaultdict(lambda: draw.gauss(0, 1))
    config = SearchConfig(trials=count)
    proposer = Proposer(*spaces("classification"), {"lr": LR}, config, maximize=True, seed=0)
    trials: list[Trial] = []
    while proposer.left:
        p = proposer.propose()
        trial = Trial(
            len(trials), p.role, p.objective.document(), "", p.training, p.params,
            p.distributions, sampler=p.sampler, status="finished", epoch=9,
        )  # fmt: skip
        term = trial.objective["terms"][0]
        off = (math.log10(p.training["lr"]) + 2) ** 2
        trial.score = weights[0] * quality[term["loss"]["name"]] - weights[1] * off
        trial.score += 0.4 * ("reweighting" in term) + draw.gauss(0, 0.15)
        trial.rungs = {9: trial.score}
        proposer.register(trial)
        trials.append(trial)
    study = new_study("random", (True,), 0)
    study.add_trials(frozen(t, (FINISHED, (t.score,))) for t in trials if t.role != "baseline")
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="*", default=[200, 2000])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = Table("case", "trials", "way", "s", "largest difference", "first")
    for case, weights in CASES.items():
        for count in chosen.trials:
            study = searched(count, weights)
            truth: dict[str, float] = {}
            for way, make in WAYS.items():
                began = time.process_time()
                found = optuna.importance.get_param_importances(study, evaluator=make())
                seconds = time.process_time() - began
                truth = truth or found
                gap = max(abs(found.get(k, 0.0) - v) for k, v in truth.items())
                first, share = next(iter(found.items()))
                cells = (f"{seconds:.2f}", f"{gap:.2f}", f"{first} {share:.2f}")
                table.add_row(case, str(count), way, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
