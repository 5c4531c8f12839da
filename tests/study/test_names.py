"""What a person gives is data: a study's name and address in code, comments and the terminal."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from lossearch.errors import StudyError
from lossearch.study import read_study, start
from lossearch.study.finish import tracking_uri, with_password
from lossearch.study.folder import Folder
from lossearch.study.outputs import export

ODD = 'a """ + boom() + """ [bold] [red] #{% x %}<b>'


def test_an_odd_name_is_data_everywhere(write_study: Callable[..., Path]) -> None:
    path = write_study(name="study.yaml")
    path.write_text(f"{path.read_text()}name: {ODD!r}\n")
    result = start(read_study(path))
    folder = Folder(result.folder)
    tree = ast.parse(export(folder, "python"))
    assert ODD in (ast.get_docstring(tree) or "")
    assert "<b>" not in folder.report.read_text().split("<h1>")[1].split("</h1>")[0]


@pytest.mark.parametrize(
    "name", ["/abs", "a/b", "..", ".", "a\nb", " a", "a\x00", "x" * 300, "a\\b"]
)
def test_a_name_that_is_no_folders(write_study: Callable[..., Path], name: str) -> None:
    with pytest.raises(StudyError, match="a study's name"):
        read_study(write_study(), {"name": name})


@pytest.mark.parametrize("uri", ["", "nowhere", "not a uri", "http://", "sqlite://a b"])
def test_an_address_that_is_none(write_study: Callable[..., Path], uri: str) -> None:
    with pytest.raises(StudyError, match="a tracking URI is"):
        read_study(write_study(), {"tracking": {"uri": uri}})


def test_a_password_is_not_kept(
    write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "https://me:secret@host:5000"
    config = read_study(write_study(), {"tracking": {"uri": given}})
    kept = config.stored()["tracking"]["uri"]
    assert kept == "https://me:***@host:5000" and "secret" not in str(config.stored())
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    with pytest.raises(StudyError, match="set MLFLOW_TRACKING_PASSWORD"):
        with_password(kept)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "se/cret")
    assert with_password(kept) == "https://me:se%2Fcret@host:5000"


@pytest.mark.parametrize("odd", "?%#")
def test_a_folder_that_no_address_can_name(
    write_study: Callable[..., Path], tmp_path: Path, odd: str
) -> None:
    config = read_study(write_study(), {"tracking": {}})
    with pytest.raises(StudyError, match="MLflow's database cannot lie in"):
        tracking_uri(config, Folder(tmp_path / f"a{odd}b" / "study"))


def test_limits(write_study: Callable[..., Path]) -> None:
    for key, value in (
        ("search.trials", 1e9), ("training.threads", 1_000_000), ("providers", True),
        ("training.lr", {"low": 0.1, "high": 1, "log": "no"}),
    ):  # fmt: skip
        with pytest.raises(StudyError, match="is not allowed"):
            read_study(write_study(), {key: value})
