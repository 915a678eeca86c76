"""Subjects whose robustness can be written down: linear classifiers on random images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from benchmark.attacks.cascade import Cascade, WrongBoxFAB
from benchmark.cli import main
from benchmark.models.subject import Subject, weights_digest
from benchmark.results.entry import Entry
from benchmark.results.store import Store
from benchmark.specs.protocol import Protocol
from methods.data import Dataset, ImageSet

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Images [B,C,H,W] -> (x - 1/2) W; counts its forward passes."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return (x - 0.5).flatten(1) @ self.weight


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit status, stdout and stderr."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Toy:
    """A data set whose labels a linear classifier gives, save the first ``wrong`` ones."""

    dataset: Dataset
    weight: Tensor

    def model(self) -> Linear:
        """Make the classifier, in eval mode."""
        return Linear(self.weight).eval()

    def subject(self, model: nn.Module | None = None) -> Subject:
        """Wrap a model; the classifier by default."""
        model = self.model() if model is None else model
        shape = self.dataset.image_shape
        classes = self.dataset.num_classes
        return Subject("toy", model, classes, shape, CPU, weights_digest(model), "", "external")

    def margins(self, scale: float) -> Tensor:
        """Return, per image, the exact Linf distance to the nearest other class, negative where misclassified.

        Exact as long as no pixel meets 0 or 1: min over k != y of (z_y - z_k) / |w_y - w_k|_1. ``scale`` is the
        largest distance for which the caller relies on that.
        """
        x, y = self.dataset.test.unit(), self.dataset.test.labels
        assert float(x.min()) >= scale
        assert float(x.max()) <= 1 - scale
        logits = (x - 0.5).flatten(1) @ self.weight
        difference = logits.gather(1, y[:, None]) - logits
        distance = (self.weight[:, y][:, :, None] - self.weight[:, None, :]).abs().sum(0)
        return (difference / distance).scatter(1, y[:, None], torch.inf).amin(1)


@pytest.fixture
def toy() -> Callable[..., Toy]:
    """Make a toy: ``images`` images of 6x6 pixels in [0.2, 0.8], ``classes`` classes, ``wrong`` false labels."""

    def make(images: int = 24, classes: int = 4, wrong: int = 2) -> Toy:
        generator = torch.Generator().manual_seed(0)
        x = 0.2 + 0.6 * torch.rand(images, 1, 6, 6, generator=generator)
        weight = torch.randn(36, classes, generator=generator)
        y = ((x - 0.5).flatten(1) @ weight).argmax(1)
        y[:wrong] = (y[:wrong] + 1) % classes
        split = ImageSet(x, y)
        names = tuple(str(number) for number in range(classes))
        return Toy(Dataset("toy", names, split, split, split, (0.5,), (0.2,)), weight)

    return make


@pytest.fixture
def protocol() -> Callable[..., Protocol]:
    """Make a protocol without AutoAttack, which alone takes seconds; any field can be replaced."""

    def make(**fields: Any) -> Protocol:
        metrics = {"clean": {}, "pgd20": {}, "energy": {}}
        return Protocol(**({"id": "toy-v1", "threat": "Linf:0.02", "shard": 10, "metrics": metrics} | fields))

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def entry() -> Callable[..., Entry]:
    """Make an entry with the given accuracies; any field can be replaced, the nested ones by ``n`` and so on."""

    def make(
        recipe: str = "trades",
        n: int = 100,
        which: str | None = "best",
        protocol: tuple[str, str, str] = ("digits-linf-v1", "a" * 12, "standard"),
        values: dict[str, float | None] | None = None,
        **fields: Any,
    ) -> Entry:
        measurements = {
            metric: {
                "metric": metric,
                "version": 1,
                "status": "failed" if value is None else "done",
                "error": "RuntimeError: it broke" if value is None else None,
                "n": n,
                "values": {} if value is None else {"accuracy": value},
                "seconds": 1.0,
                "key": "0" * 64,
            }
            for metric, value in ({"clean": 90.0, "autoattack": 50.0} if values is None else values).items()
        }
        content: dict[str, Any] = {
            "recipe": recipe,
            "method": recipe,
            "dataset": "digits",
            "threat": "Linf:0.15",
            "seed": 0,
            "config_digest": "c" * 64,
            "subject": {
                "kind": "checkpoint",
                "weights_digest": "d" * 64,
                "which": which,
                "architecture": "wrn-10-2",
                "parameters": 1000,
            },
            "data": {"digests": {"test": "e" * 64}, "n": n, "of": 100},
            "partial": n < 100,
            "protocol": dict(zip(("id", "hash", "role"), protocol, strict=True)),
            "measurements": measurements,
        }
        return Entry.model_validate(content | fields)

    return make


@pytest.fixture(params=["cut", pytest.param("whole", marks=pytest.mark.slow)])
def cut_autoattack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[AutoAttack], None]:
    """Let AutoAttack, standard or custom, take a fifth of its iterations and a 25th of Square's queries; or all.

    An image that stays robust costs 10,000 passes, and most tests are about what is made of the attacks. Returned is
    what does the same to an adversary of the package itself.
    """

    def cut(adversary: AutoAttack) -> None:
        for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            # EB-JDAT's own FAB stands around one, and has next to no image to attack.
            if not isinstance(attack, WrongBoxFAB):
                attack.n_iter //= 5
        adversary.square.n_queries //= 25

    def made(cascade: Cascade, *arguments: Any) -> AutoAttack:
        adversary = whole(cascade, *arguments)
        cut(adversary)
        return adversary

    whole = Cascade._adversary
    if request.param == "whole":
        return lambda _: None
    monkeypatch.setattr(Cascade, "_adversary", made)
    return cut


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make what is named, such as every training or measurement, fail the test."""

    def poison(*names: str) -> None:
        def called(*_: object, **__: object) -> None:
            pytest.fail("what was finished was done again")

        for name in names:
            monkeypatch.setattr(name, called)

    return poison


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line inside this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Finished:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(int(stop.value.code or 0), captured.out, captured.err)

    return call
