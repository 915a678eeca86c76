"""Reference classifiers: trained apart from every subject, they tell the class of a generated image."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from methods.data import Dataset, ImageSet
from methods.errors import InputError

PROBE = 500
"""Number of test images on which the accuracy of a reference classifier is measured."""
_BATCH = 100


@dataclass(frozen=True)
class ReferenceClassifier:
    """Classifier of images that was trained apart from every subject."""

    name: str
    classify: Callable[[Tensor], Tensor]
    """Images uint8 [N,C,H,W] -> classes int64 [N] on the CPU."""

    def accuracy(self, test: ImageSet) -> float:
        """Return the accuracy, in percent, on the first :data:`PROBE` test images."""
        chosen = slice(0, PROBE)
        images = (test.unit(chosen) * 255).round().to(torch.uint8)
        return 100.0 * (self.classify(images) == test.labels[chosen].cpu()).double().mean().item()


def identity(dataset: str) -> str | None:
    """Return what the answers of a data set's reference classifier depend on besides its training split; None: none."""
    if dataset == "digits":
        return "svc-1"
    file = _resnet_file() if dataset in ("cifar10", "cifar10-jpeg") else None
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def reference_classifier(dataset: Dataset, device: torch.device) -> ReferenceClassifier:
    """Return the reference classifier of a data set.

    digits: a support vector machine with an RBF kernel on the pixels, fitted to the training split. cifar10 and
    cifar10-jpeg: the ResNet-18 that pyautoattack ships with its examples (fra31/auto-attack; adversarially trained,
    inputs in [0, 1] as they are), with an accuracy of 83.2 % on the first 500 test images of cifar10-jpeg.

    Raises:
        InputError: the data set has none, or the installed pyautoattack lacks the network's file.
    """
    if dataset.name == "digits":
        return _support_vectors(dataset.train)
    if dataset.name in ("cifar10", "cifar10-jpeg"):
        return _resnet(device)
    raise InputError("There is no reference classifier for this data set.")


def _support_vectors(train: ImageSet) -> ReferenceClassifier:
    from sklearn.svm import SVC

    machine = SVC().fit(train.unit().flatten(1).cpu().numpy(), train.labels.cpu().numpy())

    def classify(images: Tensor) -> Tensor:
        pixels = images.cpu().flatten(1).float() / 255
        return torch.from_numpy(machine.predict(pixels.numpy()))

    return ReferenceClassifier("support vector machine on the training images", classify)


def _resnet_file() -> Path | None:
    package = find_spec("pyautoattack")
    if package is None or package.origin is None:
        return None
    file = Path(package.origin).parent / "examples" / "model_test.pt"
    return file if file.is_file() else None


def _resnet(device: torch.device) -> ReferenceClassifier:
    from torchvision.models import resnet18

    file = _resnet_file()
    if file is None:
        raise InputError(
            "The reference classifier is a file among pyautoattack's examples, and the installed package lacks it."
        )
    network = resnet18(num_classes=10)
    # CIFAR's ResNet-18: a stem that keeps 32x32, and other names for two kinds of layers.
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    state = torch.load(file, map_location="cpu", weights_only=True)
    renamed = {name.replace("shortcut", "downsample").replace("linear", "fc"): value for name, value in state.items()}
    network.load_state_dict(renamed)
    network.to(device).to(memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def classify(images: Tensor) -> Tensor:
        pixels = (batch.to(device).float() / 255 for batch in images.split(_BATCH))
        return torch.cat([network(batch).argmax(1).cpu() for batch in pixels])

    return ReferenceClassifier("ResNet-18 of pyautoattack's examples", classify)
