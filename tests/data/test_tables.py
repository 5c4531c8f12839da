"""Tables: imputation, standardisation and categories, all learned from training rows alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from lossearch.data import as_dataset, prepare_dataset
from lossearch.data.tables import RARE, TableEncoder
from lossearch.errors import DataError


def test_numbers_by_hand() -> None:
    frame = clean_table(pd.DataFrame({"x": [1.0, 3.0, np.nan, 5.0]}))
    encoder = TableEncoder(frame)
    assert encoder.feature_names == ("x", "missingindicator_x")
    # the median 3 stands in: 1 3 3 5, mean 3, variance 2; the indicator 0 0 1 0, mean 1/4
    root = 2**0.5
    expected = torch.tensor([[-2 / root, -1], [0, -1], [0, 3], [2 / root, -1]])
    expected[:, 1] *= 0.25 / (0.25 * 0.75) ** 0.5
    assert torch.allclose(encoder(frame), expected)


def test_categories_rare_and_unseen() -> None:
    kinds = ["a"] * RARE + ["b"] * RARE + ["c"] * 2 + ["d"]
    encoder = TableEncoder(clean_table(pd.DataFrame({"kind": kinds})))
    new = pd.DataFrame({"kind": ["a", " 'b' ", "c", "d", "never"]})
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert encoder(new)[:4].tolist() == expected
    # an unseen category joins none of the frequent ones
    assert encoder(new)[4, :2].tolist() == [0, 0]


def test_missing_text_is_a_category_of_its_own() -> None:
    frame = pd.DataFrame({"kind": ["a", None] * RARE})
    features = TableEncoder(clean_table(frame))(frame)
    assert features[:2].tolist() == [[1, 0], [0, 1]]


def test_columns_of_all_sorts() -> None:
    frame = pd.DataFrame(
        {
            "quoted": ["'1'", " 2 ", "'3'"],
            "flag": [True, False, True],
            "day": pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
            "code": pd.Categorical([1, 2, 1]),
            "none": [None, None, None],
            7: [1, 2, 3],
        }
    )
    cleaned = clean_table(frame)
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
    assert torch.isfinite(TableEncoder(cleaned)(frame)).all()


def test_new_rows_are_encoded_as_in_training() -> None:
    frame = pd.DataFrame({"n": np.arange(40.0), "k": ["5", "x"] * 20})
    encoder = TableEncoder(clean_table(frame))
    # a column of text whose new rows are all numeric stays text
    assert torch.equal(encoder(frame.iloc[[0, 2]]), encoder(frame)[[0, 2]])
    assert torch.equal(encoder(frame.iloc[:, ::-1]), encoder(frame))
    with pytest.raises(DataError, match="lacks column 'k'; did you mean 'kk'"):
        encoder(frame.rename(columns={"k": "kk"}))
    with pytest.raises(DataError, match="'n' holds text, and held numbers"):
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
        (pd.DataFrame({"x": [[1], [2]]}), "'x' holds list objects"),
        (pd.DataFrame({"x": [1j, 2j]}), "complex"),
        (pd.DataFrame({"x": [None, None]}), "no feature column"),
    ],
)
def test_refusals(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        clean_table(frame)
