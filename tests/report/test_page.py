"""The page: complete, self-contained, escaped, and there for a study in any state."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from lossearch.report import verdict_text, write_report
from lossearch.report.page import render
from lossearch.trials.ledger import State, replay

SHAPES = {
    "margin": [-1.0, 0.0, 1.0],
    "loss": {"baseline: cross_entropy": [1.3, 0.7, 0.3], "winner: focal": [0.9, None, 0.0]},
    "gradient": {
        "baseline: cross_entropy": [-0.7, -0.5, -0.3],
        "winner: focal": [-0.9, -0.4, 0.0],
    },
}
VOID = {"meta", "br", "path", "circle"}


class Page(HTMLParser):
    """Text of a page, the balance of its tags and everything that it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.mark.parametrize("winner", [True, False])
def test_a_whole_study(tmp_path, study_rows, winner):
    state = replay(study_rows(trials=40, winner=winner))
    importance = {"training.lr": 0.5, "terms.0.loss.name": 0.25}
    path = write_report(tmp_path, state, shapes=SHAPES, importance=importance)
    assert path == tmp_path / "report.html" and [*tmp_path.iterdir()] == [path]
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert page.links == [] and "url(" not in html and "@import" not in html
    assert "script" not in page.tags
    assert len(html) < 150_000
    assert page.tags.count("figure") == 7
    assert ("Use the winner" if winner else "Keep the baseline") in page.text
    assert state.verdict is not None
    explained = verdict_text(state.verdict).split(": ", 1)[1][1:]
    assert explained in page.text.replace("\u00a0", " ")
    for words in ("9f2b5c0d17aa", "proxy_anchor", "diverged", "tuned baseline", "50.0 %"):
        assert words in page.text
    best = state.verdict["winner" if winner else "baseline"]
    assert f"lr: {best['training']['lr']}" in page.text


def test_what_a_study_says_is_escaped(study_rows):
    nasty = "<img src=x onerror=alert(1)>"
    rows = study_rows(trials=40)
    for row in rows:
        for key in ("name", "label", "reason", "detail"):
            if key in row:
                row[key] = nasty
    rows[0]["left_out"] = [{"what": nasty, "why": nasty}]
    rows[0]["config"]["data"]["name"] = rows[0]["config"][nasty] = nasty
    verdict = next(r for r in rows if r["event"] == "verdict")
    verdict["metric"] = verdict["winner"]["label"] = verdict["candidates"][0]["label"] = nasty
    shapes = {"margin": [0.0, 1.0], "loss": {nasty: [0.0, 1.0]}}
    html = render(replay(rows), shapes=shapes, importance={nasty: 1.0})
    assert "img" not in Page(html).tags
    assert nasty in Page(html).text


@pytest.mark.parametrize("trials", [0, 1, 6])
def test_a_study_that_has_not_ended(study_rows, trials):
    page = Page(render(replay(study_rows(trials=trials, end=False))))
    assert page.open == []
    assert "No verdict yet" in page.text and "lossearch resume" in page.text


def test_an_empty_ledger():
    assert "No verdict yet" in Page(render(State())).text


def test_a_study_in_which_everything_failed(study_rows):
    rows = [r for r in study_rows(trials=3, end=False) if r["event"] in ("study", "proposed")]
    rows += [
        {"event": "failed", "time": 9e9, "trial": r["trial"], "reason": "raised", "detail": "oh",
         "epoch": 0}
        for r in rows[1:]
    ]  # fmt: skip
    page = Page(render(replay(rows)))
    assert "failed: raised" in page.text and "table" in page.tags


def test_an_epoch_trained_twice_is_drawn_once(study_rows):
    rows = study_rows(trials=2, end=False)
    first = [r for r in rows if r["event"] == "rung" and r["trial"] == 0]
    curve = re.compile(r'<path d="([^"]*)" class="line baseline"')
    once, twice = (curve.findall(render(replay(r))) for r in (rows, rows + first))
    assert len(once) == 2 and once == twice


def no_comparison(rows):
    """The verdict of a study whose candidates all failed on a fresh seed."""
    verdict = next(r for r in rows if r["event"] == "verdict")
    verdict |= dict.fromkeys(("winner", "difference", "interval", "p_value"))
    verdict |= {
        "recommend": "baseline",
        "candidates": [],
        "reason": "no candidate finished on every fresh seed",
        "dropped": ["focal(gamma=2)"],
    }
    return rows


def attributed(rows, *, simpler):
    """The study after its attribution; ``simpler``: one part was left out."""
    at = next(i for i, r in enumerate(rows) if r["event"] == "verdict")
    verdict = rows[at]
    winner, seeds = verdict["winner"], verdict["seeds"]
    less = {"task": "multiclass", "terms": [{"loss": {"name": "focal", "gamma": 9.0}}]}
    curve = [{"epoch": e, "train_loss": 1.0, "macro_f1": 0.7} for e in (1, 2)]
    rows[at:at] = [
        {"event": "ablated", "time": verdict["time"], "trial": winner["trial"], "seed": seed,
         "part": "miner ohem", "objective": less, "validation": v, "test": {"macro_f1": v},
         "curve": curve, "seconds": 100.0, "reason": "", "detail": ""}
        for seed, v in zip(seeds, winner["values"], strict=True)
    ]  # fmt: skip
    verdict["attribution"] = [
        {"part": "reweighting helps", "label": "focal · ohem", "difference": 0.031,
         "interval": [0.02, 0.042], "test": 0.7512, "brings": True, "kept": True},
        {"part": "miner ohem", "label": "focal · helps", "difference": 0.001,
         "interval": [-0.004, 0.006], "test": 0.7821, "brings": False, "kept": not simpler},
        {"part": "balancer dwa", "label": "focal", "difference": None, "interval": None,
         "test": None, "brings": True, "kept": True},
    ]  # fmt: skip
    for row in verdict["attribution"]:
        row["together"] = False
    if simpler:
        whole = {"label": "focal · helps", "simplified_from": winner["label"], "objective": less}
        verdict["winner"] = winner | whole
    return rows


@pytest.mark.parametrize("simpler", [True, False])
def test_what_each_part_brings(study_rows, simpler):
    state = replay(attributed(study_rows(), simpler=simpler))
    page = Page(render(state))
    plain = Page(render(replay(study_rows())))
    assert page.tags.count("figure") == plain.tags.count("figure") + 1
    assert page.tags.count("table") == plain.tags.count("table") + 1
    assert "What each part brings" in page.text and "What each part brings" not in plain.text
    for words in ("reweighting helps", "+0.0310", "+0.0200 to +0.0420", "0.7512"):
        assert words in page.text
    assert "balancer dwa training fails –" in page.text
    assert ("miner ohem (left out)" in page.text) == simpler
    assert ("miner ohem left out" in page.text) == simpler
    assert ("gamma: 9.0" in page.text) == simpler  # what to use
    assert ("focal · helps simpler" in page.text) == simpler
    assert state.verdict is not None
    assert f"best found: {state.verdict['winner']['label']}" in page.text
    curves = re.compile(r'<path d="([^"]*)" class="line winner thin"')
    drawn, before = (curves.findall(render(s)) for s in (state, replay(study_rows())))
    assert (drawn == before) != simpler


def test_trainings_without_a_part_are_counted(study_rows):
    """Five more of 100 seconds."""
    seconds = [
        float(re.search(r"(\d+) min", Page(render(replay(rows))).text.split("time")[-1])[1])  # type: ignore[index]
        for rows in (study_rows(), attributed(study_rows(), simpler=False))
    ]
    assert 7 <= seconds[1] - seconds[0] <= 9


def test_a_verdict_without_a_comparison(study_rows):
    page = Page(render(replay(no_comparison(study_rows(trials=20)))))
    assert "Keep the baseline" in page.text
    assert "no candidate finished on every fresh seed" in page.text
    assert "failed on a fresh seed: focal(gamma=2)" in page.text
    assert "best found" not in page.text


def test_a_verdict_without_a_baseline(study_rows):
    rows = no_comparison(study_rows(trials=20))
    next(r for r in rows if r["event"] == "verdict")["baseline"] = None
    assert "Keep the baseline" in Page(render(replay(rows))).text


def test_a_model_given_as_text(study_rows):
    rows = study_rows(trials=4)
    rows[0]["model"] = "Sequential(...)"
    rows[0]["config"]["model"] = "net.py"
    page = Page(render(replay(rows)))
    assert "Sequential(...)" in page.text and "on fashion with net.py" in page.text
