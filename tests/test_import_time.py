"""``import lossearch`` and ``lossearch --help`` stay light, so that the command line answers."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import lossearch

HEAVY = ("torch", "torchvision", "ray", "mlflow", "timm", "optuna", "pandas", "sklearn", "scipy")
HELP = "import sys; sys.argv = ['lossearch', *{words!r}]\nfrom lossearch.cli import main\n"
LOADED = "\nimport sys; print('LOADED', *sorted(set(sys.modules) & {heavy!r}))"


def loaded(code: str) -> list[str]:
    """The heavy modules that a fresh interpreter holds after this code."""
    run = subprocess.run(
        [sys.executable, "-c", code + LOADED.format(heavy=set(HEAVY))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return next(x for x in run.stdout.splitlines() if x.startswith("LOADED")).split()[1:]


def test_the_package_is_light() -> None:
    assert loaded("import lossearch") == []
    assert loaded("import lossearch; dir(lossearch); lossearch.__version__") == []


def test_the_probe_would_see_a_heavy_one() -> None:
    assert loaded("import lossearch, scipy") == ["scipy"]


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["plugins", "--help"]])
def test_help_is_light(words: list[str]) -> None:
    code = HELP.format(words=words) + "try: main()\nexcept SystemExit: pass"
    assert loaded(code) == []


def test_help_is_fast() -> None:
    def run() -> float:
        start = time.perf_counter()
        code = HELP.format(words=["--help"]) + "main()"
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return time.perf_counter() - start

    def bare() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import typer.rich_utils"], check=True)
        return time.perf_counter() - start

    # Half a second on an idle machine; on a busy one as long again as typer itself takes.
    best = min(run() for _ in range(5))
    assert best < max(0.5, 3 * bare())


def test_public_names_load_on_first_use() -> None:
    for name in lossearch.__all__:
        assert getattr(lossearch, name) is not None
    assert set(lossearch.__all__) <= set(dir(lossearch))
    with pytest.raises(AttributeError, match="module 'lossearch' has no attribute 'los'"):
        _ = lossearch.los
