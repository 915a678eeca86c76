"""What the harness takes beyond the bare passes of the model: in training, and in evaluation.

The passes of a step are recorded while it runs, and then made again with nothing around them, on resident tensors:
forward, forward and input gradient, or forward and full backward with the optimiser's step. In training, steps of the
trainer (streams, augmentation, method, log, guard) and their bare passes take turns, so that both see the same machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from benchmark.evaluation import runner
from benchmark.models import subject
from benchmark.results.store import Store
from benchmark.specs import protocol
from benchmarks import synthetic
from benchmarks.stepping import Enough, train
from benchmarks.timing import Race, Row, Settings, race, synchronise
from methods.backbones import Classifier
from methods.data import Dataset
from methods.data.images import ImageSet
from methods.training.checkpoint import FILES, save_weights
from methods.training.config import Experiment
from methods.training.optim import optimizer
from methods.training.run_folder import describe
from methods.training.setup import build_method, build_model

NAME = "overhead"
TARGET = 5.0
"""Percent."""
METHODS = {"standard": "standard", "TRADES": "trades", "EB-JDAT on JEM++": "ebjdat", "SADA-JEM": "sadajem"}
_SECONDS = 1.0
"""Steps shorter than that are timed several at a time."""
_WARM_UP = 2
_KINDS = ("forward", "input gradient", "full backward")


def run(settings: Settings) -> Iterator[Row]:
    data = synthetic.dataset(200 if settings.quick else 50_000, 20 if settings.quick else 100)
    size = "WRN-10-1, batch 64" if settings.quick else "WRN-16-4, batch 64"
    for precision in ("bf16", "float32"):
        for title, recipe in METHODS.items():
            change = {"train": {"precision": precision}}
            chains = {"negatives": {"buffer_size": 1000}}
            options = {"ebjdat": {"host_options": chains}, "sadajem": chains}.get(recipe, {})
            experiment = synthetic.training(recipe, change, {"options": options}, quick=settings.quick)
            found, passes = _training(experiment, data, settings)
            yield found.overhead(NAME, f"training: {title}, {size}, {precision}", TARGET, passes=passes)
    with TemporaryDirectory() as folder:
        for metric, title in (("clean", "clean"), ("pgd20", "PGD-20")):
            found, passes = _evaluation(metric, data, Path(folder), settings)
            case = f"evaluation: {title}, {len(data.test)} images, float32"
            yield found.overhead(NAME, case, TARGET, passes=passes)


@dataclass
class Pass:
    """One forward pass and what was asked of it."""

    rows: int
    kind: str
    training: bool


@dataclass
class Recording:
    """The passes that classifiers made, in their order; None stands for a backward pass through those before it."""

    passes: list[Pass | None] = field(default_factory=list)

    def see(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Be a forward hook of every module."""
        if not isinstance(module, Classifier):
            return
        graph = torch.is_grad_enabled()
        weights = graph and any(parameter.requires_grad for parameter in module.parameters())
        kind = _KINDS[2] if weights else _KINDS[1] if graph and inputs[0].requires_grad else _KINDS[0]
        self.passes.append(Pass(len(inputs[0]), kind, module.training))
        if weights:
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        if self.passes[-1] is not None:
            self.passes.append(None)

    def __str__(self) -> str:
        counts = Counter(item.kind for item in self.passes if item is not None)
        return ", ".join(f"{counts[kind]} {kind}" for kind in _KINDS if counts[kind])


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record the passes of all classifiers."""
    recording = Recording()
    handle = register_module_forward_hook(recording.see)
    try:
        yield recording
    finally:
        handle.remove()


def bare(model: nn.Module, recording: Recording, x: Tensor, step: Callable[[], object] | None = None) -> None:
    """Make the recorded passes on the first rows of ``x``, and ``step`` at the end."""
    pending: list[Tensor] = []
    mode: bool | None = None
    asked: bool | None = None
    for item in recording.passes:
        if item is None:
            torch.stack(pending).sum().backward()
            pending = []
            continue
        if item.training is not mode:
            mode = item.training
            model.train(mode)
        weights = item.kind == _KINDS[2]
        if weights is not asked:
            asked = weights
            model.requires_grad_(weights)
        images = x[: item.rows]
        if item.kind == _KINDS[0]:
            with torch.no_grad():
                model(images)
        elif weights:
            pending.append(model(images).sum())
        else:
            images = images.detach().requires_grad_()
            torch.autograd.grad(model(images).sum(), images)
    if step is not None:
        step()


def _training(experiment: Experiment, data: Dataset, settings: Settings) -> tuple[Race, str]:
    """Run the real loop; between its steps, make the passes of one."""
    model = _twin(experiment, data, settings.device)
    step = _optimiser_step(model, experiment)
    x = data.train.unit(slice(experiment.train.batch_size)).to(settings.device)
    seconds = Race([], [])
    recording = Recording()
    handle = register_module_forward_hook(recording.see)
    done, each, ours, started = 0, 1, 0.0, 0.0

    def behind() -> None:
        nonlocal done, each, ours, started
        synchronise()
        ours += time.perf_counter() - started
        done += 1
        if done == 1:
            # What is made once (kernels, chains) is not in the second.
            recording.passes.clear()
        elif done == _WARM_UP:
            handle.remove()
            bare(model, recording, x, step)
            each = 1 if settings.quick else max(1, round(_SECONDS / ours))
        elif (done - _WARM_UP) % each == 0:
            begun = time.perf_counter()
            for _ in range(each):
                bare(model, recording, x, step)
            synchronise()
            seconds.ours_seconds.append(ours)
            seconds.baseline_seconds.append(time.perf_counter() - begun)
        if len(seconds.ours_seconds) == settings.repeats:
            raise Enough
        if done <= _WARM_UP or (done - _WARM_UP) % each == 0:
            ours = 0.0
        started = time.perf_counter()

    def before() -> None:
        nonlocal started
        started = time.perf_counter()

    try:
        train(experiment, data, settings.device, behind, before)
    finally:
        handle.remove()
    return seconds, str(recording)


def _twin(experiment: Experiment, data: Dataset, device: torch.device) -> Classifier:
    model = build_model(experiment, data).to(device).to(memory_format=torch.channels_last)
    model.autocast = torch.bfloat16 if experiment.train.precision == "bf16" else None
    return model


def _optimiser_step(model: nn.Module, experiment: Experiment) -> Callable[[], None]:
    moved = optimizer(list(model.parameters()), experiment.train, [])
    for group in moved.param_groups:
        # The sum of the logits has no minimum: weights that moved down it would soon be infinite.
        group["lr"] = 0.0

    def step() -> None:
        moved.step()
        moved.zero_grad(set_to_none=True)

    return step


def _evaluation(metric: str, data: Dataset, folder: Path, settings: Settings) -> tuple[Race, str]:
    """Evaluate one metric into a fresh store each time, and make the same passes bare."""
    experiment = synthetic.training("standard", quick=settings.quick)
    model = build_model(experiment, data).eval()
    method = build_method(experiment, data)
    save_weights(folder / FILES["best"], model.state_dict(), describe(experiment, data, method))
    given = subject.from_checkpoint(folder / FILES["best"], settings.device)
    with torch.no_grad():
        # Labels that the network gives: an attack on images that are wrong anyway could stop early.
        labels = given.model(data.test.unit().to(settings.device)).argmax(1).cpu()
    known = Dataset(
        data.name, data.classes, data.train, data.validation, ImageSet(data.test.images, labels), data.mean, data.std
    )
    chosen = protocol.load("attacks-v1", "Linf:8/255")

    def harness() -> None:
        with TemporaryDirectory(dir=folder) as fresh:
            runner.evaluate(given, known, chosen, metrics=[metric], store=Store(Path(fresh)), progress=False)

    with recorded() as recording:
        harness()
    assert recording.passes, "the evaluation made its passes behind the classifier's back"
    x = data.test.unit().to(settings.device)
    return race(lambda: bare(given.model, recording, x), harness, settings.repeats), str(recording)
