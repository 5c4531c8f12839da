"""Files of embeddings: who shares them, when they are computed again, and what damages them."""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossearch.data import Data
from lossearch.errors import ModelError, StorageError
from lossearch.features import cached
from lossearch.models import Network, build_network
from lossearch.registry import Registry


class Power(nn.Module):
    """The same layers and weights, and what its code makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 4, 8), nn.Linear(4, 3)
        self.exponent = 1

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.body(inputs).flatten(1) ** self.exponent)


# --- whose it is --------------------------------------------------------------------------------


def test_the_next_study_takes_the_same_file(
    images: Data, registry: Registry, tmp_path: Path, spent: list[int], small: Any,
) -> None:  # fmt: skip
    for seed in range(3):  # one view draws nothing
        torch.manual_seed(5)  # built anew, as by another process
        network = build_network(small(), images.info, registry)
        cached(images, network, tmp_path, seed=seed)
    assert spent == [1]


@pytest.mark.parametrize("change", ["weights", "statistics", "layers", "data", "views", "seed"])
def test_whatever_embeddings_depend_on_makes_another_file(
    images: Data, registry: Registry, tmp_path: Path, spent: list[int], change: str, small: Any,
) -> None:  # fmt: skip
    def run(change: str = "") -> Any:
        torch.manual_seed(0)
        module = small()
        data = images
        if change == "weights":
            module[0].weight[0, 0, 0, 0] += 1e-6  # type: ignore[index]
        if change == "statistics":
            module[1].running_mean += 1e-6  # type: ignore[index, operator]
        if change == "layers":
            module[2] = nn.GELU()  # type: ignore[index]
        if change == "data":
            data = replace(images, info=replace(images.info, fingerprint="other"))
        network = build_network(module, data.info, registry)
        views, seed = 3 if change == "views" else 2, int(change == "seed")
        return cached(data, network, tmp_path, views=views, seed=seed)

    run()
    run(change)
    assert len(spent) == 2
    assert len(list(tmp_path.iterdir())) == 2
    run(change)
    assert len(spent) == 2


def test_other_code_behind_the_same_weights_is_noticed(
    images: Data, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, embed: Any,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    module = Power()
    module.body.requires_grad_(False)
    cached(images, build_network(module, images.info, registry), tmp_path)
    module.exponent = 3
    network = build_network(module, images.info, registry)
    data = cached(images, network, tmp_path)
    assert "are not this backbone's; they are computed again" in caplog.text
    found = next(iter(data.train.batches(100)))["inputs"]
    assert torch.allclose(found, embed(images, network, "train"), atol=1e-5)


# --- what goes wrong ----------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_shape(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 3)))


def code(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([{}]), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(flip_a_bit, "are damaged"), (cut, "cannot be read"), (code, "cannot be read"),
     (other_shape, r"are float64 \[3, 3\], not float32 \[90, 6\]"),
     (lambda path: path.write_bytes(b""), "cannot be read")],
)  # fmt: skip
def test_a_damaged_file_is_computed_again_with_a_warning(
    images: Data, network: Network, tmp_path: Path, spent: list[int],
    caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], said: str,
    the_file: Callable[[], Path],
) -> None:  # fmt: skip
    cached(images, network, tmp_path)
    whole = the_file().read_bytes()
    damage(the_file())
    cached(images, network, tmp_path)
    assert len(spent) == 2
    assert caplog.records[0].levelno == logging.WARNING
    assert re.search(said, caplog.records[0].getMessage())
    assert the_file().read_bytes() == whole


def test_a_killed_run_leaves_nothing_that_is_used(
    images: Data, network: Network, tmp_path: Path
) -> None:
    def killed(done: int, total: int) -> None:
        assert (done, total) == (20, 90)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(images, network, tmp_path, batch_size=20, progress=killed)
    assert list(tmp_path.iterdir()) == []
    told: list[tuple[int, int]] = []
    cached(images, network, tmp_path, batch_size=20, progress=lambda *n: told.append(n))
    assert told[-1] == (90, 90)


def test_what_a_killed_process_left_is_cleared_away(
    images: Data, network: Network, tmp_path: Path
) -> None:
    old, young = tmp_path / ".a.1.partial", tmp_path / ".b.2.partial"
    old.touch()
    young.touch()  # another process may be at it
    os.utime(old, (0, 0))
    cached(images, network, tmp_path)
    assert not old.exists() and young.exists()


def test_two_at_once_end_in_one_valid_file(
    images: Data, network: Network, tmp_path: Path, spent: list[int],
    the_file: Callable[[], Path], embed: Any,
) -> None:  # fmt: skip
    both = threading.Barrier(2, timeout=20)
    found: list[Data] = []

    def run() -> None:
        met = False

        def progress(done: int, total: int) -> None:
            nonlocal met
            if not met:  # both are writing
                both.wait()
                met = True

        found.append(cached(images, network, tmp_path, progress=progress))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spent == [1, 1]
    expected = embed(images, network, "train")
    for data in found:
        inputs = next(iter(data.train.batches(100)))["inputs"]
        assert torch.allclose(inputs, expected, atol=1e-6)
    cached(images, network, tmp_path)
    assert spent == [1, 1]
    the_file()  # and nothing else


def test_a_network_that_learns_is_refused(
    images: Data, registry: Registry, tmp_path: Path, small: Any,
) -> None:  # fmt: skip
    network = build_network(small().requires_grad_(True), images.info, registry)
    with pytest.raises(ModelError, match="freeze: true"):
        cached(images, network, tmp_path)


def test_embeddings_that_are_not_finite_are_refused(
    images: Data, network: Network, tmp_path: Path
) -> None:
    next(network.backbone.parameters()).data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite for 8 of 8 samples"):
        cached(images, network, tmp_path)


def test_a_folder_that_cannot_be_made(images: Data, network: Network, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(StorageError, match=r"the embeddings .*\.npy cannot be written: "):
        cached(images, network, tmp_path / "taken" / "features")


def test_a_full_disk_leaves_no_half_file(
    images: Data, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows fit on it; what the disk has taken by then is given back."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            cached(images, network, tmp_path)
    assert list(tmp_path.iterdir()) == []
    cached(images, network, tmp_path)


