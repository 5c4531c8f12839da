"""A study's folder that somebody else has made: nothing in it runs unasked, nothing leads out."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

import lossearch
from lossearch import trust
from lossearch.errors import PluginError, StudyError, TrustError
from lossearch.study import StudyResult, read_study, resume, start
from lossearch.study.finish import renew
from lossearch.study.folder import Folder
from lossearch.study.outputs import copy_plugins, export

pytestmark = pytest.mark.long

Write = Callable[..., Path]
StopAt = Callable[..., Any]

MINE = '''
from pathlib import Path
from typing import Annotated
import torch.nn.functional as F
import lossearch

Path("{mark}").touch()

@lossearch.loss(task="multiclass")
def mine(logits, targets, *, scale: Annotated[float, lossearch.Range(0.5, 2.0)] = 1.0):
    """Cross-entropy of scaled logits."""
    return F.cross_entropy(scale * logits, targets, reduction="none")

@lossearch.hookimpl
def register_losses():
    return [mine]
'''


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that the plugin makes when it runs."""
    return tmp_path / "it-ran"


@pytest.fixture
def written(write_study: Write, tmp_path: Path, mark: Path) -> Path:
    """A study of a one-file plugin."""
    (tmp_path / "mine.py").write_text(MINE.format(mark=mark))
    baseline = {"name": "mine", "scale": 0.7}
    space = {"terms": [{"loss": {"name": "mine"}}]}
    return write_study(plugins=["mine.py"], space=space, baseline=baseline)


@pytest.fixture
def found(written: Path) -> StudyResult:
    return start(read_study(written))


@pytest.fixture
def stranger(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From here on, it is another user, in another process, who has run nothing yet."""

    def become() -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
        monkeypatch.setattr(trust, "_here", set())
        for name in [n for n in sys.modules if n.startswith("lossearch_file_")]:
            monkeypatch.delitem(sys.modules, name)
        lossearch.registry.use(None)
        mark.unlink(missing_ok=True)

    return become


def test_what_this_user_ran_is_not_asked_for(
    written: Path, mark: Path, stop_at: StopAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(read_study(written, {"output": "out"}), display=stop_at("rung"))
    monkeypatch.setattr(trust, "_here", set())  # a later process
    assert resume("out").verdict is not None
    lossearch.load_objective("out")
    assert renew("out")[1] == []


def test_a_strangers_code_does_not_run_unasked(
    found: StudyResult, stranger: Callable[[], None], mark: Path, tmp_path: Path
) -> None:
    stranger()
    for run in (lossearch.load_objective, resume):
        with pytest.raises(TrustError) as refused:
            run(found.folder)
        said = str(refused.value)
        digest = sha256(MINE.format(mark=mark).encode()).hexdigest()
        assert f"sha256 {digest}" in said and "file:mine, from " in said
        assert "| import torch.nn.functional as F" in said and "trust=True" in said
        assert [f.stem for f in refused.value.files] == ["mine"]
    # everything else is read without it
    (found.folder / "report.html").unlink()
    page, (note,) = renew(found.folder)
    assert "file:mine" in note and "--trust" in note
    assert "file:mine" in page.read_text()
    form = yaml.safe_load(export(Folder(found.folder)))
    assert form["plugins"] == ["plugins/mine.py"]
    assert "runs the plugins that it names" in export(Folder(found.folder), "python")
    copy_plugins(Folder(found.folder), tmp_path / "away")
    assert not mark.exists()


def test_trust_runs_it_and_is_remembered(
    found: StudyResult, stranger: Callable[[], None], mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger()
    lossearch.load_objective(found.folder, trust=True)
    assert mark.exists()
    monkeypatch.setattr(trust, "_here", set())  # a later process of the same user
    assert resume(found.folder).recommend == found.recommend
    file = found.folder / "plugins" / "mine.py"
    file.write_text(file.read_text() + "# one word more\n")
    with pytest.raises(TrustError):
        lossearch.load_objective(found.folder)


def test_search_takes_trust_for_what_it_resumes(
    written: Path, stranger: Callable[[], None], mark: Path, stop_at: StopAt
) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(read_study(written, {"output": "out"}), display=stop_at("rung"))
    stranger()
    given: dict[str, Any] = {"output": "out", "resume_existing": True, "progress": False}
    with pytest.raises(TrustError, match=r"lossearch resume .*out --trust"):
        lossearch.search(written, **given)
    assert not mark.exists()
    assert lossearch.search(written, trust=True, **given).verdict is not None


def test_a_user_without_a_place_for_records(
    written: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trust, "_here", set())
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    found = start(read_study(written))
    assert "what you run now will be asked for again" in caplog.text
    assert found.objective().spec.terms[0].loss.name == "mine"  # what this process ran counts
    monkeypatch.setattr(trust, "_here", set())
    with pytest.raises(TrustError):
        lossearch.load_objective(found.folder)


def test_what_is_shown_cannot_move_the_cursor(tmp_path: Path) -> None:
    file = lossearch.plugins.FilePlugin("a", "x = 1 # \x1b[2K\r\x1b[1A nothing\n", "/o\x1b[1m")
    with pytest.raises(TrustError) as refused:
        trust.require([file], False, "it", "say so")
    assert "\x1b" not in str(refused.value) and "\r" not in str(refused.value)


def test_edited_plugins_are_not_read_by_a_resume(
    written: Path, mark: Path, tmp_path: Path, stop_at: StopAt
) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(read_study(written, {"output": "out"}), display=stop_at("rung"))
    other = tmp_path / "other.py"
    other.write_text(f"from pathlib import Path\nPath('{tmp_path}/other-ran').touch()\n")
    path = Path("out/study.yaml")
    path.write_text(path.read_text().replace("mine.py", "other.py"))
    with pytest.raises(StudyError, match=r"'plugins' in .* is not what this study began with"):
        resume("out")
    assert not (tmp_path / "other-ran").exists()


OUTSIDE = ["../evil.py", "/etc/hosts", "link.py", "below/../../evil.py", "a\0b", "", ".", 7, None]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_document_names_nothing_outside_its_folder(
    found: StudyResult, tmp_path: Path, name: Any
) -> None:
    ran = tmp_path / "evil-ran"
    evil = found.folder.parent / "evil.py"
    evil.write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    (found.folder / "link.py").symlink_to(evil)
    document = yaml.safe_load((found.folder / "best.yaml").read_text())
    (found.folder / "best.yaml").write_text(yaml.safe_dump({**document, "plugins": [name]}))
    folder = Folder(found.folder)
    readers: list[Callable[[], Any]] = [
        lambda: lossearch.load_objective(found.folder, trust=True),
        lambda: export(folder, "python"),
        lambda: copy_plugins(folder, tmp_path / "away"),
    ]
    for read in readers:
        with pytest.raises(PluginError, match=r"which leads out of .*runs/study"):
            read()
    assert not ran.exists() and not (tmp_path / "away").exists()


def test_links_of_a_study_do_not_lead_out(found: StudyResult, tmp_path: Path) -> None:
    outside = tmp_path / "mine.txt"
    outside.write_text("a text of mine, without a newline at its end")
    for name in ("ledger.jsonl", ".best.yaml.partial"):
        kept = found.folder / name
        before = kept.read_bytes() if kept.exists() else None
        kept.unlink(missing_ok=True)
        kept.symlink_to(outside)
        for use in (resume, renew):
            with pytest.raises(StudyError, match="is a link that leads out of the study's folder"):
                use(found.folder)
        kept.unlink()
        if before is not None:
            kept.write_bytes(before)
    # what a report sends to the tracking server
    (found.folder / "plots" / "more.png").symlink_to(outside)
    with pytest.raises(StudyError, match=r"more\.png is a link that leads out"):
        renew(found.folder)
    assert outside.read_text() == "a text of mine, without a newline at its end"


def test_a_plugins_name_in_the_ledger_is_no_path(found: StudyResult) -> None:
    path = found.folder / "ledger.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    row = json.loads(first)
    row.pop("check", None)
    row["files"][0]["stem"] = "../../mine"
    path.write_text("".join([json.dumps(row) + "\n", *rest]))
    for use in (resume, renew):
        with pytest.raises(PluginError, match="damaged, or named by a path"):
            use(found.folder)


def test_export_writes_over_no_other_file(found: StudyResult, tmp_path: Path) -> None:
    copy_plugins(Folder(found.folder), tmp_path)
    copy_plugins(Folder(found.folder), tmp_path)  # the same once more
    (tmp_path / "plugins" / "mine.py").write_text("# my own\n")
    with pytest.raises(StudyError, match=r"mine\.py is there already and is another file"):
        copy_plugins(Folder(found.folder), tmp_path)
    assert (tmp_path / "plugins" / "mine.py").read_text() == "# my own\n"


@pytest.fixture
def terminal() -> Callable[..., tuple[int, str]]:
    """Runs the command line on a terminal, with an answer typed in, or without one."""

    def run(*words: object, answer: str | None) -> tuple[int, str]:
        command = [sys.executable, "-m", "lossearch", *map(str, words)]
        if answer is None:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                                  stdout=subprocess.PIPE, text=True, check=False)  # fmt: skip
            return done.returncode, done.stdout
        own, its = pty.openpty()
        process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its)
        os.close(its)
        os.write(own, answer.encode())
        said = b""
        while True:
            try:
                part = os.read(own, 65536)
            except OSError:  # what a closed terminal gives
                part = b""
            if not part:
                break
            said += part
        os.close(own)
        return process.wait(), said.decode()

    return run


def test_a_person_is_asked_on_a_terminal_and_refused_elsewhere(
    written: Path, mark: Path, stop_at: StopAt, stranger: Callable[[], None], terminal: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(read_study(written, {"output": "out"}), display=stop_at("rung"))
    stranger()
    code, said = terminal("resume", "out", answer=None)
    assert code == 1 and "Traceback" not in said and not mark.exists()
    assert "error: the study in" in said and "lossearch resume" in said and "--trust" in said
    code, said = terminal("resume", "out", answer="n\n")
    assert code == 1 and "Run it? [y/N]" in said and not mark.exists()
    code, said = terminal("resume", "out", answer="y\n")
    assert code == 0 and mark.exists() and "Verdict" in said
    code, said = terminal("resume", "out", answer=None)  # never again
    assert code == 0
