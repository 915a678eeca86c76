"""The doctor: sick models, what it says of them and of their eps, and what it refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from copy import deepcopy
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmark.models import reference
from benchmark.models.doctor import REMEDIES, Diagnosis, equivalent, examine, render
from benchmark.models.factory import make_model
from benchmark.models.input_domain import BYTES, NORMALISED, PIXELS, SYMMETRIC, Domain
from methods.data import Dataset, ImageSet, load
from methods.errors import InputError

CPU = torch.device("cpu")

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.linear = nn.Linear(512, num_classes)
        self.sigma = 0.0

    def forward(self, v):
        v = v + self.sigma * torch.randn_like(v)
        hidden = self.norm(self.convolution(v)).relu()
        return self.linear(nn.functional.max_pool2d(hidden, 2).flatten(1))

"""


def net(channels: int, classes: int) -> Any:
    """Return an untrained network of the class that MODEL defines."""
    scope: dict[str, Any] = {"__name__": "model"}
    exec(MODEL, scope)
    torch.manual_seed(0)
    return scope["Net"](channels, classes)


@cache
def fit(data: Dataset, domain: Domain) -> Any:
    """Train a network trained on images in ``domain``: random features, and the ridge regression on them."""
    model = net(data.image_shape[0], data.num_classes)
    v = domain(data.train.unit())
    onehot = 10 * torch.eye(data.num_classes)[data.train.labels]
    with torch.no_grad():
        model(v)  # fills BatchNorm's running statistics
        model.eval()
        hidden = nn.functional.max_pool2d(model.norm(model.convolution(v)).relu(), 2).flatten(1)
        centre = hidden.mean(0)
        moments = (hidden - centre).T @ (hidden - centre) + 10 * torch.eye(hidden.shape[1])
        weight = torch.linalg.solve(moments, (hidden - centre).T @ (onehot - onehot.mean(0)))
        model.linear.weight.copy_(weight.T)
        model.linear.bias.copy_(onehot.mean(0) - centre @ weight)
    return model


def fitted(data: Dataset, domain: Domain) -> Any:
    """Return a network of its own that was trained on images in ``domain``, in eval mode."""
    return deepcopy(fit(data, domain))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load("digits", root=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def coloured(digits: Dataset) -> Dataset:
    """Digits in three colours that add up to grey, so that every channel counts."""

    def colour(images: ImageSet) -> ImageSet:
        x = images.unit()
        return ImageSet(torch.cat([x, x.flip(2), 1 - x], 1), images.labels)

    splits = {name: colour(getattr(digits, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(digits, **splits, mean=(0.3, 0.3, 0.7), std=(0.376, 0.376, 0.376))


@pytest.fixture(scope="module")
def symmetric(digits: Dataset) -> nn.Module:
    """EB-JDAT's shape: trained on images in [-1,1], with noise of sigma 0.03 there in the input path."""
    model = fitted(digits, SYMMETRIC)
    model.sigma = 0.03
    return model


def names(diagnosis: Diagnosis) -> set[str]:
    return {finding.name for finding in diagnosis.findings if not finding.fine}


def stated_as(domain: Domain) -> str:
    return domain.name.strip("[]") if domain.name.startswith("[") else domain.name.split()[0].lower()


def test_model_of_ebjdat_s_shape_is_diagnosed(symmetric: nn.Module, digits: Dataset) -> None:
    diagnosis = examine(symmetric, digits, eps="8/255", name="/some/where/ebjdat.py:load")
    assert diagnosis.domain == SYMMETRIC
    assert diagnosis.status == 1
    assert diagnosis.equivalents[0] == "8/255 in [-1,1] is 4/255 in pixels"
    assert diagnosis.sigma == pytest.approx(0.015, rel=0.15)
    assert names(diagnosis) == {"input domain", "noise"}
    text = render(diagnosis)
    assert text.splitlines()[0] == "ebjdat.py:load on digits has 2 problems (input domain, noise)."
    assert "the model expects inputs in [-1,1], not [0,1]" in text
    assert "8/255 in [-1,1] is 4/255 in pixels\n" in text
    noise = re.search(r"Noise of sigma ([\d.]+) in \[-1,1\] is ([\d.]+) in pixels\.", text)
    assert noise is not None
    assert [float(sigma) for sigma in noise.groups()] == pytest.approx([0.03, 0.015], rel=0.15)
    assert "def on_pixels():\n        model = load()\n" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_honest_model_is_found_healthy(digits: Dataset) -> None:
    diagnosis = examine(fitted(digits, PIXELS), digits, eps="8/255", device=CPU, name="honest.py:make")
    assert diagnosis.status == 0
    assert names(diagnosis) == set()
    assert diagnosis.verdict == "Nothing is wrong with honest.py:make on digits: 14 probes found nothing."
    assert diagnosis.domain.identity
    assert diagnosis.wrapper is None
    assert diagnosis.equivalents[0] == "8/255 in [0,1] is 8/255 in pixels"
    assert {finding.name for finding in diagnosis.findings} < REMEDIES.keys()


def test_reference_network_is_found_healthy(digits: Dataset) -> None:
    subject = reference.reference("digits", CPU)
    diagnosis = examine(subject, digits)
    assert (names(diagnosis), diagnosis.name) == (set(), subject.name)


@pytest.mark.parametrize("domain", [SYMMETRIC, BYTES, NORMALISED[0]], ids=lambda domain: domain.name)
def test_wrapper_that_is_shown_cures_the_domain(coloured: Dataset, domain: Domain, tmp_path: Path) -> None:
    """The code that is shown is put into the file of the model, and the factory it defines is examined."""
    sick = fitted(coloured, domain)
    diagnosis = examine(sick, coloured, name="model.py:make", input_range=stated_as(domain))
    assert "input domain" in names(diagnosis)
    assert diagnosis.domain == domain
    assert diagnosis.wrapper is not None
    state = tmp_path / "weights.pt"
    torch.save(sick.state_dict(), state)
    file = tmp_path / "model.py"
    factory = "\ndef make():\n    return Net(3, 10).eval()\n\n\n"
    file.write_text(MODEL + factory + diagnosis.wrapper)
    cured = make_model(f"{file}:on_pixels", state, coloured, CPU)
    x = coloured.test.unit()
    with torch.no_grad():
        assert torch.allclose(cured(x), sick(domain(x)), atol=1e-3)
    assert names(examine(cured, coloured)) == set()


class Then(nn.Module):
    """A network and a function of its logits."""

    def __init__(self, network: nn.Module, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.after = network, after
        self.training = network.training

    def forward(self, x: Tensor) -> Any:
        return self.after(self.network(x))


def fail(z: Tensor) -> Tensor:
    raise ValueError("no\nsuch luck")


@pytest.mark.parametrize(
    ("sick", "name", "sentence"),
    [
        (
            lambda net: Then(net, fail),
            "forward pass",
            "does not classify images [16, 1, 8, 8]: ValueError: no such luck",
        ),
        (lambda net: Then(net, lambda z: {"logits": z}), "output shape", "the model returns a dict, not logits"),
        (
            lambda net: Then(net, lambda z: z[:, :7]),
            "output shape",
            "outputs are [16, 7]; digits wants logits [16, 10]",
        ),
        (
            lambda net: Then(net, lambda z: z / 0),
            "finite outputs",
            "not finite (NaN or infinite) on 100 % of 16 images",
        ),
        (lambda net: Then(net, lambda z: z * 0), "constant outputs", "outputs are the same for every image"),
        (lambda net: Then(net, lambda z: z.detach()), "gradients", "no gradient reaches the input"),
        (lambda net: Then(net, lambda z: z.softmax(1)), "probabilities", "probabilities, not logits"),
        (lambda net: Then(net, lambda z: 1e4 * z), "saturated logits", "its gradient vanishes on 100 % of the images"),
        (lambda net: Then(net, lambda z: z - z.mean(0)), "batch dependence", "differ by"),
        (lambda net: Then(net, lambda z: z.add(1e7).sub(1e7)), "precision", "rounding decides"),
        (lambda net: net.train(), "training mode", "the model was in training mode"),
        (lambda net: nn.Sequential(net, nn.Dropout().train()), "training mode", "the model was in training mode"),
    ],
)
def test_sick_model_is_examined_to_the_end(
    digits: Dataset, sick: Callable[[nn.Module], nn.Module], name: str, sentence: str
) -> None:
    model = sick(fitted(digits, PIXELS))
    modes = [module.training for module in model.modules()]
    diagnosis = examine(model, digits, eps="8/255")
    assert names(diagnosis) == {name}
    assert diagnosis.status == (name != "precision")
    (found,) = (finding for finding in diagnosis.findings if not finding.fine)
    assert sentence in found.sentence
    assert REMEDIES[name] in " ".join(render(diagnosis).split())
    assert "\n" not in diagnosis.verdict
    assert [module.training for module in model.modules()] == modes


def test_labels_in_another_order_are_a_doubt(digits: Dataset) -> None:
    test = ImageSet(digits.test.images, (digits.test.labels + 1) % 10)
    diagnosis = examine(fitted(digits, PIXELS), dataclasses.replace(digits, test=test), name="m.py:make")
    assert diagnosis.status == 0
    assert diagnosis.verdict == "m.py:make on digits has 1 doubt (accuracy)."
    assert "no better than guessing (10.0 %)" in render(diagnosis)


def test_range_that_is_stated_is_held_against_the_images(symmetric: nn.Module, digits: Dataset) -> None:
    right = examine(symmetric, digits, input_range="-1,1")
    assert names(right) == {"input domain", "noise"}
    wrong = examine(symmetric, digits, input_range="0,1", eps="0.03")
    assert names(wrong) == {"input domain", "noise", "stated input range"}
    assert wrong.domain == SYMMETRIC
    other = examine(symmetric, digits, input_range="-1/2,1/2", eps="1/255")
    assert "stated input range" in names(other)
    assert "1/255 in [-0.5,0.5] is 1/255 in pixels" in other.equivalents


@pytest.mark.parametrize(
    ("eps", "domain", "sentence"),
    [
        ("8/255", SYMMETRIC, "8/255 in [-1,1] is 4/255 in pixels"),
        ("8/255", PIXELS, "8/255 in [0,1] is 8/255 in pixels"),
        ("8/255", BYTES, "8/255 in [0,255] is 8/65025 in pixels"),
        ("8", BYTES, "8 in [0,255] is 8/255 in pixels"),
        ("0.031", SYMMETRIC, "0.031 in [-1,1] is 0.0155 in pixels"),
        ("3/255", SYMMETRIC, "3/255 in [-1,1] is 1.5/255 in pixels"),
        ("0.1", SYMMETRIC, "0.1 in [-1,1] is 0.05 in pixels"),
        (
            "8/255",
            NORMALISED[0],
            "8/255 after CIFAR-10 normalisation is 0.0077, 0.0076, 0.0082 in pixels (per channel)",
        ),
        ("0.0314159265", SYMMETRIC, "0.0314159265 in [-1,1] is 0.01571 in pixels"),
    ],
)
def test_eps_is_told_in_pixels(eps: str, domain: Domain, sentence: str) -> None:
    assert equivalent(eps, Fraction(eps), domain) == sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"eps": "8/0"}, '"8/0" is no eps: write a fraction like 8/255 or a decimal like 0.03.'),
        ({"eps": "eight"}, '"eight" is no eps'),
        ({"eps": "nan"}, '"nan" is no eps'),
        ({"eps": "-8/255"}, 'An eps is not negative, as "-8/255" is.'),
        ({"input_range": "1,-1"}, 'An input range is "LOW,HIGH" with LOW below HIGH, not "1,-1".'),
        ({"input_range": "0,0"}, "with LOW below HIGH"),
        ({"input_range": "1"}, 'such as -1,1, or one of cifar10, cifar100, imagenet, not "1".'),
        ({"input_range": "a,b"}, '"a" is no end of an input range'),
        ({"input_range": "CIFAR-10"}, '"CIFAR-10" normalises three channels, and the images have 1.'),
    ],
)
def test_bad_input_is_refused_in_one_sentence(digits: Dataset, arguments: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        examine(nn.Identity(), digits, **arguments)  # pyright: ignore[reportArgumentType]
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_without_test_images_or_with_one_class_are_refused(digits: Dataset) -> None:
    with pytest.raises(InputError, match="digits has no test images"):
        examine(nn.Identity(), dataclasses.replace(digits, test=digits.test.select(slice(0, 0))))
    with pytest.raises(InputError, match="digits has a single class"):
        examine(nn.Identity(), dataclasses.replace(digits, classes=("0",)))
