"""Two classes, one of them rare, in tables: F1 and average precision of five ways to train.

    python examples/imbalanced_tables.py mammography.csv adult-train.csv [--quick]

Any CSV files will do whose last column has two values. For each file and each of the two metrics,
every objective gets its learning rate, and the search its winner, by that metric on the validation
split; so a column of a table is about one metric alone. F1 is that of the positive class at
probability 1/2 (positive_f1.py). The seeds vary the initial weights and the order of samples, not
the split: a test part with few positives stays a small sample, whatever the interval.

Test values in percent, mean and 95 % interval over ten seeds; 7 minutes in all on two CPU cores:

    mammography              F1   average precision     adult           F1   average precision
    cross_entropy    47.8 ± 0.6          66.9 ± 1.0             68.4 ± 0.1          78.5 ± 0.0
    focal            57.3 ± 1.0          69.2 ± 0.8             67.6 ± 0.2          77.9 ± 0.1
    any_loss         56.1 ± 2.6          56.1 ± 2.6             69.9 ± 0.2          77.4 ± 0.1
    ensloss          15.3 ± 4.3          59.0 ± 1.0             68.8 ± 0.1          78.1 ± 0.0
    the search       57.5 ± 1.4          69.4 ± 0.9             69.9 ± 0.2          78.2 ± 0.1

The search recommended its winner in three of the four (mammography F1: focal(gamma=3.34),
p = 0.016; average precision: asymmetric(gamma_neg=7.24, gamma_pos=0.851, clip=0.154) with
dynamic_loss, p = 0.003; adult F1: any_loss, p < 0.001), and for adult's average precision the
baseline, as its winner was behind on the test split. What ensloss gives is no probability, so 1/2
is no threshold for it.

Ray's workers finish in an order of their own, so a search may end elsewhere. Another run of the
same command had the same rows but for cross_entropy, whose learning rate the search tunes (56.2,
66.9; 68.4, 78.3), and for the search (62.5 ± 1.1, 70.0 ± 0.7; 70.1 ± 0.2, 78.5 ± 0.0, by other
objectives, and its winner recommended in the same three): with 65 positives to choose by, what is
chosen is partly luck.
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
