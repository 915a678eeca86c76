"""Fixed inputs behind the numbers of tests/golden: closed formulas, which no random generator can move.

Each JSON file there holds numbers that the authors' released code computed, in float64, on exactly these
tensors and this network, and names the repository and commit. Noise that their code draws was replaced by
``noise`` below. Of the gradient entries whose sign they take, none is smaller than 2e-4 of the mean, so that
rounding in float32 turns none of them. Tests in float32 agree within 1e-5: the longest sums of the network are
128 products, each rounded by 2^-24, in all 7.6e-6 on any processor; the activations have no kink.
"""

import json
import pickle
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.engines.jobs import Job, News, perform

# The tensors of these tests are tiny: threads would only wait for each other.
torch.set_num_threads(1)


def _seed(name: str) -> None:
    """Seed the global random generators of torch, NumPy and Python by a name."""
    seed = zlib.crc32(name.encode())
    # torch.manual_seed does the same, and takes a millisecond more for the sake of GPUs.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


# What a test draws, and the weights of the networks that it builds, do not depend on the tests before it. A fixture has
# a seed of its own, so that it draws other numbers than the test, and the same ones whichever test is its first.
@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    _seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed("test")


def _wave(shape: torch.Size | tuple[int, ...], phase: float) -> Tensor:
    """Return a fixed tensor of values in (-1, 1) that looks irregular: sin of a running index."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(12.9898 * index + 78.233 * phase).reshape(shape).float()


def _network() -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    _fill(network, linear=12)
    return network


def _fill(network: nn.Module, linear: float = 2) -> None:
    with torch.no_grad():
        for phase, (name, value) in enumerate(network.state_dict().items()):
            wave = _wave(value.shape, phase)
            if name.endswith("num_batches_tracked"):
                continue
            if value.dim() > 1:
                value.copy_((2 if value.dim() == 4 else linear) * wave / value[0].numel() ** 0.5)
            elif name.endswith("running_var"):
                value.copy_(0.5 + 0.2 * wave)
            else:
                value.copy_(0.2 * wave + (value.mean() > 0.5))


@pytest.fixture
def fill_network() -> Callable[[nn.Module], None]:
    """Give any new network weights and statistics, each by its place among those of its state dict."""
    return _fill


@pytest.fixture
def golden_pictures() -> Tensor:
    """Return two images of CIFAR-10's size, [2, 3, 32, 32] in [0, 1]."""
    return 0.5 + 0.5 * _wave((2, 3, 32, 32), 212)


@pytest.fixture
def golden_network() -> Callable[[], nn.Sequential]:
    """Make the network, fresh and in train mode: [0, 1] images [B, 3, 8, 8] -> logits [B, 10]; BatchNorm."""
    return _network


@pytest.fixture
def golden_images() -> dict[str, Tensor]:
    """Return ``x``, ``x_other`` [4, 3, 8, 8] in [0, 1], their ``noise`` in (-1, 1), and labels ``y`` [4]."""
    shape = (4, 3, 8, 8)
    return {
        "x": 0.5 + 0.5 * _wave(shape, 212),
        "x_other": 0.5 + 0.5 * _wave(shape, 213),
        "noise": _wave(shape, 214),
        "y": torch.tensor([7, 1, 9, 7]),
    }


@pytest.fixture
def golden() -> Callable[[str], dict[str, Any]]:
    """Read tests/golden/<name>.json."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())

    return read


class InProcess:
    """The crew of :class:`benchmark.engines.local.Processes` without processes: the job given last is done first.

    Jobs and what they return are pickled, and each worker keeps what it has loaded to itself, as across a process
    boundary. Starting a real worker takes seconds, most of them for importing torch.
    """

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self._given: dict[int, bytes] = {}
        self._kept: dict[int, dict[Any, Any]] = {worker: {} for worker in range(1, size + 1)}

    def give(self, worker: int, job: Job) -> None:
        assert worker not in self._given, "a worker does one job at a time"
        self._given[worker] = pickle.dumps(job)

    def news(self, seconds: float) -> list[tuple[int, News]]:
        worker, job = self._given.popitem()
        said: list[News] = []
        said.append(perform(pickle.loads(job), self._kept[worker], said.append))
        return [(worker, pickle.loads(pickle.dumps(news))) for news in said]

    def close(self) -> None:
        self._given.clear()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let several workers of this machine be :class:`InProcess`."""
    monkeypatch.setattr("benchmark.engines.local.Processes", InProcess)
