"""The frozen teacher: what it says, that it stays out of training, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossearch.components import component_of
from lossearch.errors import ModelError, ParameterError
from lossearch.models import CosineHead, Network
from lossearch.registry import Registry
from lossearch.spec import ComponentSpec
from lossearch.training.providers import Fields
from lossearch_dynamics.teacher import Teacher

torch.set_num_threads(1)
TINY = "test_resnet"


def whole(seed: int, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, outputs))


def network(seed: int, outputs: int = 3) -> Network:
    parts = whole(seed, outputs)
    return Network(parts[:-1], parts[-1])


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(9))


def said(teacher: Teacher, inputs: Tensor, student: Network) -> tuple[Tensor, Tensor | None]:
    return teacher(inputs, student(inputs)["logits"], student)


def saved(path: Path, weights: Any) -> Path:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def test_it_is_the_model_with_the_weights_of_the_file(tmp_path: Path, inputs: Tensor) -> None:
    source = network(1).eval()
    expected = source(inputs)
    own = whole(1).state_dict()  # of the module before it became a network
    files = [
        saved(tmp_path / "a.pt", source.state_dict()),
        saved(tmp_path / "b.pt", {"state_dict": source.state_dict(), "epoch": 3}),
        saved(tmp_path / "c.safetensors", source.state_dict()),
        saved(tmp_path / "d.pt", own),
    ]
    student = network(2).train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    for file in files:
        torch.manual_seed(3)
        random = torch.get_rng_state()
        student.eval()
        logits, embeddings = said(Teacher(checkpoint=file).train(), inputs, student)
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.equal(logits, expected["logits"])
        assert embeddings is not None and torch.equal(embeddings, expected["embeddings"])
        assert not logits.requires_grad and not logits.is_inference()
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_it_stays_out_of_training(tmp_path: Path, inputs: Tensor) -> None:
    file = saved(tmp_path / "a.pt", network(1).state_dict())
    registry = Registry()
    registry.add(component_of(Teacher), "dynamics")
    student = network(2)
    spec = ComponentSpec.model_validate({"name": "teacher", "checkpoint": str(file)})
    fields = Fields(student, [spec], registry, {"teacher_logits"}, {})
    names = set(fields.state_dict())
    for training in (True, False):
        made = fields.train(training)({"inputs": inputs})
        assert torch.equal(made["teacher_logits"], network(1).eval()(inputs)["logits"])
    assert set(fields.state_dict()) == names
    assert len(list(fields.parameters())) == len(list(student.parameters()))
    made = fields({"inputs": inputs})
    (made["logits"] - made["teacher_logits"]).square().sum().backward()
    assert all(p.grad is not None for p in student.parameters())


def test_a_single_score_and_a_student_of_cosines(tmp_path: Path, inputs: Tensor) -> None:
    file = saved(tmp_path / "one.pt", network(1, 1).state_dict())
    logits, _ = said(Teacher(checkpoint=file), inputs, network(2, 1))
    assert torch.equal(logits, network(1, 1).eval()(inputs)["logits"])
    assert logits.shape == (5,)
    file = saved(tmp_path / "three.pt", network(1).state_dict())
    student = network(2)
    student.head = CosineHead(6, 3, 16.0)
    logits, _ = said(Teacher(checkpoint=file), inputs, student)
    assert torch.equal(logits, network(1).eval()(inputs)["logits"])


def test_another_architecture_of_timm(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    source: Any = timm.create_model(TINY, num_classes=3, in_chans=1).eval()
    file = saved(tmp_path / "tiny.pt", source.state_dict())
    images = torch.randn(2, 1, 32, 32)
    student = Network(nn.Flatten(), nn.Linear(1024, 3))
    logits, embeddings = said(Teacher(checkpoint=file, architecture=TINY), images, student)
    assert torch.equal(logits, source(images))
    expected = source.forward_head(source.forward_features(images), pre_logits=True)
    assert embeddings is not None and torch.equal(embeddings, expected)
    binary = Network(nn.Flatten(), nn.Linear(1024, 1))
    one = timm.create_model(TINY, num_classes=1, in_chans=1).eval()
    file = saved(tmp_path / "one.pt", one.state_dict())
    logits, _ = said(Teacher(checkpoint=file, architecture=TINY), images, binary)
    assert torch.equal(logits, one(images)[:, 0])


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ParameterError, match="teacher needs 'checkpoint'"):
        Teacher()
    with pytest.raises(ParameterError, match=r"checkpoint nowhere\.pt is not a file"):
        Teacher(checkpoint=Path("nowhere.pt"))


def test_what_does_not_fit(tmp_path: Path, inputs: Tensor) -> None:
    student = network(0)

    def refusal(weights: Any, inputs: Tensor = inputs, **params: Any) -> str:
        file = saved(tmp_path / "file.pt", weights)
        with pytest.raises(ModelError) as caught:
            teacher = Teacher(checkpoint=file, **params)
            teacher(inputs, torch.zeros(len(inputs), 3), student)
        return str(caught.value)

    wider = Network(nn.Sequential(nn.Linear(4, 7)), nn.Linear(7, 3)).state_dict()
    why = refusal(wider)
    assert "file.pt does not fit the study's model" in why and "size mismatch" in why
    assert "give its architecture" in why
    assert "Missing key(s)" in refusal({"backbone.0.weight": torch.zeros(6, 4)})
    assert "size mismatch for head.weight" in refusal(network(1, 4).state_dict())
    student.head = CosineHead(6, 3, 16.0)
    assert "are [5, 4], and the student's [5, 3]" in refusal(network(1, 4).state_dict())
    assert "holds no state dict" in refusal({"epoch": 3})
    assert "holds no state dict" in refusal({})
    assert "timm has no model 'resnet19'" in refusal(wider, architecture="resnet19")
    assert "reads images, and the inputs are [5, 4]" in refusal(wider, architecture=TINY)
    images = torch.zeros(2, 1, 32, 32)
    assert f"does not fit timm model '{TINY}'" in refusal(wider, images, architecture=TINY)
    (tmp_path / "noise.pt").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be read"):
        said(Teacher(checkpoint=tmp_path / "noise.pt"), inputs, student)
