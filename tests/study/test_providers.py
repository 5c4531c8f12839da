"""A study whose losses read what providers make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lossearch.study import read_study, start

AGREE = '''
import lossearch

@lossearch.loss(task="multiclass", auxiliary=True)
def agree(logits, logits_b, logits_adv=None):
    """Squared distance between the scores of two views."""
    assert logits_adv is None or logits_adv.shape == logits.shape
    return (logits - logits_b).square().mean(1)

@lossearch.hookimpl
def register_losses():
    return [agree]
'''


def test_focal_with_a_second_view(
    write_study: Callable[..., Path], document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "agree.py").write_text(AGREE)
    terms = [
        {"loss": "focal"},
        {"loss": "agree", "weight": {"low": 0.01, "high": 1.0, "log": True}},
    ]
    document["plugins"] = ["agree.py"]
    document["confirm"]["top"] = 1
    document["providers"] = [{"name": "second_view", "noise": 0.3}, {"name": "attack", "steps": 2}]
    path = write_study(space={"terms": terms}, search__trials=4)
    result = start(read_study(path))
    tried = [t for t in result.trials if t.role != "baseline"]
    assert {t.role for t in tried} == {"reference", "search"}
    assert {t.status for t in tried} <= {"finished", "pruned"}, tried
    assert all([term["loss"]["name"] for term in t.objective["terms"]] == ["focal", "agree"]
               for t in tried)  # fmt: skip
    assert max(t.score for t in tried if t.score is not None) > 0.45  # of three classes


def test_a_field_that_no_provider_gives_leaves_the_space(
    write_study: Callable[..., Path], document: dict[str, Any], tmp_path: Path
) -> None:
    from lossearch.study.setup import set_up

    (tmp_path / "agree.py").write_text(AGREE)
    document["plugins"] = ["agree.py"]
    terms = [{"loss": "focal"}, {"loss": {"choice": ["agree", "cross_entropy"]}, "weight": 0.1}]
    path = write_study(space={"terms": terms})
    without = set_up(read_study(path)).space
    assert [(left.what, "logits_b" in left.why) for left in without.left_out] == [
        ("loss agree", True)
    ]
    document["providers"] = [{"name": "second_view"}]
    assert set_up(read_study(write_study())).space.left_out == ()
