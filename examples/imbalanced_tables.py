"""Two classes, one of them rare, in tables: F1 and average precision of five ways to train.

    python examples/imbalanced_tables.py mammography.csv adult-train.csv [--quick]

Any CSV files will do whose last column has two values. For each file and each of the two metrics,
every objective gets its learning rate, and the search its winner, by that metric on the validation
split; so a column of a table is about one metric alone. F1 is that of the positive class at
probability 1/2 (positive_f1.py). The seeds vary the initial weights and the order of samples, not
the split: a test part with few positives stays a small sample, whatever the interval.

(table: run it)
"""

from __future__ import annotations

from pathlib import Path

from _shared import arguments, found, run, show, told

import lossearch

RATES = {"low": 3e-4, "high": 3e-2, "log": True}
OBJECTIVES = {
    "cross_entropy": "binary_cross_entropy",
    "focal": "focal",
    "any_loss": "any_loss",
    "ensloss": "ensloss",
}
METRICS = {"F1": "positive_f1", "average precision": "average_precision"}


def main() -> None:
    chosen = arguments(
        __doc__,
        "CSV files, the label in the last column",
        several=True,
        full={"trials": 60, "epochs": 20, "seeds": 10},
        quick={"trials": 8, "epochs": 2, "seeds": 2},
    )
    for path in chosen.data:
        columns, lines = {}, []
        for heading, metric in METRICS.items():
            study = {
                "name": f"{path.stem}_{metric}",
                "data": {
                    "name": "csv",
                    "path": str(path),
                    "split": {"validation": 0.25, "test": 0.35},
                },
                "model": {"name": "mlp", "hidden": [64]},
                "metric": metric,
                "training": {"lr": RATES, "batch_size": 256, "epochs": chosen.epochs},
                "executor": chosen.executor,
                "plugins": [str(Path(__file__).with_name("positive_f1.py"))],
                "tracking": None,
            }
            if chosen.quick:
                study["data"]["limit"] = 2000
            result = lossearch.search(
                study,
                space="binary_imbalanced",
                trials=chosen.trials,
                search={"rungs": {"min_epochs": 5, "factor": 3}},
                confirm={"top": 3, "seeds": max(2, chosen.seeds // 2)},
                output=chosen.output / study["name"],
            )
            winner, baseline = found(result)
            rows = lossearch.compare(
                study,
                objectives={
                    **OBJECTIVES,
                    "cross_entropy": baseline,
                    "the search's winner": winner,
                },
                seeds=chosen.seeds,
            )
            columns[heading] = metric, rows
            lines.append(f"{heading}: {told(result)}")
        show(
            f"{path.name}: test values in percent, mean and 95 % interval over {chosen.seeds} "
            "seeds",
            columns,
        )
        print(*lines, sep="\n")


if __name__ == "__main__":
    run(main)
