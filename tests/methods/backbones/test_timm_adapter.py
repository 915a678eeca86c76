import pytest
import torch
from torch import nn

from methods.backbones import BackboneConfig, build
from methods.errors import InputError


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet18", (1, 8, 8)), ("vit_tiny_patch16_224", (3, 32, 48)), ("resnet10t", (3, 33, 20))],
)
def test_timm_models_take_the_size_of_the_data(name: str, shape: tuple[int, int, int]) -> None:
    statistics = [0.5] * shape[0], [0.25] * shape[0]
    classifier = build(BackboneConfig(architecture=f"timm:{name}"), 7, shape, *statistics)
    assert classifier.training
    assert classifier.eval()(torch.rand(1, *shape)).shape == (1, 7)


def test_norm_momentum_reaches_timm() -> None:
    config = BackboneConfig(architecture="timm:resnet10t", norm_momentum=0.7)
    norms = [
        module
        for module in build(config, 10, (3, 32, 32), [0.5] * 3, [0.5] * 3).modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert norms
    assert {module.momentum for module in norms} == {0.7}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", 'timm has no model "resnt18". Did you mean "resnet18"'),
        ("hf-hub:someone/something", "timm has no model"),
        ("vit_tiny_patch16_224", "does not take images of 3x8x8"),
        ("legacy_seresnet18", 'garble ".*se_module'),
    ],
)
def test_unsuitable_timm_models(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(BackboneConfig(architecture=f"timm:{name}"), 10, (3, 8, 8), [0.5] * 3, [0.5] * 3)
