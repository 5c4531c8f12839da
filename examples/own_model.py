"""Your own arrays, your own network, from Python; then the result in your own training loop.

    python examples/own_model.py [--trials 24] [--epochs 10]

The data are scikit-learn's breast cancer set with a third of the malignant cases: two classes, one
of them rarer, judged by average precision.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn

import lossearch


class Network(nn.Module):
    """Any module that ends in a linear layer with one output (two classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def rare_malignant() -> tuple[np.ndarray, np.ndarray]:
    """Features, and 1 for malignant: every benign case, and one malignant case in three."""
    features, benign = load_breast_cancer(return_X_y=True)
    malignant = np.flatnonzero(benign == 0)
    kept = np.sort(np.concatenate([np.flatnonzero(benign == 1), malignant[::3]]))
    features = StandardScaler().fit_transform(features)[kept].astype("float32")
    return features, (1 - benign[kept]).astype("int64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", default=None)
    chosen = parser.parse_args()

    x, y = rare_malignant()
    result = lossearch.search(
        x,
        y,
        model=Network(),
        space="binary_imbalanced",
        metric="average_precision",
        trials=chosen.trials,
        epochs=chosen.epochs,
        output=chosen.output,
        training={"batch_size": 64},
        confirm={"top": 2, "seeds": 5},
        tracking=None,
    )
    print(result.recommend, result.folder / "report.html")

    # What it found, in a loop of your own.
    objective = result.objective()
    model = Network()
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=1e-3)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y).float()
    for step in range(20):
        fields = {"logits": model(inputs)[:, 0], "targets": targets, "epoch": 0, "step": step}
        loss = objective(fields)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"after 20 steps of it: {loss.item():.4f}")


if __name__ == "__main__":
    main()
