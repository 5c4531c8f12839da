"""The unit of work: a bad objective is a result, and a batch of jobs is as good as one by one."""

from __future__ import annotations

import errno
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lossearch.components import Bound
from lossearch.data import Data
from lossearch.errors import PluginError, StorageError
from lossearch.models import ModelConfig, build_network
from lossearch.plugins import FilePlugin, load_plugins
from lossearch.registry import Registry, current
from lossearch.training import Job, Unit, Workbench
from lossearch.training.evaluate import predict, score
from lossearch.training.trainer import Trainer

Make = Callable[..., Workbench]
VALUES = {"lr": 0.05, "weight_decay": 0.01}


def job(trial: int, loss: Any = "cross_entropy", until: int = 4, **changes: Any) -> Job:
    objective = {"task": "multiclass", "terms": [{"loss": loss}]}
    return replace(Job(trial, objective, VALUES, 0, until), **changes)


def facts(results: list[Any]) -> list[Any]:
    return [(r.trial, r.epoch, r.done, r.score, r.curve, r.metrics, r.reason) for r in results]


def test_a_finished_job(make_bench: Make, tmp_path: Path) -> None:
    (result,) = make_bench().run(Unit(1, (job(7),))).jobs
    assert (result.trial, result.seed, result.epoch, result.done) == (7, 0, 4, True)
    assert result.reason is None and result.seconds > 0
    assert set(result.metrics) == {"accuracy", "nll"} and result.test == {}
    assert result.score == result.metrics["accuracy"] == result.curve[-1]["accuracy"]
    assert list((tmp_path / "checkpoints").glob("*")) == []


def test_a_rung_and_on_from_it(make_bench: Make, tmp_path: Path) -> None:
    (whole,) = make_bench("a").run(Unit(1, (job(7),))).jobs
    bench = make_bench("b")
    (paused,) = bench.run(Unit(1, (job(7, until=2),))).jobs
    assert (paused.epoch, paused.done) == (2, False)
    assert paused.score == whole.curve[1]["accuracy"]
    assert (tmp_path / "b" / "7-0.pt").exists()
    (again,) = bench.run(Unit(2, (job(7, until=2),))).jobs  # killed before it was recorded
    assert facts([again]) == facts([paused])
    (rest,) = bench.run(Unit(3, (job(7),))).jobs
    assert facts([rest]) == facts([whole])
    assert not (tmp_path / "b" / "7-0.pt").exists()


def test_a_lost_checkpoint_costs_time_and_changes_nothing(
    make_bench: Make, tmp_path: Path
) -> None:
    bench = make_bench()
    (whole,) = bench.run(Unit(1, (job(7),))).jobs
    bench.run(Unit(2, (job(7, until=2),)))
    (tmp_path / "checkpoints" / "7-0.pt").unlink()
    assert facts(bench.run(Unit(3, (job(7),))).jobs) == facts([whole])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_a_page(path: Path) -> None:
    """As a power cut leaves it: of the right size, and a part of it never written."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as parts:
        start = max(parts.infolist(), key=lambda part: part.file_size).header_offset + 128
    content[start : start + 128] = bytes(128)
    path.write_bytes(content)


def of_another_model(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["fields"] = {f"older.{k}": v for k, v in state["fields"].items()}
    torch.save(state, path)


def without_a_key(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["order"]
    torch.save(state, path)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.write_bytes(b""), "File is not a zip file"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "File is not a zip file"),
        (cut, "File is not a zip file"),
        (zero_a_page, "the checksum of .* is wrong"),
        (without_a_key, "it lacks order"),
        (of_another_model, "Missing key|Error"),
        (lambda path: torch.save([1], path), "no attribute 'keys'"),
    ],
)
@pytest.mark.parametrize("cohort", [False, True])
def test_a_damaged_checkpoint_is_put_aside_and_its_job_begins_anew(
    make_bench: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
    why: str,
    cohort: bool,
) -> None:
    losses = ("tempered", "squentropy", {"name": "poly_loss", "epsilon": 2.0}, "ensloss")
    jobs = tuple(job(i, loss) for i, loss in enumerate(losses))
    paused = tuple(replace(each, until=2) for each in jobs)

    def run(bench: Workbench, part: tuple[Job, ...]) -> list[Any]:
        if cohort:
            return facts(bench.run(Unit(1, part)).jobs)
        return [fact for each in part for fact in facts(bench.run(Unit(1, (each,))).jobs)]

    def bench(folder: str) -> Workbench:
        made = make_bench(folder)
        made.choice.gain = lambda size: 9.0 if cohort else 0.0
        return made

    whole = bench("whole")
    run(whole, paused)
    expected = run(whole, jobs)
    hurt = bench("hurt")
    run(hurt, paused)
    damage(tmp_path / "hurt" / "1-0.pt")
    assert run(hurt, jobs) == expected
    assert hurt.choice.problem is None
    assert [p.name for p in (tmp_path / "hurt").iterdir()] == ["1-0.pt.damaged"]
    (record,) = caplog.records
    assert re.search(rf"1-0\.pt cannot be used \(.*({why}).*\); .* begins anew", record.message)


def test_a_checkpoint_that_the_system_refuses_stops_the_study(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither the objective's fault, nor to be thrown away."""
    trainer = make_trainer()
    path = tmp_path / "1.pt"
    trainer.save(path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match=r"1\.pt cannot be written: No space left on dev"):
            trainer.save(path)
    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipFile", refused)
        with pytest.raises(StorageError, match=r"1\.pt cannot be read: Permission denied"):
            trainer.load(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["1.pt"]


def test_several_jobs_in_a_unit_give_the_same_as_one_by_one(make_bench: Make) -> None:
    jobs = (
        *(job(1), job(2, "squentropy"), job(3, "ensloss"), job(4, "turns_nan")),
        job(5, "squentropy"),
    )
    together = make_bench("a").run(Unit(1, jobs)).jobs
    bench = make_bench("b")
    apart = [bench.run(Unit(n, (each,))).jobs[0] for n, each in reversed(list(enumerate(jobs)))]
    assert facts(together) == facts(apart[::-1])
    assert together[1].curve == together[4].curve


@pytest.mark.parametrize(
    ("loss", "reason", "detail", "epoch"),
    [
        ("turns_nan", "diverged", "the training loss is nan in epoch 1", 0),
        ({"name": "turns_nan", "at": 2}, "diverged", "the training loss is nan in epoch 3", 2),
        ("raises_later", "error", "RuntimeError: the loss is tired (toys.py, line 11)", 0),
        ({"name": "raises_later", "at": 3}, "error", "tired (toys.py, line 11)", 3),
        ("wrong_shapes", "error", "(toys.py, line 17)", 0),
        ("out_of_range", "infeasible", "targets are not to its taste", 0),
        ("no_such_loss", "infeasible", "there is no loss 'no_such_loss'", 0),
        ({"name": "focal", "gamma": -1}, "infeasible", "focal: gamma = -1 is not allowed", 0),
    ],
)
def test_a_bad_objective_is_a_result_and_the_next_job_goes_on(
    make_bench: Make, loss: Any, reason: str, detail: str, epoch: int
) -> None:
    bad, good = make_bench().run(Unit(1, (job(1, loss), job(2)))).jobs
    assert (bad.reason, bad.epoch, bad.done, bad.score) == (reason, epoch, True, None)
    assert detail in bad.detail and "\n" not in bad.detail
    assert len(bad.curve) == epoch
    assert good.reason is None and good.done


def test_a_failure_leaves_no_checkpoint(make_bench: Make, tmp_path: Path) -> None:
    bench, loss = make_bench(), {"name": "turns_nan", "at": 2}
    bench.run(Unit(1, (job(1, loss, until=2),)))
    assert (tmp_path / "checkpoints" / "1-0.pt").exists()
    (result,) = bench.run(Unit(2, (job(1, loss),))).jobs
    assert result.reason == "diverged"
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_out_of_memory_has_its_own_reason(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    bench = make_bench()
    monkeypatch.setattr("lossearch.training.workbench.Trainer.run_epoch", full)
    (result,) = bench.run(Unit(1, (job(1),))).jobs
    assert (result.reason, result.detail) == ("out_of_memory", "CUDA out of memory.")


def test_ctrl_c_is_no_result(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    bench = make_bench()
    monkeypatch.setattr("lossearch.training.workbench.Trainer.run_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        bench.run(Unit(1, (job(1),)))


def test_a_confirmation_measures_the_test_split(make_bench: Make) -> None:
    (result,) = make_bench().run(Unit(1, (job(1, test=True, seed=99),))).jobs
    assert result.seed == 99
    assert set(result.test) == {"accuracy", "nll"}
    assert result.test["nll"] != result.metrics["nll"]


def test_early_stop_ends_a_job_with_the_best_epochs_score(make_bench: Make) -> None:
    bench = make_bench(epochs=40, early_stop=2, schedule="constant")
    (result,) = bench.run(Unit(1, (job(1, until=40),))).jobs
    assert result.done and result.epoch < 40
    assert result.score == max(row["accuracy"] for row in result.curve)


def test_recipe_units_and_results_cross_a_process(make_bench: Make) -> None:
    bench = make_bench()
    recipe = pickle.loads(pickle.dumps(bench.recipe))
    unit = pickle.loads(pickle.dumps(Unit(1, (job(1),))))
    there = pickle.loads(pickle.dumps(Workbench(recipe, bench.registry).run(unit).jobs))
    assert facts(there) == facts(bench.run(unit).jobs)


def test_a_worker_loads_the_drivers_plugins_or_stops(
    make_bench: Make, file: FilePlugin
) -> None:
    plugins = load_plugins([file])
    recipe = replace(
        make_bench().recipe, files=(file,), plugins=tuple(plugins.loaded)
    )
    worker = Workbench(recipe)
    assert current() is worker.registry and "tempered" in worker.registry
    assert worker.run(Unit(1, (job(1, "tempered"),))).jobs[0].reason is None
    changed = replace(file, text=file.text + "\n# edited\n")
    with pytest.raises(PluginError, match=r"other plugins than the driver: file:toys\."):
        Workbench(replace(recipe, files=(changed,)))


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_evaluation_is_exact_over_the_split(
    blobs: Data, registry: Registry, batch_size: int
) -> None:
    config = ModelConfig.model_validate({"name": "mlp", "dropout": 0.5, "batch_norm": True})
    network = build_network(config, blobs.info, registry)
    network.train()
    cpu = torch.device("cpu")
    found = predict(network, blobs.validation, batch_size=batch_size, device=cpu)
    assert network.training
    (batch,) = blobs.validation.batches(1000)
    network.eval()
    logits = network(batch["inputs"])["logits"].detach().double()
    assert found["logits"].dtype is torch.float64
    assert torch.allclose(found["logits"], logits, atol=1e-6)
    assert torch.equal(found["targets"], blobs.validation.targets)
    metrics: dict[str, Bound] = {
        n: registry.build(n, task="multiclass") for n in ("accuracy", "nll")
    }
    values = score(found, metrics)
    right = (logits.argmax(1) == batch["targets"]).double().mean().item()
    assert values["accuracy"] == right
    picked = logits.log_softmax(1)[torch.arange(len(logits)), batch["targets"]]
    assert values["nll"] == pytest.approx(-picked.mean().item(), abs=1e-6)
