"""Numbers and dates in text: decided for a whole column, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from lossearch.data.columns import Table


def column(values: list[str], beside: list[str] | None = None) -> tuple[list[float], str]:
    """How a column of these texts is read, and what is said of it."""
    frame = pd.DataFrame({"x": values})
    if beside is not None:
        frame["beside"] = beside
    table = Table(frame)
    assert table.columns[0].kind in ("number", "date")
    return table.read(frame)["x"].tolist(), table.columns[0].how


@pytest.mark.parametrize(
    ("texts", "numbers", "how"),
    [
        (["0,5", "-1,25", "3"], [0.5, -1.25, 3], "decimal comma"),
        (["0,126", "0,640"], [0.126, 0.64], "decimal comma"),  # no thousands begin with 0
        (["1.234,5", "7,25"], [1234.5, 7.25], "decimal comma, point between thousands"),
        (["1.234.567", "8"], [1234567, 8], "point between thousands"),
        (["1,234.5", "2"], [1234.5, 2], "comma between thousands"),
        (["1,234,567", "12"], [1234567, 12], "comma between thousands"),
        (["12,34,567", "1"], [1234567, 1], "comma between thousands"),  # as in India
        (["1 234,5", "2,5"], [1234.5, 2.5], "decimal comma, blank between thousands"),
        (
            ["1\u00a0234,5", "1\u202f000", "1 000"],
            [1234.5, 1000, 1000],
            "decimal comma, blank between thousands",
        ),
        (["1'234.5", "2"], [1234.5, 2], "apostrophe between thousands"),
        (["$1.50", "-$2", "($3)"], [1.5, -2, -3], "in $"),
        (["1,50 €", "€ 2"], [1.5, 2], "decimal comma, in €"),
        (["5%", "12.5 %"], [5, 12.5], "in %"),
        (["−5", "+1", "2"], [-5, 1, 2], ""),  # a typographer's minus
    ],
)
def test_forms(texts: list[str], numbers: list[float], how: str) -> None:
    assert column(texts) == (numbers, how)


def test_where_both_readings_fit_the_table_decides_and_it_is_said() -> None:
    values = ["1,234", "2,500", "999"]
    assert column(values) == (
        [1234, 2500, 999],
        "comma between thousands: '1,234' is 1234",
    )
    assert column(values, ["0,5", "1,5", "2,5"]) == (
        [1.234, 2.5, 999],
        "decimal comma: '1,234' is 1.234",
    )
    dotted = ["1.234", "2.500", "999"]
    assert column(dotted) == ([1.234, 2.5, 999], "")
    assert column(dotted, ["0,5", "1,5", "2,5"]) == (
        [1234, 2500, 999],
        "point between thousands: '1.234' is 1234",
    )
    assert column(["0.5", "2.25", "3"], ["0,5", "1,5", "2,5"]) == ([0.5, 2.25, 3], "")


@pytest.mark.parametrize(
    "texts",
    [
        ["$5", "€6"],  # two currencies are not one quantity
        ["1,23,4", "5"],
        ["1,5", "1.5"],
        ["1.2.3", "1.2.4"],
        ["12 kg", "3 kg"],
        ["0171 234 567", "0172 234 568"],
        ["A1", "B2"],
        ["$", "%"],
    ],
)
def test_text_that_is_no_number_stays_text(texts: list[str]) -> None:
    assert Table(pd.DataFrame({"x": texts})).columns[0].kind == "category"


def test_words_for_missing_among_numbers() -> None:
    frame = pd.DataFrame({"x": ["n.a."] * 18 + [f"{i}.5" for i in range(142)]})
    table = Table(frame)
    assert table.read(frame)["x"].fillna(-1).tolist().count(-1) == 18
    assert table.columns[0].how == "18 times 'n.a.' read as missing"
    later = table.read(pd.DataFrame({"x": ["7", "N/A", None]}))["x"]  # another word in new rows
    assert later.fillna(-1).tolist() == [7, -1, -1]


def test_a_strange_word_among_numbers_is_not_guessed_but_said() -> None:
    frame = pd.DataFrame({"x": ["refused"] * 18 + [f"{i}.5" for i in range(142)]})
    [only] = Table(frame).columns
    assert only.kind == "category" and "say missing: [refused]" in only.how
    [only] = Table(pd.DataFrame({"x": ["1", "2", "unclear", "many", "few"]})).columns
    assert only.how == ""


@pytest.mark.parametrize(
    ("texts", "how"),
    [
        (["2024-01-31", "2024-02-01"], "year-month-day"),
        (["2024-01-31T00:00:00Z", "2024-02-01T00:00:00Z"], "year-month-day"),
        (["2024-01-31 00:00", "2024-02-01 00:00:00"], "year-month-day"),
        (["2024/01/31", "2024/02/01"], "year/month/day"),
        (["31.01.2024", "01.02.2024"], "day.month.year"),
        (["31.01.24", "01.02.24"], "day.month.year"),
        (["31/01/2024", "01/02/2024"], "day/month/year"),
        (["01/31/2024", "02/01/2024"], "month/day/year"),
        (["31 Jan 2024", "1 Feb 2024"], "day month year"),
        (["Jan 31, 2024", "Feb 1, 2024"], "month day, year"),
    ],
)
def test_dates(texts: list[str], how: str) -> None:
    values, said = column([*texts, "n.a."])
    assert values[:2] == [19753, 19754] and values[2] != values[2]
    assert said == f"a date, {how}; 1 times 'n.a.' read as missing"


def test_a_date_that_could_be_another_is_said() -> None:
    values, how = column(["03/04/2024", "05/05/2024"])
    assert values == [19786, 19848]  # the 4th of March, the 5th of May
    assert "though 03/04/2024 could be day/month" in how
    assert "though" not in column(["05/05/2024", "06/06/2024"])[1]  # it is the same day


def test_text_that_is_no_date_stays_text() -> None:
    for texts in (["2024-01-31", "soon"], ["31.01.2024", "01/02/2024"], ["may", "june"]):
        assert Table(pd.DataFrame({"x": texts})).columns[0].kind == "category"
