"""A handful of real digits, a network that fits them, and one method on them."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

from methods import get
from methods.backbones import BackboneConfig, Classifier, build
from methods.data import Dataset, load
from methods.primitives.threat import ThreatModel
from methods.training.config import Experiment, experiment, overlay
from methods.training.method import Batch, Method, Task

Options = dict[str, Any]
_FEW_CHAINS = {"negatives": {"buffer_size": 40}}
_SMALL = {"architecture": "wrn", "depth": 10, "widen": 1, "normalize": "none"}
_SMALL_NETWORK = {"backbone": {"architecture": "wrn", "depth": 10, "widen": 1}, "epochs": 1}
TINY: dict[str, Options] = {
    "dhat": {"auxiliary": _SMALL_NETWORK},
    "ebjdat": {"host_options": _FEW_CHAINS},
    **dict.fromkeys(("jem", "jempp", "sadajem", "mebm", "jeat"), _FEW_CHAINS),
    "lbgat": {"teacher": _SMALL},
    "las_at": {"strategy": _SMALL},
}
"""Options that make a method small enough for a test."""


def merged(base: Options, over: Options) -> Options:
    """Lay options over others, mapping by mapping."""
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return base | over | both


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Return 96 training, 50 validation and 20 test images of the digits."""
    full = load("digits", validation=150)
    train, validation, test = full.train, full.validation, full.test
    parts = train.select(slice(96)), validation.select(slice(50)), test.select(slice(20))
    return Dataset(full.name, full.classes, *parts, full.mean, full.std)


@pytest.fixture(scope="session")
def batch(digits: Dataset) -> Batch:
    """Return 16 labelled and 12 other images, clean."""
    x, y = digits.train.unit(), digits.train.labels
    return Batch(x[:16], y[:16], x[16:28], step=0, seed=0, progress=0.0)


@pytest.fixture(scope="session")
def network(digits: Dataset) -> Callable[..., Classifier]:
    """Make WRN-10-1, always the same, in train mode; settings of the backbone may differ."""

    def make(**settings: Any) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            config = overlay(BackboneConfig(depth=10, widen=1), settings, "backbone")
            return build(config, digits.num_classes, digits.image_shape, digits.mean, digits.std)

    return make


@pytest.fixture(scope="session")
def fitted(digits: Dataset, network: Callable[..., Classifier]) -> Classifier:
    """Return the network after 30 steps of Adam on the clean training images; shared, so only to be copied."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = digits.train.unit(), digits.train.labels
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture
def trained(fitted: Classifier) -> Classifier:
    """Return a copy of the fitted network, in train mode and without gradients."""
    model = deepcopy(fitted)
    model.zero_grad()
    return model


@pytest.fixture
def make_method(digits: Dataset) -> Callable[..., Method]:
    """Make a method by name, prepared on the digits, with options, a threat model and images a step for p(x)."""

    def make(name: str, options: Options | None = None, threat: str = "Linf:0.15", density_batch: int = 1) -> Method:
        cls = get(name)
        config = overlay(cls.Config(), merged(TINY.get(name, {}), options or {}), "options")
        task = Task(ThreatModel.parse(threat), digits.num_classes, digits.image_shape, 0, density_batch, batch_size=16)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            method = cls(config, task)
        method.prepare(digits.train)
        return method

    return make


@pytest.fixture
def make_experiment() -> Callable[..., Experiment]:
    """Make an experiment of 18 steps (6 epochs) on the digits, with train settings and options laid over it."""

    def make(method: str, options: Options | None = None, **train: Any) -> Experiment:
        settings = {
            "recipe": f"tiny_{method}",
            "method": method,
            "dataset": "digits",
            "threat": "Linf:0.15",
            "options": merged(TINY.get(method, {}), options or {}),
            "backbone": {"depth": 10, "widen": 1},
            "train": {"epochs": 6, "batch_size": 32, "lr": 0.05, "log_every": 1} | train,
            "data": {"augment": {"padding": 1}, "density": {"noise": 0.015}},
        }
        return experiment(settings)

    return make
