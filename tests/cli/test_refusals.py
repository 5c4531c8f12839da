"""Bad input: exit code 1, one clear message on stderr, no traceback, no folder left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]
Write = Callable[..., Path]

# what is changed in a study that works, and what is said then
DOCUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"serach": {}}, "unknown key 'serach'; did you mean 'search'?"),
    "an unknown key within": (
        {"training.epoch": 3}, "unknown key 'training.epoch'; did you mean 'epochs'?",
    ),
    "an unknown dataset": ({"data": "digit"}, "no dataset 'digit'; did you mean 'digits'?"),
    "an unknown data key": ({"data.inptus": "X"}, "no key 'inptus'; did you mean 'inputs'?"),
    "an unknown metric": ({"metric": "acuracy"}, "no metric 'acuracy'; did you mean 'accuracy'?"),
    "an unknown other metric": ({"metrics": ["nnl"]}, "no metric 'nnl'; did you mean 'nll'?"),
    "a loss as metric": ({"metric": "focal"}, "'focal' is a loss, and a metric is wanted here"),
    "an unknown loss": (
        {"space": {"terms": [{"loss": "focall"}]}}, "no loss 'focall'; did you mean 'focal'?",
    ),
    "an unknown parameter": (
        {"space": {"terms": [{"loss": {"name": "focal", "gama": 1}}]}},
        "no parameter of focal 'gama'; did you mean 'gamma'?",
    ),
    "a value out of its range": (
        {"space": {"terms": [{"loss": {"name": "focal", "gamma": -1}}]}},
        "focal: gamma = -1 is not allowed: input should be greater than or equal to 0",
    ),
    "a range out of the legal one": (
        {"space": {"terms": [{"loss": {"name": "focal", "gamma": {"low": -2, "high": 3}}}]}},
        "focal: gamma = -2.0 is not allowed",
    ),
    "an unknown key in a space": (
        {"space": {"term": []}}, "space has an unknown key 'term'; did you mean 'terms'?",
    ),
    "an unknown space": (
        {"space": "label_noises"}, "there is no space 'label_noises'; did you mean 'label_noise'?",
    ),
    "a space file that is not there": ({"space": "spcae.yaml"}, "cannot be read: No such file"),
    "a loss that does not fit the task": (
        {"space": {"terms": [{"loss": "binary_cross_entropy"}]}},
        "nothing remains for terms.0.loss",
    ),
    "a baseline that does not fit": (
        {"baseline": "binary_cross_entropy"}, "binary_cross_entropy: serves",
    ),
    "an unknown baseline": (
        {"baseline": "cross_entrop"}, "no loss 'cross_entrop'; did you mean 'cross_entropy'?",
    ),
    "a baseline without a name": ({"baseline": {"nme": "focal"}}, "'name' is missing"),
    "a baseline's bad value": ({"baseline": {"name": "focal", "gamma": -3}}, "gamma = -3"),
    "an unknown model": ({"model": "resnet19"}, "neither lossearch nor timm has a model"),
    "a model's bad value": ({"model": {"name": "mlp", "dropout": 2}}, "mlp: dropout = 2"),
    "a model for images": ({"model": "resnet18"}, "reads images and the data are of kind 'table'"),
    "an unknown executor": ({"executor": "rya"}, "no executor 'rya'; did you mean 'ray'?"),
    "an unknown sampler": (
        {"search.sampler": "tpee"}, "search.sampler = 'tpee' is not allowed: input should be",
    ),
    "an unknown provider": (
        {"providers": ["techer"]}, "no provider 'techer'; did you mean 'teacher'?",
    ),
    "too few trials": ({"search.trials": 1}, "search.trials = 1 is not allowed"),
    "one seed": ({"confirm.seeds": 1}, "confirm.seeds = 1 is not allowed"),
    "a learning rate of 0": ({"training.lr": 0}, "training.lr = 0 is not allowed"),
    "a range of rates below 0": (
        {"training.lr": {"low": -1, "high": 1}}, "a range of lr lies above 0",
    ),
    "a range the wrong way": (
        {"training.lr": {"low": 1, "high": 0.1}}, "a range needs low < high, not 1.0 and 0.1",
    ),
    "text for a number": ({"training.epochs": "many"}, "training.epochs = 'many' is not allowed"),
    "a list for a section": ({"training": [1]}, "training = [1] is not allowed"),
    "a number for a section": ({"search": 5}, "search = 5 is not allowed"),
    "a number for a metric": ({"metric": 5}, "metric = 5 is not allowed"),
    "an empty name": ({"name": ""}, "name = '' is not allowed"),
    "a metric of another task": ({"data.task": "regression"}, "metric accuracy serves"),
    "a split that leaves nothing": (
        {"data.split": {"validation": 0.5, "test": 0.5}}, "leave nothing for training",
    ),
    "no such data file": ({"data.path": "date.npz"}, "did you mean 'data.npz'?"),
    "no such array": ({"data.targets": "Y"}, "there is no array 'Y'"),
    "a file of another kind": ({"data.path": "study.yaml"}, "study.yaml is not"),
    "no such plugin file": ({"plugins": ["gone.py"]}, "plugin file"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_study_that_cannot_be(cli: Cli, study: Write, case: str, tmp_path: Path) -> None:
    changes, message = DOCUMENTS[case]
    path = study(changes)
    said = cli("run", path).error()
    assert message in said
    assert {p.name for p in tmp_path.iterdir()} == {"study.yaml", "data.npz"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("data: [1, 2\n", "line 2 is not YAML"),
        ("data: iris\n  model: mlp\n", "line 2 is not YAML"),
        ("- data\n", "must be a mapping of keys to values, not a list"),
        ("iris\n", "must be a mapping of keys to values, not a text"),
        ("model: mlp\n", "'data' is missing"),
        ("data: iris\nsearch.trials: 5\n", "unknown key 'search.trials'"),
        ("data: iris\n1: 2\n", "keys should be strings"),
        ("data: !!python/object/apply:os.system ['true']\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_study(cli: Cli, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert message in cli("run", path).error()
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


def test_a_study_file_that_is_missing_or_binary(cli: Cli, study: Write, tmp_path: Path) -> None:
    study()
    said = cli("run", "studdy.yaml").error()
    assert "studdy.yaml cannot be read: No such file or directory" in said
    assert said.endswith("did you mean 'study.yaml'?")
    assert "cannot be read: Is a directory" in cli("run", tmp_path).error()
    assert "is not a text file" in cli("run", "data.npz").error()


def _nan(x: np.ndarray, y: np.ndarray) -> Any:
    x[3, 1] = np.nan
    return x, y


def _rare(x: np.ndarray, y: np.ndarray) -> Any:
    y[0] = 3
    return x, y


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (_nan, "1 values of the inputs are NaN or infinite, in 1 of 90 samples"),
        (_rare, "class '3' has one sample; training, validation and test need one each"),
        (lambda x, y: (x, y * 0), "all 90 labels are '0', so there is nothing to learn"),
        (lambda x, y: (x[:-1], y), "there are 89 inputs and 90 targets"),
        (lambda x, y: (x[:0], y[:0]), "has no samples"),
        (lambda x, y: (x, y.astype(float) / 7), "metric accuracy serves"),
    ],
)
def test_data_that_cannot_be_learned_from(
    cli: Cli, study: Write, arrays: Any, message: str, tmp_path: Path
) -> None:
    assert message in cli("run", study(arrays=arrays)).error()
    assert not (tmp_path / "runs").exists()


def test_a_missing_column(cli: Cli, study: Write, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,kind\n" + "1.5,2,x\n0.5,1,y\n" * 6)
    path = study({"data": {"name": "csv", "path": "t.csv", "label": "knd"}})
    assert "there is no column 'knd'; did you mean 'kind'?" in cli("run", path).error()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_like_it\n", "line 1: ModuleNotFoundError"),
        ("x = 1\ny = 1 / 0\n", "line 2: ZeroDivisionError"),
        ("def f(:\n", "line 1: SyntaxError"),
        ("x = 1\n", "it implements no hook"),
        (
            "import lossearch\n@lossearch.hookimpl\ndef register_loses():\n    return []\n",
            "did you mean 'register_losses'?",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used(
    cli: Cli, study: Write, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    said = cli("run", study(), "--plugin", "mine.py").error()
    assert "plugin 'file:mine'" in said and message in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("study.yaml", "cannot be written to: File exists"),
        ("study.yaml/below", "cannot be written to: Not a directory"),
        ("/proc/lossearch/study", "cannot be written to: No such file or directory"),
        ("/dev/full", "cannot be written to: File exists"),
        ("x" * 300, "cannot be written to: File name too long"),
    ],
)
def test_an_output_folder_that_cannot_be(
    cli: Cli, study: Write, tmp_path: Path, output: str, message: str
) -> None:
    said = cli("run", study(), "--output", output).error()
    assert message in said and "Choose another with --output" in said
    assert {p.name for p in tmp_path.iterdir()} == {"study.yaml", "data.npz"}


def test_a_disk_without_room_leaves_no_folder(
    cli: Cli, study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, os.strerror(28))

    path = study()
    monkeypatch.setattr(Path, "write_bytes", full)
    said = cli("run", path, "--output", "a/b/c").error()
    assert "a/b/c cannot be written to: No space left on device" in said
    assert not (tmp_path / "a").exists()


def test_an_output_folder_with_another_study(cli: Cli, study: Write) -> None:
    assert cli("run", study(), "--output", "out").code == 0
    assert "already holds a study; go on with it by" in cli(
        "run", study(), "--output", "out"
    ).error()  # fmt: skip


@pytest.mark.parametrize("command", ["resume", "report", "export"])
def test_no_study_there(cli: Cli, tmp_path: Path, command: str) -> None:
    assert f"{tmp_path / 'gone'} is no folder" in cli(command, "gone").error()
    assert "holds no study" in cli(command, ".").error()


def test_a_damaged_ledger(cli: Cli, study: Write) -> None:
    cli("run", study(), "--output", "out")
    path = Path("out/ledger.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], "damaged\n", *lines[5:]]))
    for command in ("resume", "report"):
        assert "ledger.jsonl, line 5, is not a ledger row" in cli(command, "out").error()


def test_a_study_file_that_a_resume_does_not_find(cli: Cli, study: Write) -> None:
    cli("run", study(), "--output", "out")
    Path("out/study.yaml").unlink()
    assert "study.yaml cannot be read: No such file" in cli("resume", "out").error()


def test_an_export_that_cannot_be_written(cli: Cli, study: Write) -> None:
    cli("run", study(), "--output", "out")
    said = cli("export", "out", "--output", "nowhere/loss.py", "--format", "python").error()
    assert "nowhere/loss.py cannot be written: No such file or directory" in said
    Path("out/best.yaml").unlink()
    assert "has no best.yaml yet: no trial has finished" in cli("export", "out").error()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plugins", "show", "focl"), "there is no component 'focl'; did you mean 'focal'?"),
        (("plugins", "list", "--kind", "los"), "there is no kind 'los'; did you mean 'loss'?"),
        (("plugins", "list", "--task", "binry"), "no task 'binry'; did you mean 'binary'?"),
        (("plugins", "check", "focl"), "neither a file, a package that imports, nor a component"),
        (("plugins", "check", "gone.py"), "plugin file gone.py cannot be read"),
        (("plugins", "new", "focal"), "there is a loss 'focal' already"),
        (("plugins", "new", "MyLoss"), "'MyLoss' is no name for a component"),
        (("plugins", "new", "mine", "--folder", "/proc/x"), "/proc/x: No such file or directory"),
        (("space", "show", "clasification"), "did you mean 'classification'?"),
        (("space", "show", "gone.yaml"), "gone.yaml cannot be read"),
        (("space", "show", "multilabel", "--task", "binary"), "this space is for multilabel"),
        (("space", "show", "multilabel", "--task", "binry"), "there is no task 'binry'"),
    ],
)
def test_other_commands(cli: Cli, words: tuple[str, ...], message: str) -> None:
    assert message in cli(*words).error()


@pytest.mark.parametrize("words", [("rnu",), ("run",), ("run", "s.yaml", "--trails", "3"),
                                   ("run", "s.yaml", "--trials", "few"),
                                   ("export", ".", "--format", "toml")])  # fmt: skip
def test_words_that_are_no_command(cli: Cli, words: tuple[str, ...]) -> None:
    said = cli(*words)
    assert said.code == 2 and said.out == "" and "Traceback" not in said.err
    assert re.search(r"No such|Missing|Invalid", said.err)


def test_a_fault_is_no_users_error(
    cli: Cli, study: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("lossearch.study.session.set_up", fail)
    said = cli("run", study())
    assert said.code == 70 and "ZeroDivisionError: a fault" in said.err
    assert "Traceback" not in said.err and "--verbose" in said.err
    with pytest.raises(ZeroDivisionError):
        cli("--verbose", "run", study())


def _lossearch(*words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from lossearch.cli import main; main()", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell that starts the tests in the background has SIGINT ignored, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )  # fmt: skip


def test_a_refusal_in_a_process_of_its_own(study: Write, tmp_path: Path) -> None:
    process = _lossearch("run", str(study({"metric": "acuracy"})), cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert "did you mean 'accuracy'?" in err


def test_ctrl_c_in_a_process_of_its_own_and_resume(study: Write, tmp_path: Path, cli: Cli) -> None:
    path = study({"search.trials": 400, "training.epochs": 4})
    process = _lossearch("run", str(path), "--output", "out", cwd=tmp_path)
    ledger = tmp_path / "out" / "ledger.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if ledger.exists() and ledger.read_text().count('"finished"') >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err and "All that finished is kept" in err
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert rows[-1]["event"] == "ended" and rows[-1]["status"] == "interrupted"
    finished = sum(r["event"] == "finished" for r in rows)
    text = (tmp_path / "out" / "study.yaml").read_text()
    assert "trials: 400" in text
    fewer = text.replace("trials: 400", f"trials: {finished + 2}")
    (tmp_path / "out" / "study.yaml").write_text(fewer)
    said = cli("resume", "out")
    assert said.code == 0 and "Verdict" in said.out
