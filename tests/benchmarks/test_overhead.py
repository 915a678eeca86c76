"""The passes that the overhead is measured against are those that a step makes, of the kind that it makes them."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import synthetic
from benchmarks.overhead import METHODS, Pass, Recording, bare, recorded
from methods.backbones import Classifier
from methods.primitives.modes import frozen
from methods.training.setup import build_model
from methods.training.trainer import train

_DATA = synthetic.dataset(64, side=8)


@pytest.fixture
def model() -> Classifier:
    return build_model(synthetic.training("standard", quick=True), _DATA)


def test_each_kind_of_pass_is_told_from_the_others(model: Classifier) -> None:
    x = _DATA.train.unit(slice(4))
    with recorded() as recording:
        with frozen(model):
            with torch.no_grad():
                model(x[:3])
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(model(leaf).sum(), leaf)
        (model(x).sum() + model(x).sum()).backward()
        model(x[:2]).sum().backward()
    full = Pass(4, "full backward", True)
    assert recording.passes == [
        Pass(3, "forward", False),
        Pass(4, "input gradient", False),
        full,
        full,
        None,
        Pass(2, "full backward", True),
        None,
    ]
    assert str(recording) == "1 forward, 1 input gradient, 3 full backward"
    model(x)
    assert len(recording.passes) == 7


def test_bare_passes_are_the_recorded_ones(model: Classifier) -> None:
    x = _DATA.train.unit(slice(8))
    wanted = [
        Pass(8, "forward", False),
        Pass(5, "input gradient", True),
        Pass(8, "full backward", True),
        Pass(8, "full backward", True),
        None,
        Pass(3, "full backward", False),
        None,
    ]
    with recorded() as again:
        bare(model, Recording([*wanted]), x)
    assert again.passes == wanted


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [
        # The passes of the formulas: a step's losses, its attack of 10, 5 and the sampler's 10 and 5 steps.
        ("standard", {("full backward", True): 1}),
        ("trades", {("forward", False): 1, ("input gradient", False): 10, ("full backward", True): 2}),
        ("ebjdat", {("input gradient", False): 5, ("input gradient", True): 10, ("full backward", True): 4}),
        ("sadajem", {("input gradient", True): 5, ("full backward", True): 6}),
    ],
)
def test_a_step_makes_the_passes_of_its_method(
    recipe: str, counts: dict[tuple[str, bool], int], tmp_path: Path
) -> None:
    assert recipe in METHODS.values()
    chains = {"negatives": {"buffer_size": 64}}
    options = {"ebjdat": {"host_options": chains}, "sadajem": chains}.get(recipe, {})
    change = {"options": options, "train": {"epochs": 1, "validate_every": 1, "first_statistics": False}}
    experiment = synthetic.training(recipe, change, {"data": {"augment": {"padding": 1}}}, quick=True)
    with recorded() as recording:
        train(experiment, _DATA, tmp_path, torch.device("cpu"))
    seen = Counter((item.kind, item.training) for item in recording.passes if item is not None)
    # At its end the trainer labels the chains that it shows.
    assert seen - Counter({("forward", False): int(bool(options))}) == counts


def test_synthetic_images_are_the_same_every_time_and_their_classes_differ() -> None:
    data, again = (synthetic.dataset(40, 5, classes=4, side=8) for _ in range(2))
    assert data.digests == again.digests
    assert (len(data.train), len(data.validation), len(data.test), data.image_shape) == (40, 0, 5, (3, 8, 8))

    def mean(k: int) -> Tensor:
        return data.train.images[data.train.labels == k].float().mean(0)

    assert (mean(0) - mean(1)).abs().mean() > 20
