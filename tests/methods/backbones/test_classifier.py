import pytest
import torch
from torch import Tensor, nn

from methods.backbones import BackboneConfig, Classifier, build
from methods.errors import InputError

GREY = ([0.3], [0.4])
RESIDUAL = ["wrn", "jem-wrn", "swish-wrn", "resnet", "preact-resnet", "resnet-highres"]
COLOUR = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def small(architecture: str = "wrn", shape: tuple[int, int, int] = (3, 16, 16), **fields: object) -> Classifier:
    torch.manual_seed(0)
    depth = 18 if "resnet" in architecture else 10
    config = BackboneConfig(architecture=architecture, depth=depth, widen=1, **fields)  # type: ignore[arg-type]
    return build(config, 10, shape, *(COLOUR if shape[0] == 3 else GREY))


@pytest.mark.parametrize(
    ("normalize", "expected"),
    [("dataset", [[-1.0, 1.0, 0.0]]), ("half", [[-0.6, 0.5, 0.2]]), ("none", [[0.2, 0.75, 0.6]])],
)
def test_normalisation_happens_inside(normalize: str, expected: list[list[float]]) -> None:
    classifier = small(normalize=normalize)
    classifier.network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.tensor([0.2, 0.75, 0.6]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    torch.testing.assert_close(classifier(x), torch.tensor(expected))


def test_normalisation_travels_with_the_weights() -> None:
    source, target = small(normalize="dataset"), small(normalize="none")
    target.load_state_dict(source.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(source.eval()(x), target.eval()(x))
    assert {"mean", "std"} <= source.state_dict().keys()


@pytest.mark.parametrize("architecture", [*RESIDUAL, "timm:resnet18"])
def test_state_keys_survive_loaders_that_strip_wrappers(architecture: str) -> None:
    assert not [key for key in small(architecture).state_dict() if "model." in key or "module." in key]


@pytest.mark.parametrize("architecture", ["wrn", "jem-wrn", "swish-wrn"])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 21)])
def test_any_shape_and_a_batch_of_one(architecture: str, norm: str, shape: tuple[int, int, int]) -> None:
    classifier = small(architecture, shape, norm=norm).eval()
    x = torch.rand(3, *shape)
    logits = classifier(x)
    assert logits.shape == (3, 10)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(classifier(x[:1]), logits[:1])


def test_autocast_reaches_the_network_and_not_the_logits() -> None:
    classifier = small().eval()
    seen: list[torch.dtype] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.dtype)

    classifier.get_submodule("network.head").register_forward_hook(record)
    x = torch.rand(2, 3, 16, 16)
    exact = classifier(x)
    classifier.autocast = torch.bfloat16
    rounded = classifier(x)
    assert seen == [torch.float32, torch.bfloat16]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


def test_scalar_energy_is_minus_the_scalar_head() -> None:
    classifier = small("jem-wrn", energy_head=True)
    head = classifier.get_submodule("network.energy_head")
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 2.5)
    torch.testing.assert_close(classifier.scalar_energy(torch.rand(1, 3, 16, 16)), torch.tensor([-2.5]))


@pytest.mark.parametrize("architecture", ["jem-wrn", "timm:resnet18"])
def test_scalar_energy_needs_the_head(architecture: str) -> None:
    with pytest.raises(InputError, match="energy head") as caught:
        small(architecture).scalar_energy(torch.rand(1, 3, 16, 16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("normalize", ["dataset", "half"])
@pytest.mark.parametrize("architecture", ["wrn", "jem-wrn", "swish-wrn"])
def test_first_layer_and_rest_make_the_network(architecture: str, normalize: str) -> None:
    classifier = small(architecture, normalize=normalize)
    x = torch.rand(4, 3, 16, 16)
    hidden = classifier.first(x)
    assert hidden.shape == (4, 16, 16, 16)
    classifier.eval()
    torch.testing.assert_close(classifier.rest(hidden), classifier(x))
    # The first layer is affine in the images, which is what makes PYLD's inner loop one step.
    middle = classifier.first((x + x.flip(0)) / 2)
    torch.testing.assert_close(middle, (hidden + hidden.flip(0)) / 2, atol=1e-5, rtol=1e-4)


def test_first_layer_and_rest_run_under_autocast() -> None:
    classifier = small().eval()
    x = torch.rand(2, 3, 16, 16)
    exact = classifier(x)
    classifier.autocast = torch.bfloat16
    hidden = classifier.first(x)
    assert hidden.dtype == torch.float32
    assert (hidden == hidden.bfloat16()).all()
    torch.testing.assert_close(classifier.rest(hidden), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("architecture", ["timm:resnet18", "resnet"])
def test_only_wide_residual_networks_have_a_first_layer_apart(architecture: str) -> None:
    with pytest.raises(InputError, match="first layer of their own"):
        small(architecture).first(torch.rand(1, 3, 16, 16))
    with pytest.raises(InputError, match="first layer of their own"):
        small(architecture).rest(torch.rand(1, 16, 16, 16))


@pytest.mark.parametrize("architecture", RESIDUAL)
def test_features_and_the_maps_they_are_pooled_from(architecture: str) -> None:
    classifier = small(architecture).eval()
    x = torch.rand(4, 3, 16, 16)
    maps, features = classifier.maps(x), classifier.features(x)
    assert maps.shape[:2] == features.shape == (4, classifier.num_features)
    assert maps.shape[2] > 1
    head = classifier.get_submodule("network.head")
    torch.testing.assert_close(head(features), classifier(x))
    torch.testing.assert_close(classifier.from_maps(maps), classifier(x))
    classifier.autocast = torch.bfloat16
    assert classifier.features(x).dtype == classifier.maps(x).dtype == torch.float32
    torch.testing.assert_close(classifier.features(x), features, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("method", ["maps", "from_maps", "features"])
def test_features_are_of_residual_networks(method: str) -> None:
    with pytest.raises(InputError, match="no timm backbone does"):
        getattr(small("timm:resnet18"), method)(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "wnr"}, 'No backbone "wnr".*Did you mean "wrn"'),
        ({"architecture": "jem_wrn"}, 'Did you mean "jem-wrn"'),
        ({"depth": 29}, "6n\\+4"),
        ({"depth": 4}, "6n\\+4"),
        ({"widen": 0}, "widen"),
        ({"norm": "layer"}, "norm is one of batch, none"),
        ({"norm_momentum": 9.0}, "norm_momentum"),
        ({"normalize": "halve"}, 'Did you mean "half"'),
        ({"architecture": "timm:resnet18", "energy_head": True}, "no energy head"),
    ],
)
def test_impossible_configurations(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BackboneConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "shape", "statistics", "message"),
    [
        (1, (3, 32, 32), COLOUR, "2 classes"),
        (10, (4, 32, 32), COLOUR, "1 or 3 channels"),
        (10, (3, 7, 32), COLOUR, "8 to 512 pixels"),
        (10, (3, 32, 1024), COLOUR, "8 to 512 pixels"),
        (10, (3, 32, 32), GREY, "3 means"),
        (10, (1, 32, 32), ([0.5], [0.0]), "positive"),
    ],
)
def test_impossible_data(
    classes: int, shape: tuple[int, int, int], statistics: tuple[list[float], list[float]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(BackboneConfig(depth=10, widen=1), classes, shape, *statistics)
