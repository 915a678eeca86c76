"""The frozen network beside the trained one: where it comes from, and that it is trained once."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.backbones import BackboneConfig, Classifier
from methods.data import Augment, Dataset
from methods.errors import InputError
from methods.primitives.random import derive
from methods.primitives.threat import ThreatModel
from methods.training.auxiliary import Pretrained, PretrainedConfig
from methods.training.checkpoint import save_weights
from methods.training.method import Task

SMALL = BackboneConfig("wrn", 10, 1)
PLAIN = Augment()


def task(digits: Dataset, seed: int = 0) -> Task:
    return Task(ThreatModel.parse("Linf:0.15"), digits.num_classes, digits.image_shape, seed)


def made(digits: Dataset, seed: int = 0, **settings: Any) -> Pretrained:
    config = PretrainedConfig(**{"backbone": SMALL, "epochs": 1, "augment": PLAIN} | settings)
    auxiliary = Pretrained(config, task(digits, seed))
    auxiliary.prepare(digits.train)
    return auxiliary


def weights(auxiliary: Pretrained) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in auxiliary.network.state_dict().values()])


def test_network_learns_the_training_images(digits: Dataset) -> None:
    auxiliary = made(digits, epochs=40)
    auxiliary.ready()
    x, y = digits.train.unit(), digits.train.labels
    with torch.no_grad():
        assert (auxiliary.network(x).argmax(1) == y).float().mean() > 0.95
    assert not any(module.training for module in auxiliary.modules() if module is not auxiliary)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in auxiliary.parameters())
    assert auxiliary.network.mean.item() == pytest.approx(x.mean().item())
    assert auxiliary.network.std.item() == pytest.approx(x.std(correction=0).item())


def test_other_normalisations_are_left_alone(digits: Dataset) -> None:
    network = made(digits, backbone=BackboneConfig("wrn", 10, 1, normalize="none")).network
    assert (network.mean.item(), network.std.item()) == (0.0, 1.0)


def test_network_is_trained_once_and_says_so(digits: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    auxiliary = made(digits)
    assert capsys.readouterr().err == ""
    auxiliary.ready()
    assert capsys.readouterr().err == "Training the auxiliary network (wrn): 1 epochs of 96 images.\n"
    trained = weights(auxiliary)
    auxiliary.ready()

    resumed = made(digits)
    assert not torch.equal(weights(resumed), trained)
    resumed.load_state_dict(auxiliary.state_dict())
    resumed.ready()
    assert torch.equal(weights(resumed), trained) and torch.equal(weights(auxiliary), trained)
    assert capsys.readouterr().err == ""


def test_network_depends_on_the_seed_alone(digits: Dataset) -> None:
    networks = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(derive(noise))
        auxiliary = made(digits, seed, augment=Augment(padding=1, flip=True))
        auxiliary.ready()
        networks.append(weights(auxiliary))
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])


@pytest.fixture
def checkpoint(digits: Dataset, fitted: Classifier, tmp_path: Path) -> Path:
    statistics = {"mean": list(digits.mean), "std": list(digits.std)}
    description = {"backbone": asdict(SMALL), "num_classes": 10, "image_shape": [1, 8, 8]} | statistics
    save_weights(tmp_path / "best.safetensors", fitted.state_dict(), description)
    return tmp_path


def test_network_is_read_from_a_checkpoint(
    digits: Dataset, fitted: Classifier, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auxiliary = made(digits, checkpoint=str(checkpoint))
    auxiliary.ready()
    assert capsys.readouterr().err == ""
    assert all(torch.equal(value, auxiliary.network.state_dict()[name]) for name, value in fitted.state_dict().items())
    assert not auxiliary.network.training
    assert not any(parameter.requires_grad for parameter in auxiliary.parameters())


def test_checkpoint_of_other_images_is_refused(digits: Dataset, checkpoint: Path) -> None:
    other = Task(ThreatModel.parse("Linf:0.15"), 100, (3, 32, 32), 0)
    with pytest.raises(InputError, match="tells 10 classes of 1x8x8 images, not 100 classes of 3x32x32 images"):
        Pretrained(PretrainedConfig(checkpoint=str(checkpoint)), other)


def test_missing_checkpoint_is_one_sentence(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        made(digits, checkpoint=str(tmp_path / "gone"))
    assert str(caught.value) == f"There is no checkpoint at {tmp_path / 'gone'}."


def test_images_come_before_the_first_step(digits: Dataset) -> None:
    auxiliary: Callable[[], None] = Pretrained(PretrainedConfig(backbone=SMALL), task(digits)).ready
    with pytest.raises(RuntimeError, match="prepare"):
        auxiliary()
