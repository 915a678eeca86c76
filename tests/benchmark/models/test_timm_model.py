"""timm's classifiers as models to evaluate, from weights that are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmark.models.factory import from_factory, make_model
from benchmark.models.timm_model import factory
from methods.data import Dataset, ImageSet
from methods.errors import InputError

CPU = torch.device("cpu")
NAME = "test_efficientnet"
"""100,000 parameters."""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of timm's network under timm's own names, for colour images in ten classes."""
    torch.manual_seed(0)
    save_file(timm.create_model(NAME, num_classes=10).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def dataset(channels: int = 3) -> Dataset:
    """Ten classes of noise, 32 x 32."""
    x = torch.rand(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    split = ImageSet(x, torch.arange(4))
    return Dataset("noise", tuple("0123456789"), split, split, split, (0.5,) * channels, (0.2,) * channels)


def reference(x: Tensor, path: Path | None, mean: list[float], std: list[float]) -> Tensor:
    """Return timm's own logits of normalised images."""
    network = timm.create_model(NAME, num_classes=10, checkpoint_path=str(path)).eval()
    return network((x - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))


def test_timm_model_takes_pixels_and_normalises_as_timm_says(weights: Path) -> None:
    subject = from_factory(f"timm:{NAME}", weights, dataset(), CPU)
    x = dataset().test.unit()
    with torch.no_grad():
        found = reference(x, weights, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(subject.logits(x), found, atol=1e-5)
    assert (subject.name, subject.kind, subject.architecture) == (f"timm:{NAME}", "external", "EfficientNet")
    assert "the model was in training mode" not in subject.flags
    assert from_factory("timm:test_byobnet", _saved("test_byobnet", weights), dataset(), CPU).code != subject.code


def _saved(name: str, beside: Path) -> Path:
    path = beside.with_name(f"{name}.safetensors")
    save_file(timm.create_model(name, num_classes=10).state_dict(), path)
    return path


def test_grey_images_are_normalised_by_the_mean_of_the_channels() -> None:
    network = factory(NAME)(num_classes=10, image_shape=(1, 32, 32))
    seen = []
    next(network.children()).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.full((1, 1, 32, 32), 0.449))
    assert torch.allclose(seen[0], torch.zeros(1), atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "given", "sentence"),
    [
        (f"timm:{NAME}", False, f"timm:{NAME} has random weights: give it its own with --weights FILE"),
        ("timm:test_eficientnet", True, 'timm has no model "test_eficientnet". Did you mean "test_efficientnet"?'),
        ("timm:test_byobnet", True, 'weights.safetensors lack "stem.conv.weight" ('),
    ],
)
def test_what_timm_lacks_is_told_in_one_sentence(weights: Path, spec: str, given: bool, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        make_model(spec, weights if given else None, dataset(), CPU)
    assert sentence in str(caught.value)
