"""CSV files: what is seen in their first lines, what is said of it, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lossearch.data import Dataset
from lossearch.data.columns import Table
from lossearch.data.labels import tidy
from lossearch.data.sources import csv
from lossearch.errors import DataError


def frame_of(dataset: Dataset) -> pd.DataFrame:
    assert isinstance(dataset.inputs, pd.DataFrame)
    return dataset.inputs


def written(folder: Path, text: str, name: str = "table.csv") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_separator_and_header_are_seen(tmp_path: Path, separator: str) -> None:
    text = "age,job,income\n39, clerk ,low\n50,'boss',high\n?,clerk,low\n"
    found = csv(path=written(tmp_path, text.replace(",", separator)))
    assert list(frame_of(found).columns) == ["age", "job"]
    assert frame_of(found)["age"].isna().tolist() == [False, False, True]
    assert list(found.targets) == ["low", "high", "low"]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("1,2,0\n3,4,1\n", False),
        ("a,b,y\n1,2,0\n", True),
        ("a,b,1\na,c,2\n", False),  # a number in the first line
        ("kind,size,class\np,x,e\nq,x,e\np,y,p\n", True),  # all text, no first cell again
        ("p,x,e\nq,x,e\np,y,p\n", False),  # all text, and seen again
        ("'a','b','y'\n'1','2','0'\n", True),
        ("\ufeffa,b\n1,2\n", True),
    ],
)
def test_csv_header(tmp_path: Path, text: str, header: bool) -> None:
    found = csv(path=written(tmp_path, text))
    lines = text.strip().splitlines()
    assert len(frame_of(found)) == len(lines) - header
    names = [cell.strip("'\ufeff") for cell in lines[0].split(",")][:-1]
    expected = names if header else [str(i) for i in range(len(names))]
    assert list(frame_of(found).columns) == expected
    assert len(frame_of(csv(path=written(tmp_path, text), header=False))) == len(lines)


def test_csv_label_by_name_and_number(tmp_path: Path) -> None:
    named = written(tmp_path, "a,b,c\n1,2,3\n4,5,6\n")
    assert csv(path=named, label="a").targets.tolist() == [1, 4]
    bare = written(tmp_path, "1,2,3\n4,5,6\n", "bare.csv")
    assert csv(path=bare, label=1).targets.tolist() == [2, 5]
    assert csv(path=bare, label="0").targets.tolist() == [1, 4]
    assert csv(path=named, separator=r"\s*,\s*").targets.tolist() == [3, 6]


def test_csv_compressed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"a,y\n1,0\n2,1\n"))
    assert csv(path=str(path)).targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "params", "message"),
    [
        ("", {}, "is empty"),
        ("\n\n", {}, "is empty"),
        ("a,b,label\n", {}, "holds no rows"),
        ("a,b,label\n1,2,3\n", {"label": "lable"}, "no column 'lable'; did you mean 'label'"),
        ("1,2\n3,4\n", {"label": 7}, "no column '7'.*no header.*0 to 1"),
        ("a\n1\n2\n", {}, "has one column, 'a'"),
        ("a,b\n1,2\n1,2,3,4\n", {}, "is not a table.*line 3"),
    ],
)
def test_csv_refusals(tmp_path: Path, text: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        csv(path=written(tmp_path, text), **params)


def rows(columns: int, *, labels: tuple[str, ...] = ("0", "1"), first: str = "") -> str:
    """Thirty lines of numbers, with a label at their end."""
    lines = (
        ",".join([*(f"{(7 * i + 3 * c) % 11}.5" for c in range(columns)), labels[i % len(labels)]])
        for i in range(30)
    )
    return "".join(f"{first.format(i)}{line}\n" for i, line in enumerate(lines))


@pytest.mark.parametrize(
    ("text", "names", "note"),
    [
        (",a,b,y\n" + rows(2, first="{},"), ["Unnamed: 0", "a", "b"], ""),  # pandas' index
        ("0,1,2,target\n" + rows(3), ["0", "1", "2"], ""),
        ("0,1,2,target\n" + rows(3, labels=("cat", "dog")), ["0", "1", "2"], ""),
        (",0,1,2\n" + rows(2, first="{},"), ["Unnamed: 0", "0", "1"], ""),
        ("2019,2020,2022,y\n" + rows(3), ["2019", "2020", "2022"], ""),
        ("0,1,2,3\n" + rows(3), ["0", "1", "2"], "0, 1, 2, 3, …, is read as names"),
        ('"a","b","y"\n' + rows(2, first='"{}",'), ["Unnamed: 0", "a", "b"], ""),  # R
        ("day,a,y\n" + rows(1, first="2024-01-{:02},"), ["day", "a"], ""),
        ("#a,b,y\n" + rows(2), ["a", "b"], ""),
        ("NA,b,y\n" + rows(2), ["NA", "b"], ""),
    ],
)
def test_csv_names(tmp_path: Path, text: str, names: list[str], note: str) -> None:
    found = csv(path=written(tmp_path, text))
    assert list(frame_of(found).columns) == names
    assert len(frame_of(found)) == 30 and len(found.targets) == 30
    assert note in "".join(found.notes) and bool(found.notes) == bool(note)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("0,1,2\n1,0,2\n2,2,1\n", "0, 1, 2, …, is read as data"),
        ("3,1,x\n1,0,x\n2,2,z\n", ""),
        ("?,a,b\n3,c,b\n4,d,c\n", ""),
        ("a,,b\nc,d,b\n", ""),
        ("5.1,3.5,0\n4.9,3.0,1\n", ""),
    ],
)
def test_csv_first_lines_that_are_data(tmp_path: Path, text: str, note: str) -> None:
    found = csv(path=written(tmp_path, text))
    assert len(frame_of(found)) == text.count("\n")
    assert note in "".join(found.notes) and bool(found.notes) == bool(note)


@pytest.mark.parametrize(
    ("before", "note"),
    [
        ("Report of 2024\n", "1 line before the table left out: 'Report of 2024'"),
        ("Report, of 2024\n\n", "1 line before the table left out: 'Report, of 2024'"),
        ("# made by me\n# from, these, files\n", "2 lines before the table left out: '# made"),
        ("% a, b, c\n", "1 line before the table left out"),
        ("\n\n", ""),
    ],
)
def test_csv_lines_before_the_table(tmp_path: Path, before: str, note: str) -> None:
    found = csv(path=written(tmp_path, before + "a,b,y\n" + rows(2)))
    assert list(frame_of(found).columns) == ["a", "b"] and len(found.targets) == 30
    assert note in "".join(found.notes) and bool(found.notes) == bool(note)


@pytest.mark.parametrize("header", ["a,b,y\n", "a,b,y,\n", ""])
def test_csv_a_comma_at_the_end_of_each_row(tmp_path: Path, header: str) -> None:
    found = csv(path=written(tmp_path, header + rows(2).replace("\n", ",\n")))
    assert list(frame_of(found).columns) == (["a", "b"] if header else ["0", "1"])
    assert sorted(set(found.targets)) == [0, 1]
    assert frame_of(found).iloc[1].tolist() == [7.5, 10.5]
    assert "empty column behind the last separator" in found.notes[0]


def test_csv_encodings(tmp_path: Path) -> None:
    text = "größe,y\n1,2\n3,4\n"
    path = tmp_path / "t.csv"
    for encoding in ("latin-1", "cp1252", "utf-16-le"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match=r"not UTF-8.*encoding"):
            csv(path=str(path))
        assert list(frame_of(csv(path=str(path), encoding=encoding))) == ["größe"]
    path.write_bytes(text.encode("utf-16"))
    found = csv(path=str(path))
    assert list(frame_of(found)) == ["größe"] and found.notes == (
        "read as UTF-16, which it begins with",
    )
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"not ascii .*; say which 'encoding'"):
        csv(path=str(path), encoding="ascii")
    with pytest.raises(DataError, match="no encoding 'latn-1'; did you mean 'latin-1'"):
        csv(path=str(path), encoding="latn-1")
    path.write_bytes(("a,y\n" + "1,0\n" * 2_000_000 + "ä,1\n").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):  # far behind what is looked at first
        csv(path=str(path))
    path.write_bytes(b"PK\3\4\0\0")
    with pytest.raises(DataError, match="an Excel file"):
        csv(path=str(path))


def test_csv_missing(tmp_path: Path) -> None:
    text = "a,b,y\nrefused,1,0\n2,-999,1\n3,4,0\n"
    assert frame_of(csv(path=written(tmp_path, text), missing=-999))["b"].isna().sum() == 1
    found = frame_of(csv(path=written(tmp_path, text), missing=("refused", -999)))
    assert found.isna().to_numpy().tolist() == [[True, False], [False, True], [False, False]]
    with pytest.raises(DataError, match="1 of 3 targets are missing"):
        labels = csv(path=written(tmp_path, text.replace("0\n2", "none given\n2")),
                     missing=("none given",)).targets  # fmt: skip
        tidy(labels)


def test_csv_none_is_a_class(tmp_path: Path) -> None:
    text = "a,b,y\n" + rows(2, labels=("None", "NA", "mild"))
    labels = tidy(csv(path=written(tmp_path, text)).targets)
    assert sorted(set(labels)) == ["NA", "None", "mild"]
    for missing in ("", "?", "nan", " ? "):
        text = "a,b,y\n" + rows(2, labels=("None", "mild", missing))
        with pytest.raises(DataError, match="10 of 30 targets are missing"):
            tidy(csv(path=written(tmp_path, text)).targets)
    text = "a,b,y\n" + rows(2, labels=("0", "1", "None"))  # among numbers it is none
    with pytest.raises(DataError, match="10 of 30 targets are missing"):
        tidy(csv(path=written(tmp_path, text)).targets)


def test_csv_the_label_twice(tmp_path: Path) -> None:
    text = "y,a,b,y\n" + "".join(f"{line[-1]},{line}\n" for line in rows(2).splitlines())
    found = csv(path=written(tmp_path, text), label="y")
    assert list(frame_of(found)) == ["a", "b"] and "a second column 'y'" in found.notes[0]
    with pytest.raises(DataError, match="2 columns are named 'y', and they differ"):
        csv(path=written(tmp_path, text.replace("\n1,", "\n0,")), label="y")


def test_csv_decimal_commas(tmp_path: Path) -> None:
    lines = [f"{i},5;{f'1.{i:03}' if i % 2 else i};{i % 2 == 0};{i},25" for i in range(30)]
    found = csv(path=written(tmp_path, "a;b;c;y\n" + "\n".join(lines) + "\n"))
    assert found.targets.tolist() == [i + 0.25 for i in range(30)]
    assert found.notes == ("label 'y': decimal comma",)
    table = Table(frame_of(found))
    assert [c.kind for c in table.columns] == ["number"] * 3
    read = table.read(frame_of(found))
    assert read["a"].tolist() == [i + 0.5 for i in range(30)]
    assert read["b"].tolist() == [1000 + i if i % 2 else i for i in range(30)]


def test_csv_cells_with_lines_and_very_long_ones(tmp_path: Path) -> None:
    text = 'a,note,y\n1,"two\nlines, one cell",0\n2,plain,1\n3,"' + "x" * 200_000 + '",0\n'
    found = csv(path=written(tmp_path, text))
    assert list(frame_of(found)) == ["a", "note"] and found.targets.tolist() == [0, 1, 0]
    assert frame_of(found)["note"][0] == "two\nlines, one cell"


def test_csv_a_column_of_numbers_then_words(tmp_path: Path) -> None:
    """Read in pieces, it would come as numbers in the first and as text in the last of them."""
    text = "a,y\n" + "1,0\n2,1\n" * 300_000 + "n.a.,1\n"
    frame = frame_of(csv(path=written(tmp_path, text)))
    [column] = Table(frame).columns
    assert column.kind == "number" and column.how == "1 times 'n.a.' read as missing"
