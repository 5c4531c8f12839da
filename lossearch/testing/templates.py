"""The texts of new plugins and of their tests; ``NAME`` stands for the component's name."""

from __future__ import annotations

from typing import Final

LOSS: Final = '''\
"""NAME: a loss for lossearch, in one file.

Try it:   lossearch plugins check NAME.py
Use it:   lossearch run study.yaml --plugin NAME.py
"""

from __future__ import annotations

from typing import Annotated

import lossearch
from lossearch import Range
from pydantic import Field
from torch import Tensor


@lossearch.loss(task="multiclass")
def NAME(
    # By position: what it reads of a batch, matched by name.
    logits: Tensor,
    targets: Tensor,
    *,
    # By keyword: its hyperparameters. Field says what is legal, Range what a search tries.
    strength: Annotated[float, Field(ge=0), Range(0.0, 4.0)] = 1.0,
) -> Tensor:
    r"""Cross-entropy and a share of the missing probability, :math:`-\\log p_y + s (1 - p_y)`.

    Args:
        logits: Scores before softmax, ``[B, C]``.
        targets: Class of each sample, int64 ``[B]``.
        strength: The factor s >= 0; 0 is the cross-entropy.

    Returns:
        The loss of each sample, ``[B]``, not reduced: weights and miners act on it.
    """
    # Half precision is raised; log_softmax keeps value and slope finite at any logits.
    log_p = logits.float() if logits.element_size() < 4 else logits
    log_p = log_p.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
    # No `if` on a tensor or on a float hyperparameter: a search runs many models at once (vmap).
    return -log_p + strength * (1 - log_p.exp())


@lossearch.hookimpl
def register_losses():
    return [NAME]
'''

REWEIGHTING: Final = '''\
"""NAME: a reweighting for lossearch, in one file.

Try it:   lossearch plugins check NAME.py
Use it:   lossearch run study.yaml --plugin NAME.py
"""

from __future__ import annotations

from typing import Annotated

import lossearch
from lossearch import Range
from pydantic import Field
from torch import Tensor


@lossearch.reweighting()
def NAME(
    # By position: what it reads; `losses` are the values that it weighs.
    losses: Tensor,
    *,
    # By keyword: its hyperparameters. Field says what is legal, Range what a search tries.
    temperature: Annotated[float, Field(gt=0), Range(0.1, 10.0, log=True)] = 1.0,
) -> Tensor:
    r"""More weight for larger losses, :math:`w = B \\,\\mathrm{softmax}(l / T)`.

    Args:
        losses: The unreduced losses, ``[B]``.
        temperature: T > 0; large values give equal weights.

    Returns:
        Weights ``[B]``, at least 0, of mean 1, without gradient.
    """
    return (losses.detach() / temperature).softmax(dim=0) * losses.shape[0]


@lossearch.hookimpl
def register_reweightings():
    return [NAME]
'''

METRIC: Final = '''\
"""NAME: a metric for lossearch, in one file.

Try it:   lossearch plugins check NAME.py
Use it:   lossearch run study.yaml --plugin NAME.py
"""

from __future__ import annotations

from typing import Annotated

import lossearch
from pydantic import Field
from torch import Tensor


@lossearch.metric(task="multiclass", maximize=True)
def NAME(
    # By position: what it reads, over a whole split, in float64 on the CPU.
    logits: Tensor,
    targets: Tensor,
    *,
    # By keyword: its settings, fixed during a search.
    temperature: Annotated[float, Field(gt=0)] = 1.0,
) -> float:
    """The mean probability of the true class; more is better.

    Args:
        logits: Scores before softmax, ``[N, C]``.
        targets: Class of each sample, int64 ``[N]``.
        temperature: Divides the logits, > 0.

    Returns:
        A number in [0, 1].
    """
    p = (logits / temperature).softmax(dim=1)
    return p.gather(1, targets[:, None]).mean().item()


@lossearch.hookimpl
def register_metrics():
    return [NAME]
'''

_TEST: Final = '''\
"""Tests of NAME: it conforms, and it gives what was worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lossearch.plugins import load_plugins, read_plugin_files
from lossearch.testing import parametrize_with_checks

FILES = read_plugin_files([Path(__file__).with_name("NAME.py")])
NAME = load_plugins(FILES, strict_files=True).registry.get("NAME").target


@parametrize_with_checks([NAME])
def test_conformance(check):
    check()


'''

_LOSS_TEST: Final = """\
def test_value():
    # Three equal logits: p = 1/3, so ln 3 and half of the 2/3 that is missing.
    loss = NAME(torch.zeros(2, 3), torch.tensor([0, 2]), strength=0.5)
    assert loss.tolist() == pytest.approx([math.log(3) + 1 / 3] * 2)


def test_without_strength_it_is_cross_entropy():
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(NAME(logits, targets, strength=0.0), expected)
"""

_REWEIGHTING_TEST: Final = """\
def test_value():
    # exp of 0 and ln 3 is 1 and 3: softmax 1/4 and 3/4, times 2 samples.
    weights = NAME(torch.tensor([0.0, math.log(3)]), temperature=1.0)
    assert weights.tolist() == pytest.approx([0.5, 1.5])
"""

_METRIC_TEST: Final = """\
def test_value():
    # exp of 0 and ln 3 is 1 and 3: the true classes have 1/4 and 3/4.
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert NAME(logits, torch.tensor([0, 1])) == pytest.approx(0.5)
"""

TEMPLATES: Final = {
    "loss": (LOSS, _TEST + _LOSS_TEST),
    "reweighting": (REWEIGHTING, _TEST + _REWEIGHTING_TEST),
    "metric": (METRIC, _TEST + _METRIC_TEST),
}
