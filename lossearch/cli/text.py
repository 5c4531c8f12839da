"""Docstrings on a terminal: reST and TeX brought down to plain characters."""

from __future__ import annotations

import re

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η",
    "theta": "θ", "lambda": "λ", "mu": "μ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ",
    "phi": "φ", "Delta": "Δ", "Phi": "Φ", "sum": "Σ", "prod": "Π", "cdot": "·", "times": "×",
    "ge": "≥", "le": "≤", "ne": "≠", "neq": "≠", "in": "∈", "to": "→", "leftarrow": "←",
    "infty": "∞", "pm": "±", "ldots": "...", "dots": "...", "sqrt": "√", "quad": " ",
    "partial": "∂", "nabla": "∇", "langle": "<", "rangle": ">", "top": "T", "approx": "≈",
    "lceil": "⌈", "rceil": "⌉", "lfloor": "⌊", "rfloor": "⌋", "propto": "∝",
}  # fmt: skip
_FRACTION = re.compile(r"\\t?frac\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\w)(\{(?:[^{}]|\{[^{}]*\})*\}|\w)")


def plain(text: str) -> str:
    """A docstring as plain characters."""
    text = re.sub(r":math:`([^`]*)`", lambda m: _tex(m[1]), text)
    text = re.sub(r":(?:class|func|meth|attr|mod):`~?\.?([^`]*)`", r"\1", text)
    return text.replace("``", "")


def _tex(text: str) -> str:
    while (found := _FRACTION.search(text)) is not None:
        top, bottom = (_bracket(part.strip("{}")) for part in found.groups())
        text = text[: found.start()] + f" {top}/{bottom} " + text[found.end() :]
    text = re.sub(r"\\(?:mathrm|mathbf|text|operatorname|hat|bar|tilde|mathbb)\s*\{([^{}]*)\}",
                  r"\1", text)  # fmt: skip
    text = re.sub(r"\\(?:left|right|bigl|bigr|big|Big|displaystyle)", "", text)
    text = re.sub(r"\\([,;:! ])", " ", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda m: _GREEK.get(m[1], m[1]), text)
    text = re.sub(r"([_^])\{([^{}]*[^\w{}][^{}]*)\}", r"\1(\2)", text)
    text = re.sub(r"[{}]", "", text).replace("\\|", "|").replace("\\_", "_")
    return re.sub(r"\s+", " ", text).strip()


def _bracket(part: str) -> str:
    return part if re.fullmatch(r"\\?\w+", part) else f"({part})"
