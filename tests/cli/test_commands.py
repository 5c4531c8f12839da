"""What the commands print and write when all is well."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import lossearch

Cli = Callable[..., Any]
Write = Callable[..., Path]


@pytest.fixture
def folder(cli: Cli, study: Write) -> Path:
    said = cli("run", study())
    assert said.code == 0, said.err
    return Path("runs/study").resolve()


def test_run_prints_the_verdict_and_where_to_look(cli: Cli, study: Write, tmp_path: Path) -> None:
    said = cli("run", study())
    assert said.code == 0
    assert "Verdict" in said.out and "accuracy" in said.out
    for name in ("report.html", "best.yaml"):
        assert str(tmp_path / "runs" / "study" / name) in said.out
    assert "lossearch export" in said.out and "mlflow" not in said.out
    assert "study: 4 trials of up to 2 epochs" in said.err and "Verdict" not in said.err


def test_a_second_run_has_a_folder_of_its_own(cli: Cli, study: Write, folder: Path) -> None:
    said = cli("run", study())
    assert said.code == 0 and (folder.parent / "study-2" / "verdict.json").exists()
    assert cli("run", study()).code == 0 and (folder.parent / "study-3").is_dir()


def test_options_go_before_the_file(cli: Cli, study: Write) -> None:
    said = cli("run", study(), "--trials", 5, "--epochs", 1, "--seed", 7, "--output", "here",
               "--executor", "local")  # fmt: skip
    assert said.code == 0, said.err
    config = yaml.safe_load(Path("here/study.yaml").read_text())
    assert config["search"]["trials"] == 5 and config["search"]["rungs"] is None
    assert config["training"]["epochs"] == 1 and config["training"]["batch_size"] == 32
    assert config["seed"] == 7


def test_dry_run_shows_space_reasons_and_cost_and_writes_nothing(
    cli: Cli, study: Write, tmp_path: Path
) -> None:
    space = {
        "terms": [
            {
                "loss": {"choice": ["focal", "binary_cross_entropy"]},
                "reweighting": {"choice": ["none", "class_balanced"]},
            }
        ]
    }
    said = cli("run", study({"space": space}), "--dry-run")
    assert said.code == 0, said.err
    out = " ".join(said.out.split())
    assert "54 training, 18 validation and 18 test samples; multiclass: 0 18, 1 18, 2 18" in out
    assert "terms.0.loss.focal.gamma" in out and "0 … 5" in out
    assert "training.lr" in out and "0.0001 … 0.03 (log)" in out
    assert "left out: loss binary_cross_entropy: serves" in out
    assert "cost" in out and "4 trials" in out and "on one worker" in out
    assert {p.name for p in tmp_path.iterdir()} == {"study.yaml", "data.npz"}


def test_dry_run_says_what_trains_as_one_stack(
    cli: Cli, study: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lossearch.training.choice.Choice.gain", lambda *_: 3.0)
    space = {
        "terms": [{"loss": "focal"}, {"loss": "cross_entropy"}],
        "balancer": {"choice": ["dwa", "pcgrad"]},
    }
    said = cli("run", study({"space": space}), "--dry-run")
    assert said.code == 0, said.err
    assert "16 trials train together 3.0 times as fast as alone" in said.out
    (alone,) = [line for line in said.out.splitlines() if line.startswith("alone: ")]
    assert "pcgrad" in alone and "dwa" not in alone and "one network at a time" in alone
    monkeypatch.setattr("lossearch.training.choice.Choice.gain", lambda *_: 0.5)
    said = cli("run", study(), "--dry-run")
    assert "none: a stack of this model is slower here" in said.out


def test_resume_and_report(cli: Cli, folder: Path) -> None:
    before = (folder / "verdict.json").read_bytes()
    said = cli("resume", folder)
    assert said.code == 0 and "Verdict" in said.out
    (folder / "report.html").unlink()
    said = cli("report", folder)
    assert said.code == 0 and said.out.strip() == str(folder / "report.html")
    assert (folder / "report.html").exists()
    assert (folder / "verdict.json").read_bytes() == before


def test_export(cli: Cli, folder: Path, tmp_path: Path) -> None:
    shown = cli("export", folder)
    document = yaml.safe_load(shown.out)
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert document["objective"] == best["objective"]
    assert document["facts"]["num_classes"] == 3
    code = cli("export", folder, "--format", "python")
    assert code.out == (folder / "objective.py").read_text()
    compile(code.out, "objective.py", "exec")
    (tmp_path / "away").mkdir()
    said = cli("export", folder, "--output", "away/loss.yaml")
    assert said.code == 0 and said.out == ""
    assert (tmp_path / "away" / "loss.yaml").read_text() == shown.out
    assert lossearch.load_objective("away/loss.yaml").spec.document() == best["objective"]


def test_a_plugin_from_new_to_export(cli: Cli, study: Write, tmp_path: Path) -> None:
    said = cli("plugins", "new", "my_loss", "--folder", "own")
    assert said.code == 0
    assert said.out.splitlines() == ["own/my_loss.py", "own/test_my_loss.py"]
    checked = cli("plugins", "check", "own/my_loss.py")
    assert checked.code == 0 and checked.out.startswith("my_loss: ")
    listed = cli("plugins", "list", "--plugin", "own/my_loss.py", "--kind", "loss", "--json")
    assert "my_loss" in {c["name"] for c in json.loads(listed.out)}
    path = study({"space": {"terms": [{"loss": "my_loss"}]}, "baseline": "my_loss"})
    said = cli("run", path, "--plugin", "own/my_loss.py", "--output", "out")
    assert said.code == 0, said.err
    said = cli("export", "out", "--output", "elsewhere.yaml")
    assert said.code == 0, said.err
    assert Path("plugins/my_loss.py").read_text() == Path("own/my_loss.py").read_text()


def test_a_check_that_fails_has_exit_code_1(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import lossearch\n\n\n"
        '@lossearch.loss(task="multiclass")\n'
        "def bad_one(logits, targets):\n"
        '    """A scalar where one value a sample is promised."""\n'
        "    return logits.mean()\n\n\n"
        "@lossearch.hookimpl\ndef register_losses():\n    return [bad_one]\n"
    )
    said = cli("plugins", "check", "bad.py")
    assert said.code == 1 and "failed:" in said.out and "Traceback" not in said.err


def test_lists_are_json_where_asked(cli: Cli) -> None:
    for words in (("plugins", "list"), ("plugins", "show", "focal")):
        found = json.loads(cli(*words, "--json").out)
        entries = found if isinstance(found, list) else [found]
        assert {"name", "kind", "tasks", "parameters", "summary"} <= set(entries[0])
    focal = json.loads(cli("plugins", "show", "focal", "--json").out)
    assert focal["parameters"]["gamma"]["search"] == "0 … 5"
    assert focal["parameters"]["gamma"]["default"] == 2.0
    shown = cli("plugins", "show", "focal").out
    assert "gamma" in shown and "Focal Loss for Dense Object Detection" in shown


def test_spaces(cli: Cli) -> None:
    listed = cli("space", "list").out
    assert "label_noise" in listed and "classification" in listed
    shown = cli("space", "show", "classification").out
    assert "Use it when" in shown and "terms.0.loss.focal.gamma" in "".join(shown.split())


def test_doctor(cli: Cli) -> None:
    said = cli("doctor")
    assert said.code == 0, said.out
    assert "plugin classification: lossearch" in said.out and "torch" in said.out


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"lossearch {lossearch.__version__}\n"
    for words in ((), ("run",), ("plugins",), ("space", "show")):
        said = cli(*words, "--help")
        assert said.code == 0 and "Usage" in said.out


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['lossearch', '--help']\n"
        "import lossearch\n"
        "from lossearch.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'ray', 'mlflow', 'timm', 'torch', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_dry_run_says_which_provider_gives_what(cli: Cli, study: Write) -> None:
    providers = [{"name": "second_view", "noise": 0.2}, "attack", "half_images"]
    said = cli("run", study({"providers": providers[:2]}), "--dry-run")
    assert said.code == 0, said.err
    assert "fields  second_view gives logits_b, embeddings_b (a second forward)" in said.out
    assert "fields  attack gives logits_adv (`steps` forwards" in said.out
    said = cli("run", study({"providers": providers[1:]}), "--dry-run")
    assert "half_images cuts images" in said.error()
    said = cli("run", study({"providers": providers}), "--dry-run")
    assert "half_images gives 'embeddings_b', which second_view gives too" in said.error()


def test_a_study_that_fails_has_exit_code_1_and_no_false_hint(cli: Cli, study: Write) -> None:
    path = study({"training.optimizer": "sgd", "training.lr": 1e30})
    said = cli("run", path)
    assert said.code == 1 and "The study failed: no trial finished" in said.out
    assert "diverged" in said.out and "best.yaml" not in said.out and "export" not in said.out
    assert str(Path("runs/study/report.html").resolve()) in said.out
    assert cli("resume", "runs/study").code == 1
