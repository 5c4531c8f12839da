"""Tables: imputation, standardisation and categories, all learned from training rows alone."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lossearch.data import as_dataset, prepare_dataset
from lossearch.data.columns import Table
from lossearch.data.tables import RARE, TableEncoder
from lossearch.errors import DataError


def read(frame: pd.DataFrame) -> pd.DataFrame:
    return Table(frame).read(frame)


def encoder_of(frame: pd.DataFrame) -> TableEncoder:
    return TableEncoder(Table(frame), read(frame))


def test_numbers_by_hand() -> None:
    frame = pd.DataFrame({"x": [1.0, 3.0, np.nan, 5.0]})
    encoder = encoder_of(frame)
    assert encoder.feature_names == ("x", "missingindicator_x")
    # the median 3 stands in: 1 3 3 5, mean 3, variance 2; the indicator 0 0 1 0, mean 1/4
    root = 2**0.5
    expected = torch.tensor([[-2 / root, -1], [0, -1], [0, 3], [2 / root, -1]])
    expected[:, 1] *= 0.25 / (0.25 * 0.75) ** 0.5
    assert torch.allclose(encoder(frame), expected)


def test_categories_rare_and_unseen() -> None:
    kinds = ["a"] * RARE + ["b"] * RARE + ["c"] * 2 + ["d"]
    encoder = encoder_of(pd.DataFrame({"kind": kinds}))
    new = pd.DataFrame({"kind": ["a", " 'b' ", "c", "d", "never"]})
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert encoder(new)[:4].tolist() == expected
    # an unseen category joins none of the frequent ones
    assert encoder(new)[4, :2].tolist() == [0, 0]


def test_missing_text_is_a_category_of_its_own() -> None:
    frame = pd.DataFrame({"kind": ["a", None] * RARE})
    features = encoder_of(frame)(frame)
    assert features[:2].tolist() == [[1, 0], [0, 1]]


def test_columns_of_all_sorts() -> None:
    frame = pd.DataFrame(
        {
            "quoted": ["'1'", " 2 ", "'3'"],
            "flag": [True, False, True],
            "day": pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
            "code": pd.Categorical([1, 2, 1]),
            "none": [None, None, None],
            7: [1, 2, 4],
        }
    )
    cleaned = read(frame)
    kinds = {name: str(dtype) for name, dtype in cleaned.dtypes.items()}
    assert kinds == {
        "quoted": "float64",
        "flag": "float64",
        "day": "float64",
        "code": "object",
        "none": "float64",
        "7": "float64",
    }
    assert cleaned["day"].isna().tolist() == [False, True, False]
    assert cleaned["day"].tolist()[::2] == [18262, 18264]  # days since 1970
    encoder = encoder_of(frame)
    assert torch.isfinite(encoder(frame)).all()
    why = {"none": "empty in the training rows", "code": "text that is nearly all different"}
    assert {name: reason.split(":")[0] for name, reason in encoder.dropped.items()} == why


def test_new_rows_are_encoded_as_in_training() -> None:
    frame = pd.DataFrame({"n": np.arange(40.0), "k": ["5", "x"] * 20})
    encoder = encoder_of(frame)
    # a column of text whose new rows are all numeric stays text
    assert torch.equal(encoder(frame.iloc[[0, 2]]), encoder(frame)[[0, 2]])
    assert torch.equal(encoder(frame.iloc[:, ::-1]), encoder(frame))
    with pytest.raises(DataError, match="lacks column 'k'; did you mean 'kk'"):
        encoder(frame.rename(columns={"k": "kk"}))
    with pytest.raises(DataError, match="'n' of the table holds 'many', and held numbers in tr"):
        encoder(pd.DataFrame({"n": ["many"], "k": ["5"]}))


def test_fitted_on_training_rows_alone() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"x": random.normal(5, 3, 300)})
    data = prepare_dataset(as_dataset(frame, np.arange(300) % 2))
    train = data.train.source.values  # pyright: ignore[reportAttributeAccessIssue]
    assert train.mean().abs() < 1e-6
    assert (train.std(correction=0) - 1).abs() < 1e-5
    other = data.validation.source.values  # pyright: ignore[reportAttributeAccessIssue]
    assert other.mean().abs() > 1e-3
    assert data.table is not None
    assert data.info.kind == "table"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"x": [1.0, np.inf, -np.inf]}), "'x' holds 2 infinite"),
        (pd.DataFrame({"x": [[1], [2]]}), "'x' holds list objects.*a column of its own"),
        (pd.DataFrame({"x": [np.eye(2)[0]] * 2}), "'x' holds list objects"),
        (pd.DataFrame({"x": [{"k": 1}] * 2}), "'x' holds dict objects"),
        (pd.DataFrame({"x": [b"1", b"2"]}), "'x' holds bytes objects"),
        (pd.DataFrame({"x": [1j, 2j]}), "complex"),
        (pd.DataFrame({"x": [None, None]}), "no feature column"),
    ],
)
def test_refusals(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encoder_of(frame)


# --- what is read, and what is said of it ------------------------------------------------------


def described(frame: pd.DataFrame, **more: Any) -> Any:
    """The facts of a table with a label of two classes."""
    return prepare_dataset(as_dataset(frame, np.arange(len(frame)) % 2, **more)).info


def dropped(info: Any) -> dict[str, str]:
    return {c.name: c.dropped for c in info.reading.columns if c.dropped}


def test_what_was_read_is_told_column_by_column() -> None:
    frame = pd.DataFrame(
        {
            "amount": ["1,5", "n.a.", "2,25", None] * 15,
            "kind": ["a", "b", "a", "c"] * 14 + ["e", "f", "g", "h"],
            "who": [f"person {i}" for i in range(60)],
            "same": [7] * 60,
        }
    )
    info = described(frame)
    amount, kind, who, same = info.reading.columns
    assert info.reading.rows == 60
    assert (amount.kind, amount.missing, amount.values) == ("number", 30, 2)
    assert amount.how == "decimal comma; 15 times 'n.a.' read as missing"
    assert (kind.kind, kind.values, kind.dropped) == ("category", 7, "") and kind.rare >= 4
    assert (
        "nearly all different" in who.dropped and same.dropped == "the same in each training row"
    )
    assert info.input_shape == (2 + 3,)  # a number and its indicator; a, b and the rare ones
    assert [note.split(":")[0] for note in info.notes] == ["dropped 'who'", "dropped 'same'",
                                                           "'amount'"]  # fmt: skip


def test_a_table_of_which_nothing_is_left_is_refused() -> None:
    frame = pd.DataFrame({"who": [f"person {i}" for i in range(60)], "same": [7] * 60})
    with pytest.raises(DataError, match=r"no feature column.*'who': text.*'same': the same"):
        described(frame)


def test_dropped_columns_leave_no_trace_in_features_and_fingerprint() -> None:
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=60)})
    alone = described(frame)
    beside = described(frame.assign(same=7, who=[f"person {i}" for i in range(60)]))
    assert (beside.input_shape, beside.fingerprint) == (alone.input_shape, alone.fingerprint)


@pytest.mark.parametrize("count", [np.arange(60), np.arange(1, 61)])
@pytest.mark.parametrize("name", ["Unnamed: 0", "", "id", "PassengerId", "row_id", 0])
def test_an_index_is_no_feature(name: Any, count: np.ndarray) -> None:
    frame = pd.DataFrame({name: count, "x": count**2 % 7})
    assert list(dropped(described(frame))) == [str(name)]


def test_an_index_without_a_name_may_be_shuffled() -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(100))[:60]
    frame = pd.DataFrame({"Unnamed: 0": shuffled, "id": shuffled, "x": shuffled % 7})
    assert list(dropped(described(frame))) == ["Unnamed: 0"]  # a name may mean a quantity


def test_a_column_with_a_name_that_counts_the_rows_is_said() -> None:
    info = described(pd.DataFrame({"hour": np.arange(60), "x": np.arange(60) % 7}))
    assert not dropped(info) and "'hour': it counts the rows" in info.notes[0]


def test_two_columns_of_one_name_are_both_kept() -> None:
    values = np.random.default_rng(0).normal(size=(60, 3))
    info = described(pd.DataFrame(values, columns=["a", "a", "a.1"]))
    assert [c.name for c in info.reading.columns] == ["a", "a.2", "a.1"]
    assert info.input_shape == (3,) and "'a.2': a second column of the name 'a'" in info.notes


def test_a_second_label_column_is_no_feature() -> None:
    x, y = np.random.default_rng(0).normal(size=60), np.arange(60) % 2
    frame = pd.DataFrame(np.stack([x, y, y], axis=1), columns=["x", "y", "y"])
    info = prepare_dataset(as_dataset(frame, "y")).info
    assert info.input_shape == (1,) and "a second column 'y'" in info.notes[0]
    frame.iloc[0, 2] = 5
    with pytest.raises(DataError, match="2 columns are named 'y', and they differ"):
        as_dataset(frame, "y")


TRAINING = pd.DataFrame({"n": np.linspace(0, 1, 60) ** 2, "k": ["p", "q"] * 30})
LABELS = np.arange(60) % 2


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (TRAINING[["n"]], "the test part lacks column 'k'"),
        (TRAINING.rename(columns={"k": "kk"}), "lacks column 'k'; did you mean 'kk'"),
        (TRAINING.assign(n="many"), "'n' of the test part holds 'many', and held numbers"),
        (TRAINING.assign(n=pd.Timestamp(0)), "'n' of the test part holds '1970-01-01"),
        (TRAINING.to_numpy(), "must be of one kind"),
    ],
)
def test_a_test_part_that_does_not_match_is_refused(test: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        described(TRAINING, test=(test, LABELS))


def test_a_test_part_that_differs_is_said() -> None:
    test = TRAINING.assign(z=1, k=3, n=["n.a.", *map(str, TRAINING["n"][1:])])
    info = described(TRAINING, test=(test, LABELS))
    assert info.notes == (
        "columns of the test part that training does not have: 'z'",
        "none of the test part's values is in training: 'k'",
    )
    labelled = TRAINING.assign(y=LABELS)
    with pytest.raises(DataError, match="the test part: there is no column 'y'"):
        as_dataset(labelled, "y", test=TRAINING)


def test_dates_are_days_whatever_their_type() -> None:
    days = pd.Series(pd.date_range("1970-01-02", periods=60))
    frame = pd.DataFrame(
        {
            "stamp": days.astype("datetime64[s]"),
            "zoned": days.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
            "object": [day.date() for day in days],
            "text": days.dt.strftime("%d.%m.%Y"),
            "delta": pd.to_timedelta(np.arange(1, 61), unit="D"),
        }
    )
    table = Table(frame)
    cleaned = table.read(frame)
    for name in ("stamp", "zoned", "object", "text"):
        assert cleaned[name].tolist() == list(range(1, 61))
    assert cleaned["delta"].tolist() == [86400 * day for day in range(1, 61)]
    assert [c.kind for c in table.columns] == ["date"] * 4 + ["number"]
    later = frame.assign(stamp=days.astype("datetime64[ns]"))
    assert table.read(later).equals(cleaned)
    with pytest.raises(DataError, match=r"'text' of the table holds '2020-01-01', and held dates"):
        table.read(frame.assign(text="2020-01-01"))


def test_numbers_of_all_types() -> None:
    values = np.random.default_rng(0).normal(size=60)
    frame = pd.DataFrame(
        {
            "big": values.astype(">f8"),
            "decimal": [Decimal(str(v)) for v in values],
            "nullable": pd.array([1, None, 3] * 20, dtype="Int64"),
            "flag": pd.array([True, None, False] * 20, dtype="boolean"),
        }
    )
    cleaned = read(frame)
    assert cleaned["big"].tolist() == cleaned["decimal"].tolist() == values.tolist()
    assert cleaned["nullable"].fillna(-1).tolist() == [1, -1, 3] * 20
    assert cleaned["flag"].tolist()[::3] == [1.0] * 20
    assert torch.isfinite(encoder_of(frame)(frame)).all()


@pytest.mark.parametrize("kind", [">f8", ">f4", ">i2", ">u4", np.longdouble, np.uint16])
def test_arrays_of_any_byte_order_are_the_same_data(kind: Any) -> None:
    values = np.random.default_rng(0).integers(0, 90, (60, 3))
    data = prepare_dataset(as_dataset(values.astype(kind), LABELS.astype(">i8")))
    plain = prepare_dataset(as_dataset(values.astype(np.float32), LABELS))
    assert data.info.fingerprint == plain.info.fingerprint
