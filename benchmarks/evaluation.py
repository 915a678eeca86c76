"""AutoAttack as this project runs it, against how a user of RobustBench runs it, on the same images and seeds.

The other side: the package on the plain, contiguous, eager model in a process of its own, with the batch size that
``robustbench.benchmark`` has by default. Ours: the cascade of the metrics ``autoattack`` and ``autoattack_fast``, with
the same batches, since they decide how random numbers are dealt out. Verdicts are compared.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor

from benchmark.attacks.autoattack import STREAM, contained
from benchmark.attacks.cascade import ROBUST, Cascade
from benchmark.evaluation.runner import exact
from benchmark.evaluation.shards import Shard
from benchmark.models.subject import Subject, from_checkpoint
from benchmarks.apart import Apart
from benchmarks.timing import Race, Row, Settings
from methods import data
from methods.backbones import BackboneConfig, Classifier, build
from methods.errors import InputError
from methods.primitives.attacks import PGD
from methods.primitives.losses import cross_entropy
from methods.primitives.modes import frozen
from methods.primitives.random import generator
from methods.primitives.threat import ThreatModel
from methods.training.heap import keep_freed_memory

NAME = "evaluation"

_BATCH = 32
"""``batch_size`` of ``robustbench.benchmark`` (1.1) where nothing is said."""
_CACHE = Path("runs") / "benchmarks"
_DIGITS = Path(__file__).parents[1] / "leaderboards" / "digits" / "weights" / "c2474ab6b91aac6e.safetensors"
"""PGD-AT, seed 0."""
_LINF = ThreatModel.parse("Linf:8/255")
_CLASSES = 10
_STEPS = 400
"""Number of steps of a training, on batches of 64 images."""


@dataclass(frozen=True)
class _Case:
    """A network, and the images on which it is attacked."""

    title: str
    subject: Subject
    threat: ThreatModel
    shard: Shard
    iterations: int = 100
    queries: int = 5000
    repeats: int = 1
    targets: tuple[float | None, float | None] = (2.0, 4.0)
    """Speed-up that is asked for in float32 and in bfloat16."""

    @property
    def name(self) -> str:
        """What the row is called."""
        whole = (self.iterations, self.queries) == (100, 5000)
        cut = "" if whole else f", cut to {self.iterations} iterations and {self.queries} queries"
        return f"{self.title}, {len(self.shard.y)} images{cut}"


@dataclass(frozen=True)
class _Images:
    """Images [N,3,S,S] in [0,1] and their labels [N], for training and for attacks."""

    kind: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def run(settings: Settings) -> Iterator[Row]:
    """Yield, for each network, the speed-up of the float32 cascade and that of the fast one."""
    keep_freed_memory(settings.device)
    for case in _cases(settings):
        yield from _rows(case)


def _rows(case: _Case) -> Iterator[Row]:
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    theirs, ours = torch.zeros(0), {name: torch.zeros(0) for name in seconds}
    robustbench: list[float] = []
    with Apart(_RobustBench, case) as other:
        for _ in range(case.repeats):
            theirs, taken = other.call("verdicts")
            robustbench.append(taken)
            for precision in seconds:
                started = time.perf_counter()
                ours[precision] = _ours(case, precision)
                seconds[precision].append(time.perf_counter() - started)
    for precision, target in zip(seconds, case.targets, strict=True):
        kind = "AutoAttack standard" if precision == "float32" else "AutoAttack fast (bfloat16, confirmed in float32)"
        yield Race(robustbench, seconds[precision]).speed_up(
            NAME,
            f"{kind}, {case.name}",
            target,
            verdicts=len(theirs),
            verdicts_that_differ=int((ours[precision] != theirs).sum()),
            robust=int(theirs.sum()),
            robust_in_ours=int(ours[precision].sum()),
        )


class _RobustBench:
    """An attack as a user of RobustBench makes it."""

    def __init__(self, case: _Case) -> None:
        self.case = case

    def verdicts(self) -> Tensor:
        """Return which images are robust, bool [N]."""
        case = self.case
        x, y = case.shard.x, case.shard.y
        model = copy.deepcopy(case.subject.model).to(memory_format=torch.contiguous_format)
        with contained(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            attacker = AutoAttack(
                model,
                norm=case.threat.norm,
                eps=case.threat.radius,
                seed=case.shard.seed(STREAM),
                device=x.device,
                version="standard",
            )
            attacker.apgd.n_iter = attacker.apgd_targeted.n_iter = attacker.fab.n_iter = case.iterations
            attacker.square.n_queries = case.queries
            _, predicted = attacker.run_standard_evaluation(x, y, batch_size=_BATCH)
        return (predicted == y).cpu()


def _ours(case: _Case, precision: str) -> Tensor:
    """Attack as this project does; return which images are robust, bool [N]."""
    cascade = Cascade(iterations=case.iterations, queries=case.queries, precision=precision)  # pyright: ignore[reportArgumentType]
    x = case.shard.x
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), exact(case.subject.model):
        return torch.from_numpy(cascade.run(case.subject, case.threat, case.shard, _BATCH)["broken_by"] == ROBUST)


def _cases(settings: Settings) -> Iterator[_Case]:
    images = _images(settings)
    title = f"WRN-{'-'.join(map(str, _size(settings)))} on {images.kind}"
    few: dict[str, Any] = {"iterations": 2, "queries": 10} if settings.quick else {}
    # In full, AutoAttack takes some 10,000 passes for an image that stays robust: half a minute on two cores.
    tenth: dict[str, Any] = few or {"iterations": 10, "queries": 500}
    for kind, steps, count, cut in (("adversarially trained", 2, 64, tenth), ("not robust", 0, 100, few)):
        subject = _trained(images, settings, steps)
        shard = _shard(subject, images.test, 3 if settings.quick else count)
        yield _Case(f"{kind} {title}", subject, _LINF, shard, repeats=min(3, settings.repeats), **cut)
    if _DIGITS.is_file():
        subject = from_checkpoint(_DIGITS, settings.device)
        digits = data.load("digits").test.to(settings.device)
        test = digits.unit(), digits.labels
        shard = _shard(subject, test, 3 if settings.quick else 100)
        # So small a network takes less time than the attacks around it, which are the same on both sides.
        threat = ThreatModel.parse("Linf:0.15")
        yield _Case("PGD-AT, WRN-10-1 on digits", subject, threat, shard, targets=(None, None), **few)


def _shard(subject: Subject, test: tuple[Tensor, Tensor], count: int) -> Shard:
    """Return the first images that the network classifies correctly: on no others does an attack take time."""
    x, y = (values[:1000] for values in test)
    with exact(subject.model), torch.no_grad():
        right = (subject.logits(x, _BATCH).argmax(1) == y).nonzero().squeeze(1)[:count]
    return Shard(0, x[right], y[right], 0)


def _size(settings: Settings) -> tuple[int, int]:
    """Return depth and width."""
    return (10, 1) if settings.quick else (16, 4)


def _images(settings: Settings) -> _Images:
    """Return cifar10-jpeg where it is at hand, else images whose class is a tint."""
    try:
        found = data.load("cifar10-jpeg", root=settings.data or Path("data"))
    except InputError:
        return _tinted(settings)
    train, test = (split.to(settings.device) for split in (found.train, found.test))
    mixed = torch.randperm(len(test), generator=generator(0, "order")).to(settings.device)
    return _Images("cifar10-jpeg", (train.images, train.labels), (test.unit(mixed[:1000]), test.labels[mixed[:1000]]))


def _tinted(settings: Settings) -> _Images:
    """Return noise in ten tints, of which some are nearer to grey than eps."""
    random = generator(0, "tints")
    tints = torch.randn(_CLASSES, 3, 1, 1, generator=random)
    tints = tints / tints.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(_CLASSES, (count,), generator=random)
        strength = 0.3 * torch.rand(count, 1, 1, 1, generator=random)
        x = 0.5 + strength * tints[y] + 0.05 * torch.randn(count, 3, 32, 32, generator=random)
        return x.clamp(0, 1).to(settings.device), y.to(settings.device)

    return _Images("tinted noise", drawn(2000), drawn(1000))


def _trained(images: _Images, settings: Settings, attack_steps: int) -> Subject:
    """Return a network after a short training, from the cache where it is there."""
    (depth, widen), steps = _size(settings), 3 if settings.quick else _STEPS
    torch.manual_seed(0)
    made = build(BackboneConfig(depth=depth, widen=widen), _CLASSES, (3, 32, 32), (0.5,) * 3, (0.25,) * 3)
    model = made.to(settings.device).to(memory_format=torch.channels_last)
    kind = images.kind.replace(" ", "-")
    file = _CACHE / f"wrn-{depth}-{widen}-{kind}-pgd{attack_steps}-{steps}.pt"
    if file.is_file() and not settings.quick:
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        print(f"Training {file.stem}", file=sys.stderr)
        _train(model, images.train, attack_steps, steps)
        if not settings.quick:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), file)
    model.requires_grad_(False).eval()
    return Subject(file.stem, model, _CLASSES, (3, 32, 32), settings.device, "", "", "external")


def _train(model: Classifier, train: tuple[Tensor, Tensor], attack_steps: int, steps: int) -> None:
    random, (images, labels) = generator(0, "training"), train
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    model.autocast = torch.bfloat16
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=random).to(images.device)
        x, y = images[chosen], labels[chosen]
        x = x / 255 if x.dtype == torch.uint8 else x
        if attack_steps:
            with frozen(model):
                attack = PGD(steps=attack_steps, step_size=0.75)
                x = attack(lambda x, y=y: cross_entropy(model(x), y), x, _LINF, random)
        optimizer.zero_grad()
        cross_entropy(model.train()(x), y).mean().backward()
        optimizer.step()
        schedule.step()
    model.autocast = None
