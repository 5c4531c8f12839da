"""Cached embeddings: what they are, how a head learns on them, and their views."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lossearch.data import Data, Dataset, Split, prepare_dataset
from lossearch.errors import DataError
from lossearch.features import HEAD, FeaturesConfig, Rows, cached
from lossearch.models import ModelConfig, Network, build_network
from lossearch.registry import Registry, current
from lossearch.spec import ObjectiveSpec
from lossearch.training import TrainingConfig
from lossearch.training.trainer import Trainer


def test_every_split_holds_its_embeddings(
    images: Data, network: Network, tmp_path: Path, embed: Any,
) -> None:  # fmt: skip
    data = cached(images, network, tmp_path / "features", batch_size=7)
    for name in ("train", "validation", "test"):
        raw = next(iter(getattr(images, name).batches(1000)))
        batch = next(iter(getattr(data, name).batches(1000)))
        assert torch.allclose(batch["inputs"], embed(images, network, name), atol=1e-6)
        assert torch.equal(batch["targets"], raw["targets"])
        assert torch.equal(batch["index"], raw["index"])
    assert data.info == replace(images.info, kind="table", input_shape=(6,))
    assert images.info.kind == "image"  # the raw data are as they were


def test_order_and_draws_are_those_of_a_tensor(
    images: Data, network: Network, tmp_path: Path
) -> None:
    data = cached(images, network, tmp_path)
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    expected = torch.randperm(54, generator=second)
    batches = list(data.train.batches(10, generator=first, drop_last=True))
    assert torch.equal(torch.cat([b["index"] for b in batches]), expected[:50])
    assert torch.equal(first.get_state(), second.get_state())
    rows = next(iter(data.train.batches(54)))["inputs"]
    assert torch.equal(torch.cat([b["inputs"] for b in batches]), rows[expected[:50]])


def test_it_travels_as_a_path_and_is_mapped(
    images: Data, network: Network, tmp_path: Path, the_file: Callable[[], Path],
) -> None:  # fmt: skip
    data = cached(images, network, tmp_path)
    before = next(iter(data.train.batches(54)))["inputs"]  # what was opened does not travel
    source = data.train.source
    assert isinstance(source, Rows)
    sent = pickle.dumps(source)
    assert len(sent) < 500 < before.nbytes
    there = pickle.loads(sent)
    chunks = torch.arange(54).split(20)
    assert torch.equal(torch.cat(list(there.stream(chunks, None, "cpu", 0))), before)
    with the_file().open("r+b") as file:  # what is mapped is seen, what is loaded is not
        file.seek(128)
        file.write(np.float32(7).tobytes())
    assert there.values[0, 0] == 7


def test_a_write_into_a_batch_or_the_map_stays_out_of_the_file(
    images: Data, network: Network, tmp_path: Path, the_file: Callable[[], Path],
) -> None:  # fmt: skip
    data = cached(images, network, tmp_path)
    before = the_file().read_bytes()
    next(iter(data.train.batches(5)))["inputs"].zero_()
    data.train.source.values.zero_()  # type: ignore[attr-defined]
    assert the_file().read_bytes() == before


def test_a_missing_file_is_named(
    images: Data, network: Network, tmp_path: Path, the_file: Callable[[], Path],
) -> None:  # fmt: skip
    data = cached(images, network, tmp_path)
    the_file().unlink()
    with pytest.raises(DataError, match="must be one that every worker sees"):
        next(iter(data.train.batches(5)))


@pytest.mark.parametrize("loss", ["cross_entropy", "arcface"])
def test_a_head_on_the_cache_learns_as_one_on_the_backbone(
    images: Data, tmp_path: Path, loss: str, small: Any,
) -> None:  # fmt: skip
    """Epoch by epoch, where images are not augmented and the heads start alike."""
    registry = current()
    plain = prepare_dataset(
        Dataset(images.train.source.values, images.train.targets, augment=False)  # type: ignore
    )
    torch.manual_seed(0)
    module = small(32)

    def trainer(data: Data, model: Any) -> Trainer:
        return Trainer(
            ObjectiveSpec.parse({"task": "multiclass", "terms": [{"loss": loss}]}),
            data, model, TrainingConfig(epochs=3, batch_size=8, device="cpu"),
            {"lr": 0.03, "weight_decay": 0.0},
            registry.build("accuracy", kind="metric", task="multiclass"), registry, 0,
        )  # fmt: skip

    whole = trainer(plain, module)
    assert whole.network.frozen
    head = trainer(cached(plain, whole.network, tmp_path), HEAD)
    assert head.network.gives == ("logits", "embeddings", "weight")
    assert head.network.head is not None and whole.network.head is not None
    head.network.head.load_state_dict(whole.network.head.state_dict())
    for each in (whole, head):
        each.run_epoch()
        each.run_epoch()
    losses = [[row["train_loss"] for row in each.curve] for each in (whole, head)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][1] < losses[0][0]
    assert head.network.weight is not None and whole.network.weight is not None
    assert torch.allclose(head.network.weight, whole.network.weight, atol=1e-4)


# --- views --------------------------------------------------------------------------------------


def test_views_are_the_augmented_images_and_the_first_is_plain(
    images: Data, network: Network, tmp_path: Path, embed: Any,
) -> None:  # fmt: skip
    data = cached(images, network, tmp_path, views=3)
    values = data.train.source.values.view(3, 54, 6)  # type: ignore[attr-defined]
    assert torch.allclose(values[0], embed(images, network, "train"), atol=1e-6)
    assert (values[0] != values[1]).any() and (values[1] != values[2]).any()
    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(0)).tolist()
    order = torch.arange(54).split(54)
    for view, seed in zip(values[1:], seeds, strict=True):
        augmented = next(iter(images.train.source.stream(order, seed, "cpu", 0)))
        assert torch.allclose(view, network.eval()(augmented)["embeddings"], atol=1e-6)
    for split in ("validation", "test"):
        batch = next(iter(getattr(data, split).batches(100)))
        assert torch.allclose(batch["inputs"], embed(images, network, split), atol=1e-6)


def test_an_epoch_draws_the_view_of_each_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(5 + 3 * 60, dtype=np.float32)[:, None])
    split = Split(Rows(tmp_path / "rows.npy", 5, 60, views=3), torch.zeros(60))

    def views(generator: torch.Generator | None, batch_size: int) -> list[int]:
        batches = list(split.batches(batch_size, generator=generator))
        index = torch.cat([b["index"] for b in batches])
        rows = torch.cat([b["inputs"] for b in batches])[:, 0] - 5
        assert torch.equal(rows % 60, index)  # a view of that very sample
        return (rows // 60).int().tolist()

    generator = torch.Generator().manual_seed(1)
    epochs = [views(generator, 10), views(generator, 10)]
    assert all(min(np.bincount(epoch, minlength=3)) >= 8 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert views(torch.Generator().manual_seed(1), 25) == epochs[0]  # whatever the batch size
    assert views(None, 10) == [0] * 60  # measured, it is as it is


def test_views_of_what_is_not_augmented_are_refused(
    network: Network, images: Data, tmp_path: Path
) -> None:
    plain = prepare_dataset(
        Dataset(images.train.source.values, images.train.targets, augment=False)  # type: ignore
    )
    with pytest.raises(DataError, match=r"views = 2 would all be equal.*images augmented"):
        cached(plain, network, tmp_path, views=2)


def test_a_timm_model_by_name(
    images: Data, registry: Registry, tmp_path: Path, embed: Any,
) -> None:  # fmt: skip
    config = ModelConfig.model_validate(
        {"name": "timm", "architecture": "test_resnet", "freeze": True}
    )
    network = build_network(config, images.info, registry)
    data = cached(images, network, tmp_path)
    head = build_network(HEAD, data.info, registry)
    batch = next(iter(data.validation.batches(18)))
    assert torch.allclose(
        head(batch["inputs"])["embeddings"], embed(images, network, "validation"), atol=1e-5
    )
    assert [n for n, _ in head.named_parameters()] == ["head.weight", "head.bias"]


def test_config() -> None:
    assert FeaturesConfig().views == 1
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        FeaturesConfig(views=0)
