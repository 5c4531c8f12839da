"""Charts: where points land, what is left out, what is escaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from lossearch.report.charts import Dot, Line, intervals, lines, pairs, scatter, ticks


def svg(figure: str) -> ElementTree.Element:
    found = ElementTree.fromstring(figure).find("svg")
    assert found is not None
    return found


def path(figure: str, style: str) -> str:
    return next(p.get("d", "") for p in svg(figure).iter("path") if p.get("class") == style)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-5.9, 6.2, [-5.0, -2.5, 0.0, 2.5, 5.0]),
        (0.7421, 0.7429, [0.7422, 0.7424, 0.7426, 0.7428]),
        (3e5, 9e5, [4e5, 6e5, 8e5]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_whole_ticks_have_no_halves():
    assert ticks(0.9, 3.1, whole=True) == [1, 2, 3]


def test_a_line_runs_from_corner_to_corner_and_breaks_where_it_has_no_value():
    figure = lines(
        "t", [Line("a", [(0, 0.0), (1, 1.0), (2, None), (3, 0.5), (4, 0.0)], "winner")], "x"
    )
    drawn = path(figure, "line winner")
    assert re.findall("[ML]", drawn) == ["M", "L", "M", "L"]
    xs = [float(v) for v in re.findall(r"[ML]([\d.]+)", drawn)]
    ys = [float(v) for v in re.findall(r" ([\d.]+)", drawn)]
    assert xs == sorted(xs) and xs[2] - xs[1] == pytest.approx(2 * (xs[1] - xs[0]), abs=0.3)
    assert ys[1] < ys[2] < ys[0] == ys[3]  # up is more


@pytest.mark.parametrize("points", [[], [(1, None)]])
def test_nothing_to_draw_is_no_figure(points):
    assert lines("t", [Line("a", points, "winner")], "x") == ""
    assert scatter("t", [], [], [], ("x", "")) == ""


def test_one_point_and_equal_values_can_be_drawn():
    assert path(lines("t", [Line("a", [(1, 0.5)], "winner")], "epoch"), "line winner")
    assert path(lines("t", [Line("a", [(1, 0.0), (2, 0.0)], "winner")], "epoch"), "line winner")
    assert svg(pairs("t", "m", [("a", "winner", [1.0, 1.0])], [1, 2]))


def test_labels_are_escaped():
    nasty = "<script>alert('x')</script> & {0}"
    figures = [
        lines(nasty, [Line(nasty, [(1, 1.0)], "winner")], nasty),
        pairs(nasty, nasty, [(nasty, "winner", [0.5])], [1]),
        intervals(nasty, nasty, [(nasty, "winner", 0.1, 0.0, 0.2)], nasty),
        scatter(nasty, [Dot(1, 0.5, "search", nasty)], [(1, 0.5)], [(nasty, "search")], ("x", "")),
    ]
    for figure in figures:
        assert "<script" not in figure
        assert nasty in "".join(ElementTree.fromstring(figure).itertext())


def test_pairs_have_a_dot_for_each_seed_and_a_line_for_each_pair():
    figure = pairs("t", "m", [("a", "baseline", [0.1, 0.2]), ("b", "winner", [0.3, 0.2])], [7, 8])
    titles = [c.findtext("title") for c in svg(figure).iter("circle")]
    assert titles == [
        "a, seed 7: 0.1000",
        "a, seed 8: 0.2000",
        "b, seed 7: 0.3000",
        "b, seed 8: 0.2000",
    ]
    assert sum(p.get("class") == "line pair" for p in svg(figure).iter("path")) == 2


def test_an_interval_is_right_of_zero_when_it_is_positive():
    figure = intervals("t", "m", [("a", "winner", 0.2, 0.1, 0.3)], "")
    zero = float(re.findall(r"M([\d.]+)", path(figure, "zero"))[0])
    left, right = re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", path(figure, "bar winner"))[0]
    assert zero < float(left) < float(right)


def test_an_outlier_does_not_flatten_the_rest():
    dots = [Dot(i, 0.7 + 0.01 * (i % 5), "search", "") for i in range(20)]

    def spread(figure: str) -> float:
        ys = [float(c.get("cy", "")) for c in svg(figure).iter("circle")][:20]
        return max(ys) - min(ys)

    alone = scatter("t", dots, [], [], ("trial", ""))
    with_outlier = scatter("t", [*dots, Dot(20, -900.0, "search", "")], [], [], ("trial", ""))
    assert spread(with_outlier) == spread(alone)
