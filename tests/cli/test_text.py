"""Docstrings as plain characters."""

from __future__ import annotations

import pytest

from lossearch.cli.text import plain


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"Focal, :math:`-(1 - p_t)^\gamma \log p_t`.", "Focal, -(1 - p_t)^γ log p_t."),
        (r":math:`\frac{\alpha}{C-1}\sum_c z_c^2`", "α/(C-1) Σ_c z_c^2"),
        (r":math:`\frac1C [k]`", "1/C [k]"),
        (r":math:`w\,\mathrm{softplus}(-z)`", "w softplus(-z)"),
        ("Takes ``logits``, see :class:`~lossearch.Range`.", "Takes logits, see lossearch.Range."),
        (r":math:`\lceil kB\rceil`", "⌈ kB⌉"),
    ],
)
def test_plain(text: str, wanted: str) -> None:
    assert plain(text) == wanted
