"""How much faster a training step is than the authors' released code takes it, at the same mathematics.

Both sides begin at the same weights and take their first step on the same images, from the same starts of attack and
chains, and the losses in front of that step are compared: in float32 they differ by rounding alone, which the sign of a
small gradient and ten sampler steps magnify. Where ours differs by design (the papers' files say where) it is:

- JEM++, EB-JDAT: one sampler step of 1 in place of five of 0.2 along the same gradient, which is the same point.
- EB-JDAT: ours attacks before the chains run and the code after the labelled images, with other running statistics.
  For the comparison, not for the clock, the code's attack comes first as well. Ours has the options by which it raises
  what the code raises (the recipe "ebjdat_code_literal").
- BatchNorm's running statistics weigh the passes otherwise, since ours has fewer; no loss of a first step sees it.

The released codes know float32 alone; ours is timed in float32 and bf16, compiled. Images are synthetic. The released
step has a process of its own, since ours tells its process what to do with memory.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import released
from benchmarks.apart import Apart
from benchmarks.timing import Race, Row, Settings, timed
from methods import get
from methods.backbones import BackboneConfig, Classifier, build
from methods.data import ImageSet
from methods.primitives.random import generator, normal_like
from methods.primitives.threat import ThreatModel
from methods.training.compiled import Compiled
from methods.training.config import TrainConfig, overlay
from methods.training.heap import keep_freed_memory
from methods.training.method import Batch, Method, Task
from methods.training.optim import Updater, optimizer

NAME = "training"

CLASSES = 10
LR = 1e-3
"""Small, so that some steps on one batch of noise leave every loss finite."""


@dataclass(frozen=True)
class Size:
    """Network, images and state of a contest."""

    depth: int = 16
    widen: int = 4
    side: int = 32
    batch: int = 64
    train: int = 45_000
    buffer: int = 10_000
    matmul: int = 2048

    def __str__(self) -> str:
        return f"WRN-{self.depth}-{self.widen}, batch {self.batch}, {self.side}x{self.side}"


QUICK = Size(depth=10, widen=1, side=8, batch=8, train=200, buffer=40, matmul=64)


@dataclass(frozen=True)
class Case:
    """A method, and what the issue asks of it in float32 and bf16."""

    title: str
    method: str
    weight_decay: float
    targets: tuple[float | None, float | None] = (1.7, 3.0)

    def options(self, size: Size) -> dict[str, Any]:
        """Return the options by which ours does what the released code does."""
        chains = {"negatives": {"buffer_size": size.buffer}}
        if self.method != "ebjdat":
            return {} if self.method == "trades" else chains
        attack = {"objective": "code_literal", "perceptual": "logit_cos", "scale": "faithful"}
        return {"host_options": chains, "attack": attack}


CASES = (
    Case("TRADES", "trades", 2e-4),
    Case("JEM++", "jempp", 4e-4),
    Case("SADA-JEM", "sadajem", 5e-4, (None, None)),
    Case("EB-JDAT on JEM++", "ebjdat", 4e-4),
)


@dataclass(frozen=True)
class Problem:
    """What both sides are given: initial weights, a method in its first state, images."""

    case: Case
    size: Size
    model: Classifier
    method: Method
    train: ImageSet
    x: Tensor
    y: Tensor
    x_density: Tensor

    def batch(self, step: int, images: int | None = None) -> Batch:
        """Return the images, or so many of them, as those of step ``step``."""
        part = slice(images)
        return Batch(self.x[part], self.y[part], self.x_density[part], step, seed=0, progress=0.0)


def problem(case: Case, size: Size, device: torch.device) -> Problem:
    """Build the problem of a case on synthetic images, which are noise around one mean image a class."""
    random = generator(0, "benchmark", case.method)
    shape = (3, size.side, size.side)
    labels = torch.arange(size.train) % CLASSES
    means = torch.rand(CLASSES, *shape, generator=random)
    noise = torch.randint(0, 128, (size.train, *shape), dtype=torch.uint8, generator=random)
    train = ImageSet(((127 * means).to(torch.uint8)[labels] + noise).to(device), labels.to(device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = case.method == "trades"
        backbone = BackboneConfig(
            architecture="wrn" if plain else "jem-wrn",
            depth=size.depth,
            widen=size.widen,
            norm_momentum=0.1 if plain else 0.9,
            normalize="none" if plain else "half",
        )
        model = build(backbone, CLASSES, shape, (0.5,) * 3, (0.5,) * 3).to(device)
        threat = ThreatModel.parse("Linf:0.031" if plain else "Linf:8/255")
        task = Task(threat, CLASSES, shape, 0, density_batch=size.batch, batch_size=size.batch)
        cls = get(case.method)
        method: Method = cls(overlay(cls.Config(), case.options(size), "options"), task).to(device)
    method.prepare(train)
    chosen = torch.arange(2 * size.batch, device=device)
    x, x_density = train.unit(chosen).split(size.batch)
    return Problem(case, size, model, method, train, x, train.labels[chosen[: size.batch]], x_density)


class Ours:
    """The step as the trainer takes it.

    Args:
        given: the problem; it is left as it is.
        precision: of the network.
        compiled: as ``train.compile`` does; else eager, to count what is computed.
    """

    def __init__(self, given: Problem, precision: torch.dtype = torch.float32, compiled: bool = True) -> None:
        self.given = given
        self.model = copy.deepcopy(given.model).to(memory_format=torch.channels_last)
        self.model.autocast = None if precision == torch.float32 else precision
        self.network = Compiled(self.model, [given.size.batch]) if compiled else self.model
        self.method = copy.deepcopy(given.method)
        config = TrainConfig(lr=LR, momentum=0.9, weight_decay=given.case.weight_decay)
        self.update = Updater(optimizer(self.model.parameters(), config), config.gradient_clip)
        self.step = 0

    def __call__(self, images: int | None = None) -> float:
        """Take the next step, on all images or so many of them; return the loss in front of it."""
        losses = self.method.step(self.network, self.given.batch(self.step, images), self.update)
        self.step += 1
        return float(losses.total.detach())


class Theirs:
    """The step as the released code takes it.

    Args:
        given: the problem; it is left as it is.
    """

    def __init__(self, given: Problem) -> None:
        self.given = given
        self.network: Any = copy.deepcopy(given.model.network)
        if given.case.method == "trades":
            self.step: Callable[..., Tensor] = released.TRADES(self.network, LR)
            return
        gaussians = released.class_gaussians(given.train.images, given.train.labels)
        chains = released.Chains(_signed(_negatives(given.method).buffer.images.cpu().clone()), gaussians)
        steps = {"jempp": released.JEMPP, "sadajem": released.SADAJEM, "ebjdat": released.EBJDAT}
        self.step = steps[given.case.method](self.network, chains, LR)

    def first(self) -> float:
        """Take the first step from the starts that ours draws in its first step; return the loss in front of it."""
        batch, method = self.given.batch(0), self.given.method
        if isinstance(self.step, released.TRADES):
            start = batch.x + 0.001 * normal_like(batch.x, batch.generator("attack"))
            return float(self.step(batch.x, batch.y, start))
        negatives, random = _negatives(method), batch.generator("sampler")
        _, chains = negatives.buffer.draw(
            len(batch.density),
            negatives.chains.restart_probability,
            lambda new: negatives.start.sample_any(new, random),
            random,
        )
        images = [_signed(batch.density), _signed(batch.x), batch.y]
        starts = [_signed(chains).to(batch.x.device)]
        if isinstance(self.step, released.EBJDAT):
            starts.append(_signed(method.task.threat.random_start(batch.x, batch.generator("attack"), scale=0.5)))
            self.step.attack_first = True
        loss = float(self.step(*images, *starts))
        if isinstance(self.step, released.EBJDAT):
            self.step.attack_first = False
        return loss

    def next(self) -> float:
        """Take a step with starts of its own; return the loss in front of it."""
        batch = self.given.batch(0)
        if isinstance(self.step, released.TRADES):
            return float(self.step(batch.x, batch.y))
        return float(self.step(_signed(batch.density), _signed(batch.x), batch.y))


def theirs_apart(case: Case, size: Size, device: torch.device) -> Theirs:
    """Return the released side of a problem, in a process that has yet to be set up."""
    torch.backends.cudnn.benchmark = device.type == "cuda"
    return Theirs(problem(case, size, device))


def _signed(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1]."""
    return 2 * images - 1


def _negatives(method: nn.Module) -> Any:
    return getattr(method, "base", method).negatives


class _Counted(TorchDispatchMode):
    """Adds up the operations of what runs inside; torch's FlopCounterMode breaks off at torch.autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        out = func(*args, **keywords)
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **keywords, out_val=out)
        return out


def operations(given: Problem) -> float:
    """Return the floating-point operations of one step of ours: its convolutions and matrix products."""
    step = Ours(given, compiled=False)
    with _Counted() as counted:
        step(images=2)
    return counted.total * given.size.batch / 2


def ceiling(device: torch.device, precision: torch.dtype, n: int) -> float:
    """Return how many floating-point operations a second the device does on a product of two n x n matrices."""
    a, b = (torch.randn(n, n, device=device).to(precision) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    # Convolutions may use TF32 by default and matrix products may not.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return 2 * n**3 / min(timed(lambda: a @ b, repeats=5))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def run(settings: Settings) -> Iterator[Row]:
    """Race every case in float32 and bf16 against the released step, which always is float32."""
    size = QUICK if settings.quick else Size()
    repeats = 1 if settings.quick else settings.repeats
    if settings.device.type == "cuda":
        size = size if settings.quick else Size(matmul=8192)
        # As the released codes of the JEM family set it.
        torch.backends.cudnn.benchmark = True
    else:
        # A step of the released codes takes 5 to 20 seconds.
        repeats = min(repeats, 3)
    names = {torch.float32: "float32", torch.bfloat16: "bf16"}
    ceilings = {precision: ceiling(settings.device, precision, size.matmul) for precision in names}
    keep_freed_memory(settings.device)
    for case in CASES:
        _say(f"{case.title}: preparing")
        given = problem(case, size, settings.device)
        flops = operations(given)
        public_seconds: list[float] = []
        seconds: dict[torch.dtype, list[float]] = {precision: [] for precision in names}
        losses, compilation = {}, {}
        with Apart(theirs_apart, case, size, settings.device) as theirs:
            loss_public, _ = theirs.call("first")
            # A tiny network is compiled no faster than a large one.
            ours = {precision: Ours(given, precision, compiled=not settings.quick) for precision in names}
            for precision, step in ours.items():
                started = time.perf_counter()
                losses[precision] = step()
                compilation[precision] = time.perf_counter() - started
                _say(f"{case.title}, {names[precision]}: first step after {compilation[precision]:.0f} s")
            for _ in range(repeats):
                # In turn, and one baseline for both: a step of theirs takes as long as several of ours.
                public_seconds.append(theirs.call("next")[1])
                for precision, step in ours.items():
                    seconds[precision] += timed(step, repeats=1, warm_up=0)
        for target, (precision, name) in zip(case.targets, names.items(), strict=True):
            race = Race(public_seconds, seconds[precision])
            best = min(seconds[precision])
            yield race.speed_up(
                NAME,
                f"{case.title}, {size}, {name}",
                target,
                loss_public=loss_public,
                loss_ours=losses[precision],
                loss_difference=abs(loss_public - losses[precision]),
                images_per_second=size.batch / best,
                images_per_second_public=size.batch / min(public_seconds),
                first_step_seconds=compilation[precision],
                gflop_a_step=flops / 1e9,
                ceiling_gflop_a_second=ceilings[precision] / 1e9,
                share_of_ceiling=flops / best / ceilings[precision],
            )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
